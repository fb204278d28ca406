"""Recordings that come as pickles: read without running what they say, and without holding their arrays in memory.

Three layouts, told by their first bytes: `.npy` with a 0-d object array (a pickle behind the header), a bare pickle (whatever its
name), and torch.save's zip. Arrays stay on the disk until rows are asked for; everything else is plain Python.
"""

import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.errors import UserError, loading
from utils.limits import bounded

LAZY = 1 << 20  # bytes from which on an array stays on the disk
MOST_PLAIN = 1 << 28  # bytes that all of a file's strings and small arrays may take
HINT = "expected NumPy's or PyTorch's arrays in plain containers; fetch it again"


@dataclass
class StoredArray:
    """An array that lies uncompressed in a file.

    path : Path. offset : int. Of its first byte.
    text : _Text, optional. Where the bytes are written as text, as Python 3 does for Python 2.
    Behaves as a read-only array of `shape` and `dtype` for `rows`, `lines` and `all`.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool = False
    text: "_Text | None" = None

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """`array[start:stop]`, read now."""
        start, stop, _ = slice(start, stop).indices(len(self))
        shape = (max(stop - start, 0), *self.shape[1:])
        if self.fortran:
            return np.array(self._columns_first()[start:stop])
        return self._read(start * math.prod(self.shape[1:]), shape)

    def lines(self, start: int, stop: int) -> np.ndarray:
        """`array[:, start:stop]` of a 2-d array, read now: a stretch of time of a recording."""
        start, stop, _ = slice(start, stop).indices(self.shape[1])
        if self.fortran:
            return np.array(self._columns_first()[:, start:stop])
        return np.stack([self._read(k * self.shape[1] + start, (max(stop - start, 0),)) for k in range(len(self))])

    def all(self) -> np.ndarray:
        return self.rows(0, len(self))

    def _columns_first(self) -> np.ndarray:
        if self.text is not None:
            raise UserError(f"{self.path} holds an array column by column as text; save it anew with NumPy")
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order="F")

    def _read(self, first: int, shape: tuple[int, ...]) -> np.ndarray:
        if self.text is not None:
            raw = self.text.bytes(first * self.dtype.itemsize, math.prod(shape) * self.dtype.itemsize)
            return np.frombuffer(raw, self.dtype).reshape(shape)
        found = np.empty(shape, self.dtype)
        with open(self.path, "rb") as file:
            file.seek(self.offset + first * self.dtype.itemsize)
            n = file.readinto(memoryview(found.reshape(-1)).cast("B")) if found.size else 0
        if n != found.nbytes:
            raise UserError(f"{self.path} is shorter than its arrays; fetch it again")
        return found


class _Text:
    """Bytes that a file holds as text: of the values from 128 on each takes two. Read piece by piece.

    length : int. How many bytes the text stands for.
    """

    block = 1 << 20

    def __init__(self, path: Path, offset: int, length: int):
        self.path, self.offset, self.size = path, offset, length
        counts = [0]
        for start in range(0, length, self.block):
            raw = np.frombuffer(self._raw(start, self.block), np.uint8)
            counts.append(int(((raw & 0xC0) != 0x80).sum()))  # bytes that begin a character
        self._before = np.cumsum(counts)  # characters before each block
        self.length = int(self._before[-1])

    def _raw(self, start: int, n: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset + start)
            return file.read(min(n, self.size - start))

    def bytes(self, first: int, n: int) -> bytes:
        """Bytes `first` to `first + n` of what the text stands for."""
        if not n:
            return b""
        one = int(np.searchsorted(self._before, first, "right")) - 1
        last = int(np.searchsorted(self._before, first + n, "left"))
        raw = self._raw(one * self.block, (last - one) * self.block + 1)
        skip = 0
        while skip < len(raw) and raw[skip] & 0xC0 == 0x80:  # the end of a character that the block before began
            skip += 1
        text = raw[skip:].decode("utf-8", errors="ignore")[first - int(self._before[one]) :][:n]
        return text.encode("latin1")


Array = StoredArray | np.ndarray


def read_pickled(path: Path) -> object:
    """What a file holds: dicts, lists, texts, numbers, arrays; large arrays as `StoredArray`.

    Raises UserError if the file is damaged, or its pickle asks for anything but arrays and plain containers: nothing that it
        names is imported or called.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not there")
    with loading(str(path), HINT), bounded(str(path), 600, 4 << 30), open(path, "rb") as file:
        if file.read(2) == b"PK":
            return _read_zip(path, file)
        file.seek(0)
        if file.read(6) == b"\x93NUMPY":
            file.seek(0)
            return _read_npy(path, file)
        file.seek(0)
        return _settled(_Unpickler(file, path).load())


