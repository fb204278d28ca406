"""The one reader of pickles: it builds arrays, numbers, texts and containers by the rules of a use, and runs nothing.

Who reads pickles says in `Rules` what they may hold: readers/pickles.py of recordings, datasets/cbramod.py of records.
"""

import functools
import io
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from readers.stored_array import Array, StoredArray, StoredBytes, StoredText, filled, in_order

ONLY = "only numpy arrays and plain containers are read, and nothing of it was run"
NUMBERS = "only plain numbers are read"
MAX_AXES, MAX_AXIS = 8, 1 << 48  # of an array
NO_LIMIT = 1 << 62
# opcodes that do what they do in Python, by their names in `pickle`
AS_PYTHON = (
    "PROTO STOP MARK NONE NEWTRUE NEWFALSE INT LONG BININT BININT1 BININT2 LONG1 FLOAT BINFLOAT "
    "UNICODE SHORT_BINUNICODE SHORT_BINBYTES EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST LIST APPEND APPENDS "
    "EMPTY_DICT MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID"
)


@dataclass(frozen=True)
class Rules:
    """What the pickles of one use may hold."""

    names: dict[tuple[str, str], object]  # (module, name) → what stands in for it; functions get the unpickler first
    dtypes: str  # regular expression of NumPy's codes of data types
    keys: tuple[type, ...]  # of dicts. None may hold others: to hash what is nested deep ends the process
    long_bytes: int  # bytes so long, or longer, are left where they are
    long_text: int = NO_LIMIT  # and so are texts: one so long can only be an array's bytes
    most: int = NO_LIMIT  # bytes that may be read; those that are left where they are do not count


class Refused(pickle.UnpicklingError):
    """A pickle holds what it may not."""


class Stretch:
    """The bytes `start` to `stop` of an open file, forwards.

    path : Path, or None for a record in memory.
    most : int. Bytes that may still be read.
    """

    def __init__(self, file: BinaryIO, path: Path | None = None, start: int = 0, stop: int | None = None):
        self.file, self.path = file, path
        self.stop = file.seek(0, io.SEEK_END) if stop is None else stop
        self.at, self.size, self.most, self.frame_end = file.seek(start), self.stop - start, NO_LIMIT, 0

    def read(self, n: int) -> bytes:
        return self._counted(self.file.read(min(n, self.stop - self.at, self.most + 1)))

    def readline(self) -> bytes:
        line = self._counted(self.file.readline(min(self.stop - self.at, self.most + 1)))
        if not line.endswith(b"\n"):
            raise EOFError
        return line

    def pass_over(self, n: int, kind: type[StoredBytes]) -> StoredBytes:
        """Leave the next bytes where they are; the reading goes on behind them."""
        start = self.at
        self._move(n)
        self.file.seek(self.at)
        return kind(self.path, start, n)

    def check(self, n: int) -> None:
        """Refuse a length that is more than what is left."""
        if n > self.stop - self.at:
            raise Refused(f"it is damaged ({n} bytes, and it ends before)")

    def frame(self, n: int) -> None:
        """Begin a frame: nothing that is read reaches over its end."""
        self.check(n)
        if self.at < self.frame_end:
            raise Refused("it is damaged (a frame inside another)")
        self.frame_end = self.at + n

    def _move(self, n: int) -> None:
        if self.at < self.frame_end < self.at + n:
            raise Refused("it is damaged (it reaches over the end of a frame)")
        self.at += n

    def _counted(self, data: bytes) -> bytes:
        self._move(len(data))
        self.most -= len(data)
        if self.most < 0:
            raise Refused("it has more text and small arrays than such a file needs")
        return data


class _Opcodes(dict):
    """What opcodes do, by their numbers."""

    def __missing__(self, opcode: int) -> None:
        raise Refused(f"it has the opcode {bytes([opcode])}; {ONLY}")


class _Memo(dict):
    """Objects that a pickle may name again, by their numbers."""

    def __init__(self, most: int):
        self.most = most

    def __setitem__(self, number: int, value: object) -> None:
        if number > self.most:
            raise Refused(f"it is damaged ({number} objects to remember)")
        super().__setitem__(number, value)

    def __getitem__(self, number: int) -> object:
        value = super().__getitem__(number)
        return value.built if type(value) is Unbuilt else value


