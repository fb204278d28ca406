"""What a dataset's file yields: an uninterrupted run of a recording, or a piece of a large file; and one trial."""

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import source_record

DTYPE = np.dtype("<f4")  # of stored samples


@dataclass
class Recording:
    """One uninterrupted run."""

    signal: np.ndarray  # (n_chans, n_times) float64: EEG electrodes in montage order, microvolts
    sfreq: float  # Hz
    onsets: np.ndarray  # (n_trials,) int: 0-based sample of each trial's reference point
    labels: np.ndarray  # (n_trials,) int: 0-based class
    subject: str = ""
    session: str = ""
    run: int = 1  # counts within the session from 1
    number: int = 1  # position in its file, from 1
    numbers: np.ndarray | None = None  # (n_trials,) int: of each trial within its run; None: 1, 2, …
    images: list[str] = field(default_factory=list)  # shown in each trial, where it differs within a class; else empty
    artifacts: np.ndarray | None = None  # (n_trials,) bool: marked by the expert
    left_out: Counter = field(default_factory=Counter)  # by the dataset's file: (cause, label or text) → n trials
    kind: str = "task runs"  # what the closing table counts it as
    notes: dict = field(default_factory=dict)  # facts for the store's record of sources


@dataclass(frozen=True)
class Trial:
    """Where a trial comes from and what was imagined or seen."""

    key: str  # unique in its store
    label: int  # 0-based class
    subject: str
    session: str
    run: int  # from 1
    trial: int  # counts within its run from 1
    image: str = ""  # what was shown, where it differs within a class; else empty
    checksum: int = 0  # CRC-32 of the stored samples

    @property
    def marks(self) -> dict[str, str]:
        """What a checkpoint may keep of a trial that it has seen: its session, "A01/T", its run, "A01/T/r3", itself."""
        session = f"{self.subject}/{self.session}"
        return {"session": session, "run": f"{session}/r{self.run}", "trial": self.key}


def origin(trial) -> tuple[str, str, int, int]:
    """Where a trial, or a decoded row, comes from: person, session, run, number within the run. Sorts as recorded."""
    return trial.subject, trial.session, trial.run, trial.trial


@dataclass(frozen=True)
class Piece:
    """A part of a raw file that is too large to be prepared at once."""

    path: Path
    start: int  # first trial, row or item of it; the dataset's file knows what is counted
    stop: int  # excluded
    beside: tuple[Path, ...] = ()  # other files that these trials depend on

    @classmethod
    def all_of(cls, path: Path, n: int, size: int, beside: tuple[Path, ...] = ()) -> "list[Piece]":
        """A file of `n` items in pieces of `size`; the last may be smaller."""
        return [cls(path, start, min(start + size, n), beside) for start in range(0, n, size)]


# trials with their (n_chans, n_times) microvolts, counts by (fate, subject, label or part), facts of recordings
Prepared = tuple[list[tuple[Trial, np.ndarray]], Counter, list[dict]]


def stamp(path: Path) -> tuple[int, int]:
    """What tells a file from one that takes its place: size and time; UserError where it is missing."""
    if not path.is_file():
        raise UserError(f"{path} is not there, or no file; docs/datasets.md says where it comes from")
    return path.stat().st_size, path.stat().st_mtime_ns


def source_of(file: Path | Piece) -> dict:
    """Name, size and SHA-256 of a raw file, or of what a piece is cut from, with the piece's place."""
    if isinstance(file, Path):
        return _record(file, file.stat().st_size, file.stat().st_mtime_ns)
    record = {"part": [file.start, file.stop], "beside": [source_of(other)["sha256"] for other in file.beside]}
    made = not file.path.is_file()  # by a library, as MOABB's own test data
    return ({"name": file.path.name} if made else source_of(file.path)) | record


@lru_cache(maxsize=64)  # the pieces of a file of gigabytes ask for it one after the other
def _record(path: Path, size: int, changed: int) -> dict:
    return source_record(path)
