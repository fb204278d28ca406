"""What a dataset's file yields: an uninterrupted run of a recording, or a piece of a large file; and one trial of it."""

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from utils.files import source_record

DTYPE = np.dtype("<f4")  # of stored samples


@dataclass
class Recording:
    """One uninterrupted run.

    signal : (n_chans, n_times) float64 array. EEG electrodes in montage order, microvolts.
    sfreq : float. Hz.
    onsets : (n_trials,) int array. 0-based sample of each trial's reference point.
    labels : (n_trials,) int array. 0-based class.
    run : int. Counts within the session from 1.
    number : int. Position in its file, from 1.
    numbers : (n_trials,) int array, optional. Number of each trial within its run; 1, 2, … where it is not given.
    images : list of str. What was shown in each trial, where it differs within a class; else empty.
    artifacts : (n_trials,) bool array, optional. Marked by the expert.
    left_out : Counter. Trials that the dataset's file leaves out: (cause, label or text) → how many.
    kind : str. What the closing table counts it as.
    notes : dict. Facts for the store's record of sources.
    """

    signal: np.ndarray
    sfreq: float
    onsets: np.ndarray
    labels: np.ndarray
    subject: str = ""
    session: str = ""
    run: int = 1
    number: int = 1
    numbers: np.ndarray | None = None
    images: list[str] = field(default_factory=list)
    artifacts: np.ndarray | None = None
    left_out: Counter = field(default_factory=Counter)
    kind: str = "task runs"
    notes: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """Where a trial comes from and what was imagined or seen.

    key : str. Unique in its store.
    label : int. 0-based class.
    run, trial : int. `trial` counts within its run; both from 1.
    image : str. What was shown, where it differs within a class; else empty.
    checksum : int. CRC-32 of the stored samples.
    """

    key: str
    label: int
    subject: str
    session: str
    run: int
    trial: int
    image: str = ""
    checksum: int = 0

    @property
    def whose_session(self) -> str:
        """Person and session, "A01/T": what a checkpoint keeps of the trials that it has seen."""
        return f"{self.subject}/{self.session}"


@dataclass(frozen=True)
class Piece:
    """A part of a raw file that is too large to be prepared at once.

    path : Path
    start, stop : int. Which trials, rows or items of it; the dataset's file knows what is counted.
    beside : tuple of Path. Other files that these trials depend on.
    """

    path: Path
    start: int
    stop: int
    beside: tuple[Path, ...] = ()


def source_of(file: Path | Piece) -> dict:
    """Name, size and SHA-256 of a raw file, or of what a piece is cut from, with the piece's place."""
    if isinstance(file, Path):
        return _record(file, file.stat().st_size, file.stat().st_mtime_ns)
    record = {"part": [file.start, file.stop], "beside": [source_of(other)["sha256"] for other in file.beside]}
    return source_of(file.path) | record


@lru_cache(maxsize=64)  # the pieces of a file of gigabytes ask for it one after the other
def _record(path: Path, size: int, changed: int) -> dict:
    return source_record(path)
