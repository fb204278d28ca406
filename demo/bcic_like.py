"""Motor-imagery-like recordings, simulated, in BNCI's containers, for the embedded default and the tests.

Every person has three 8–13 Hz sources, over the left motor cortex, the midline and the right motor
cortex; during imagery a class dims some of them. People differ in gain, noise, rhythm and electrode offsets, so what is
learnt on some must carry over to others.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.io
from scipy.signal import butter, sosfiltfilt

from datasets.bciciv2a_llm_dataset import FILES, MONTAGE, SFREQ
from datasets.bciciv2b_dataset import DESCRIPTION as BCICIV2B
from models.poolings import side_of
from utils.paths import written_whole

FILES_2B, MONTAGE_2B = BCICIV2B.all_files, BCICIV2B.montage
# which of (left, midline, right) motor sources a class dims: imagery of a hand dims the other side
DIMMED = {0: (2,), 1: (0,), 2: (1,), 3: (0, 2)}
SOURCE_PLACES = np.array([(-2.0, 0.0), (0.0, 0.0), (2.0, 0.0)])  # C3, Cz, C4 on the grid of `place`
CALIBRATION_RUNS = {"A04T": 1}  # all other files have 3


@dataclass(frozen=True)
class DemoSize:
    """How much to write, and how plain. The real files have 6 runs of 48 trials.

    effect : float. Share of the strongest effect that imagery has. At 1, decoders reach the ceiling, where no two of
        them can be told apart; the default leaves them room.
    spread : float. How much people differ in it: 0.5 from half to one and a half of it.
    mixing : float. How much sessions differ in how their electrodes mix: a cap sits otherwise, skin and gel conduct
        otherwise. 0: not at all, so that there is nothing to align.
    """

    runs: int = 6
    trials_per_run: int = 12
    effect: float = 0.7
    spread: float = 0.3
    mixing: float = 0.0
    dimming: float = 0.8  # share of the rhythm's amplitude that the strongest effect takes away
    trial_seconds: float = 7.0  # 2 s fixation, 4 s imagery, 1 s rest
    cue_seconds: float = 2.0  # from a trial's start to its imagery


def place(electrode: str) -> tuple[float, float]:
    """A 10-20 electrode on a flat grid: columns left to right by number, rows front to back by letters."""
    rows = {"F": 2.0, "FC": 1.0, "C": 0.0, "CP": -1.0, "P": -2.0, "PO": -3.0}
    letters = electrode.rstrip("z0123456789")
    side = {"left": -1, "midline": 0, "right": 1}[side_of(electrode)]
    column = 0 if side == 0 else (int(electrode[len(letters) :]) + 1) // 2
    return side * float(column), rows[letters]


def write_bcic_like(folder: Path, size: DemoSize, seed: int, files: tuple[str, ...] = FILES) -> None:
    """Write `.mat` files in the structure of BNCI 001-2014, A04T's missing calibration runs included."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        stem = name.removesuffix(".mat")
        person = np.random.default_rng((seed, int(stem[2])))  # the same in both sessions
        rng = np.random.default_rng((seed, int(stem[2]), "TE".index(stem[3]) + 1))
        traits = _traits(person, size.spread) | {"cap": _cap(size.mixing, seed, stem)}
        runs = [_run(rng, traits, size, np.array([], int)) for _ in range(CALIBRATION_RUNS.get(stem, 3))]
        for _ in range(size.runs):
            labels = rng.permutation(np.arange(size.trials_per_run) % len(DIMMED))
            runs.append(_run(rng, traits, size, labels))
        _write(folder / name, runs)


def write_bcic2b_like(folder: Path, size: DemoSize, seed: int, files: tuple[str, ...] = FILES_2B) -> None:
    """Write `.mat` files in the structure of BNCI 004-2014: three electrodes, two hands, a struct a session."""
    folder.mkdir(parents=True, exist_ok=True)
    size = replace(size, trial_seconds=8.0, cue_seconds=3.0)
    chosen = [*(MONTAGE.electrodes.index(name) for name in MONTAGE_2B.electrodes), -3, -2, -1]  # and three EOG
    for name in files:
        rng = np.random.default_rng((seed, 100 + int(name[2]), "TE".index(name[3])))
        traits = _traits(np.random.default_rng((seed, 100 + int(name[2]))), size.spread)
        traits["cap"] = _cap(size.mixing, 100 + seed, name)
        runs = []
        for _ in range({"T": 3, "E": 2}[name[3]]):
            run = _run(rng, traits, size, rng.permutation(np.arange(size.trials_per_run) % 2))
            runs.append(run | {"X": run["X"][:, chosen]})
        _write(folder / name, runs)


def _write(path: Path, runs: list[dict]) -> None:
    """BNCI's cell of structs."""
    data = np.empty((1, len(runs)), dtype=object)
    data[0] = runs
    with written_whole(path) as unfinished:
        scipy.io.savemat(unfinished, {"data": data}, do_compression=False, appendmat=False)