def _read_npy(path: Path, file: BinaryIO) -> object:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        content = _settled(_Unpickler(file, path).load())
        return content.item() if isinstance(content, np.ndarray) and content.ndim == 0 else content
    array = StoredArray(path, file.tell(), shape, dtype, fortran)
    _check_size(array)
    return array._read(0, shape) if array.dtype.itemsize * math.prod(shape) < LAZY else array


def _read_zip(path: Path, file: BinaryIO) -> object:
    """torch.save's layout: NAME/data.pkl, and NAME/data/KEY for each storage, none of them compressed."""
    with zipfile.ZipFile(path) as parts:
        infos = {info.filename: info for info in parts.infolist()}
        (main,) = [name for name in infos if name.endswith("/data.pkl") or name == "data.pkl"]
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos.values()):
            raise ValueError("its parts are compressed, which torch.save never does")

        def place(name: str) -> tuple[int, int]:
            """Offset and length of a part in the file."""
            info = infos[name]
            file.seek(info.header_offset)
            header = file.read(30)
            if header[:4] != b"PK\x03\x04":
                raise ValueError(f"its part {name} has no header")
            skip = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            return info.header_offset + 30 + skip, info.file_size

        folder = main.removesuffix("data.pkl")

        def storage(reference: object) -> "_Storage":
            kind, made, key, _, n = reference
            if kind != "storage" or not isinstance(made, _Storage) or not isinstance(key, str) or type(n) is not int:
                raise pickle.UnpicklingError("a storage that cannot be")
            offset, length = place(f"{folder}data/{key}")
            if n * made.dtype.itemsize > length:
                raise pickle.UnpicklingError(
                    f"its storage {key} has {length} bytes; expected {n * made.dtype.itemsize}"
                )
            return _Storage(made.dtype, path, offset, n)

        start, length = place(main)
        return _settled(_Unpickler(_Stretch(file, start, length), path, storage).load())


class _Stretch(io.RawIOBase):
    """A part of an open file, from `start` on, as a file of its own; `tell` counts in the whole one."""

    def __init__(self, file: BinaryIO, start: int, length: int):
        self._file, self._at, self._end = file, start, start + length

    def read(self, n: int = -1) -> bytes:
        n = self._end - self._at if n < 0 else min(n, self._end - self._at)
        self._file.seek(self._at)
        found = self._file.read(n)
        self._at += len(found)
        return found

    def readline(self, *_) -> bytes:
        self._file.seek(self._at)
        found = self._file.readline(min(self._end - self._at, 1 << 16))
        self._at += len(found)
        return found

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset if whence == 0 else self._at + offset
        return self._at


# ---------------------------------------------------------------- what a pickle may name, and what stands in for it


@dataclass
class _Bytes:
    """Bytes that were left in the file."""

    path: Path
    offset: int
    length: int
    text: _Text | None = None


@dataclass
class _DType:
    """A simple dtype in the making: no fields, no objects in numbers."""

    code: str = ""
    order: str = "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1] if state[1] in ("<", ">", "|", "=") else "="
        if any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("a dtype with fields")

    @property
    def dtype(self) -> np.dtype:
        kind = np.dtype(self.code)
        if kind.kind not in "biufcUSO":
            raise pickle.UnpicklingError(f"an array of {self.code}")
        return kind if kind.kind == "O" else kind.newbyteorder(self.order)


