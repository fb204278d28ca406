"""Recordings that come as pickles, in three layouts, told by their first bytes.

`.npy` with a 0-d object array (a pickle behind the header), a bare pickle (whatever its name), and torch.save's zip.
Large arrays stay on the disk until rows are asked for; everything else is plain Python.
"""

import math
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from readers.stored_array import Array, StoredArray, StoredBytes, whole
from readers.unpickler import ARRAYS, Refused, Rules, Stretch, Unpickler, checked_shape, scalar
from utils.errors import UserError
from utils.limits import check_plain, guarded

HINT = "expected NumPy's or PyTorch's arrays in plain containers; fetch it again"
LONG = 1 << 20  # bytes from which on an array stays on the disk


def small(array: StoredArray) -> Array:
    """Read an array that is not large."""
    return array.all() if len(array.where) < LONG else array


@dataclass
class Storage:
    """Numbers of torch.save, which lie one after the other in a file."""

    where: StoredBytes
    dtype: np.dtype


def _storage(path: Path, parts: dict[str, tuple[int, int]], reference: tuple) -> Storage:
    """Find the storage that a pickle refers to; `parts` has the offsets and lengths of all."""
    kind, dtype, key, _, n = reference
    if kind != "storage" or not isinstance(dtype, np.dtype) or type(n) is not int:
        raise Refused("it is damaged (a storage that cannot be)")
    start, length = parts[key]
    if not 0 <= n * dtype.itemsize <= length:
        raise Refused(f"its storage {key} has {length} bytes; expected {n * dtype.itemsize}")
    return Storage(StoredBytes(path, start, n * dtype.itemsize), dtype)


def _tensor(unpickler: Unpickler, storage: Storage, offset: int, size: tuple, stride: tuple, *others: object) -> Array:
    """Make an array of a tensor whose numbers lie row by row in their storage."""
    size, numbers, dtype = checked_shape(size), storage.where, storage.dtype
    steps = [math.prod(size[k + 1 :]) for k in range(len(size))]
    n = math.prod(size) * dtype.itemsize
    if n and any(s != t and k > 1 for s, t, k in zip(stride, steps, size, strict=True)):
        raise Refused("it has a tensor that is a view with gaps")
    if type(offset) is not int or not 0 <= offset * dtype.itemsize <= numbers.length - n:
        raise Refused("it has a tensor outside its storage")
    return small(StoredArray(StoredBytes(numbers.path, numbers.start + offset * dtype.itemsize, n), size, dtype))


NUMBER_TYPES = dict(
    Half="<f2", Float="<f4", Double="<f8", Byte="u1", Char="i1", Short="<i2", Int="<i4", Long="<i8", Bool="?"
)
TENSORS = {("torch", f"{name}Storage"): np.dtype(code) for name, code in NUMBER_TYPES.items()}
PYTHON_NUMBERS = {name: lambda *given: scalar(*given).item() for name in ARRAYS if name[1] == "scalar"}
FUNCTIONS = {("torch._utils", "_rebuild_tensor_v2"): _tensor, ("collections", "OrderedDict"): lambda unpickler: {}}
RECORDINGS = Rules(
    ARRAYS | PYTHON_NUMBERS | TENSORS | FUNCTIONS,
    dtypes=r"b1|[iu][1248]|f[248]|c8|c16|[US]\d+|O8?",
    keys=(str, int, float, bool, bytes, type(None)),
    long_bytes=LONG,
    long_text=LONG,
    most=1 << 28,
)
PLAIN = (str, bytes, bool, int, float, complex, np.generic, np.ndarray, StoredArray, type(None))


