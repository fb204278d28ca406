"""Electrodes, brain regions and their order inside the encoder. Each dataset's file holds its own montage."""

from collections.abc import Sequence
from dataclasses import dataclass

# CSBrain's codes
REGION_NAMES = {0: "frontal", 1: "parietal", 2: "temporal", 3: "occipital", 4: "central"}


@dataclass(frozen=True)
class Montage:
    """Where the electrodes of a recording sit.

    electrodes : tuple of str. In the order of the stored trials.
    topology : dict of int to tuple of str. Region code → its electrodes, in the order in which CSBrain sees them.
    """

    electrodes: tuple[str, ...]
    topology: dict[int, tuple[str, ...]]

    def of_regions(self, regions: Sequence[str]) -> "Montage":
        """The part of it that lies in these regions, in the same order. ValueError names a region that it has not."""
        codes = {REGION_NAMES[code]: code for code in self.topology}
        unknown = [name for name in regions if name not in codes]
        if unknown or not regions:
            raise ValueError(f"it has no region {', '.join(unknown) or '(none named)'}; it has {', '.join(codes)}")
        topology = {code: self.topology[code] for name, code in codes.items() if name in regions}
        inside = {name for names in topology.values() for name in names}
        return Montage(tuple(name for name in self.electrodes if name in inside), topology)

    @property
    def brain_regions(self) -> list[int]:
        """Region code of every electrode, in input order."""
        code_of = {name: code for code, names in self.topology.items() for name in names}
        return [code_of[name] for name in self.electrodes]

    @property
    def sorted_indices(self) -> list[int]:
        """Input positions of the electrodes, region by region in ascending code."""
        return [self.electrodes.index(name) for code in sorted(self.topology) for name in self.topology[code]]

    @property
    def region_names(self) -> list[str]:
        """Region name of every electrode, in input order."""
        return [REGION_NAMES[code] for code in self.brain_regions]
