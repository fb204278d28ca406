import mmap
import multiprocessing
import os
import pickle
import shutil
import struct

import lmdb
import numpy as np
import pytest

from readers.lmdb_file import LMDBFile
from utils.errors import UserError

PAGE = 4096
META = {"version": 20, "page size": 40, "flags": 92, "depth": 94, "entries": 120, "root": 128, "last page": 136,
        "transaction": 144}  # fmt: skip


def written(path, *transactions, **options):
    """An LMDB after transactions, each of them dicts from key to value, None to delete it; and what it holds."""
    with lmdb.open(str(path), map_size=1 << 28, **options) as env:
        for puts in transactions:
            with env.begin(write=True) as txn:
                for key, value in puts.items():
                    if value is None:
                        txn.delete(key)
                    else:
                        txn.put(key, value)
        with env.begin() as txn:
            return dict(txn.cursor()), env.stat(), env.info()


def content(path):
    file = LMDBFile(path)
    return {key: bytes(file.get(key)) for key in file.keys()}  # noqa: SIM118 - it is no dict


def values(rng, n, sizes, key_size=12):
    keys = [rng.bytes(int(rng.integers(1, key_size + 1))) + b"%05d" % k for k in range(n)]
    return {key: rng.bytes(int(rng.choice(sizes))) for key in keys}


def patched(path, changes):
    """Change 8-byte (or other) fields of the file: {offset: (struct format, value)}."""
    content = bytearray((path / "data.mdb").read_bytes())
    for at, (format, value) in changes.items():
        struct.pack_into(format, content, at, value)
    (path / "data.mdb").write_bytes(content)


def latest(path):
    """Offset of the meta page that counts."""
    start = (path / "data.mdb").read_bytes()[: 2 * PAGE]
    return PAGE * (struct.unpack_from("<Q", start, PAGE + 144)[0] > struct.unpack_from("<Q", start, 144)[0])


# ---------------------------------------------------------------- the same records as the library


@pytest.mark.parametrize("n, sizes, key_size, depth", [
    (1, [0], 1, 1), (3, [5000], 4, 1), (30, [0, 1, 100, 2000], 20, 2), (2000, [0, 7, 88, 500], 12, 2),
    (300, [*range(2005, 2050), 4079, 4080, 4081, 8175, 8176, 8177, 100_000], 30, 2), (6000, [3, 600], 480, 4),
])  # fmt: skip
def test_the_records_are_those_of_the_library(tmp_path, n, sizes, key_size, depth):
    rng = np.random.default_rng(n)
    expected, stat, info = written(tmp_path / "lmdb", values(rng, n, sizes, key_size))
    file = LMDBFile(tmp_path / "lmdb")
    assert stat["depth"] >= depth and len(file) == len(expected) == n and list(file.keys()) == list(expected)
    assert content(tmp_path / "lmdb") == expected and file.last_txnid == info["last_txnid"]
    assert all(key in file for key in expected) and b"no such key" not in file and file.get(b"no such key") is None


@pytest.mark.parametrize("seed", range(4))
def test_so_they_are_after_many_transactions_with_deleted_and_replaced_keys(tmp_path, seed):
    rng = np.random.default_rng(seed)
    first = values(rng, 1500, [10, 300, 3000, 9000])
    transactions = [first]
    for _ in range(6):
        some = [list(first)[k] for k in rng.integers(0, len(first), 400)]
        transactions.append(
            {key: None if k % 3 else rng.bytes(int(rng.integers(0, 6000))) for k, key in enumerate(some)}
        )
    expected, _, info = written(tmp_path / "lmdb", *transactions)
    assert content(tmp_path / "lmdb") == expected and LMDBFile(tmp_path / "lmdb").last_txnid == info["last_txnid"] == 7
    compact = tmp_path / "compact"
    compact.mkdir()
    with lmdb.open(str(tmp_path / "lmdb")) as env:
        env.copy(str(compact), compact=True)
    assert content(compact) == expected


def test_so_they_are_where_the_library_wrote_through_a_map(tmp_path):
    expected, *_ = written(tmp_path / "lmdb", values(np.random.default_rng(0), 500, [50, 5000]), writemap=True)
    assert content(tmp_path / "lmdb") == expected and len(expected) == 500


def test_an_empty_file_has_no_records(tmp_path):
    written(tmp_path / "new")
    written(tmp_path / "emptied", {b"a": b"1", b"b": bytes(9000)}, {b"a": None, b"b": None})
    for name in ("new", "emptied"):
        file = LMDBFile(tmp_path / name)
        assert len(file) == 0 and list(file.keys()) == [] and file.get("a") is None and "a" not in file