class Unpickler(pickle._Unpickler):  # the one in Python: its opcodes can be replaced
    """Reads one pickle, of protocols 0 to 5, by rules.

    source : Stretch of a file, or a record's bytes.
    storage : function, optional. Finds what torch.save wrote beside the pickle, by the reference in it.
    longest : (start, stop). Where the longest bytes lie that were left where they are.

    Python's own unpickler hands what a file says to NumPy's functions, which believe it: an array's bytes may be made
    into pointers. It makes room for whatever length a file names, and a dict's key that is nested deep ends the
    process. Here every opcode and every name that such files do not need is refused, and nothing is longer than the
    file.
    """

    def __init__(self, source: Stretch | bytes | memoryview, rules: Rules, storage: Callable | None = None):
        self.source = source if isinstance(source, Stretch) else Stretch(io.BytesIO(source))
        self.source.most = rules.most
        super().__init__(self.source)
        self.record, self.rules, self.memo = source, rules, _Memo(self.source.size)
        self.longest, self.encoded, self.storage = (0, 0), 0, storage

    def load(self) -> object:
        """Read a record's pickled object."""
        return filled(self.content(), memoryview(self.record).cast("B"))

    def content(self) -> object:
        """Read the pickled object, with `StoredArray` and `StoredBytes` in place of what is long.

        Raises pickle.UnpicklingError if the pickle holds what the rules do not allow, or is damaged.
        """
        try:
            return super().load()
        except Refused as error:
            raise pickle.UnpicklingError(str(error)[:200]) from None
        except Exception as error:  # nonsense fails in many ways
            raise pickle.UnpicklingError(f"it is damaged ({type(error).__name__}: {error})"[:200]) from None

    def find_class(self, module: str, name: str) -> object:
        """Return what stands in for what is asked for."""
        if (module, name) not in self.rules.names:
            raise Refused(f"it asks for {module}.{name}; {ONLY}")
        found = self.rules.names[module, name]
        return functools.partial(found, self) if callable(found) else found

    def persistent_load(self, reference: object) -> object:
        """Return what is referred to outside the pickle."""
        if self.storage is None:
            raise Refused("it refers to something outside itself")
        return self.storage(reference)

    # -------- opcodes

    def _long(self, width: int, long: int, kind: type[StoredBytes]) -> bytes | StoredBytes:
        """Read bytes behind their number, which has `width` bytes; leave `long` ones and longer ones where they are."""
        n = int.from_bytes(self.read(width), "little")
        self.source.check(n)
        if n < long:
            return self.read(n)
        start = self.source.at
        self.longest = max(self.longest, (start, start + n), key=lambda place: place[1] - place[0])
        return self.source.pass_over(n, kind)

    def _bytes(self, width: int) -> None:
        self.append(self._long(width, self.rules.long_bytes, StoredBytes))

    def _text(self, width: int) -> None:
        text = self._long(width, self.rules.long_text, StoredText)
        self.append(str(text, "utf-8", "surrogatepass") if isinstance(text, bytes) else text)

    def _update(self, items: list) -> None:
        keys = items[::2]
        if type(self.stack[-1]) is not dict or not all(type(key) in self.rules.keys for key in keys):
            raise Refused("it has a dict whose keys are no strings")
        self.stack[-1].update(zip(keys, items[1::2], strict=True))

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._update(items)

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not callable(function):  # what find_class gave, and nothing else, can be called
            raise Refused("it is damaged (it calls what is no function)")
        self.append(function(*arguments))

    def _build(self) -> None:
        state, unbuilt = self.stack.pop(), self.stack.pop()
        if type(unbuilt) is not Unbuilt:
            raise Refused("it is damaged (it gives a state to what has none)")
        unbuilt.built = unbuilt.build(*state)
        self.append(unbuilt.built)

    dispatch = _Opcodes()
    for _name in AS_PYTHON.split():
        dispatch[getattr(pickle, _name)[0]] = pickle._Unpickler.dispatch[getattr(pickle, _name)[0]]
    dispatch[pickle.FRAME[0]] = lambda self: self.source.frame(int.from_bytes(self.read(8), "little"))
    dispatch[pickle.BINBYTES[0]] = lambda self: self._bytes(4)
    dispatch[pickle.BINBYTES8[0]] = dispatch[pickle.BYTEARRAY8[0]] = lambda self: self._bytes(8)
    dispatch[pickle.BINUNICODE[0]] = lambda self: self._text(4)
    dispatch[pickle.BINUNICODE8[0]] = lambda self: self._text(8)
    dispatch[pickle.DICT[0]] = _dict
    dispatch[pickle.SETITEM[0]] = lambda self: self._update([self.stack.pop(-2), self.stack.pop()])
    dispatch[pickle.SETITEMS[0]] = lambda self: self._update(self.pop_mark())
    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.BUILD[0]] = _build


