"""The trial store: an LMDB that a reader maps without copying or unpickling, and a safe reader of CBraMod's layout.

Layout, version 1. `meta`: JSON (format, version, shape, units, electrodes, window, filter, sources, counts,
fingerprint). `trials/<split>`: JSON list, one row a trial with key, label, subject, session, run and trial number.
Every other key: one trial's samples as raw little-endian float32.
"""

import functools
import hashlib
import io
import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import lmdb
import numpy as np

from datasets.description import SPLITS
from utils.errors import UserError
from utils.paths import written_whole

FORMAT, VERSION = "eeg2image-trials", 1
DTYPE = np.dtype("<f4")
CBRAMOD_SCALE = 100.0  # their records hold microvolts


@dataclass(frozen=True)
class Trial:
    """Where a trial comes from and what was imagined. `label` is 0-based; `trial` counts within its run from 1."""

    key: str
    label: int
    subject: str
    session: str
    run: int
    trial: int


# ---------------------------------------------------------------- writing


def write_store(path: Path, meta: dict, parts: Iterable[list[tuple[str, Trial, np.ndarray]]]) -> dict:
    """Write a whole store, or nothing.

    Parameters
    ----------
    path : Path
        The store's folder; replaced only once the new one is whole.
    meta : dict
        Facts to keep; `shape` is required. The caller may still fill it in while `parts` is consumed.
    parts : iterable of lists of (split, Trial, samples)
        Samples are float32 arrays of `meta["shape"]`, in units of 100 µV.

    Returns
    -------
    dict
        The metadata as written, with `splits` (trials a split) and `fingerprint` (SHA-256 of keys and samples in
        order; labels are not part of it, so features computed from the samples stay valid when labels change).

    Raises
    ------
    UserError
        If the disk is full or the samples have another shape.
    """
    digest = hashlib.sha256()
    rows: dict[str, list[dict]] = {split: [] for split in SPLITS}
    record = int(np.prod(meta["shape"])) * DTYPE.itemsize + 8192  # with LMDB's pages around it
    map_size = 64 << 20
    with written_whole(path) as unfinished:
        unfinished.mkdir()
        try:
            with lmdb.open(str(unfinished), map_size=map_size) as env:
                for part in parts:
                    map_size += record * len(part)
                    env.set_mapsize(map_size)
                    with env.begin(write=True) as txn:
                        for split, trial, samples in part:
                            if list(samples.shape) != list(meta["shape"]) or samples.dtype != DTYPE:
                                raise ValueError(f"{trial.key}: {samples.dtype} {samples.shape}")
                            raw = np.ascontiguousarray(samples, DTYPE).tobytes()
                            txn.put(trial.key.encode(), raw)
                            digest.update(trial.key.encode() + raw)
                            rows[split].append(asdict(trial))
                meta = meta | {
                    "format": FORMAT,
                    "version": VERSION,
                    "dtype": DTYPE.str,
                    "splits": {split: len(rows[split]) for split in SPLITS},
                    "fingerprint": digest.hexdigest(),
                }
                with env.begin(write=True) as txn:
                    for split in SPLITS:
                        txn.put(f"trials/{split}".encode(), json.dumps(rows[split]).encode())
                    txn.put(b"meta", json.dumps(meta).encode())
        except lmdb.Error as error:
            raise UserError(f"cannot write the store {path}: {error}; free some disk space and run again") from None
    return meta


# ---------------------------------------------------------------- reading