def _traits(person: np.random.Generator, spread: float) -> dict:
    """What makes a person: gain, noise, rhythm, electrode offsets, and how strongly imagery shows."""
    n_chans = len(MONTAGE.electrodes)
    traits = {
        "gain": person.uniform(0.85, 1.2),
        "noise": person.uniform(5.0, 8.0),  # microvolts
        "rhythm": person.uniform(9.5, 11.5),  # Hz
        "amplitude": person.uniform(0.9, 1.1, 3) * person.uniform(12.0, 15.0),  # microvolts, a source
        "offset": person.normal(0, 20, n_chans),  # microvolts, an electrode
        "spread": person.uniform(0.9, 1.15),  # grid steps
        "strength": person.uniform(0.9, 1.0),
        "age": int(person.integers(20, 35)),
        "gender": person.choice(["male", "female"]),
    }
    return traits | {"strength": traits["strength"] * (1 + spread * person.uniform(-1, 1))}


def _cap(mixing: float, seed: int, stem: str) -> np.ndarray:
    """(C, C) how a session's electrodes mix: symmetric, as alignment without labels can undo no rotation."""
    n_chans = len(MONTAGE.electrodes)
    rng = np.random.default_rng((seed, int(stem[2]), "TE".index(stem[3]), 7))
    noise = rng.standard_normal((n_chans, n_chans))
    values, vectors = np.linalg.eigh(mixing * (noise + noise.T) / np.sqrt(8 * n_chans))
    return (vectors * np.exp(values)) @ vectors.T


def _run(rng: np.random.Generator, traits: dict, size: DemoSize, labels: np.ndarray) -> dict:
    """One struct of the cell: signal, trials and labels of a run; no labels make it a calibration run."""
    sfreq = SFREQ
    n_times = int(((len(labels) or 2) * size.trial_seconds + 2) * sfreq)
    onsets = (np.arange(len(labels)) * size.trial_seconds * sfreq + rng.integers(50, 250)).astype(int)  # 0-based
    n_chans = len(MONTAGE.electrodes)

    background = _pink(rng, n_chans, n_times) * traits["noise"]
    common = _pink(rng, 1, n_times) * 4  # volume-conducted activity, the same everywhere

    # three rhythms, dimmed while imagined
    band = butter(4, (traits["rhythm"] - 1.5, traits["rhythm"] + 1.5), "bandpass", fs=sfreq, output="sos")
    sources = sosfiltfilt(band, rng.standard_normal((3, n_times)), axis=-1)
    sources *= traits["amplitude"][:, None] / sources.std(axis=1, keepdims=True)
    envelope = np.ones((3, n_times))
    for onset, label in zip(onsets, labels, strict=True):
        imagery = slice(onset + int(size.cue_seconds * sfreq), onset + int((size.cue_seconds + 4.0) * sfreq))
        dimmed = size.dimming * size.effect * traits["strength"] * rng.uniform(0.8, 1.1)
        envelope[list(DIMMED[int(label)]), imagery] = 1 - min(dimmed, 1.0)
    ramp = np.hanning(int(0.5 * sfreq))
    envelope = np.apply_along_axis(np.convolve, 1, envelope, ramp / ramp.sum(), mode="same")
    places = np.array([place(name) for name in MONTAGE.electrodes])
    distance = np.linalg.norm(places[:, None] - SOURCE_PLACES, axis=-1)  # (C, 3)
    mixing = np.exp(-((distance / traits["spread"]) ** 2) / 2)

    # blinks: large at the front and in the EOG
    blinks = np.zeros(n_times)
    blinks[rng.integers(0, n_times, max(1, n_times // int(5 * sfreq)))] = 1
    blinks = np.convolve(blinks, 90 * np.hanning(int(0.4 * sfreq)), mode="same")
    front = np.clip((places[:, 1] + 1) / 3, 0, 1) * 0.5

    eeg = background + common + mixing @ (sources * envelope) + front[:, None] * blinks
    mains = 2 * np.sin(2 * np.pi * 50 * np.arange(n_times) / sfreq)
    if "cap" in traits:
        eeg = traits["cap"] @ eeg
    eeg = traits["gain"] * eeg + traits["offset"][:, None] + mains
    eog = _pink(rng, 3, n_times) * 8 + np.array([[1.0], [0.9], [-0.8]]) * blinks
    column = (-1, 1)
    return {
        "X": np.concatenate([eeg, eog]).T.astype(np.float32),
        "trial": (onsets + 1.0).reshape(column),  # 1-based
        "y": (labels + 1.0).reshape(column),
        "fs": sfreq,
        "classes": np.array(["left hand", "right hand", "feet", "tongue"], dtype=object).reshape(1, -1),
        "artifacts": (rng.random(len(labels)) < 0.05).astype(float).reshape(column),
        "gender": traits["gender"],
        "age": float(traits["age"]),
    }


def _pink(rng: np.random.Generator, n_chans: int, n_times: int) -> np.ndarray:
    """1/f noise of unit standard deviation."""
    freqs = np.fft.rfftfreq(n_times, 1 / SFREQ)
    spectrum = rng.standard_normal((n_chans, len(freqs))) + 1j * rng.standard_normal((n_chans, len(freqs)))
    signal = np.fft.irfft(spectrum / np.sqrt(np.maximum(freqs, 0.5)), n_times, axis=-1)
    return signal / signal.std(axis=1, keepdims=True)
