"""Bytes and arrays that a reader left where they are, in a file or in a record, until somebody asks for them."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError


class StoredBytes:
    """Bytes that were left where they are.

    path : Path, or None for those of a record in memory. start, length : int. Bytes.
    """

    def __init__(self, path: Path | None, start: int, length: int):
        self.path, self.start, self.length = path, start, length

    def __len__(self) -> int:
        return self.length

    def read(self, first: int, n: int) -> bytearray | bytes:
        """Read `n` of a file's bytes, from number `first` on."""
        data = bytearray(n)
        with open(self.path, "rb") as file:
            file.seek(self.start + first)
            if file.readinto(data) != n:
                raise UserError(f"{self.path} is shorter than its arrays; fetch it again")
        return data

    def in_record(self, record: memoryview) -> memoryview:
        """Return what stands at this place of a record."""
        return record[self.start : self.start + self.length]


class StoredText(StoredBytes):
    """Bytes that a file holds as text, as Python 3 writes them for Python 2: those from 128 on take two bytes there.

    size : int. Bytes of the text. `length` is how many bytes it stands for.
    """

    block = 1 << 20

    def __init__(self, path: Path, start: int, size: int):
        super().__init__(path, start, size)
        self.size, counts = size, [0]
        for first in range(0, size, self.block):
            raw = np.frombuffer(self._text(first, self.block), np.uint8)
            counts.append(int(((raw & 0xC0) != 0x80).sum()))  # bytes that begin a character
        self._before = np.cumsum(counts)  # characters before each block
        self.length = int(self._before[-1])

    def _text(self, first: int, n: int) -> bytearray:
        return super().read(first, min(n, self.size - first))

    def read(self, first: int, n: int) -> bytes:
        """Read bytes `first` to `first + n` of what the text stands for."""
        if not n:
            return b""
        one = int(np.searchsorted(self._before, first, "right")) - 1
        last = int(np.searchsorted(self._before, first + n, "left"))
        raw = self._text(one * self.block, (last - one) * self.block + 1)
        raw = raw.lstrip(bytes(range(0x80, 0xC0)))  # the end of a character that the block before began
        text = raw.decode("utf-8", errors="ignore")[first - int(self._before[one]) :][:n]
        data = text.encode("latin1", errors="ignore")
        if len(data) != n:
            raise UserError(f"{self.path} holds an array as text that stands for no bytes; fetch it again")
        return data


@dataclass
class StoredArray:
    """An array that was left where it is. `rows`, `lines` and `all` read from a file, `in_record` from a record."""

    where: StoredBytes
    stored: tuple[int, ...]  # the shape in which its numbers lie there, row by row
    dtype: np.dtype
    axes: tuple[int, ...] | None = None  # which of those axes are the array's own, in its order; None: as they are

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored if self.axes is None else tuple(self.stored[k] for k in self.axes)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice | tuple) -> np.ndarray:
        """`array[start:stop]` and `array[:, start:stop]`, as of an array in memory."""
        read, of = (self.lines, key[1]) if isinstance(key, tuple) else (self.rows, key)
        return read(of.start, of.stop)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """`array[start:stop]`, read now."""
        start, stop, _ = slice(start, stop).indices(len(self))
        if self.axes is not None:
            return np.array(self._mapped()[start:stop])
        return self._read(start * math.prod(self.shape[1:]), (max(stop - start, 0), *self.shape[1:]))

    def lines(self, start: int, stop: int) -> np.ndarray:
        """`array[:, start:stop]` of a 2-d array, read now: a stretch of time of a recording."""
        start, stop, _ = slice(start, stop).indices(self.shape[1])
        if self.axes is not None:
            return np.array(self._mapped()[:, start:stop])
        return np.stack([self._read(k * self.shape[1] + start, (max(stop - start, 0),)) for k in range(len(self))])

    def all(self) -> np.ndarray:
        """The whole array, read now."""
        return in_order(self._read(0, self.stored), self.axes)

    def in_record(self, record: memoryview) -> np.ndarray:
        """The array at this place of a record, as a view."""
        return in_order(np.frombuffer(self.where.in_record(record), self.dtype).reshape(self.stored), self.axes)

    def _mapped(self) -> np.ndarray:
        if isinstance(self.where, StoredText):
            raise UserError(f"{self.where.path} holds an array column by column as text; save it anew with NumPy")
        return in_order(np.memmap(self.where.path, self.dtype, "r", self.where.start, self.stored), self.axes)

    def _read(self, first: int, shape: tuple[int, ...]) -> np.ndarray:
        size = self.dtype.itemsize
        return np.frombuffer(self.where.read(first * size, math.prod(shape) * size), self.dtype).reshape(shape)


Array = StoredArray | np.ndarray


def whole(value: object) -> object:
    """A value as it is; an array that was left in its file, read now."""
    return value.all() if isinstance(value, StoredArray) else value


def in_order(array: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    """Put the axes in order; None: they are."""
    return array if axes is None else array.transpose(axes)


def filled(content: object, record: memoryview) -> object:
    """Read what was left in a record, where it is a dict's value or the whole content."""
    if isinstance(content, dict):
        return {key: filled(v, record) if isinstance(v, StoredBytes | StoredArray) else v for key, v in content.items()}
    return content.in_record(record) if isinstance(content, StoredBytes | StoredArray) else content