def read_pickled(path: Path) -> object:
    """Read what a file holds: dicts, lists, texts, numbers, arrays; large arrays as `StoredArray`.

    Raises UserError if the file is damaged, or its pickle asks for anything but arrays and plain containers: nothing
        that it names is imported or called.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not there")
    with guarded(path, HINT), open(path, "rb") as file:
        first = file.read(6)
        file.seek(0)
        if first[:2] == b"PK":
            return _read_zip(path, file)
        if first == b"\x93NUMPY":
            return _read_npy(path, file)
        return _content(Stretch(file, path))


def _content(stretch: Stretch, storage: Callable | None = None) -> object:
    """Read a pickle, and refuse what is no data in it."""
    content = Unpickler(stretch, RECORDINGS, storage).content()
    check_plain(content, PLAIN, stretch.size)
    return content


# ---------------------------------------------------------------- what a field of a pickled dict must be


def field(path: Path, content: dict, name: str, read: Callable, *limits: object) -> object:
    """`read(content[name], *limits)`; UserError in words, never the content's own, where that is something else."""
    try:
        return read(content[name], *limits)
    except (ValueError, TypeError, OverflowError) as error:
        value = content[name]
        found = f"{value.dtype} {tuple(value.shape)}" if hasattr(value, "shape") else f"a {type(value).__name__}"
        raise UserError(f"{path}: {name} is {found}; expected {str(error)[:200]}") from None


def texts(value: object) -> list[str]:
    """A list or an array of texts, or of numbers, as texts."""
    value = whole(value)
    value = value.ravel().tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, list | tuple) or not all(isinstance(one, str | int | float | np.generic) for one in value):
        raise ValueError("a list of texts")
    return [f"{one:g}" if isinstance(one, float) else str(one) for one in value]


def numbers(value: object, most: float) -> np.ndarray:
    """(n,) float64, each from −most to most."""
    value = whole(value)
    if not isinstance(value, np.ndarray | list | tuple) or np.asarray(value).dtype.kind not in "fiu":
        raise ValueError("a list of numbers")
    value = np.asarray(value, float).ravel()
    if not (np.abs(value) <= most).all():
        raise ValueError(f"numbers up to {most:g}")
    return value


def number(value: object, low: float, high: float) -> float:
    """One number, from `low` to `high`."""
    if not isinstance(value, int | float | np.integer | np.floating) or not low <= value <= high:
        raise ValueError(f"a number from {low:g} to {high:g}")
    return float(value)


def samples(value: object, axes: Sequence[int]) -> Array:
    """An array of floating-point numbers with so many axes."""
    if not isinstance(value, StoredArray | np.ndarray) or value.dtype.kind != "f" or len(value.shape) not in axes:
        raise ValueError(f"floating-point numbers with {' or '.join(map(str, axes))} axes")
    if 0 in value.shape:
        raise ValueError("numbers; there are none")
    return value


# ---------------------------------------------------------------- the two containers


def _read_npy(path: Path, file: BinaryIO) -> object:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        content = _content(Stretch(file, path, file.tell()))
        return content.item() if isinstance(content, np.ndarray) and content.ndim == 0 else content
    where = StoredBytes(path, file.tell(), dtype.itemsize * math.prod(shape))
    _check_end(file, where.start + where.length)
    if fortran:
        return small(StoredArray(where, shape[::-1], dtype, tuple(range(len(shape)))[::-1]))
    return small(StoredArray(where, shape, dtype))


def _read_zip(path: Path, file: BinaryIO) -> object:
    """Read torch.save's layout: NAME/data.pkl, and NAME/data/KEY for each storage, none of them compressed."""
    with zipfile.ZipFile(path) as parts:
        places = {info.filename: _place(parts, info) for info in parts.infolist()}
    (main,) = [name for name in places if name.endswith("/data.pkl") or name == "data.pkl"]
    folder = main.removesuffix("data.pkl") + "data/"
    storages = {name.removeprefix(folder): place for name, place in places.items() if name.startswith(folder)}
    start, length = places[main]
    return _content(Stretch(file, path, start, start + length), partial(_storage, path, storages))


def _place(parts: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Find a part's offset and length in the file."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("its parts are compressed, which torch.save never does")
    with parts.open(info):  # reads the part's own header
        start = parts.fp.tell()
    _check_end(parts.fp, start + info.file_size)
    return start, info.file_size


def _check_end(file: BinaryIO, stop: int) -> None:
    if stop > os.fstat(file.fileno()).st_size:
        raise ValueError("the file ends inside an array")
