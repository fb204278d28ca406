"""The trial store: an LMDB that a reader maps without copying or unpickling.

Layout, version 2. `meta`: JSON (format, version, units, sfreq, electrodes, window, filter, sources, counts,
fingerprint). `trials`: JSON list, one row a trial (see `Trial`). Every other key: one trial's samples, (n_chans,
n_times) microvolts as raw little-endian float32. A run chooses who trains and who tests when it loads trials
(`datasets.splits`).
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import lmdb
import numpy as np
from zlib_ng.zlib_ng import crc32  # CRC-32 as zlib's, at a tenth of its time

from datasets.cbramod import CBraModStore, is_cbramod
from datasets.description import DATASETS, DatasetDescription, described
from datasets.recording import DTYPE, Trial
from readers.lmdb_file import LMDBFile, place_of
from utils.errors import Fault, UserError, loading
from utils.files import plain_bytes, read_json
from utils.limits import MAX_LABEL, MAX_NAME, MAX_TEXT, check_text
from utils.paths import sync_folder

FORMAT, VERSION = "eeg2image-trials", 2

# ---------------------------------------------------------------- writing

PLAN, PART = b"\0plan", b"\0part-%06d"  # no trial's key begins with a zero


class StoreWriter:
    """A store in the making, beside its place: an added part is on the disk, and a later run goes on behind it.

    path : Path. The store's folder; what is there is replaced only once the new one is whole.
    plan : dict. What the parts depend on, for JSON. An unfinished store of another plan, or a damaged one, is removed.

    notes : list of dict. What was noted with each part that is there.
    """

    def __init__(self, path: Path, plan: dict):
        self.path, self.folder = path, path.with_name(f".{path.name}.unfinished")
        self.plan = json.dumps(plan).encode()
        self._begin()
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise UserError(f"{self.folder} is in the way, and is no unfinished store; remove it")
        if self.folder.is_dir():
            try:
                self._read()
            except Exception:  # a damaged one fails in many ways
                self.discard()

    def _begin(self) -> None:
        self.notes: list[dict] = []
        self.rows: dict[str, dict] = {}
        self.shape, self.map_size, self._digest = None, 64 << 20, hashlib.sha256()

    def _read(self) -> None:
        """Take over the parts that are there; ValueError where they are of another plan or damaged."""
        file = LMDBFile(self.folder)
        file.check_free_pages()  # the lmdb library goes by them when the next part is written
        if bytes(file.get(PLAN) or b"") != self.plan:
            raise ValueError
        while (part := file.get(PART % len(self.notes))) is not None:
            checksum, _, text = bytes(part).partition(b" ")
            if crc32(text) != int(checksum):
                raise ValueError
            content = json.loads(text)
            for row in content["trials"]:
                raw = file.get(row["key"])
                if raw is None or crc32(raw) != row["checksum"]:
                    raise ValueError
                self._digest.update(row["key"].encode() + raw)
                self.rows[row["key"]] = row
            self.notes.append(content["note"])
            self.shape, self.map_size = content["shape"] and tuple(content["shape"]), content["map_size"]

    def discard(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._begin()

    def add(self, part: Sequence[tuple[Trial, np.ndarray]], note: dict | None = None) -> None:
        """Write one part's trials, all or none of them.

        part : sequence of (Trial, samples). Samples are float32 arrays (n_chans, n_times) in microvolts, all of one
            shape. `Trial.checksum` is filled in here.
        note : dict, optional. What a later run needs to know of this part, for JSON.
        Raises UserError if the disk is full, a key comes twice or the samples have several shapes.
        """
        rows, raws = {}, {}
        for trial, samples in part:
            for name in ("key", "subject", "session", "image"):
                self._check_name(getattr(trial, name), name)
            self.shape = self.shape or samples.shape
            if samples.shape != self.shape or samples.ndim != 2 or samples.dtype != DTYPE:
                kinds = f"trial {trial.key} is {samples.dtype} {samples.shape}; the others are {self.shape}"
                raise UserError(f"{kinds}: all recordings of a store need one sampling rate and one window")
            if trial.key in self.rows or trial.key in rows:
                raise UserError(f"two trials have the key {trial.key}; is a recording there twice?")
            raws[trial.key] = np.ascontiguousarray(samples, DTYPE).tobytes()
            rows[trial.key] = asdict(trial) | {"checksum": crc32(raws[trial.key])}
        self.map_size += sum(len(raw) + 8192 for raw in raws.values())  # with LMDB's pages around them
        self.map_size += 2 * len(json.dumps(note)) + (1 << 16)
        content = {"trials": list(rows.values()), "note": note, "shape": self.shape, "map_size": self.map_size}
        with self._transaction() as put:
            if not self.notes:
                put(PLAN, self.plan)
            for key, raw in raws.items():
                put(key.encode(), raw)
            text = json.dumps(content).encode()
            put(PART % len(self.notes), b"%d " % crc32(text) + text)
        for key, raw in raws.items():
            self._digest.update(key.encode() + raw)
        self.rows |= rows
        self.notes.append(note)

    def finish(self, meta: dict) -> dict:
        """Write the list of trials and the facts, and put the store in its place.

        meta : dict. Facts to keep; `sfreq` (Hz) is required.
        Returns dict: The metadata as written, with `n_trials`, `shape` and `fingerprint`: SHA-256 of keys and samples
            in order. Labels are not part of it: features of the samples stay valid when labels change.
        """
        for name in meta.get("classes", []):
            self._check_name(name, "a class")
        trials = json.dumps(list(self.rows.values())).encode()
        meta = meta | {"format": FORMAT, "version": VERSION, "dtype": DTYPE.str}
        meta |= {"units": meta.get("units", "microvolts"), "shape": self.shape, "n_trials": len(self.rows)}
        meta |= {"fingerprint": self._digest.hexdigest(), "trials_checksum": crc32(trials)}
        facts = json.dumps(meta).encode()
        self.map_size += 3 * (len(trials) + len(facts))
        written = LMDBFile(self.folder).get(b"meta") if self.folder.is_dir() else None
        if bytes(written or b"") != facts:  # else an earlier run ended behind this
            with self._transaction() as put:
                put(b"trials", trials)
                put(b"meta", facts)
                put(b"meta_checksum", str(crc32(facts)).encode())
        if self.path.is_dir():
            os.replace(self.folder / "data.mdb", self.path / "data.mdb")
            (self.path / "lock.mdb").unlink(missing_ok=True)
            self.folder.rmdir()
        else:
            self.folder.rename(self.path)
        sync_folder(self.path)
        sync_folder(self.path.parent)
        return meta

    def _check_name(self, name: str, what: str) -> None:
        """Raise UserError for a name that decoded rows and tables could not hold."""
        with loading(f"the store {self.path}", "name it otherwise", "written"):
            check_text(name, what, MAX_NAME)

    @contextmanager
    def _transaction(self) -> Iterator[Callable[[bytes, bytes], bool]]:
        """One transaction on the disk. Opened anew each time: the file's bytes do not tell of interruptions."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with lmdb.open(str(self.folder), map_size=self.map_size, lock=False) as env, env.begin(write=True) as txn:
                yield txn.put
        except lmdb.Error as error:
            advice = "free some disk space and run again"
            raise UserError(f"cannot write the store {self.path}: {error}; {advice}") from None


