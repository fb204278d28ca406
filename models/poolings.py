"""Token poolings: which electrodes become one token a patch, as plain functions of names; and the mean itself."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn

FEATURES = 200  # CSBrain's width

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
            places = [k for k, electrode in enumerate(electrodes) if regions[k] == name and side_of(electrode) == side]
            if places:
                groups[f"{name} {side}"] = places
    return groups


def electrode(electrodes: Sequence[str], regions: Sequence[str]) -> Groups:
    """No pooling."""
    return {name: [position] for position, name in enumerate(electrodes)}


def side_of(name: str) -> str:
    """ "left" for odd, "right" for even, "midline" for z names of the 10-20 system."""
    number = re.search(r"(\d+)h?$", name)  # "h" of the 10-5 system: half way to the next place
    if number is None:
        return "midline"
    return "left" if int(number[1]) % 2 else "right"


class EEGTokenReducer(nn.Module):
    """Mean over each group's electrodes: features (B, C, P, D) → tokens (B, groups·P, D), group-major.

    groups : mapping of str to sequence of int. Name → positions along C, from a function of `POOLINGS`.
    n_positions : int. C: electrodes, or 1 for an encoder that mixes them.
    """

    def __init__(self, groups: Mapping[str, Sequence[int]], n_positions: int):
        super().__init__()
        self.groups = {name: list(positions) for name, positions in groups.items()}
        weights = torch.zeros(len(self.groups), n_positions)  # (G, C)
        for row, positions in zip(weights, self.groups.values(), strict=True):
            row[positions] = 1 / len(positions)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        pooled = torch.einsum("gc,bcpd->bgpd", self.weights.to(features.dtype), features)
        return pooled.flatten(1, 2)  # (B, G·P, D)
