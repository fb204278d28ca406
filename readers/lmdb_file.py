"""LMDB files, read without trusting a byte: a damaged file ends in one line, where the lmdb library would crash.

Format: LMDB 0.9, data version 1, as mdb.c writes it on 64-bit little-endian machines. A file is a row of pages of one
size. Pages 0 and 1 hold the facts (meta pages); of the two the one of the later transaction counts. It names the root
of a B-tree of branch pages (keys, and pages below) and leaf pages (keys and values); a large value lies in a chain of
overflow pages, one after the other. Free pages may hold anything.
"""

import functools
import mmap
import os
import struct
from collections.abc import KeysView
from pathlib import Path
from typing import NamedTuple

from utils.errors import UserError, loading

MAGIC, VERSION = 0xBEEFC0DE, 1
BRANCH, LEAF, OVERFLOW, META = 1, 2, 4, 8  # a page's flags say what it is
BIG = 1  # flag of a leaf's node: the value lies in overflow pages
NO_ROOT, MAX_DEPTH, MAX_KEY = 2**64 - 1, 32, 511
PAGE_SIZES = [2**k for k in range(9, 16)]

# header of a page: number, what it is; end of the nodes' offsets, which follow, and start of the nodes
PAGE = struct.Struct("<Q2xHHH")
CHAIN = struct.Struct("<Q2xHI")  # header of the first overflow page: number, what it is, how many pages
# value's length in two parts and flags, or page below in three; length of the key; key and value follow
NODE = struct.Struct("<HHHH")
# number, what it is; magic, version; page size (address, map size and the rest of the free pages' tree are left out);
# the main tree's flags, depth, entries, root; last page, transaction
FACTS = struct.Struct("<Q2xH4xII16xI44x4xHH24xQQQQ")
INTEGER_KEYS = 8  # flag of a tree whose keys are numbers, as those of free pages are
FREE_AT, FREE = 44, struct.Struct("<HH24xQQ")  # in a meta page, the free pages' tree: flags, depth, entries, root


class Place(NamedTuple):
    """Where a value lies: first byte, length; first page and number of the overflow pages, 0 and 0 inside a leaf."""

    start: int
    length: int
    page: int
    n_pages: int


def place_of(path: Path) -> Path:
    """What is meant by an LMDB's path: the folder of a data.mdb, or a file that was written without a folder."""
    return path.parent if path.name == "data.mdb" and not path.is_dir() else path


class LMDBFile:
    """The records of an LMDB, by key. The file is mapped; each process walks its tree once.

    folder : Path. Holds data.mdb; or data.mdb itself; or a file of another name (`subdir=False` of the lmdb library).
    last_txnid : int. Number of the last transaction that wrote into the file.
    Raises UserError if there is no such file, or it is truncated, damaged or of another version.

    Values in overflow pages are looked at when they are asked for, so a large file opens without being read. Works in
    forked and in spawned processes; a spawned one maps the file anew, and raises UserError if it has changed. Nobody
    may shorten the file meanwhile: the system kills a process that reads a mapped page which is gone.
    """

    def __init__(self, folder: Path):
        self.folder, self._written = place_of(Path(folder)), None
        self._written, self.last_txnid, *_ = self._opened

    def get(self, key: str | bytes) -> memoryview | None:
        """The record as a read-only buffer into the mapped file, None where there is none.

        Raises UserError if its overflow pages are damaged.
        """
        *_, view, _, places = self._opened
        place = places.get(_encoded(key))
        if place is None:
            return None
        start, length, page, n_pages = place
        if n_pages:
            number, kind, count = CHAIN.unpack_from(view, start - PAGE.size)
            if number != page or kind != OVERFLOW or count < n_pages:
                raise _damaged(self.file, f"page {page} is not the overflow page that it should be")
        return view[start : start + length]

    def check_free_pages(self) -> None:
        """Raise UserError where the list of free pages is damaged: whoever writes into the file goes by it."""
        _, txnid, view, pages, _ = self._opened
        facts = _read_facts(self.file, view)
        both = [FREE.unpack_from(view, facts.page_size * place + FREE_AT) for place in (0, 1)]
        _, depth, entries, root = both[txnid % 2]  # transactions write the two meta pages in turn
        kinds = {flags for flags, *_ in both}
        if kinds != {INTEGER_KEYS} or depth > MAX_DEPTH or (depth == 0) != (root == NO_ROOT):
            raise _damaged(self.file, "its list of free pages cannot be")
        lists, own = _walk(self.file, view, facts._replace(depth=depth, entries=entries, root=root), integer_keys=True)
        free: set[int] = {number for first, count in [*pages, *own] for number in range(first, first + count)}
        for start, length, *_ in lists.values():
            count = struct.unpack_from("<Q", view, start)[0] if length >= 8 else -1
            if length != 8 * (count + 1):
                raise _damaged(self.file, "its list of free pages cannot be")
            numbers = struct.unpack_from(f"<{count}Q", view, start + 8)
            if any(not 2 <= number <= facts.last_page or number in free for number in numbers):
                raise _damaged(self.file, "a page is free and in use")
            free.update(numbers)

    def __contains__(self, key: str | bytes) -> bool:
        return _encoded(key) in self._opened[-1]

    def __len__(self) -> int:
        return len(self._opened[-1])

    def keys(self) -> KeysView[bytes]:
        """In the order of their bytes."""
        return self._opened[-1].keys()

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    @property
    def file(self) -> Path:
        """The mapped file."""
        return self.folder if self.folder.is_file() else self.folder / "data.mdb"

    @functools.cached_property
    def _opened(self) -> tuple[tuple, int, memoryview, list[tuple[int, int]], dict[bytes, Place]]:
        """Which file it is, its last transaction, its bytes, the pages in use, and the places of its records."""
        if not self.file.is_file():
            inside = [p for pattern in ("*/data.mdb", "*.mdb", "*.lmdb") for p in sorted(self.folder.glob(pattern))]
            meant = f"name {place_of(inside[0])}" if inside else "make one with prepare_data.py"
            raise UserError(f"{self.folder} is not an LMDB folder (it has no data.mdb); {meant}")
        with loading(str(self.file), "look at its permissions", "read"), open(self.file, "rb") as opened:
            stat = os.fstat(opened.fileno())
            mapped = mmap.mmap(opened.fileno(), stat.st_size, access=mmap.ACCESS_READ) if stat.st_size else b""
        written = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if self._written not in (None, written):
            raise UserError(f"{self.file} has changed while it was used; run again")
        view = memoryview(mapped)
        facts = _read_facts(self.file, view)
        places, pages = _walk(self.file, view, facts)
        return written, facts.txnid, view, pages, places