class _Mapped:
    """An LMDB opened for reading, once in every process that asks."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._env, self._txn, self._pid = None, None, None

    def _raw(self, key: str):
        """The record as a buffer into the mapped file, or None."""
        if self._pid != os.getpid():  # a loader's worker opens the file for itself
            self._env = open_lmdb(self.path)
            self._txn, self._pid = self._env.begin(buffers=True), os.getpid()
        return self._txn.get(key.encode())

    def __getstate__(self):
        return self.__dict__ | {"_env": None, "_txn": None, "_pid": None}


class TrialStore(_Mapped):
    """Read-only view of a store written by `write_store`.

    Parameters
    ----------
    path : str or Path

    Attributes
    ----------
    meta : dict
    fingerprint : str
        Of the samples, as written; changes as well when somebody writes into the store later.

    Raises
    ------
    UserError
        If the folder is no store, a store of another version, or has a person in two splits.
    """

    def __init__(self, path: str | Path):
        super().__init__(path)
        self.meta = json.loads(bytes(self._raw("meta") or b"{}"))
        if self.meta.get("format") != FORMAT:
            raise UserError(f"{path} is not a trial store of this project; make one with prepare_data.py")
        if self.meta.get("version") != VERSION:
            raise UserError(
                f"{path} is a store of version {self.meta.get('version')}; this code reads version {VERSION}: "
                "make it anew with prepare_data.py --overwrite"
            )
        self.shape = tuple(self.meta["shape"])
        self.fingerprint = f"{self.meta['fingerprint']}-{self._env.info()['last_txnid']}"
        rows = {split: json.loads(bytes(self._raw(f"trials/{split}"))) for split in SPLITS}
        self._trials = {split: [Trial(**row) for row in rows[split]] for split in SPLITS}
        check_no_person_in_two_splits(self._trials, path)

    def trials(self, split: str) -> list[Trial]:
        return self._trials[split]

    def read(self, trial: Trial) -> np.ndarray:
        """The samples as a read-only view of the mapped file, float32, (n_chans, n_patches, 200), units of 100 µV."""
        return np.frombuffer(self._raw(trial.key), DTYPE).reshape(self.shape)


class CBraModStore(_Mapped):
    """Read-only view of a CBraMod or CSBrain LMDB: `__keys__` and records pickled, microvolts.

    Records are unpickled by `SafeUnpickler`. Person and session come from the file name in the key where it has them.

    Raises
    ------
    UserError
        If a pickle holds anything but arrays and plain containers, or a person is in two splits.
    """

    def __init__(self, path: str | Path):
        super().__init__(path)
        self.meta: dict = {"format": "CBraMod"}
        self.keys = self._unpickled("__keys__")
        if not isinstance(self.keys, dict) or not set(SPLITS) <= set(self.keys):
            raise UserError(f"{path}: __keys__ does not list train, val and test; expected CBraMod's layout")
        people = {split: [_cbramod_trial(key, 0) for key in self.keys[split]] for split in SPLITS}
        check_no_person_in_two_splits(people, path)
        self._trials: dict[str, list[Trial]] = {}

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all records; reads the whole file once."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for key in self.keys[split]:
                digest.update(f"{split} {key} ".encode() + bytes(self._raw(str(key)) or b""))
        return digest.hexdigest()

    def trials(self, split: str) -> list[Trial]:
        """Labels stand inside the records, so the first call reads the whole split."""
        if split not in self._trials:
            records = ((key, self._unpickled(key)) for key in self.keys[split])
            self._trials[split] = [_cbramod_trial(key, int(record["label"])) for key, record in records]
        return self._trials[split]

    def read(self, trial: Trial) -> np.ndarray:
        """Float32 samples in units of 100 µV."""
        return (self._unpickled(trial.key)["sample"] / CBRAMOD_SCALE).astype(DTYPE)

    def _unpickled(self, key: str):
        raw = self._raw(str(key))
        if raw is None:
            raise UserError(f"{self.path} has no record {key!r}")
        try:
            return SafeUnpickler(io.BytesIO(raw)).load()
        except pickle.UnpicklingError as error:
            raise UserError(f"{self.path}: record {key!r}: {error}") from None


def open_store(path: str | Path) -> TrialStore | CBraModStore:
    """Open a store of either layout."""
    with open_lmdb(Path(path)).begin() as txn:
        foreign = txn.get(b"meta") is None and txn.get(b"__keys__") is not None
    return CBraModStore(path) if foreign else TrialStore(path)


def is_trial_store(path: Path) -> bool:
    """Whether a folder holds a store of this project, of whatever version, and nothing else."""
    if {p.name for p in path.iterdir()} - {"data.mdb", "lock.mdb"}:
        return False
    try:
        with open_lmdb(path).begin() as txn:
            return json.loads(txn.get(b"meta") or b"{}").get("format") == FORMAT
    except (UserError, ValueError):
        return False


_OPEN: dict[tuple, lmdb.Environment] = {}  # LMDB allows one opening of a file in a process, so readers share it


def open_lmdb(path: Path) -> lmdb.Environment:
    """Open an LMDB folder for reading only; the environment is shared and stays open, so do not close it."""
    file = path / "data.mdb"
    if not file.is_file():
        raise UserError(f"{path} is not an LMDB folder (it has no data.mdb); make one with prepare_data.py")
    place = (str(path.resolve()), os.getpid())
    written = (file.stat().st_ino, file.stat().st_mtime_ns)
    for key in [key for key in _OPEN if key[:2] == place and key[2] != written]:
        _OPEN.pop(key).close()  # another store has taken the old one's place
    if (*place, written) not in _OPEN:
        try:
            _OPEN[(*place, written)] = lmdb.open(str(path), readonly=True, lock=False, readahead=False, create=False)
        except lmdb.Error as error:
            raise UserError(f"{path} cannot be opened as an LMDB: {error}") from None
    return _OPEN[(*place, written)]


def check_no_person_in_two_splits(trials: dict[str, Sequence[Trial]], path) -> None:
    """A person in both training and test is a leak, whoever made the store."""
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        both = {t.subject for t in trials[a] if t.subject} & {t.subject for t in trials[b]}
        if both:
            raise UserError(f"{path}: {', '.join(sorted(both))} in both {a} and {b}; a person may be in one split only")


def _cbramod_trial(key, label: int) -> Trial:
    """CBraMod's keys are a file name and counters, "A01T-3-17" or "sub012.pkl-3-17"."""
    name, *counters = str(key).split("-")
    subject, session = re.fullmatch(r"(A\d\d)([TE])?.*|(?P<other>.*)", name).group(1, 2)
    run, trial = ([int(c) for c in counters if c.isdigit()] + [0, 0])[:2]
    return Trial(str(key), label, subject or name.split(".")[0], session or "", run, trial + 1)


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
