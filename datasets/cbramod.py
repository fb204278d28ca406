"""CBraMod's and CSBrain's LMDB layout: `__keys__` and records pickled, microvolts at 200 Hz. Read without running code."""

import functools
import hashlib
import io
import pickle
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np

from datasets.description import SPLITS
from datasets.store import DTYPE, MappedFolder, Trial, open_lmdb
from utils.errors import UserError

SFREQ = 200.0  # Hz


def is_cbramod(path: Path) -> bool:
    """Whether a folder has this layout."""
    try:
        with open_lmdb(path).begin() as txn:
            return txn.get(b"meta") is None and txn.get(b"__keys__") is not None
    except lmdb.Error as error:
        raise UserError(f"{path} is damaged ({error}); fetch or make it anew") from None


class CBraModStore(MappedFolder):
    """Read-only view of such a folder, with the same face as `TrialStore`.

    Records are `{"sample": (n_chans, n_patches, 200), "label": int}`, unpickled by `SafeUnpickler`. Person and session
    come from the file name in the key where it has them; `own_splits` says which split the file puts a key in.

    Raises UserError if a pickle holds anything but arrays and plain containers, or a record is none.
    """

    sfreq = SFREQ

    def __init__(self, path: str | Path):
        super().__init__(path)
        self.meta: dict = {"format": "CBraMod", "sfreq": SFREQ}
        keys = self._unpickled("__keys__")
        if not isinstance(keys, dict) or not set(SPLITS) <= set(keys):
            raise UserError(f"{path}: __keys__ does not list train, val and test; expected CBraMod's layout")
        self.own_splits = {}
        for split in SPLITS:
            for key in map(str, keys[split]):
                if key in self.own_splits:
                    raise UserError(f"{path}: record {key!r} is listed twice, in {self.own_splits[key]} and {split}")
                self.own_splits[key] = split

    @functools.cached_property
    def trials(self) -> list[Trial]:
        """Labels stand inside the records, so the first call reads the whole file."""
        return [self._trial(key) for key in self.own_splits]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all keys, splits and checksums."""
        text = "".join(f"{self.own_splits[t.key]} {t.key} {t.checksum} " for t in self.trials)
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def shape(self) -> tuple[int, int]:
        """(n_chans, n_times) of the first record, and of all."""
        first = next(iter(self.own_splits), None)
        return (0, 0) if first is None else self._samples(first, self._unpickled(first)).shape

    @functools.cached_property
    def listed(self) -> int:
        """Checksum of all trials, labels included."""
        return zlib.crc32(repr(self.trials).encode())

    def read(self, trial: Trial) -> np.ndarray:
        """(n_chans, n_times) float32 microvolts."""
        return self._samples(trial.key, self._unpickled(trial.key))

    def verify(self, trial: Trial) -> None:
        """Raise UserError where a record has changed since its trial was listed."""
        if zlib.crc32(self.read(trial).tobytes()) != trial.checksum:
            raise UserError(f"{self.path}: record {trial.key!r} has changed while it was used")

    def _samples(self, key: str, record) -> np.ndarray:
        sample = record.get("sample") if isinstance(record, dict) else None
        if (
            not isinstance(sample, np.ndarray)
            or sample.ndim != 3
            or sample.shape[2] != 200
            or sample.dtype.kind not in "fiu"
        ):
            raise UserError(f"{self.path}: record {key!r} has no array (n_chans, n_patches, 200) under 'sample'")
        return np.ascontiguousarray(sample.reshape(len(sample), -1), DTYPE)

    def _trial(self, key: str) -> Trial:
        """CBraMod's keys are a file name and counters, "A01T-3-17" or "sub012.pkl-3-17"."""
        record = self._unpickled(key)
        samples = self._samples(key, record)
        label = record.get("label")
        if not isinstance(label, int | np.integer):
            raise UserError(f"{self.path}: record {key!r} has the label {label!r}; expected a whole number")
        if samples.shape != self.shape:
            raise UserError(f"{self.path}: record {key!r} is {samples.shape}; the first one is {self.shape}")
        name, *counters = key.split("-")
        subject, session = re.fullmatch(r"([AB]\d\d)([TE])?.*|(?P<other>.*)", name).group(1, 2)
        run, number = ([int(c) for c in counters if c.isdigit()] + [0, 0])[:2]
        checksum = zlib.crc32(samples.tobytes())
        return Trial(key, int(label), subject or name.split(".")[0], session or "", run, number + 1, "", checksum)

    def _unpickled(self, key: str):
        raw = self.raw(key)
        if raw is None:
            raise UserError(f"{self.path} has no record {key!r}")
        try:
            return SafeUnpickler(io.BytesIO(raw)).load()
        except Exception as error:  # a damaged pickle fails in many ways
            raise UserError(f"{self.path}: record {key!r} cannot be read: {error}") from None


class SafeUnpickler(pickle.Unpickler):
    """Builds numpy arrays and plain containers and refuses everything else, so a foreign file runs no code."""

    ALLOWED = {
        ("numpy", "ndarray"), ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
        ("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer"),
    }  # fmt: skip

    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 pickles bytes under protocol 2
            return _latin1_bytes
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}; only numpy arrays and plain containers are read"
            )
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding}; expected latin1")
    return text.encode("latin1")