# ---------------------------------------------------------------- NumPy's objects, as it pickles them


class Unbuilt:
    """A data type or an array whose state is still to come. `built` is what that makes of it."""

    def __init__(self, build: Callable):
        self.build, self.built = build, self


def array(unpickler: Unpickler, data: object, dtype: np.dtype, shape: tuple, order: str = "C", axes=None) -> Array:
    """Make an array as NumPy's `_frombuffer` does, of exactly the bytes, or the objects, that it needs."""
    shape, objects = checked_shape(shape), dtype.hasobject
    kinds, n_needed = ([list], 1) if objects else ([bytes, StoredBytes, StoredText], dtype.itemsize)
    fits = isinstance(dtype, np.dtype) and type(data) in kinds and len(data) == math.prod(shape) * n_needed
    if not fits or not (order in ("C", "F") or order == "K" and sorted(axes) == list(range(len(shape)))):
        raise Refused("it has an array whose bytes, data type and shape do not belong together")
    if order == "F":
        shape, axes = shape[::-1], range(len(shape))[::-1]
    axes = None if order == "C" else tuple(map(int, axes))
    if isinstance(data, StoredBytes):
        return StoredArray(data, shape, dtype, axes)
    flat = np.empty(len(data), object) if objects else np.frombuffer(data, dtype)
    for k, value in enumerate(data if objects else ()):
        flat[k] = value
    return in_order(flat.reshape(shape), axes)


def checked_shape(shape: tuple) -> tuple[int, ...]:
    """Return a shape that an array may have."""
    shape = tuple(shape)
    if len(shape) > MAX_AXES or not all(type(n) is int and 0 <= n <= MAX_AXIS for n in shape):
        raise Refused("it is damaged (an array without a shape)")
    return shape


def scalar(unpickler: Unpickler, dtype: np.dtype, raw: bytes) -> np.generic:
    """Make one number."""
    return array(unpickler, raw, dtype, (1,))[0]


def _reconstruct(unpickler: Unpickler, kind: None, shape: tuple, code: bytes) -> Unbuilt:
    """Make an array that its state fills."""

    def build(version: int, shape: tuple, dtype: np.dtype, fortran: bool, data: object) -> Array:
        return array(unpickler, data, dtype, shape, "F" if fortran else "C")

    return Unbuilt(build)


def _dtype(unpickler: Unpickler, code: str, align: bool = False, copy: bool = False) -> Unbuilt:
    """Make a data type without fields; its byte order comes as its state."""
    if not re.fullmatch(unpickler.rules.dtypes, code):
        raise Refused(f"it asks for the data type {code!r}; {NUMBERS}")

    def build(version: int, order: str, *others: object) -> np.dtype:
        if version != 3 or order not in ("<", ">", "|", "=") or len(others) != 6 or others[:3] != (None, None, None):
            raise Refused(f"it makes of the data type {code!r} another; {NUMBERS}")
        return np.dtype(order + code)

    return Unbuilt(build)


def _encode(unpickler: Unpickler, text: str | StoredText, encoding: str) -> bytes | StoredText:
    """Make bytes of the text as which Python 3 pickles them under protocols 0 to 2."""
    unpickler.encoded += len(text)
    if encoding != "latin1" or unpickler.encoded > unpickler.source.size:
        raise Refused(f"it has bytes encoded as {encoding!r}; expected latin1, and each of them once")
    return text if isinstance(text, StoredText) else text.encode("latin1")


ARRAYS: dict[tuple[str, str], object] = {
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): None,  # an argument, which nobody needs
    ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    ARRAYS[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    ARRAYS[f"{_core}.multiarray", "scalar"] = scalar
    ARRAYS[f"{_core}.numeric", "_frombuffer"] = array