def test_a_file_of_a_machine_with_larger_pages_is_read(tmp_path):
    """By hand: pages of 16 kB, one leaf with a record inside and one in two overflow pages."""
    size, big = 16384, np.random.default_rng(0).bytes(20_000)
    leaf = bytearray(size)
    struct.pack_into("<QHHHHHH", leaf, 0, 2, 0, 2, 20, size - 40, size - 20, size - 40)
    struct.pack_into("<HHHH2s4s", leaf, size - 20, 4, 0, 0, 2, b"aa", b"abcd")
    struct.pack_into("<HHHH2sQ", leaf, size - 40, 20_000, 0, 1, 2, b"bb", 3)
    chain = bytearray(2 * size)
    struct.pack_into("<QHHI", chain, 0, 3, 0, 4, 2)
    chain[16 : 16 + len(big)] = big
    metas = bytearray(2 * size)
    for k in (0, 1):
        record = struct.pack("<IHHQQQQQ", 0, 0, 1, 0, 1, 2, 2, 2)
        free = struct.pack("<IHHQQQQQ", size, 8, 0, 0, 0, 0, 0, 2**64 - 1)
        struct.pack_into(
            "<QHHIIIQQ48s48sQQ", metas, k * size, k, 0, 8, 0, 0xBEEFC0DE, 1, 0, 1 << 20, free, record, 4, 7
        )
    (tmp_path / "data.mdb").write_bytes(metas + leaf + chain)
    with lmdb.open(str(tmp_path), readonly=True, lock=False) as env, env.begin() as txn:
        assert dict(txn.cursor()) == {b"aa": b"abcd", b"bb": big}
    assert content(tmp_path) == {b"aa": b"abcd", b"bb": big} and LMDBFile(tmp_path).last_txnid == 7


def test_records_are_read_only_views_of_the_map(tmp_path):
    written(tmp_path / "lmdb", {b"small": b"abc", b"large": bytes(range(250)) * 100, "größe".encode(): b"x"})
    file = LMDBFile(tmp_path / "lmdb")
    for key in ("small", b"large", "größe"):
        view = file.get(key)
        assert isinstance(view.obj, mmap.mmap) and view.readonly and np.frombuffer(view, np.uint8).base is not None
    assert bytes(file.get("large")) == bytes(range(250)) * 100 and file.get("\ud800") is None
    kept = file.get("large")
    del file, view
    assert kept[249] == 249


# ---------------------------------------------------------------- processes


def tell(file, pipe):
    pipe.send(content(file.folder) == {key: bytes(file.get(key)) for key in file.keys()})  # noqa: SIM118


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_reads_the_same(tmp_path, method):
    expected, *_ = written(tmp_path / "lmdb", values(np.random.default_rng(0), 200, [50, 5000]))
    file = LMDBFile(tmp_path / "lmdb")
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    child = context.Process(target=tell, args=(file, there))
    child.start()
    there.close()
    assert here.recv() is True
    child.join()
    again = pickle.loads(pickle.dumps(file))
    assert "_opened" not in vars(again) and again.last_txnid == file.last_txnid
    assert {key: bytes(again.get(key)) for key in expected} == expected and len(again) == 200


def test_a_file_that_was_replaced_is_not_taken_for_the_old_one(tmp_path):
    written(tmp_path / "lmdb", {b"a": b"1"})
    file = LMDBFile(tmp_path / "lmdb")
    sent = pickle.dumps(file)
    shutil.rmtree(tmp_path / "lmdb")
    written(tmp_path / "lmdb", {b"a": b"2"})
    assert bytes(file.get("a")) == b"1"
    with pytest.raises(UserError, match="changed while it was used"):
        pickle.loads(sent).get("a")


# ---------------------------------------------------------------- what is none, or damaged


def test_other_folders_are_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            UserError, match=r"is not an LMDB folder \(it has no data.mdb\); make one with prepare_data"
        ):
            LMDBFile(folder)
    for junk in (b"", b"x", bytes(100_000), np.random.default_rng(0).bytes(100_000)):
        (tmp_path / "data.mdb").write_bytes(junk)
        with pytest.raises(UserError, match="no LMDB file, or its beginning is damaged"):
            LMDBFile(tmp_path)


def test_a_file_without_a_folder_is_read_and_data_mdb_means_its_folder(tmp_path):
    with lmdb.open(str(tmp_path / "x.lmdb"), subdir=False) as env, env.begin(write=True) as txn:
        txn.put(b"a", b"1")
    written(tmp_path / "lmdb", {b"a": b"1"})
    for path in (tmp_path / "x.lmdb", tmp_path / "lmdb/data.mdb", tmp_path / "lmdb"):
        file = LMDBFile(path)
        assert bytes(file.get("a")) == b"1" and bytes(pickle.loads(pickle.dumps(file)).get("a")) == b"1"
    assert LMDBFile(tmp_path / "lmdb/data.mdb").folder == tmp_path / "lmdb"
    with pytest.raises(UserError, match=f"it has no data.mdb.*name {tmp_path}/lmdb"):
        LMDBFile(tmp_path)