class Facts(NamedTuple):
    """What a meta page says of the file."""

    page_size: int
    flags: int
    depth: int
    entries: int
    root: int
    last_page: int
    txnid: int


def _read_facts(file: Path, view: memoryview) -> Facts:
    """Read both meta pages and return the later one; raise UserError if one is damaged or pages are missing."""
    page_size = struct.unpack_from("<I", view, 40)[0] if len(view) >= FACTS.size else 0
    whole, both = page_size in PAGE_SIZES and len(view) >= page_size + FACTS.size, []
    for place in (0, 1):
        number, kind, magic, version, *facts = FACTS.unpack_from(view, place * page_size) if whole else [None] * 5
        if not whole or (number, kind, magic, facts[0]) != (place, META, MAGIC, page_size):
            raise UserError(f"{file} is no LMDB file, or its beginning is damaged; make it anew with --overwrite")
        both.append(Facts(*facts))
        if version != VERSION:
            hint = f"this code reads version {VERSION}: make it anew with --overwrite"
            raise UserError(f"{file} is an LMDB of format version {version}; {hint}")
    facts = max(both, key=lambda facts: facts.txnid)
    if len(view) < (whole := (facts.last_page + 1) * page_size):
        hint = "copy it again, or make it anew with --overwrite"
        raise UserError(f"{file} is truncated: {len(view)} bytes where it says {whole}; {hint}")
    if facts.flags or facts.depth > MAX_DEPTH or (facts.depth == 0) != (facts.root == NO_ROOT):
        raise _damaged(file, "its tree cannot be, or is of a kind that is not read")
    return facts


def _walk(
    file: Path, view: memoryview, facts: Facts, integer_keys: bool = False
) -> tuple[dict[bytes, Place], list[tuple[int, int]]]:
    """Find all records, and the pages in use (first, how many); UserError at what LMDB would not have written."""
    size, n_pages = facts.page_size, facts.last_page + 1
    found: dict[bytes, Place] = {}
    key, visited = b"", set()
    to_visit = [(facts.root, 1)] if facts.depth else []  # a stack with the next page on top
    while to_visit:
        number, level = to_visit.pop()
        leaf = level == facts.depth
        if not 2 <= number < n_pages or number in visited:
            raise _damaged(file, f"page {number} where it cannot be")
        visited.add(number)
        page = view[number * size : (number + 1) * size]
        own, kind, lower, upper = PAGE.unpack_from(page)
        if own != number or kind != (LEAF if leaf else BRANCH) or lower % 2 or not PAGE.size <= lower <= upper <= size:
            raise _damaged(file, f"page {number} is not the {'leaf' if leaf else 'branch'} page that it should be")
        below = []
        for at in struct.unpack_from(f"<{(lower - PAGE.size) // 2}H", page, PAGE.size):
            if not upper <= at <= size - NODE.size:
                raise _damaged(file, f"a node outside page {number}")
            low, middle, high, key_size = NODE.unpack_from(page, at)  # high: of a leaf's node the flags
            at += NODE.size
            value = at + key_size
            if value + (0 if not leaf else 8 if high else low | middle << 16) > size:
                raise _damaged(file, f"a node outside page {number}")
            if not leaf:  # its key helps to find one record, and is not needed to find all
                below.append((low | middle << 16 | high << 32, level + 1))
                continue
            before, key = key, bytes(page[at:value])
            later = (int.from_bytes(before, "little") < int.from_bytes(key, "little")) if integer_keys else before < key
            if high not in (0, BIG) or key_size > MAX_KEY or not later:  # so no key is empty
                raise _damaged(file, f"a record of page {number} cannot be, or the file holds several databases")
            length = low | middle << 16
            if high:
                first = struct.unpack_from("<Q", page, value)[0]
                needed = (PAGE.size + length - 1) // size + 1
                if not 2 <= first <= n_pages - needed:
                    raise _damaged(file, f"overflow page {first} where it cannot be")
                found[key] = Place(first * size + PAGE.size, length, first, needed)
            else:
                found[key] = Place(number * size + value, length, 0, 0)
        to_visit += reversed(below)
        if len(found) > facts.entries:
            break
    if len(found) != facts.entries:
        raise _damaged(file, f"{len(found)} records where it says {facts.entries}")
    end = 0
    pages = sorted([(p.page, p.n_pages) for p in found.values() if p.n_pages] + [(n, 1) for n in visited])
    for first, count in pages:
        if first < end:
            raise _damaged(file, f"page {first} is used twice")
        end = first + count
    return found, pages


def _encoded(key: str | bytes) -> bytes:
    return key.encode(errors="surrogatepass") if isinstance(key, str) else key


def _damaged(file: Path, found: str) -> UserError:
    return UserError(f"{file} is damaged ({found}); make it anew with --overwrite")