@dataclass
class _Storage:
    """A torch storage: its type, and where it lies once a tensor names it."""

    dtype: np.dtype
    path: Path | None = None
    offset: int = 0
    n: int = 0


@dataclass
class _Array:
    """An array in the making."""

    shape: tuple[int, ...] = ()
    dtype: np.dtype | None = None
    fortran: bool = False
    content: object = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, self.fortran, self.content = state
        self.shape, self.dtype = _shape(shape), kind.dtype


def _shape(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise pickle.UnpicklingError("an array without a shape")
    return shape


def _from_buffer(buffer: object, kind: _DType, shape: tuple, order: str = "C") -> _Array:
    return _Array(_shape(shape), kind.dtype, order == "F", buffer)


def _scalar(kind: _DType, raw: bytes) -> object:
    if kind.dtype.hasobject or len(raw) != kind.dtype.itemsize:
        raise pickle.UnpicklingError("a number that cannot be")
    return np.frombuffer(raw, kind.dtype)[0].item()


def _encode(text: "str | _Bytes", encoding: str = "latin1", *_) -> "bytes | _Bytes":
    """How Python 3 writes bytes for Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes as {encoding}")
    if isinstance(text, _Bytes):
        as_text = _Text(text.path, text.offset, text.length)
        return _Bytes(text.path, text.offset, as_text.length, as_text)
    return text.encode("latin1")


def _tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_) -> StoredArray:
    size = _shape(tuple(size))
    steps = tuple(int(math.prod(size[k + 1 :])) for k in range(len(size)))
    if math.prod(size) and any(s != t and n > 1 for s, t, n in zip(stride, steps, size, strict=True)):
        raise pickle.UnpicklingError("a tensor that is a view with gaps")
    if not isinstance(storage, _Storage) or type(offset) is not int or not 0 <= offset <= storage.n - math.prod(size):
        raise pickle.UnpicklingError("a tensor outside its storage")
    at = storage.offset + offset * storage.dtype.itemsize
    return StoredArray(storage.path, at, size, storage.dtype)


STORAGES = {"Half": "<f2", "Float": "<f4", "Double": "<f8", "Byte": "u1", "Char": "i1", "Short": "<i2", "Int": "<i4",
            "Long": "<i8", "Bool": "?"}  # fmt: skip
KNOWN: dict[tuple[str, str], Callable] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: _Array() for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("numpy", "dtype"): lambda code, *_: _DType(str(code)),
    ("numpy", "ndarray"): lambda *_: _Array(),
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): lambda *pairs: dict(*pairs),
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
}


class _Unpickler(pickle._Unpickler):  # the one in Python: its opcodes can be replaced
    """Builds what `KNOWN` has and nothing else; long bytes stay in the file."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, path: Path, storage: Callable | None = None):
        super().__init__(file)
        self._raw, self._path, self._storage, self._plain = file, path, storage, 0

    def find_class(self, module: str, name: str) -> object:
        if module == "torch" and name.removesuffix("Storage") in STORAGES:
            return _Storage(np.dtype(STORAGES[name.removesuffix("Storage")]))
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no recording needs; nothing of it was run"
            )
        return KNOWN[module, name]

    def persistent_load(self, pid: object) -> object:
        if self._storage is None:
            raise pickle.UnpicklingError("it refers to something outside itself")
        return self._storage(pid)

    def _long(self, length: int) -> "bytes | _Bytes":
        """The next bytes; of long ones where they lie, and the reading goes on behind them."""
        frame = self._unframer.current_frame
        inside = frame is not None and frame.tell() < len(frame.getbuffer())
        if inside or length < LAZY:
            self._plain += length
            if self._plain > MOST_PLAIN:
                raise pickle.UnpicklingError("more text and small arrays than a recording has")
            found = self.read(length)
            if len(found) != length:
                raise EOFError
            return found
        offset = self._raw.tell()
        if offset + length > os.path.getsize(self._path):
            raise EOFError("the file ends inside an array")
        self._raw.seek(length, io.SEEK_CUR)
        return _Bytes(self._path, offset, length)

    def _bytes(self, size: int) -> None:
        self.append(self._long(int.from_bytes(self.read(size), "little")))

    def _text(self, size: int) -> None:
        found = self._long(int.from_bytes(self.read(size), "little"))
        self.append(found if isinstance(found, _Bytes) else str(found, "utf-8", "surrogatepass"))

    def _build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], (_Array, _DType)) or not isinstance(state, tuple):
            raise pickle.UnpicklingError("it sets something else than an array up")
        self.stack[-1].__setstate__(state)

    def _reduce(self) -> None:
        given = self.stack.pop()
        made = self.stack[-1]
        if not any(made is known for known in KNOWN.values()):
            raise pickle.UnpicklingError("it calls something else than what makes an array")
        self.stack[-1] = made(*given)

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("it makes objects that no recording has")

    dispatch |= {
        pickle.BINBYTES[0]: lambda self: self._bytes(4), pickle.BINBYTES8[0]: lambda self: self._bytes(8),
        pickle.BYTEARRAY8[0]: lambda self: self._bytes(8), pickle.BINUNICODE[0]: lambda self: self._text(4),
        pickle.BINUNICODE8[0]: lambda self: self._text(8),
        pickle.BUILD[0]: _build, pickle.REDUCE[0]: _reduce,
        **dict.fromkeys((op[0] for op in (pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1,
                                          pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER)), _refuse),
    }  # fmt: skip