def write_store(path: Path, meta: dict, parts: Iterable[Sequence[tuple[Trial, np.ndarray]]]) -> dict:
    """Write a whole store, or nothing. Parameters and errors as `StoreWriter.add` and `finish`."""
    writer = StoreWriter(path, {})
    writer.discard()
    try:
        for part in parts:
            writer.add(part)
        return writer.finish(meta)
    except BaseException:
        writer.discard()
        raise


# ---------------------------------------------------------------- reading


class TrialStore:
    """Read-only view of a store written by `write_store`.

    meta : dict
    trials : list of Trial
    left_out : list of Trial. What preparation left out though it was recorded: its photo is missing.
    sfreq : float. Hz.
    shape : (n_chans, n_times)
    listed : int. Checksum of the list of trials, labels included.
    fingerprint : str. Of the samples, as written; changes as well when somebody writes into the store later.
    Raises UserError if the folder is no store, is truncated, or a store of another version.
    """

    own_splits: dict[str, str] = {}  # this layout leaves the splits to the run

    def __init__(self, path: str | Path, file: LMDBFile | None = None):
        self.path = Path(path)
        self._file = LMDBFile(self.path) if file is None else file
        anew = "make it anew with --overwrite"
        with loading(f"{path} is damaged: its facts are no JSON", anew):
            facts = bytes(self._file.get("meta") or b"{}")
            self.meta = json.loads(facts)
        if not isinstance(self.meta, dict) or self.meta.get("format") != FORMAT:
            raise UserError(f"{path} is not a trial store of this project; make one with prepare_data.py")
        if self.meta.get("version") != VERSION:
            script = "prepare_data_vi.py" if self.meta.get("dataset") == "VI" else "prepare_data.py"
            how = f"make it anew with python {script} --skip_download --lmdb_dir {path} --overwrite"
            version = self.meta.get("version")
            raise UserError(f"{path} is a store of version {version}; this code reads version {VERSION}: {how}")
        rows = bytes(self._file.get("trials") or b"")
        with loading(f"{path} is damaged: its facts or its list of trials are not what was written", anew):
            self.sfreq, self.shape = float(self.meta["sfreq"]), tuple(self.meta["shape"] or (0, 0))
            self.trials = [Trial(**row) for row in json.loads(rows)]
            self.left_out = [Trial(**row) for row in self.meta.get("left_out", [])]
            check_kinds(self.meta, self.sfreq, self.shape, [*self.trials, *self.left_out])
            self.listed = crc32(rows)
            checksums = self.meta["trials_checksum"], bytes(self._file.get("meta_checksum") or b"")
            if checksums != (self.listed, str(crc32(facts)).encode()):
                raise Fault("another checksum")
        self.fingerprint = f"{self.meta['fingerprint']}-{self._file.last_txnid}"
        self._verified: set[str] = set()
        self._n_bytes = DTYPE.itemsize * self.shape[0] * self.shape[1]  # of a trial

    def read(self, trial: Trial) -> np.ndarray:
        """The samples as a read-only view of the mapped file: float32, (n_chans, n_times), microvolts.

        Raises UserError if the samples are not those that were written; asked once a trial and process.
        """
        raw = self._file.get(trial.key)
        if trial.key not in self._verified:
            self.verify(trial, raw)
        return np.frombuffer(raw, DTYPE).reshape(self.shape)

    def verify(self, trial: Trial, raw: memoryview | None = None) -> None:
        """Raise UserError where a trial's stored samples are not those that were written."""
        raw = self._file.get(trial.key) if raw is None else raw
        if raw is None or len(raw) != self._n_bytes or crc32(raw) != trial.checksum:
            damage = f"the samples of trial {trial.key} are not those that were written"
            raise UserError(f"{self.path} is damaged: {damage}; make the store anew with --overwrite")
        self._verified.add(trial.key)