def test_several_databases_in_one_file_are_refused(tmp_path):
    with lmdb.open(str(tmp_path), max_dbs=2) as env:
        env.open_db(b"inner")
    with pytest.raises(UserError, match="several databases"):
        LMDBFile(tmp_path)


@pytest.mark.parametrize("keep", [1, 151, 152, 4096, 4247, 8192, 20_000, -4096, -1])
def test_a_truncated_file_is_said_to_be(tmp_path, keep):
    written(tmp_path / "lmdb", values(np.random.default_rng(0), 50, [100, 5000]))
    whole = (tmp_path / "lmdb/data.mdb").read_bytes()
    (tmp_path / "lmdb/data.mdb").write_bytes(whole[:keep])
    with pytest.raises(
        UserError, match="data.mdb is (truncated|no LMDB file, or its beginning is damaged).*--overwrite"
    ):
        LMDBFile(tmp_path / "lmdb")


@pytest.mark.parametrize("field, format, value, message", [
    ("version", "<I", 2, "format version 2; this code reads version 1"), ("version", "<I", 999, "version 999"),
    ("page size", "<I", 8192, "beginning is damaged"), ("page size", "<I", 0, "beginning is damaged"),
    ("flags", "<H", 4, "kind that is not read"), ("depth", "<H", 1, "leaf page"), ("depth", "<H", 33, "tree"),
    ("depth", "<H", 0, "tree"),
    ("depth", "<H", 5, "branch page"), ("entries", "<Q", 3, "records where it says 3"),
    ("entries", "<Q", 10**18, "where it says"), ("root", "<Q", 2**64 - 1, "tree"),
    ("root", "<Q", 10**9, "where it cannot"),
    ("root", "<Q", 0, "where it cannot"), ("root", "<Q", 2**63, "where it cannot"),
    ("last page", "<Q", 10**9, "truncated"), ("last page", "<Q", 2**64 - 1, "truncated"),
    ("last page", "<Q", 3, "where"),
])  # fmt: skip
def test_facts_that_cannot_be_are_found(tmp_path, field, format, value, message):
    written(tmp_path / "lmdb", values(np.random.default_rng(0), 300, [100, 5000]))
    patched(tmp_path / "lmdb", {latest(tmp_path / "lmdb") + META[field]: (format, value)})
    with pytest.raises(UserError, match=message) as error:
        content(tmp_path / "lmdb")
    assert "\n" not in str(error.value) and "data.mdb" in str(error.value)


def test_of_two_meta_pages_the_later_transaction_counts(tmp_path):
    old, *_ = written(tmp_path / "lmdb", {b"a": b"1"})
    new, *_ = written(tmp_path / "lmdb", {b"b": b"2"})
    assert content(tmp_path / "lmdb") == new != old
    patched(tmp_path / "lmdb", {latest(tmp_path / "lmdb") + META["transaction"]: ("<Q", 0)})
    assert content(tmp_path / "lmdb") == old


def tree(path):
    """Offsets of the root (a branch page) and of its first two children (leaves)."""
    file = (path / "data.mdb").read_bytes()
    root = PAGE * struct.unpack_from("<Q", file, latest(path) + META["root"])[0]
    nodes = [root + offset for offset in struct.unpack_from("<2H", file, root + 16)]
    return file, root, nodes, [PAGE * struct.unpack_from("<I", file, node)[0] for node in nodes]


DAMAGE = (
    "loop, shared leaf, outside, another page, no node, key order, key length, value length, chain outside, "
    "chain's flags, shared chain"
)


