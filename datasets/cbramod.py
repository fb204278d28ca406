"""CBraMod's and CSBrain's LMDB layout: `__keys__` and records pickled, microvolts at 200 Hz. Read without running code."""

import functools
import hashlib
import math
import pickle
import re
import reprlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.description import SPLITS
from datasets.recording import DTYPE, Trial
from readers.lmdb_file import LMDBFile
from utils.errors import UserError

SFREQ = 200.0  # Hz


def is_cbramod(file: LMDBFile) -> bool:
    """Whether a file has this layout."""
    return "meta" not in file and "__keys__" in file


class CBraModStore:
    """Read-only view of such a folder, with the same face as `TrialStore`.

    Records are `{"sample": (n_chans, n_patches, 200), "label": int}`, unpickled by `SafeUnpickler`. Person and session
    come from the file name in the key where it has them; `own_splits` says which split the file puts a key in.

    Raises UserError if a pickle holds anything but arrays and plain containers, a record is none, or samples are NaN or
    infinite.
    """

    sfreq = SFREQ

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
        for split in SPLITS:
            if not isinstance(keys[split], list) or not all(isinstance(key, str) for key in keys[split]):
                raise UserError(
                    f"{path}: __keys__ has {reprlib.repr(keys[split])} as {split}; expected a list of strings"
                )
            for key in keys[split]:
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

    def _samples(self, key: str, record: object) -> np.ndarray:
        """(n_chans, n_times) float32."""
        if not isinstance(record, dict):
            raise UserError(
                f"{self.path}: record {key!r} is no dict with 'sample' and 'label'; it is {reprlib.repr(record)}"
            )
        sample = record.get("sample")
        if (
            not isinstance(sample, np.ndarray)
            or sample.ndim != 3
            or sample.shape[2] != 200
            or not sample.size
            or sample.dtype.kind not in "fiu"
        ):
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
        """A record without its samples. Few records differ in what stands around those; each such frame is read once."""
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


# ---------------------------------------------------------------- pickles

ALL_THAT_IS_READ = "only numpy arrays and plain containers are read"
STOP = pickle.STOP[0]
SHORT, LONG, HUGE, SIGNED, DOUBLE = map(struct.Struct, ("<H", "<I", "<Q", "<i", ">d"))


class SafeUnpickler:
    """Reader of one pickle, of protocols 0 to 5, of numeric arrays, numbers, strings, lists, tuples and dicts.

    raw : bytes or other buffer. Arrays are read-only, and views of it where the protocol has bytes (3 and later).
    longest : (start, stop). Where the longest run of bytes lies in it.

    This is no `pickle.Unpickler`. That one hands what a file says to numpy's own functions, which believe it: an array's
    bytes may be made into pointers. And it allocates whatever length a file names. Here every opcode and function that
    such records do not need is refused, and nothing is longer than the record.
    """

    def __init__(self, raw: bytes | memoryview):
        self.raw, self.at = memoryview(raw).cast("B"), 0
        self.stack: list = []
        self.marks: list[int] = []  # lengths that the stack had
        self.memo: dict[int, object] = {}
        self.longest, self.encoded = (0, 0), 0

    def load(self) -> object:
        """The pickled object."""
        return filled(self.content(), self.raw)

    def content(self) -> object:
        """The pickled object, with `Stored` in place of bytes longer than 255 and of arrays of them.

        Raises pickle.UnpicklingError if the pickle holds anything else or is damaged.
        """
        try:
            while (code := self.byte()) != STOP:
                if code not in OPCODES:
                    raise pickle.UnpicklingError(f"it has the opcode {bytes([code])}; {ALL_THAT_IS_READ}")
                OPCODES[code](self)
            return self.stack.pop()
        except pickle.UnpicklingError as error:
            raise pickle.UnpicklingError(str(error)[:200]) from None
        except Exception as error:  # nonsense fails in many ways
            raise pickle.UnpicklingError(f"it is damaged ({type(error).__name__}: {error})"[:200]) from None

    def find_class(self, module: str, name: str) -> Callable | None:
        """Our function in place of the one that is asked for."""
        if (module, name) == ("_codecs", "encode"):
            return self.encode
        if not (isinstance(module, str) and isinstance(name, str) and (module, name) in FUNCTIONS):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; {ALL_THAT_IS_READ}")
        return FUNCTIONS[module, name]

    def encode(self, text: str, encoding: str) -> bytes:
        """How Python 3 pickles bytes under protocols 0 to 2."""
        self.encoded += len(text)
        if encoding != "latin1" or self.encoded > len(self.raw):
            raise pickle.UnpicklingError(
                f"it has bytes encoded as {encoding!r}; expected latin1, and each of them once"
            )
        return text.encode("latin1")

    # -------- what follows an opcode

    def byte(self) -> int:
        self.at += 1
        return self.raw[self.at - 1]

    def number(self, kind: struct.Struct) -> int | float:
        self.at += kind.size
        return kind.unpack_from(self.raw, self.at - kind.size)[0]

    def take(self, length: int) -> memoryview:
        start, self.at = self.at, self.at + length
        if self.at > len(self.raw):
            raise pickle.UnpicklingError(f"it is damaged ({length} bytes, and the record ends before)")
        return self.raw[start : self.at]

    def take_long(self, length: int) -> "bytes | Stored":
        start, part = self.at, self.take(length)
        if length < 256:
            return bytes(part)
        self.longest = max(self.longest, (start, self.at), key=lambda place: place[1] - place[0])
        return Stored(start, self.at)

    def line(self) -> bytes:
        text = bytes(self.raw[self.at : self.at + 80])  # only an array's bytes make a longer line, under protocol 0
        if b"\n" not in text:
            text = bytes(self.raw[self.at :])
        text = text[: text.index(b"\n")]
        self.at += len(text) + 1
        return text

    # -------- what an opcode does

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list:
        popped = self.stack[-count:]
        del self.stack[-count:]
        return popped

    def pop_to_mark(self) -> list:
        start = self.marks.pop()
        popped = self.stack[start:]
        del self.stack[start:]
        return popped

    def frame(self, length: int) -> None:
        if length > len(self.raw) - self.at:
            raise pickle.UnpicklingError(f"it is damaged ({length} bytes, and the record ends before)")

    def put(self, index: int) -> None:
        if not 0 <= index <= len(self.raw):
            raise pickle.UnpicklingError(f"it is damaged ({index} objects to remember)")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        value = self.memo[index]
        self.push(value.built if type(value) is Unbuilt else value)

    def extend(self, items: list) -> None:
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError("it is damaged (it appends to what is no list)")
        self.stack[-1].extend(items)

    def update(self, items: list) -> None:
        keys, values = items[::2], items[1::2]
        if type(self.stack[-1]) is not dict or not all(type(key) is str for key in keys):
            raise pickle.UnpicklingError("it has a dict whose keys are no strings")
        self.stack[-1].update(zip(keys, values, strict=True))

    def push_dict(self, items: list) -> None:
        self.push({})
        self.update(items)

    def reduce(self) -> None:
        function, arguments = self.pop(2)
        if not callable(function):  # what find_class gave, and nothing else, can be called
            raise pickle.UnpicklingError("it is damaged (it calls what is no function)")
        self.push(function(*arguments))

    def build(self) -> None:
        unbuilt, state = self.pop(2)
        if type(unbuilt) is not Unbuilt:
            raise pickle.UnpicklingError("it is damaged (it gives a state to what has none)")
        unbuilt.built = unbuilt.build(*state)
        self.push(unbuilt.built)


