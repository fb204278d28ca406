import glob
import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from readers.matlab import check_mat
from utils.errors import UserError

HEADER = {order: b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(order + "H", 0x100) + mark
          for order, mark in (("<", b"IM"), (">", b"MI"))}  # fmt: skip


def element(kind, data, order="<", length=None):
    """A tag and its bytes; `length` is what the tag says of them, if that is not the truth."""
    return struct.pack(order + "II", kind, len(data) if length is None else length) + data + bytes(-len(data) % 8)


def matrix(cls, dims, content, order="<", length=None, flags=0):
    head = element(6, struct.pack(order + "II", cls | flags, 0), order)
    size = element(5, struct.pack(f"{order}{len(dims)}i", *dims), order)
    return element(14, head + size + element(1, b"data", order) + content, order, length)


def packed(data, repeat=1):
    """A packed variable: `data`, and then so many pieces of a megabyte of zeros, none of which is made here but one."""
    deflate = zlib.compressobj(9)
    first = deflate.compress(data) + deflate.flush(zlib.Z_FULL_FLUSH)
    zeros = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return element(15, first + zeros * repeat)[: 8 + len(first) + len(zeros) * repeat]


def bomb(n_bytes=3700 << 20):
    """Doubles of 3.7 GB in a file of 4 MB."""
    real = struct.pack("<II", 9, n_bytes)
    head = matrix(6, (1, n_bytes // 8), real, length=0)
    return HEADER["<"] + packed(head[:4] + struct.pack("<I", len(head) - 8 + n_bytes) + head[8:], n_bytes >> 20)


def saved(path, **variables):
    scipy.io.savemat(path, variables)
    return path


# ---------------------------------------------------------------- what passes


def test_real_files_pass_and_the_memory_that_they_take_is_told(shared):
    for path in sorted((shared / "real").glob("bcic*_raw/*.mat")):
        structs = scipy.io.loadmat(path, struct_as_record=False, variable_names=["data"])["data"].ravel()
        doubles = sum(8 * struct.item().X.size for struct in structs)
        assert doubles < check_mat(path) < 1.2 * doubles + (1 << 20)


def test_files_that_matlab_wrote_pass_as_they_do_in_scipy():
    """SciPy's own test files: MATLAB 5 to 7.4, both byte orders; functions, objects, sparse and nested ones."""
    folder = os.path.join(os.path.dirname(scipy.io.matlab.__file__), "tests", "data")
    read = 0
    for path in glob.glob(f"{folder}/*.mat"):
        try:
            scipy.io.loadmat(path)
        except Exception:
            continue
        read += 1
        check_mat(Path(path))
    if not read:
        pytest.skip("this SciPy comes without its tests")


@pytest.mark.parametrize("compressed", [False, True])
def test_what_scipy_writes_passes(tmp_path, compressed):
    cell = np.empty((1, 2), dtype=object)
    cell[0] = [{"X": np.zeros((9, 4)), "c": 1 + 2j, "t": "text"}, "more"]
    variables = {"data": cell, "s": scipy.sparse.csc_array(np.eye(5)), "b": np.array([True]), "e": np.zeros((0, 3)),
                 "i": np.arange(7, dtype=np.int16), "names": np.array(["ab", "cde"])}  # fmt: skip
    scipy.io.savemat(tmp_path / "a.mat", variables, do_compression=compressed)
    assert 0 < check_mat(tmp_path / "a.mat") < 20_000


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_are_walked(tmp_path, order):
    number = matrix(6, (1, 1), element(9, struct.pack(order + "d", 2.5), order), order)
    (tmp_path / "a.mat").write_bytes(HEADER[order] + matrix(1, (1, 3), number * 3, order))
    assert scipy.io.loadmat(tmp_path / "a.mat")["data"][0, 2] == 2.5
    assert check_mat(tmp_path / "a.mat") > 3 * 8
    (tmp_path / "a.mat").write_bytes(HEADER[order] + matrix(1, (1, 4), number * 3, order))
    with pytest.raises(UserError, match="truncated or damaged"):
        check_mat(tmp_path / "a.mat")


@pytest.mark.parametrize("version", ["4", "7.3"])
def test_other_versions_are_left_to_scipy(tmp_path, version):
    if version == "4":
        scipy.io.savemat(tmp_path / "a.mat", {"data": np.ones(3)}, format="4")
    else:
        (tmp_path / "a.mat").write_bytes(HEADER["<"][:124] + struct.pack("<H", 0x200) + b"IM" + bytes(400))
    assert check_mat(tmp_path / "a.mat") > 0


# ---------------------------------------------------------------- what takes too much


def test_a_bomb_is_refused_before_it_takes_memory(tmp_path):
    (tmp_path / "a.mat").write_bytes(bomb())
    assert (tmp_path / "a.mat").stat().st_size < 5 << 20
    tracemalloc.start()
    with pytest.raises(UserError, match=r"a.mat has \d+ bytes and would unpack to more than \d+ MB"):
        check_mat(tmp_path / "a.mat")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_variable_that_unpacks_to_more_than_it_says_is_refused(tmp_path):
    number = matrix(6, (1, 1), element(9, bytes(8)))
    (tmp_path / "a.mat").write_bytes(HEADER["<"] + packed(number, 300))
    with pytest.raises(UserError, match="longer than it says"):
        check_mat(tmp_path / "a.mat")


def test_many_variables_share_one_limit(tmp_path):
    zeros = matrix(9, (1, 40 << 20), struct.pack("<II", 2, 40 << 20), length=0)
    one = packed(zeros[:4] + struct.pack("<I", len(zeros) - 8 + (40 << 20)) + zeros[8:], 40)
    (tmp_path / "a.mat").write_bytes(HEADER["<"] + one)
    check_mat(tmp_path / "a.mat")
    (tmp_path / "a.mat").write_bytes(HEADER["<"] + one * 3)
    with pytest.raises(UserError, match="would unpack to more than 100 MB"):
        check_mat(tmp_path / "a.mat")


EMPTY = element(14, b"")
FIELD = element(5, struct.pack("<i", 8)) + element(1, b"name\0\0\0\0")

NAMES = (
    "cells, cells of two sizes, cells beyond 64 bits, structs, structs and fields, doubles, bytes, no imaginary part, "
    "characters, sparse columns"
)


@pytest.mark.parametrize("content", [
    matrix(1, (1, 1_500_000_000), b""), matrix(1, (50_000, 30_000), EMPTY), matrix(1, (2**31 - 1,) * 8, EMPTY),
    matrix(2, (1, 1_500_000_000), FIELD), matrix(2, (1, 3), FIELD + EMPTY * 2),
    matrix(6, (1, 10**9), element(9, bytes(8))),
    matrix(6, (1, 9), element(2, bytes(8))), matrix(6, (1, 1), element(9, bytes(8)), flags=1 << 11),
    matrix(4, (1, 10**9), element(16, b"text")), matrix(5, (9, 10**9), element(5, bytes(8)) * 3),
], ids=NAMES.split(", "))  # fmt: skip
@pytest.mark.parametrize("compressed", [False, True])
def test_more_than_the_bytes_that_are_there_cannot_be_declared(tmp_path, content, compressed):
    (tmp_path / "a.mat").write_bytes(HEADER["<"] + (packed(content, 0) if compressed else content))
    with pytest.raises(UserError, match="a.mat: cannot be read as a MATLAB v5 file .*delete it and download it again"):
        check_mat(tmp_path / "a.mat")


@pytest.mark.parametrize("content", [
    matrix(2, (1, 1_500_000_000), element(5, struct.pack("<i", 8)) + element(1, b"")),
    matrix(4, (1, 2 * 10**9), element(16, b"")),
], ids=["structs without fields", "text without bytes"])  # fmt: skip
def test_what_needs_no_bytes_may_not_take_memory_either(tmp_path, content):
    (tmp_path / "a.mat").write_bytes(HEADER["<"] + content)
    with pytest.raises(UserError, match="would take more than 1024 MB"):
        check_mat(tmp_path / "a.mat")


def test_small_integers_count_as_the_doubles_that_they_become(tmp_path):
    saved(tmp_path / "a.mat", data=np.zeros((1000, 100), np.uint8))
    assert check_mat(tmp_path / "a.mat") > 8 * 100_000


# ---------------------------------------------------------------- what is damaged


def nested(depth):
    content = EMPTY
    for _ in range(depth):
        content = matrix(1, (1, 1), content)
    return content


@pytest.mark.parametrize("content, message", [
    (nested(100), "nested deeper"), (matrix(6, (1, 1), element(100, bytes(8))), "of type 100"),
    (matrix(99, (1, 1), b""), "class 99"),
    (matrix(2, (1, 1), element(5, struct.pack("<i", 0)) + element(1, b"name")), "field names"),
    (matrix(2, (1, 1), element(5, struct.pack("<i", -8)) + element(1, b"name")), "field names"),
    (matrix(2, (1, 1), element(5, struct.pack("<i", 4)) + element(1, b"name") + EMPTY), "without an end"),
    (matrix(2, (1, 1), element(5, struct.pack("<i", 1)) + element(1, bytes(20_000))), "of 20000 bytes"),
    (matrix(1, (1, 1), element(9, bytes(8))), "type 9"), (matrix(6, (-1, -1), element(9, bytes(8))), "the size"),
    (matrix(6, (1, 1), element(9, bytes(8)) + EMPTY), "says less"), (element(9, bytes(8)), "type 9"),
    (element(14, b""), "0 bytes"),
    (matrix(6, (1, 1), element(9, bytes(8)), length=2**32 - 8), "are left"),
    (packed(element(9, bytes(8)), 0), "type 9"),
    (element(15, b"no zlib stream at all"), "zlib|error"), (b"\0\0\0", "inside a tag"),
])  # fmt: skip
def test_structures_that_would_crash_or_mislead_scipy_are_refused(tmp_path, content, message):
    """An unknown type, and matrices nested without end, end SciPy's process."""
    (tmp_path / "a.mat").write_bytes(HEADER["<"] + content)
    with pytest.raises(UserError, match=f"cannot be read as a MATLAB v5 file.*({message})"):
        check_mat(tmp_path / "a.mat")


@pytest.mark.parametrize("compressed", [False, True])
def test_every_truncation_is_refused(tmp_path, compressed):
    scipy.io.savemat(tmp_path / "a.mat", {"data": {"x": np.arange(50.0), "t": "text"}}, do_compression=compressed)
    whole = (tmp_path / "a.mat").read_bytes()
    for keep in range(4, len(whole)):
        if keep == 128:  # a file without a variable
            continue
        (tmp_path / "b.mat").write_bytes(whole[:keep])
        with pytest.raises(UserError, match="b.mat: cannot be read as a MATLAB v5 file"):
            check_mat(tmp_path / "b.mat")


def test_what_passes_after_damage_does_not_crash_scipy(tmp_path):
    """Bytes of a file are changed; what still passes is read in a process of its own."""
    cell = np.empty((1, 2), dtype=object)
    cell[0] = [{"X": np.arange(6.0), "t": "text", "c": np.array([1 + 2j])}, np.arange(3, dtype=np.uint8)]
    whole = saved(tmp_path / "a.mat", data=cell, s=scipy.sparse.csc_array(np.eye(3))).read_bytes()
    rng, passed = np.random.default_rng(0), []
    for _ in range(2000):
        damaged = bytearray(whole)
        at = int(rng.integers(128, len(whole) - 4)) & ~3
        damaged[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 2, 9, 14, 16, 99, 0x10001, 2**31, 2**32 - 1])))
        (tmp_path / "a.mat").write_bytes(damaged)
        try:
            check_mat(tmp_path / "a.mat")
        except UserError:
            continue
        passed.append(bytes(damaged))
    assert 100 < len(passed) < 1900
    child = os.fork()
    if not child:
        for content in passed:
            try:
                scipy.io.loadmat(io.BytesIO(content), struct_as_record=False)
            except Exception:
                continue
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
