"""Where electrodes sit on an ideal head, and the edges that RGNN begins with."""

from collections.abc import Sequence

import numpy as np
import torch

RADIUS = 85.0  # mm, of the sphere
STRENGTH = 4710.0  # mm², of an edge: 1 up to 68.6 mm, then as 1 / distance²
# between the hemispheres, whose edge is less by 1 (Zhong et al., IEEE T. Affect. Comput. 13, 2020)
PAIRS = [pair.split("-") for pair in "FP1-FP2 AF3-AF4 F5-F6 FC5-FC6 C5-C6 CP5-CP6 P5-P6 PO5-PO6 O1-O2".split()]
# mm to the right, to the front, upwards: EEGLAB's ideal 10-10 positions, and the two of the cerebellum, off the sphere.
# They were found from the initial edges of the published network, which they give again to 2e-6.
POSITIONS = {
    "FP1": (-26.1330, 80.7840, -4.0011), "FPZ": (0.0000, 84.9812, -1.7860), "FP2": (26.1330, 80.7840, -4.0011),
    "AF3": (-31.4828, 76.1528, 20.8468), "AF4": (31.4828, 76.1528, 20.8468),
    "F7": (-68.4233, 49.8714, -7.4895), "F5": (-63.0582, 54.0379, 18.1264), "F3": (-48.2004, 57.5511, 39.8697),
    "F1": (-26.0421, 59.9127, 54.3808), "FZ": (0.0000, 60.7385, 59.4629), "F2": (26.0254, 59.8744, 54.4310),
    "F4": (48.1426, 57.5840, 39.8920), "F6": (63.0447, 54.0263, 18.2076), "F8": (68.3836, 49.9265, -7.4851),
    "FT7": (-80.4100, 26.2075, -8.5086), "FC5": (-76.2474, 28.7628, 24.1669), "FC3": (-59.2750, 30.9553, 52.4714),
    "FC1": (-32.3514, 32.4362, 71.5981), "FCZ": (0.0000, 32.9279, 78.3630), "FC2": (32.3514, 32.4362, 71.5981),
    "FC4": (59.2750, 30.9553, 52.4714), "FC6": (76.2474, 28.7628, 24.1669), "FT8": (80.4100, 26.2075, -8.5086),
    "T7": (-84.5385, 0.0000, -8.8451), "C5": (-80.8315, 0.0000, 26.2918), "C3": (-63.1713, 0.0000, 56.8717),
    "C1": (-34.5374, 0.0000, 77.6670), "CZ": (0.0000, 0.0000, 85.0000), "C2": (34.6092, 0.0000, 77.6351),
    "C4": (63.1673, 0.0000, 56.8761), "C6": (80.8315, 0.0000, 26.2918), "T8": (84.5385, 0.0000, -8.8451),
    "TP7": (-80.4100, -26.2075, -8.5086), "CP5": (-76.2474, -28.7628, 24.1669), "CP3": (-59.2750, -30.9553, 52.4714),
    "CP1": (-32.3514, -32.4362, 71.5981), "CPZ": (0.0000, -32.9279, 78.3630), "CP2": (32.3514, -32.4362, 71.5981),
    "CP4": (59.2750, -30.9553, 52.4714), "CP6": (76.2474, -28.7628, 24.1669), "TP8": (80.3851, -26.2848, -8.5057),
    "P7": (-68.4233, -49.8714, -7.4895), "P5": (-63.0582, -54.0379, 18.1264), "P3": (-48.2004, -57.5511, 39.8697),
    "P1": (-26.0421, -59.9127, 54.3808), "PZ": (0.0000, -60.7385, 59.4629), "P2": (26.0254, -59.8744, 54.4310),
    "P4": (48.1426, -57.5840, 39.8920), "P6": (63.0447, -54.0263, 18.2076), "P8": (68.3836, -49.9265, -7.4851),
    "PO7": (-49.7094, -68.6911, -5.9589), "PO5": (-42.9515, -72.8039, 8.9306), "PO3": (-31.4828, -76.1528, 20.8468),
    "POZ": (0.0000, -79.0255, 31.3044), "PO4": (31.4828, -76.1528, 20.8468), "PO6": (42.9515, -72.8039, 8.9307),
    "PO8": (49.6689, -68.7209, -5.9530),
    "CB1": (-20.7832, -85.4153, -28.8490), "O1": (-26.1330, -80.7840, -4.0011), "OZ": (0.0000, -84.9812, -1.7860),
    "O2": (26.1330, -80.7840, -4.0011), "CB2": (20.7832, -85.4153, -28.8490),
}  # fmt: skip


def positions(electrodes: Sequence[str]) -> np.ndarray:
    """(C, 3) mm; an electrode that the table lacks is MNE's standard 10-05 one, moved to the sphere.

    Raises ValueError for a name that neither has.
    """
    names, known = [name.upper() for name in electrodes], POSITIONS
    if not known.keys() >= set(names):
        import mne

        standard = mne.channels.make_standard_montage("standard_1005").get_positions()["ch_pos"]
        centre = np.mean([standard[name] for name in ("T7", "T8", "Fpz", "Oz")], axis=0)
        others = {name.upper(): RADIUS * (p - centre) / np.linalg.norm(p - centre) for name, p in standard.items()}
        known = others | POSITIONS
    for electrode, name in zip(electrodes, names, strict=True):
        if name not in known:
            raise ValueError(f"nobody knows where the electrode {electrode} sits")
    return np.array([known[name] for name in names], float)


def initial_edges(electrodes: Sequence[str]) -> torch.Tensor:
    """(C (C + 1) / 2,) edges, lower triangle with diagonal row by row: min(1, 4710 mm² / d²), less 1 for `PAIRS`."""
    place, names = positions(electrodes), [name.upper() for name in electrodes]
    distance = np.linalg.norm(place[:, None] - place[None], axis=-1)
    edges = np.minimum(1.0, STRENGTH / np.maximum(distance, 1e-9) ** 2)
    for left, right in PAIRS:
        if left in names and right in names:
            k, m = names.index(left), names.index(right)
            edges[k, m] -= 1
            edges[m, k] -= 1
    return torch.from_numpy(edges[np.tril_indices(len(names))]).float()