def _int(line: bytes) -> int:
    """Protocols 0 and 1 write True as 01."""
    return line == b"01" if line in (b"00", b"01") else int(line)


ACTIONS: dict[bytes, Callable[[SafeUnpickler], object]] = {
    pickle.PROTO: lambda u: u.byte(),
    pickle.FRAME: lambda u: u.frame(u.number(HUGE)),
    pickle.MARK: lambda u: u.marks.append(len(u.stack)),
    # constants and numbers
    pickle.NONE: lambda u: u.push(None),
    pickle.NEWTRUE: lambda u: u.push(True),
    pickle.NEWFALSE: lambda u: u.push(False),
    pickle.INT: lambda u: u.push(_int(u.line())),
    pickle.LONG: lambda u: u.push(int(u.line().rstrip(b"L"))),
    pickle.BININT: lambda u: u.push(u.number(SIGNED)),
    pickle.BININT1: lambda u: u.push(u.byte()),
    pickle.BININT2: lambda u: u.push(u.number(SHORT)),
    pickle.LONG1: lambda u: u.push(int.from_bytes(u.take(u.byte()), "little", signed=True)),
    pickle.FLOAT: lambda u: u.push(float(u.line())),
    pickle.BINFLOAT: lambda u: u.push(u.number(DOUBLE)),
    # strings and bytes
    pickle.UNICODE: lambda u: u.push(str(u.line(), "raw-unicode-escape")),
    pickle.SHORT_BINUNICODE: lambda u: u.push(str(u.take(u.byte()), "utf-8")),
    pickle.BINUNICODE: lambda u: u.push(str(u.take(u.number(LONG)), "utf-8")),
    pickle.BINUNICODE8: lambda u: u.push(str(u.take(u.number(HUGE)), "utf-8")),
    pickle.SHORT_BINBYTES: lambda u: u.push(bytes(u.take(u.byte()))),
    pickle.BINBYTES: lambda u: u.push(u.take_long(u.number(LONG))),
    pickle.BINBYTES8: lambda u: u.push(u.take_long(u.number(HUGE))),
    pickle.BYTEARRAY8: lambda u: u.push(u.take_long(u.number(HUGE))),
    # containers
    pickle.EMPTY_TUPLE: lambda u: u.push(()),
    pickle.TUPLE1: lambda u: u.push(tuple(u.pop(1))),
    pickle.TUPLE2: lambda u: u.push(tuple(u.pop(2))),
    pickle.TUPLE3: lambda u: u.push(tuple(u.pop(3))),
    pickle.TUPLE: lambda u: u.push(tuple(u.pop_to_mark())),
    pickle.EMPTY_LIST: lambda u: u.push([]),
    pickle.LIST: lambda u: u.push(u.pop_to_mark()),
    pickle.APPEND: lambda u: u.extend(u.pop(1)),
    pickle.APPENDS: lambda u: u.extend(u.pop_to_mark()),
    pickle.EMPTY_DICT: lambda u: u.push({}),
    pickle.DICT: lambda u: u.push_dict(u.pop_to_mark()),
    pickle.SETITEM: lambda u: u.update(u.pop(2)),
    pickle.SETITEMS: lambda u: u.update(u.pop_to_mark()),
    # what comes more than once
    pickle.MEMOIZE: lambda u: u.put(len(u.memo)),
    pickle.PUT: lambda u: u.put(int(u.line())),
    pickle.BINPUT: lambda u: u.put(u.byte()),
    pickle.LONG_BINPUT: lambda u: u.put(u.number(LONG)),
    pickle.GET: lambda u: u.get(int(u.line())),
    pickle.BINGET: lambda u: u.get(u.byte()),
    pickle.LONG_BINGET: lambda u: u.get(u.number(LONG)),
    # arrays
    pickle.GLOBAL: lambda u: u.push(u.find_class(u.line().decode(), u.line().decode())),
    pickle.STACK_GLOBAL: lambda u: u.push(u.find_class(*u.pop(2))),
    pickle.REDUCE: lambda u: u.reduce(),
    pickle.BUILD: lambda u: u.build(),
}
OPCODES = {opcode[0]: action for opcode, action in ACTIONS.items()}


