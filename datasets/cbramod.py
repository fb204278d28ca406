"""CBraMod's and CSBrain's LMDB layout: `__keys__` and records are pickles, at 200 Hz; none runs code."""

import functools
import hashlib
import pickle
import re
import reprlib
import zlib
from pathlib import Path

import numpy as np

from datasets.description import SPLITS
from datasets.recording import DTYPE, Trial
from readers.lmdb_file import LMDBFile
from readers.stored_array import filled
from readers.unpickler import ARRAYS, Rules, Unpickler
from utils.errors import UserError
from utils.limits import MAX_WORDS, check_text

SFREQ = 200.0  # Hz
# unit that records may be in → standard deviations of EEG in it, from and to, and what makes microvolts of it
UNITS = {"volts": (1e-6, 2e-4, 1e6), "hundreds of microvolts": (0.05, 0.7, 100.0), "microvolts": (0.7, 1000.0, 1.0)}
LOOKED_AT = 32  # records that tell
# numbers of 8 bytes at most; samples are longer than labels, and are read from the mapped file
RECORDS = Rules(ARRAYS, dtypes="b1|[iu][1248]|f[248]", keys=(str,), long_bytes=256)
SafeUnpickler = functools.partial(Unpickler, rules=RECORDS)


def is_cbramod(file: LMDBFile) -> bool:
    """Whether a file has this layout."""
    return "meta" not in file and "__keys__" in file