def check_kinds(meta: dict, sfreq: float, shape: tuple, trials: Sequence[Trial]) -> None:
    """Raise Fault where facts are of another kind than `StoreWriter` writes: checksums tell no intent."""
    electrodes = meta.get("electrodes", [])
    texts = [meta["fingerprint"], *(electrodes if isinstance(electrodes, list) else [None])]
    texts += [text for t in trials for text in (t.key, t.subject, t.session, t.image)]
    numbers = [*shape, *(number for t in trials for number in (t.label, t.run, t.trial, t.checksum))]
    natural = all(type(number) is int and 0 <= number < 1 << 32 for number in numbers)
    natural = natural and all(t.label < MAX_LABEL for t in trials)
    if not natural or not all(isinstance(text, str) for text in texts):
        raise Fault("a fact of another kind")
    # NaN is neither; without trials, nobody knows the rate
    if len(shape) != 2 or not (1e-3 <= sfreq < 1e6 or (sfreq == 0 and not trials)):
        raise Fault("a shape or a rate that cannot be")


def open_store(path: str | Path) -> TrialStore | CBraModStore:
    """Open a store of either layout: its folder, its data.mdb, or an LMDB in one file."""
    path = place_of(Path(path))
    file = LMDBFile(path)
    return (CBraModStore if is_cbramod(file) else TrialStore)(path, file)


def description_of_store(
    path: str | Path, name: str | None = None, words: str | None = None, usual: str | None = None
) -> DatasetDescription:
    """What a store is of: the dataset that it names, or describes itself.

    name : str, optional. --downstream_dataset, which must fit. words : str, optional. --words, a file of other words.
    usual : str, optional. Where the store does not say what it is of, as CBraMod's.
    Raises UserError where nobody says what it is of, or the words do not fit.
    """
    meta, known = {}, name or ("" if Path(path).exists() else usual)
    if known not in DATASETS:  # else pictures can be drawn where the store is not
        meta = open_store(path).meta
        known = name or meta.get("dataset") or usual
    description = described(known, meta.get("description"), str(path))
    if not description.classes and words:
        raise UserError(f"--words: the classes of {description.name} have no words")
    return description.with_words(read_words(Path(words)), words) if words else description


def read_words(path: Path) -> dict:
    """The content of a --words file, TOML or JSON (see `DatasetDescription.with_words`); UserError if it is neither."""
    if path.suffix.lower() == ".json":
        return read_json(path)
    if sys.version_info < (3, 11):
        raise UserError(f"--words {path}: TOML needs Python 3.11; write the same as JSON, in a file .json")
    import tomllib

    if not path.is_file():
        raise UserError(f"--words {path}: no such file, or no text")
    content = plain_bytes(path, MAX_TEXT)
    with loading(f"--words {path} cannot be read", "expected TOML"):
        return tomllib.loads(content.decode())


def is_trial_store(path: Path) -> bool:
    """Whether a folder holds a store of this project, of whatever version, and nothing else."""
    if {p.name for p in path.iterdir()} - {"data.mdb", "lock.mdb"}:
        return False
    with suppress(UserError, ValueError, RecursionError):
        meta = json.loads(bytes(LMDBFile(path).get("meta") or b"{}"))
        return isinstance(meta, dict) and meta.get("format") == FORMAT
    return False
