"""Where electrodes sit: a montage for any cap, by names of the 10-5 system or by positions."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from datasets.montage import REGION_NAMES, Montage

# the letters of a name → region, as ATM's; CSBrain's five, and the places between (FFC, CCP, …) with the row before
LETTERS = {
    "frontal": "N NFP FP AFP AF AFF F FFC",
    "central": "FC FCC C CCP",
    "temporal": "FFT FT FTT T TTP TP TPP",
    "parietal": "CP CPP P PPO",
    "occipital": "PO POO O OI I CB",
}
CODES = {name: code for code, name in REGION_NAMES.items()}
CODE_OF = {letters: CODES[name] for name, all_letters in LETTERS.items() for letters in all_letters.split()}
# caps whose electrodes are numbered: what a name looks like → MNE's montages, by the number of electrodes
NUMBERED = {r"[A-H]\d+": "biosemi{}", r"E\d+": "GSN-HydroCel-{}"}  # one with E1 and A1 is BioSemi's


def region_of(name: str) -> int | None:
    """The region code of an electrode, by its letters; None for another name."""
    letters = re.fullmatch(r"([A-Z]+?)(Z|\d+)H?", name.upper())
    return CODE_OF.get(letters[1]) if letters else None


@lru_cache(maxsize=1)
def _places() -> tuple[list[str], np.ndarray]:
    """Names of the 10-5 system, and unit vectors (N, 3) from the middle of the head towards them."""
    import mne  # slow to import

    positions = in_head_coordinates(mne.channels.make_standard_montage("standard_1005"))
    names = [name for name in positions if region_of(name) is not None]
    return names, _directions(np.array([positions[name] for name in names]))


def in_head_coordinates(montage: "mne.channels.DigMontage") -> dict[str, np.ndarray]:  # noqa: F821
    """Electrode → (3,) metres: origin between the ears, y to the nose, z upwards."""
    import mne

    info = mne.create_info(montage.ch_names, 100.0, "eeg")
    info.set_montage(montage)
    return dict(info.get_montage().get_positions()["ch_pos"])


def _directions(xyz: np.ndarray) -> np.ndarray:
    """Unit vectors (N, 3) from the middle of a head, 4 cm above the line between the ears."""
    centred = xyz - np.array([0.0, 0.0, 0.04])
    return centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(min=1e-9)


def nearest_names(positions: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The place of the 10-5 system that lies nearest to each position, no place twice.

    positions : mapping. Name → (3,) metres, head coordinates.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    names, directions = _places()
    away = -_directions(np.array(list(positions.values()), float)) @ directions.T  # (n, places)
    rows, columns = linear_sum_assignment(away)
    own = list(positions)
    return {own[row]: names[column] for row, column in zip(rows, columns, strict=True)}


def numbered_positions(names: Sequence[str]) -> dict[str, np.ndarray]:
    """Positions of a cap whose electrodes are numbered, EGI's E1 … or BioSemi's A1 …; else empty."""
    import mne

    biosemi = sorted((name for name in names if re.fullmatch(r"[A-H]\d+", name)), key=lambda n: (n[0], int(n[1:])))
    sockets = [f"{letter}{k}" for letter in "AB" for k in range(1, 33)][: len(biosemi)]
    if len(biosemi) in (16, 32, 64) and biosemi == sockets:  # places that have names, in the order of the sockets
        named = mne.channels.make_standard_montage(f"biosemi{len(biosemi)}").ch_names
        places = in_head_coordinates(mne.channels.make_standard_montage("standard_1005"))
        return {socket: places[name] for socket, name in zip(sockets, named, strict=True)}
    for pattern, montage in NUMBERED.items():
        cap = [name for name in names if re.fullmatch(pattern, name)]
        known = [name for name in mne.channels.get_builtin_montages() if re.fullmatch(montage.format(r"\d+"), name)]
        for builtin in sorted(known, key=lambda name: int(re.search(r"\d+$", name)[0])):
            positions = in_head_coordinates(mne.channels.make_standard_montage(builtin))
            if len(cap) >= 0.9 * len(positions) and set(cap) <= set(positions):
                moved = _on_a_head(positions) if builtin.startswith("biosemi") else positions
                return {name: moved[name] for name in cap}
    return {}


def _on_a_head(positions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Positions of BioSemi's sphere, moved to where its named cap of 64 lies on the head of the 10-5 system."""
    import mne

    sphere, head = (
        in_head_coordinates(mne.channels.make_standard_montage(name)) for name in ("biosemi64", "standard_1005")
    )
    known = [name for name in sphere if name in head]
    ones = np.ones((len(known), 1))
    affine, *_ = np.linalg.lstsq(
        np.hstack([np.array([sphere[name] for name in known]), ones]), np.array([head[name] for name in known])
    )
    return {name: np.append(xyz, 1.0) @ affine for name, xyz in positions.items()}


def montage_of(electrodes: Sequence[str]) -> tuple[Montage, list[str]]:
    """The montage of electrodes named in the 10-5 system, and the names that are none of it."""
    codes = {name: code for name in electrodes if (code := region_of(name)) is not None}
    topology = {code: tuple(name for name in codes if codes[name] == code) for code in sorted({*codes.values()})}
    return Montage(tuple(codes), topology), [name for name in electrodes if name not in codes]
