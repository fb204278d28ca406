"""Check of MATLAB v5 files before SciPy reads them: a walk through a file's structure that keeps none of its content.

"MAT-File Format", MathWorks, level 5. SciPy believes what such a file declares: it makes room for all cells at once,
unpacks without limit, and a type that does not exist crashes the process.
"""

# Why not SciPy alone, in a process with a limit of memory? SciPy 1.17 was tried so on 3,900 damaged files and 32 made
# ones. None hung, and 7 crashes and most bombs would have become refusals. But of what the walk refuses it read 369
# damaged files as if they were whole, 3 as other numbers, and 5 of the made ones. The limit has to leave a file of 2 MB
# 3 GB: one that unpacks to 2 GB took 2.3 GB and 9 s, in each worker (the walk: 8 MB), and without /proc there is none.

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import BinaryIO

from utils.errors import Fault, UserError, loading
from utils.limits import LOADED_RATIO, LOADED_SMALL, MAX_RATIO, SMALL, reading

MATRIX, COMPRESSED = 14, 15  # types of elements
NUMBERS = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}  # type of an element → bytes of a number
TEXT = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18}  # SciPy says itself what it cannot decode
CELL, STRUCT, OBJECT, CHAR, SPARSE, NUMERIC, FUNCTION, OPAQUE = 1, 2, 3, 4, 5, range(6, 16), 16, 17  # classes
MAX_NESTING = 32  # matrices inside matrices; EEGLAB's files have about 6
MAX_FIELDS, MAX_NAME = 10_000, 256  # of a struct; MATLAB's names have at most 63 characters
MATRIX_BYTES, EMPTY_BYTES = 512, 144  # of memory that SciPy takes for a matrix besides its numbers, measured
STRUCT_BYTES, FIELD_BYTES = 160, 32  # and for an element of a struct, measured
HINTS = "it is truncated or damaged, delete it and download it again", "read as a MATLAB v5 file"
PIECE = 1 << 18  # bytes read at a time


def check_mat(path: Path) -> int:
    """Make sure that a MATLAB v5 file is whole, and that SciPy can read it without harm.

    Returns int: Bytes of memory that the content takes: 8 for a real number, whatever it is stored in. For versions 4
        and 7.3, which are left to SciPy, an estimate from the file's size.
    Raises UserError if the file is truncated or damaged, declares more than it holds, unpacks to more than MAX_RATIO
        times its size, or takes more memory than LOADED_RATIO times its size; small files may take SMALL and
        LOADED_SMALL.
    """
    with loading(str(path), *HINTS), open(path, "rb") as file:
        size, head = path.stat().st_size, file.read(128)
        if len(head) >= 4 and 0 in head[:4]:  # version 4
            return 8 * size
        if len(head) < 128:
            raise Fault(f"{len(head)} bytes")
        order = {b"IM": "<", b"MI": ">"}.get(head[126:])
        version = head[125] if order == "<" else head[124]
        if order and version == 2:  # 7.3
            return 8 * size
        if order is None or version != 1:
            raise Fault("its header is none of MATLAB's")
        walk = _Walk(path, order, size)
        walk.file(file)
        return walk.memory


def variables_of(path: Path) -> dict[str, tuple[int, ...]]:
    """List a MATLAB v5 file's variables with their shapes. Raises UserError as `check_mat`, and for version 7.3."""
    import scipy.io  # slow to import, and a script's -h reads the readers' files

    return {name: shape for name, shape, _ in _by_scipy(path, scipy.io.whosmat)}


def read_variables(path: Path, names: Sequence[str]) -> dict:
    """Read those of a MATLAB v5 file's variables that are there, structs as objects.

    Raises UserError as `check_mat`, for version 7.3, and for what SciPy cannot read.
    """
    import scipy.io

    how = {"squeeze_me": False, "struct_as_record": False, "variable_names": list(names)}
    return _by_scipy(path, partial(scipy.io.loadmat, **how))