@pytest.mark.parametrize("damage", DAMAGE.split(", "))
def test_trees_that_cannot_be_are_found(tmp_path, damage):
    """Each of these made the library loop, crash or return other bytes."""
    folder = tmp_path / "lmdb"
    expected, *_ = written(folder, {b"%03d" % k: bytes([k]) * (100 if k % 2 else 5000) for k in range(100)})
    file, root, (first, second), (leaf, other) = tree(folder)
    nodes = [leaf + offset for offset in struct.unpack_from("<2H", file, leaf + 16)]  # of 000, in a chain, and 001
    chain = struct.unpack_from("<Q", file, nodes[0] + 8 + 3)[0]
    changes = {
        "loop": {first: ("<I", root // PAGE)}, "shared leaf": {second: ("<I", leaf // PAGE)},
        "outside": {first: ("<I", 10**6)}, "another page": {leaf: ("<Q", other // PAGE)},
        "no node": {leaf + 16: ("<H", 4090)}, "key order": {nodes[1] + 8: ("<3s", b"000")},
        "key length": {nodes[1] + 6: ("<H", 0)}, "value length": {nodes[1]: ("<H", 4000)},
        "chain outside": {nodes[0] + 11: ("<Q", len(file) // PAGE - 1)},
        "chain's flags": {chain * PAGE + 10: ("<H", 2)},
        "shared chain": {nodes[0] + 11: ("<Q", chain + 1)},
    }  # fmt: skip
    assert content(folder) == expected
    patched(folder, changes[damage])
    with pytest.raises(UserError, match=r"data.mdb is damaged \(.*\); make it anew with --overwrite"):
        content(folder)


def test_a_branch_whose_paths_multiply_ends_soon(tmp_path):
    """Thirty branch pages, each of which names the next one 200 times: 200^30 paths."""
    written(tmp_path / "lmdb", {b"%05d" % k: bytes(1000) for k in range(200)})
    file, depth = bytearray((tmp_path / "lmdb/data.mdb").read_bytes()), 30
    for number in range(2, 2 + depth):
        page = bytearray(PAGE)
        struct.pack_into("<QHHHH", page, 0, number, 0, 1, 16 + 400, PAGE - 1600)
        for k in range(200):
            struct.pack_into("<H", page, 16 + 2 * k, PAGE - 8 * (k + 1))
            struct.pack_into("<HHHH", page, PAGE - 8 * (k + 1), number + 1, 0, 0, 0)
        file[number * PAGE : (number + 1) * PAGE] = page
    (tmp_path / "lmdb/data.mdb").write_bytes(file)
    patched(tmp_path / "lmdb", {latest(tmp_path / "lmdb") + META["depth"]: ("<H", 32),
                                latest(tmp_path / "lmdb") + META["root"]: ("<Q", 2)})  # fmt: skip
    with pytest.raises(UserError, match="damaged"):
        LMDBFile(tmp_path / "lmdb")


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes_anywhere_end_in_one_line_or_in_records_inside_the_file(tmp_path, seed):
    rng = np.random.default_rng(seed)
    folder = tmp_path / "lmdb"
    written(folder, values(rng, 150, [20, 300, 5000]), {b"later": b"1"}, {b"later": None, b"last": bytes(7000)})
    whole = (folder / "data.mdb").read_bytes()
    tree = [page for page in range(0, len(whole), PAGE) if struct.unpack_from("<H", whole, page + 10)[0] in (1, 2, 8)]
    heads = [page + k for page in tree for k in range(64)]  # headers and offsets, mostly
    refused = 0
    for _ in range(600):
        changed = bytearray(whole)
        for at in rng.choice(heads, 1) if rng.random() < 0.5 else rng.integers(0, len(whole), rng.integers(1, 30)):
            changed[at] = rng.integers(256)
        (folder / "data.mdb").write_bytes(changed)
        try:
            found = content(folder)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert all(0 < len(key) < 512 for key in found)
    assert refused > 100


def test_opening_does_not_leave_files_open(tmp_path):
    written(tmp_path / "lmdb", {b"a": b"1"})
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(20):
        LMDBFile(tmp_path / "lmdb").get("a")
    assert not before or len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_damaged_list_of_free_pages_is_noticed_before_the_library_goes_by_it(tmp_path):
    rng = np.random.default_rng(0)
    with lmdb.open(str(tmp_path), map_size=1 << 26, lock=False) as env:
        for number in range(60):
            with env.begin(write=True) as txn:
                txn.put(b"%04d" % (number % 7), rng.bytes(9000 + 500 * number))
    LMDBFile(tmp_path).check_free_pages()
    whole = (tmp_path / "data.mdb").read_bytes()
    page, last = 4096, struct.unpack_from("<Q", whole, 136)[0]
    txnids = [struct.unpack_from("<Q", whole, meta * page + 144)[0] for meta in (0, 1)]
    depth, root = (
        struct.unpack_from(form, whole, (txnids[1] > txnids[0]) * page + at)[0] for form, at in (("<H", 46), ("<Q", 80))
    )
    assert depth >= 1 and 2 <= root <= last
    noticed = 0
    for at in rng.integers(16, page, 200):
        damaged = bytearray(whole)
        damaged[root * page + int(at)] ^= 1 << int(rng.integers(8))
        (tmp_path / "data.mdb").write_bytes(damaged)
        try:
            LMDBFile(tmp_path).check_free_pages()
        except UserError:
            noticed += 1
    assert noticed > 10  # the rest hits what the page does not use
    for meta in (0, 1):  # what kind of tree it is: the library ends the process where it is another
        damaged = bytearray(whole)
        damaged[meta * page + 44] = 5
        (tmp_path / "data.mdb").write_bytes(damaged)
        with pytest.raises(UserError, match="free pages"):
            LMDBFile(tmp_path).check_free_pages()
