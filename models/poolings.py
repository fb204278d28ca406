"""Token poolings: which electrodes become one token a patch. Plain functions of names; `POOLINGS` lists them."""

from collections.abc import Sequence

Groups = dict[str, list[int]]  # name → positions in the encoder's order


def region(electrodes: Sequence[str], regions: Sequence[str]) -> Groups:
    """Whole brain regions: left and right are averaged together."""
    groups: Groups = {}
    for position, name in enumerate(regions):
        groups.setdefault(name, []).append(position)
    return groups


def hemisphere(electrodes: Sequence[str], regions: Sequence[str]) -> Groups:
    """Each region split into left, midline and right, where it has such electrodes."""
    groups: Groups = {}
    for name in dict.fromkeys(regions):
        for side in ("left", "midline", "right"):
            of = [k for k, electrode in enumerate(electrodes) if regions[k] == name and side_of(electrode) == side]
            if of:
                groups[f"{name} {side}"] = of
    return groups


def electrode(electrodes: Sequence[str], regions: Sequence[str]) -> Groups:
    """No pooling."""
    return {name: [position] for position, name in enumerate(electrodes)}


def side_of(name: str) -> str:
    """ "left" for odd, "right" for even, "midline" for z names of the 10-20 system."""
    if name[-1] in "zZ":
        return "midline"
    return "left" if int(name[-1]) % 2 else "right"