def _settled(content: object, done: dict | None = None) -> object:
    """The same content with every array finished; each object once, however often it is referred to."""
    done = {} if done is None else done
    if id(content) in done:
        return done[id(content)][0]
    if isinstance(content, dict):
        done[id(content)] = made, _ = {}, content
        made |= {_settled(key, done): _settled(value, done) for key, value in content.items()}
        return made
    if isinstance(content, list):
        done[id(content)] = made, _ = [], content
        made += [_settled(value, done) for value in content]
        return made
    if isinstance(content, tuple):
        made = tuple(_settled(value, done) for value in content)
        done[id(content)] = made, content
        return made
    if isinstance(content, _Array):
        made = _finished(content, done)
        done[id(content)] = made, content
        return made
    if isinstance(content, StoredArray):
        _check_size(content)
        small = content.dtype.itemsize * math.prod(content.shape) < LAZY
        return content._read(0, content.shape) if small else content
    if content is None or isinstance(content, (str, bytes, bool, int, float, complex)):
        return content
    raise pickle.UnpicklingError(f"a {type(content).__name__} is no data")


def _finished(array: _Array, done: dict) -> Array:
    if array.dtype is None:
        raise pickle.UnpicklingError("an array without numbers")
    n = math.prod(array.shape)
    if array.dtype.hasobject:
        if not isinstance(array.content, list) or len(array.content) != n:
            raise pickle.UnpicklingError("an array of objects of another length")
        made = np.empty(n, object)
        for k, value in enumerate(array.content):
            made[k] = _settled(value, done)
        return made.reshape(array.shape, order="F" if array.fortran else "C")
    if isinstance(array.content, _Bytes):
        if array.content.length != n * array.dtype.itemsize:
            raise pickle.UnpicklingError("an array of another length than its shape")
        where = array.content
        return StoredArray(where.path, where.offset, array.shape, array.dtype, array.fortran, where.text)
    if not isinstance(array.content, (bytes, bytearray)) or len(array.content) != n * array.dtype.itemsize:
        raise pickle.UnpicklingError("an array of another length than its shape")
    return np.frombuffer(array.content, array.dtype).reshape(array.shape, order="F" if array.fortran else "C")


def _check_size(array: StoredArray) -> None:
    if array.offset + array.dtype.itemsize * math.prod(array.shape) > os.path.getsize(array.path):
        raise ValueError("the file ends inside an array")
