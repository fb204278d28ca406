"""The trial store: an LMDB that a reader maps without copying or unpickling.

Layout, version 2. `meta`: JSON (format, version, units, sfreq, electrodes, window, filter, sources, counts, fingerprint).
`trials`: JSON list, one row a trial (see `Trial`). Every other key: one trial's samples, (n_chans, n_times) microvolts as
raw little-endian float32. Who trains and who tests is chosen when trials are loaded (`datasets.splits`).
"""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import lmdb
import numpy as np

from utils.errors import UserError
from utils.paths import written_whole

FORMAT, VERSION = "eeg2image-trials", 2
DTYPE = np.dtype("<f4")


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


# ---------------------------------------------------------------- writing


def write_store(path: Path, meta: dict, parts: Iterable[list[tuple[Trial, np.ndarray]]]) -> dict:
    """Write a whole store, or nothing.

    path : Path. The store's folder; replaced only once the new one is whole.
    meta : dict. Facts to keep; `sfreq` (Hz) is required. The caller may still fill it in while `parts` is consumed.
    parts : iterable of lists of (Trial, samples). Samples are float32 arrays (n_chans, n_times) in microvolts, all of
        one shape. `Trial.checksum` is filled in here.
    Returns dict: The metadata as written, with `n_trials`, `shape` and `fingerprint` (SHA-256 of keys and samples in
        order; labels are not part of it, so features computed from the samples stay valid when labels change).
    Raises UserError if the disk is full, a key comes twice or the samples have several shapes.
    """
    digest = hashlib.sha256()
    rows: dict[str, dict] = {}
    shape, map_size = None, 64 << 20
    with written_whole(path) as unfinished:
        unfinished.mkdir()
        try:
            with lmdb.open(str(unfinished), map_size=map_size) as env:
                for part in parts:
                    map_size += sum(samples.nbytes + 8192 for _, samples in part)  # with LMDB's pages around them
                    env.set_mapsize(map_size)
                    with env.begin(write=True) as txn:
                        for trial, samples in part:
                            shape = shape or samples.shape
                            if samples.shape != shape or samples.ndim != 2 or samples.dtype != DTYPE:
                                raise UserError(
                                    f"trial {trial.key} is {samples.dtype} {samples.shape}; the others are {shape}: all "
                                    "recordings of a store need one sampling rate and one window"
                                )
                            if trial.key in rows:
                                raise UserError(f"two trials have the key {trial.key}; is a recording there twice?")
                            raw = np.ascontiguousarray(samples, DTYPE).tobytes()
                            txn.put(trial.key.encode(), raw)
                            digest.update(trial.key.encode() + raw)
                            rows[trial.key] = asdict(trial) | {"checksum": zlib.crc32(raw)}
                listed = json.dumps(list(rows.values())).encode()
                meta = meta | {
                    "format": FORMAT, "version": VERSION, "dtype": DTYPE.str, "units": "microvolts", "shape": shape,
                    "n_trials": len(rows), "fingerprint": digest.hexdigest(), "trials_checksum": zlib.crc32(listed),
                }  # fmt: skip
                with env.begin(write=True) as txn:
                    txn.put(b"trials", listed)
                    facts = json.dumps(meta).encode()
                    txn.put(b"meta", facts)
                    txn.put(b"meta_checksum", str(zlib.crc32(facts)).encode())
        except lmdb.Error as error:
            raise UserError(f"cannot write the store {path}: {error}; free some disk space and run again") from None
    return meta


# ---------------------------------------------------------------- reading