def _by_scipy(path: Path, read: Callable) -> object:
    size = path.stat().st_size if path.is_file() else 0
    with reading(path, size, 0):
        memory = check_mat(path)
    with loading(str(path), *HINTS), reading(path, size, memory):
        try:
            return read(path)
        except NotImplementedError:
            found = "a MATLAB v7.3 file; expected v5 as BNCI publishes it, download it again"
            raise UserError(f"{path}: {found}") from None


class _Walk:
    """One file: its byte order, and what its content has come to so far. Goes where SciPy goes, in the same order."""

    def __init__(self, path: Path, order: str, size: int):
        self.path, self.order, self.size = path, order, size
        self.two = struct.Struct(order + "II").unpack  # a tag: type and number of bytes
        self.unpacked = self.memory = 0

    def take(self, n: int) -> None:
        self.memory += n
        self._limit("take", self.memory, max(LOADED_SMALL, LOADED_RATIO * self.size))

    def _limit(self, verb: str, n: int, limit: int) -> None:
        if n > limit:
            hint = "that is no recording, delete it and download it again"
            raise UserError(f"{self.path} has {self.size} bytes and would {verb} more than {limit >> 20} MB; {hint}")

    # ------------------------------------------------------------ elements

    def file(self, file) -> None:
        at = 128
        while at < self.size:
            file.seek(at)
            tag = file.read(8)
            if len(tag) < 8:
                raise Fault("it ends inside a tag")
            kind, n = self.two(tag)
            at += 8 + n
            if n == 0 or at > self.size:
                raise Fault(f"a variable of {n} bytes, and {self.size - at + n} are left")
            packed, content = kind == COMPRESSED, file
            if packed:
                content = io.BufferedReader(_Inflated(file, n), PIECE)
                kind, n = self.two(_Source(content, 8).read(8))
                self.unpacked += 8 + n
                self._limit("unpack to", self.unpacked, max(SMALL, MAX_RATIO * self.size))
            if kind != MATRIX:
                raise Fault(f"an element of type {kind} where a matrix should be")
            self.matrix(_Source(content, n), n, 0)
            if packed and content.read(1):
                raise Fault("a packed variable is longer than it says")

    def element(self, source, end: int, keep: int = 0) -> tuple[int, int, bytes]:
        """Read the type and the number of bytes of the next element; the bytes too where they may be `keep` at most."""
        tag = source.read(8)
        kind, n = self.two(tag)
        if kind >> 16:  # a small one: its bytes stand in the tag
            kind, n = kind & 0xFFFF, kind >> 16
            if n > 4:
                raise Fault(f"a small element of {n} bytes")
            return kind, n, tag[4 : 4 + n]
        if n > end - source.at:
            raise Fault(f"an element of {n} bytes where {end - source.at} are left")
        if keep and n > keep:
            raise Fault(f"names or sizes of {n} bytes")
        data = source.read(n) if keep else source.skip(n)
        source.skip(min(-n % 8, source.left))  # padding; the last of a file may lack it
        return kind, n, data

    def matrix(self, source, length: int, depth: int) -> None:
        """A matrix of any class, from behind its tag."""
        if depth > MAX_NESTING:
            raise Fault(f"matrices nested deeper than {MAX_NESTING}")
        end = source.at + length
        head = source.read(16)
        flags, _ = self.two(head[8:])
        cls = flags & 0xFF
        self.take(MATRIX_BYTES)
        if cls == OPAQUE:
            for _ in range(3):  # the name, the kind of system, the class
                self.element(source, end)
            self.nested(source, end, depth)
        else:
            kind, n, data = self.element(source, end, keep=128)
            dims = struct.unpack(f"{self.order}{n // 4}i", data[: n // 4 * 4])
            if kind not in (5, 6) or not dims or min(dims) < 0:
                raise Fault(f"the size {dims}")
            self.element(source, end)  # the name
            self.content(source, end, depth, cls, flags >> 11 & 1, dims)
        if not end <= source.at < end + 8:  # what is behind it may be padding
            raise Fault(f"a matrix of {length} bytes says less than that or more")

    def nested(self, source, end: int, depth: int) -> None:
        """A matrix in a cell, a field, a function or an object."""
        kind, n = self.two(source.read(8))
        if kind != MATRIX or n > end - source.at:
            raise Fault(f"an element of type {kind} with {n} bytes where a matrix should be")
        if n:
            self.matrix(source, n, depth + 1)
        else:
            self.take(EMPTY_BYTES)

    # ------------------------------------------------------------ classes

    def content(self, source, end: int, depth: int, cls: int, is_complex: bool, dims: tuple[int, ...]) -> None:
        n = prod(dims)
        if cls in NUMERIC:
            for _ in range(1 + is_complex):
                self.numbers(source, end, n)
        elif cls == CHAR:
            kind, n_bytes, _ = self.element(source, end)
            if n_bytes and (kind not in TEXT or n > n_bytes):
                raise Fault(f"{n} characters in {n_bytes} bytes of type {kind}")
            self.take(8 * max(n, n_bytes))
        elif cls == SPARSE:
            self.numbers(source, end, 0)
            self.numbers(source, end, dims[1] + 1 if len(dims) == 2 else 0)
            for _ in range(1 + is_complex):
                self.numbers(source, end, 0)
        elif cls == CELL:
            self.fits(source, end, n, "cells")
            self.take(8 * n)
            for _ in range(n):
                self.nested(source, end, depth)
        elif cls in (STRUCT, OBJECT):
            if cls == OBJECT:
                self.element(source, end)  # the name of its class
            n_fields = self.field_names(source, end)
            self.fits(source, end, n * n_fields, "fields")
            self.take(n * (STRUCT_BYTES + FIELD_BYTES * n_fields))
            for _ in range(n * n_fields):
                self.nested(source, end, depth)
        elif cls == FUNCTION:
            self.nested(source, end, depth)
        else:
            raise Fault(f"a matrix of class {cls}")

    def numbers(self, source, end: int, n: int) -> None:
        """An element of numbers, at least `n`; small ones become doubles later."""
        kind, n_bytes, _ = self.element(source, end)
        if kind not in NUMBERS or n > n_bytes // NUMBERS[kind]:
            raise Fault(f"{n} numbers in {n_bytes} bytes of type {kind}")
        self.take(8 * (n_bytes // NUMBERS[kind]))

    def fits(self, source, end: int, n: int, what: str) -> None:
        """Each matrix inside takes 8 bytes at least."""
        if n > (end - source.at) // 8:
            raise Fault(f"{n} {what} in {end - source.at} bytes")

    def field_names(self, source, end: int) -> int:
        kind, n, data = self.element(source, end, keep=4)
        width = struct.unpack(self.order + "i", data)[0] if kind in (5, 6) and n == 4 else 0
        if not 0 < width <= MAX_NAME:
            raise Fault(f"field names of {width} characters")
        _, n, names = self.element(source, end, keep=width * MAX_FIELDS)
        if any(names[width - 1 : n // width * width : width]):
            raise Fault("field names without an end")
        return n // width


class _Source:
    """So many bytes of a variable, forwards: `at` is how many were read, `left` how many are to come."""

    def __init__(self, file: BinaryIO, n: int):
        self.file, self.left, self.at = file, n, 0

    def read(self, n: int) -> bytes:
        data = self.file.read(n) if n <= self.left else b""
        if len(data) < n:
            raise Fault("a variable ends too early")
        self.at, self.left = self.at + n, self.left - n
        return data

    def skip(self, n: int) -> None:
        for start in range(0, n, PIECE):
            self.read(min(PIECE, n - start))


class _Inflated(io.RawIOBase):
    """What unpacks from some bytes of a file; no more of it than is read."""

    def __init__(self, file: BinaryIO, packed: int):
        self.file, self.packed, self.inflater = file, packed, zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        data = b""
        while not data and not self.inflater.eof:
            packed = self.inflater.unconsumed_tail
            if not packed:
                packed = self.file.read(min(PIECE, self.packed))
                self.packed -= len(packed)
            data = self.inflater.decompress(packed, len(buffer))
            if not packed and not data:  # some files lack the end of the stream
                break
        buffer[: len(data)] = data
        return len(data)
