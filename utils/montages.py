"""Electrodes, brain regions and their order inside the encoder, for every dataset.

Region codes are CSBrain's: 0 frontal, 1 parietal, 2 temporal, 3 occipital, 4 central. Sources: the datasets' own
documentation and the published preprocessing of CBraMod and CSBrain.
"""

from dataclasses import dataclass

REGION_NAMES = {0: "frontal", 1: "parietal", 2: "temporal", 3: "occipital", 4: "central"}
TOKEN_POOLINGS = ("region", "hemisphere", "electrode")


@dataclass(frozen=True)
class Montage:
    """Where the electrodes of a recording sit.

    Attributes
    ----------
    electrodes : tuple of str
        In the order of the stored trials.
    topology : dict of int to tuple of str
        Region code → its electrodes, in the order in which the encoder sees them.
    """

    electrodes: tuple[str, ...]
    topology: dict[int, tuple[str, ...]]

    @property
    def brain_regions(self) -> list[int]:
        """Region code of every electrode, in input order."""
        code_of = {name: code for code, names in self.topology.items() for name in names}
        return [code_of[name] for name in self.electrodes]

    @property
    def sorted_indices(self) -> list[int]:
        """Input positions of the electrodes, region by region in ascending code."""
        return [self.electrodes.index(name) for code in sorted(self.topology) for name in self.topology[code]]

    def groups(self, token_pooling: str) -> dict[str, list[int]]:
        """Electrode groups that become one token a patch.

        Parameters
        ----------
        token_pooling : {"region", "hemisphere", "electrode"}
            Whole regions; regions split into left, midline and right where they have such electrodes; no pooling.

        Returns
        -------
        dict of group name to positions **in the encoder's order** (not in input order).
        """
        groups: dict[str, list[int]] = {}
        for position, index in enumerate(self.sorted_indices):
            name, region = self.electrodes[index], REGION_NAMES[self.brain_regions[index]]
            if token_pooling == "region":
                key = region
            elif token_pooling == "hemisphere":
                key = f"{region} {hemisphere(name)}"
            elif token_pooling == "electrode":
                key = name
            else:
                raise ValueError(f"token_pooling {token_pooling!r} is none of {TOKEN_POOLINGS}")
            groups.setdefault(key, []).append(position)
        if token_pooling == "hemisphere":  # regions in ascending code, each left, midline, right
            regions = [REGION_NAMES[code] for code in sorted(self.topology)]
            sides = ("left", "midline", "right")
            groups = {f"{r} {s}": groups[f"{r} {s}"] for r in regions for s in sides if f"{r} {s}" in groups}
        return groups


def hemisphere(electrode: str) -> str:
    """ "left" for odd, "right" for even, "midline" for z names of the 10-20 system."""
    if electrode[-1] in "zZ":
        return "midline"
    return "left" if int(electrode[-1]) % 2 else "right"


BCIC = Montage(
    electrodes=tuple("Fz FC3 FC1 FCz FC2 FC4 C5 C3 C1 Cz C2 C4 C6 CP3 CP1 CPz CP2 CP4 P1 Pz P2 POz".split()),
    topology={
        0: ("Fz",),
        1: tuple("P1 Pz P2 POz".split()),
        4: tuple("FC3 FC1 FCz FC2 FC4 C5 C3 C1 Cz C2 C4 C6 CP3 CP1 CPz CP2 CP4".split()),
    },
)

VI = Montage(
    electrodes=tuple(
        "Fpz Fp1 Fp2 Fz F3 F4 F7 F8 FCz FC3 FC4 FT7 FT8 Cz C3 C4 T7 T8 "
        "CP3 CP4 TP7 TP8 Pz P3 P4 P7 P8 PO3 PO4 Oz O1 O2".split()
    ),
    topology={
        0: tuple("Fp1 Fpz Fp2 F7 F3 Fz F4 F8".split()),
        1: tuple("P7 P3 Pz P4 P8".split()),
        2: tuple("FT7 T7 TP7 TP8 T8 FT8".split()),
        3: tuple("PO3 O1 Oz O2 PO4".split()),
        4: tuple("FC3 FCz FC4 C3 Cz C4 CP3 CP4".split()),
    },
)

FACED = Montage(
    electrodes=tuple(
        "Fp1 Fp2 Fz F3 F4 F7 F8 FC1 FC2 FC5 FC6 Cz C3 C4 T7 T8 CP1 CP2 CP5 CP6 Pz P3 P4 P7 P8 PO3 PO4 Oz O1 O2".split()
    ),
    topology={
        0: tuple("Fp1 FC5 FC1 F7 F3 Fz F4 F8 FC2 FC6 Fp2".split()),
        1: tuple("P7 P3 Pz P4 P8".split()),
        2: tuple("T7 T8".split()),
        3: tuple("PO3 O1 Oz O2 PO4".split()),
        4: tuple("CP5 CP1 C3 Cz C4 CP2 CP6".split()),
    },
)