class CBraModStore:
    """Read-only view of such a folder, with the same face as `TrialStore`.

    Records are `{"sample": (n_chans, n_patches, 200), "label": int}`, unpickled by `SafeUnpickler`, in microvolts; what
    is in volts, or divided by 100 as CBraMod's loaders do, is told by its amplitude and multiplied, with a notice.
    Person and session come from the file name in the key where it has them; `own_splits` says which split the file puts
    a key in.

    Raises UserError if a pickle holds anything but arrays and plain containers, a record is none, or samples are NaN or
    infinite.
    """

    sfreq, left_out = SFREQ, ()

    def __init__(self, path: str | Path, file: LMDBFile | None = None):
        self.path = Path(path)
        self._file = LMDBFile(self.path) if file is None else file
        self._samples_at: tuple[int, int] = (0, 0)  # of the last record
        self._contents: dict[tuple, object] = {}  # records without samples, by what stands around those
        self.meta: dict = {"format": "CBraMod", "sfreq": SFREQ}
        keys = self._unpickled("__keys__")
        if not isinstance(keys, dict) or not set(SPLITS) <= set(keys):
            raise UserError(f"{path}: __keys__ does not list train, val and test; expected CBraMod's layout")
        self.own_splits = {}
        for split, listed in ((split, keys[split]) for split in SPLITS):
            if not isinstance(listed, list) or not all(isinstance(key, str) for key in listed):
                raise UserError(f"{path}: __keys__ has {reprlib.repr(listed)} as {split}; expected a list of strings")
            for key in listed:
                if key in self.own_splits:
                    raise UserError(f"{path}: record {key!r} is listed twice, in {self.own_splits[key]} and {split}")
                self.own_splits[key] = split

    def __getstate__(self):
        return self.__dict__ | {"_samples_at": (0, 0), "_contents": {}}

    @functools.cached_property
    def trials(self) -> list[Trial]:
        """Labels stand inside the records, so the first call reads the whole file."""
        return [self._trial(key) for key in self.own_splits]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all keys, splits and checksums."""
        text = "".join(f"{self.own_splits[t.key]} {t.key} {t.checksum} " for t in self.trials)
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()

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
        if zlib.crc32(self.read(trial)) != trial.checksum:
            raise UserError(f"{self.path}: record {trial.key!r} has changed while it was used")

    @functools.cached_property
    def _scale(self) -> float:
        """What makes microvolts of the samples: by the median standard deviation of some records."""
        keys = list(self.own_splits)
        some = keys[:: max(1, len(keys) // LOOKED_AT)][:LOOKED_AT]
        sds = [np.median(self._stored(key, self._unpickled(key)).std(axis=1)) for key in some]
        sd = float(np.median(sds)) if sds else 0.0
        found = f"notice: {self.path}: the samples' median standard deviation is {sd:.3g}"
        for unit, (low, high, factor) in UNITS.items():
            if low <= sd < high:
                if factor != 1:
                    print(f"{found}: taken for {unit}, multiplied by {factor:g}")
                    self.meta["multiplied_by"] = factor
                return factor
        if sd:
            print(f"{found}; expected microvolts, 1 to 200: they are read as they are; is the unit wrong?")
        return 1.0

    def _samples(self, key: str, record: object) -> np.ndarray:
        """(n_chans, n_times) float32 microvolts."""
        samples = self._stored(key, record)
        if self._scale != 1:
            samples *= np.float32(self._scale)
        return samples

    def _stored(self, key: str, record: object) -> np.ndarray:
        """(n_chans, n_times) float32, as they are."""
        if not isinstance(record, dict):
            what = f"no dict with 'sample' and 'label'; it is {reprlib.repr(record)}"
            raise UserError(f"{self.path}: record {key!r} is {what}")
        sample = record.get("sample")
        fits = isinstance(sample, np.ndarray) and sample.ndim == 3 and sample.shape[2] == 200 and sample.size
        if not fits or sample.dtype.kind not in "fiu":
            raise UserError(f"{self.path}: record {key!r} has no array (n_chans, n_patches, 200) under 'sample'")
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite
            samples = np.array(sample.reshape(len(sample), -1), DTYPE, order="C")  # aligned
        if not np.isfinite(samples).all():
            raise UserError(f"{self.path}: record {key!r} has NaN or infinity in its samples")
        return samples

    def _trial(self, key: str) -> Trial:
        """CBraMod's keys are a file name and counters, "A01T-3-17" or "sub012.pkl-3-17"."""
        record = self._unpickled(key)
        samples = self._samples(key, record)
        if "label" not in record:
            raise UserError(f"{self.path}: record {key!r} has no label")
        label = record["label"]
        try:
            check_text(key, "a key", MAX_WORDS)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}") from None
        if not isinstance(label, int | np.integer):
            raise UserError(f"{self.path}: record {key!r} has the label {reprlib.repr(label)}; expected a whole number")
        if samples.shape != self.shape:
            raise UserError(f"{self.path}: record {key!r} is {samples.shape}; the first one is {self.shape}")
        name, *counters = key.split("-")
        subject, session = re.fullmatch(r"([AB]\d\d)([TE])?.*|(?P<other>.*)", name, re.DOTALL).group(1, 2)
        run, number = ([int(c) for c in counters if c.isdecimal()] + [0, 0])[:2]
        checksum = zlib.crc32(samples)
        return Trial(key, int(label), subject or name.split(".")[0], session or "", run, number + 1, "", checksum)

    def _unpickled(self, key: str) -> object:
        raw = self._file.get(key)
        if raw is None:
            raise UserError(f"{self.path} has no record {key!r}")
        try:
            return filled(self._content(raw), raw)
        except pickle.UnpicklingError as error:
            raise UserError(f"{self.path}: record {key!r} cannot be read: {error}") from None

    def _content(self, raw: memoryview) -> object:
        """Read a record without its samples. Few records differ around those; each such frame is read once."""
        start, stop = self._samples_at
        content = self._contents.get((start, stop, bytes(raw[:start]), bytes(raw[stop:]))) if stop else None
        if content is None:
            unpickler = SafeUnpickler(raw)
            content = unpickler.content()
            start, stop = self._samples_at = unpickler.longest
            if start + len(raw) - stop <= 4096:  # else it holds more than samples
                if len(self._contents) == 1000:
                    self._contents.clear()
                self._contents[start, stop, bytes(raw[:start]), bytes(raw[stop:])] = content
        return content
