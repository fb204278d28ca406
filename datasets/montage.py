"""Electrodes, brain regions and their order inside the encoder. Each dataset's file holds its own montage."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# CSBrain's codes
REGION_NAMES = {0: "frontal", 1: "parietal", 2: "temporal", 3: "occipital", 4: "central"}


@dataclass(frozen=True)
class Montage:
    """Where the electrodes of a recording sit."""

    electrodes: tuple[str, ...]  # in the order of the stored trials
    topology: dict[int, tuple[str, ...]]  # region code → its electrodes, in the order in which CSBrain sees them

    def part(self, names: Sequence[str]) -> "Montage":
        """The part that these regions and electrodes name, in the same order; ValueError names what is not there."""
        codes = {REGION_NAMES[code]: code for code in self.topology}
        unknown = [str(name) for name in names if name not in codes and name not in self.electrodes]
        if unknown or not names:
            asked = ", ".join(unknown) or "(none named)"
            raise ValueError(f"it has no region or electrode {asked}; it has {', '.join((*codes, *self.electrodes))}")
        inside = {name for name in names if name in self.electrodes}
        inside |= {name for region, code in codes.items() if region in names for name in self.topology[code]}
        topology = {code: tuple(name for name in region if name in inside) for code, region in self.topology.items()}
        electrodes = tuple(name for name in self.electrodes if name in inside)
        return Montage(electrodes, {code: region for code, region in topology.items() if region})

    @property
    def mirrored(self) -> list[tuple[str, str]]:
        """Electrodes that lie over the same place left and right: C3 and C4. In the 10-20 system odd numbers are left,
        and the next even one is right."""
        numbered = {name: re.fullmatch(r"(\D+?)(\d+)(h?)", name) for name in self.electrodes}
        at = {(m[1].upper(), int(m[2]), m[3]): name for name, m in numbered.items() if m}
        pairs = [((letters, n, half), (letters, n + 1, half)) for letters, n, half in at if n % 2]
        return [(at[left], at[right]) for left, right in pairs if right in at]

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