# ---------------------------------------------------------------- numpy's objects, as it pickles them


class Unbuilt:
    """A data type or an array whose state is still to come. `built` is what that makes of it."""

    __slots__ = ("build", "built")

    def __init__(self, build: Callable):
        self.build, self.built = build, self


@dataclass(frozen=True)
class Stored:
    """Bytes `start` to `stop` of a record, or an array of them, nothing of which has been read."""

    start: int
    stop: int
    layout: tuple | None = None  # data type, shape, order, axes

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, raw: memoryview) -> memoryview | np.ndarray:
        """What it stands for in a record."""
        part = raw[self.start : self.stop]
        return part if self.layout is None else _laid_out(part, *self.layout)


def filled(content: object, raw: memoryview) -> object:
    """Read what `SafeUnpickler.content` has left in a record's bytes, in place of a dict's values."""
    if isinstance(content, dict):
        return {key: value.read(raw) if type(value) is Stored else value for key, value in content.items()}
    return content.read(raw) if type(content) is Stored else content


def _array(
    raw: bytes | Stored, dtype: np.dtype, shape: tuple[int, ...], order: str, axes: tuple[int, ...] | None = None
) -> np.ndarray | Stored:
    """An array as numpy's `_frombuffer` makes it, from exactly the bytes that it needs."""
    if not (
        isinstance(dtype, np.dtype)
        and all(type(n) is int and n >= 0 for n in shape)
        and len(shape) <= 8
        and len(raw) == math.prod(shape) * dtype.itemsize
        and (order in ("C", "F") or order == "K" and sorted(axes) == list(range(len(shape))))
    ):
        raise pickle.UnpicklingError("it has an array whose bytes, data type and shape do not belong together")
    layout = dtype, shape, order, axes
    return Stored(raw.start, raw.stop, layout) if type(raw) is Stored else _laid_out(raw, *layout)


def _laid_out(raw: bytes | memoryview, dtype: np.dtype, shape: tuple, order: str, axes: tuple | None) -> np.ndarray:
    array = np.frombuffer(raw, dtype)
    return array.reshape(shape).transpose(axes) if order == "K" else array.reshape(shape, order=order)


def _reconstruct(kind: None, shape: tuple, code: bytes) -> Unbuilt:
    """An empty array, which its state fills."""
    return Unbuilt(lambda version, shape, dtype, fortran, raw: _array(raw, dtype, shape, "F" if fortran else "C"))


def _dtype(code: str, align: bool = False, copy: bool = False) -> Unbuilt:
    """A plain number's data type, of 8 bytes at most; its byte order comes as its state."""
    if not re.fullmatch("b1|[iu][1248]|f[248]", code):
        raise pickle.UnpicklingError(f"it asks for the data type {code!r}; only plain numbers are read")

    def build(version: int, order: str, *others: object) -> np.dtype:
        if version != 3 or order not in ("<", ">", "|", "=") or others != (None, None, None, -1, -1, 0):
            raise pickle.UnpicklingError(f"it makes of the data type {code!r} another; only plain numbers are read")
        return np.dtype(order + code)

    return Unbuilt(build)


def _scalar(dtype: np.dtype, raw: bytes) -> np.generic:
    return _array(raw, dtype, (1,), "C")[0]


FUNCTIONS = {("numpy", "dtype"): _dtype, ("numpy", "ndarray"): None}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    FUNCTIONS |= {
        (f"{_core}.multiarray", "_reconstruct"): _reconstruct, (f"{_core}.multiarray", "scalar"): _scalar,
        (f"{_core}.numeric", "_frombuffer"): _array,
    }  # fmt: skip