class MappedFolder:
    """An LMDB folder opened for reading, once in every process that asks."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._env, self._txn, self._pid = None, None, None

    def raw(self, key: str) -> memoryview | None:
        """The record as a buffer into the mapped file."""
        if self._pid != os.getpid():  # a loader's worker opens the file for itself
            self._env = open_lmdb(self.path)
            self._txn, self._pid = self._env.begin(buffers=True), os.getpid()
        try:
            return self._txn.get(key.encode())
        except lmdb.Error as error:
            raise UserError(f"{self.path} is damaged ({error}); make it anew with --overwrite") from None

    def __getstate__(self):
        return self.__dict__ | {"_env": None, "_txn": None, "_pid": None}


class TrialStore(MappedFolder):
    """Read-only view of a store written by `write_store`.

    meta : dict
    trials : list of Trial
    sfreq : float. Hz.
    shape : (n_chans, n_times)
    listed : int. Checksum of the list of trials, labels included.
    fingerprint : str. Of the samples, as written; changes as well when somebody writes into the store later.
    Raises UserError if the folder is no store, is truncated, or a store of another version.
    """

    own_splits: dict[str, str] = {}  # this layout leaves the splits to the run

    def __init__(self, path: str | Path):
        super().__init__(path)
        try:
            facts = bytes(self.raw("meta") or b"{}")
            self.meta = json.loads(facts)
        except ValueError:
            raise UserError(f"{path} is damaged: its facts are no JSON; make it anew with --overwrite") from None
        if not isinstance(self.meta, dict) or self.meta.get("format") != FORMAT:
            raise UserError(f"{path} is not a trial store of this project; make one with prepare_data.py")
        if self.meta.get("version") != VERSION:
            script = "prepare_data_vi.py" if self.meta.get("dataset") == "VI" else "prepare_data.py"
            raise UserError(
                f"{path} is a store of version {self.meta.get('version')}; this code reads version {VERSION}: make it "
                f"anew with python {script} --skip_download --lmdb_dir {path} --overwrite"
            )
        rows = bytes(self.raw("trials") or b"")
        try:
            self.sfreq, self.shape = float(self.meta["sfreq"]), tuple(self.meta["shape"] or (0, 0))
            self.trials = [Trial(**row) for row in json.loads(rows)]
            self.listed = zlib.crc32(rows)
            whole = self.listed == self.meta["trials_checksum"]
            whole &= bytes(self.raw("meta_checksum") or b"") == str(zlib.crc32(facts)).encode()
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise UserError(
                f"{path} is damaged: its facts or its list of trials are not what was written; make it anew with --overwrite"
            )
        self.fingerprint = f"{self.meta['fingerprint']}-{self._env.info()['last_txnid']}"
        self._verified: set[str] = set()

    def read(self, trial: Trial) -> np.ndarray:
        """The samples as a read-only view of the mapped file: float32, (n_chans, n_times), microvolts.

        Raises UserError if the samples are not those that were written; asked once a trial and process.
        """
        raw = self.raw(trial.key)
        if trial.key not in self._verified:
            self.verify(trial, raw)
        return np.frombuffer(raw, DTYPE).reshape(self.shape)

    def verify(self, trial: Trial, raw: memoryview | None = None) -> None:
        """Raise UserError where a trial's stored samples are not those that were written."""
        raw = self.raw(trial.key) if raw is None else raw
        if raw is None or len(raw) != DTYPE.itemsize * int(np.prod(self.shape)) or zlib.crc32(raw) != trial.checksum:
            raise UserError(
                f"{self.path} is damaged: the samples of trial {trial.key} are not those that were written; make the "
                "store anew with --overwrite"
            )
        self._verified.add(trial.key)


def open_store(path: str | Path) -> "TrialStore | CBraModStore":  # noqa: F821 - imported below
    """Open a store of either layout."""
    from datasets.cbramod import CBraModStore, is_cbramod

    return CBraModStore(path) if is_cbramod(Path(path)) else TrialStore(path)


def is_trial_store(path: Path) -> bool:
    """Whether a folder holds a store of this project, of whatever version, and nothing else."""
    if {p.name for p in path.iterdir()} - {"data.mdb", "lock.mdb"}:
        return False
    try:
        with open_lmdb(path).begin() as txn:
            return json.loads(txn.get(b"meta") or b"{}").get("format") == FORMAT
    except (UserError, ValueError, lmdb.Error):
        return False


# ---------------------------------------------------------------- LMDB

_OPEN: dict[tuple, lmdb.Environment] = {}  # LMDB allows one opening of a file in a process, so readers share it


def open_lmdb(path: Path) -> lmdb.Environment:
    """Open an LMDB folder for reading only; the environment is shared and stays open, so do not close it."""
    file = path / "data.mdb"
    if not file.is_file():
        raise UserError(f"{path} is not an LMDB folder (it has no data.mdb); make one with prepare_data.py")
    place = (str(path.resolve()), os.getpid())
    written = (file.stat().st_ino, file.stat().st_mtime_ns, file.stat().st_size)
    for key in [key for key in _OPEN if key[:2] == place and key[2] != written]:
        _OPEN.pop(key).close()  # another store has taken the old one's place
    if (*place, written) not in _OPEN:
        check_whole(file)
        try:
            _OPEN[(*place, written)] = lmdb.open(str(path), readonly=True, lock=False, readahead=False, create=False)
        except lmdb.Error as error:
            raise UserError(f"{path} cannot be opened as an LMDB: {error}") from None
    return _OPEN[(*place, written)]


def check_whole(file: Path) -> None:
    """Refuse an LMDB file that ends before its last page: reading a mapped page that is not there kills the process.

    A file starts with two meta pages: a 16-byte page header, then magic and version (4 bytes each), address and map size
    (8 each), two database records of 48 bytes (the first begins with the page size), the number of the last page and
    the number of the last transaction (8 each). The one with the later transaction counts. Source: LMDB's mdb.c.

    Raises UserError.
    """
    magic_number, last_page_at = 0xBEEFC0DE, 16 + 4 + 4 + 8 + 8 + 2 * 48
    size = file.stat().st_size
    with open(file, "rb") as opened:
        start = opened.read(last_page_at + 16)
        page = struct.unpack_from("<I", start, 40)[0] if len(start) == last_page_at + 16 else 0
        if page < 512 or struct.unpack_from("<I", start, 16)[0] != magic_number:
            raise UserError(f"{file} is no LMDB file, or its beginning is damaged; make it anew with --overwrite")
        opened.seek(page)
        metas = [start, opened.read(last_page_at + 16)]
    metas = [meta for meta in metas if len(meta) == last_page_at + 16]
    last_page, _ = max((struct.unpack_from("<QQ", meta, last_page_at) for meta in metas), key=lambda pair: pair[1])
    if size < (last_page + 1) * page:
        raise UserError(
            f"{file} is truncated: {size} bytes where it says {(last_page + 1) * page}; copy it again, or make it anew "
            "with --overwrite"
        )
