import io
import stat
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from utils import archives, limits
from utils.archives import unpack
from utils.errors import UserError


def zipped(members: dict[str, bytes], **options) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def place(tmp_path):
    """Unpack bytes as a zip file into tmp_path/out; gives the number of files."""

    def run(content: bytes):
        (tmp_path / "in.zip").write_bytes(content)
        return unpack(tmp_path / "in.zip", lambda member: tmp_path / "out" / member, tmp_path / "out")

    return run


def test_nested_zips_are_unpacked_and_nothing_else_is_left(place, tmp_path):
    inner = zipped({"sub-01/a.bdf": b"1" * 1000, "sub-01/b.tsv": b"2"})
    assert place(zipped({"article/sub-01.zip": inner, "readme.txt": b"hello"})) == 3
    assert (tmp_path / "out/sub-01/a.bdf").read_bytes() == b"1" * 1000
    assert {path.name for path in tmp_path.iterdir()} == {"in.zip", "out"}


def test_what_is_there_in_the_right_size_is_left_alone(place, tmp_path):
    content = zipped({"a": b"new!", "b": b"longer"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").write_bytes(b"old!")
    (tmp_path / "out/b").write_bytes(b"torn")
    assert place(content) == 2
    assert (tmp_path / "out/a").read_bytes() == b"old!" and (tmp_path / "out/b").read_bytes() == b"longer"


@pytest.mark.parametrize("name", ["../escaped", "sub/../../escaped", "/escaped", "C:/escaped", "..\\escaped"])
def test_a_path_outside_the_folder_is_refused_before_anything_is_written(place, tmp_path, name):
    with pytest.raises(UserError, match="leaves the folder"):
        place(zipped({"fine.txt": b"1", name: b"2"}))
    assert {path.name for path in tmp_path.rglob("*")} == {"in.zip"}
    with pytest.raises(UserError, match="leaves the folder"):  # one zip further in
        place(zipped({"sub-01.zip": zipped({name: b"2"})}))
    assert not (tmp_path / "escaped").exists() and not (tmp_path.parent / "escaped").exists()


def test_links_are_refused(place):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        member = zipfile.ZipInfo("link")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(UserError, match="is a link"):
        place(buffer.getvalue())


def test_bombs_are_refused(place, tmp_path):
    with pytest.raises(UserError, match="would unpack to"):
        place(zipped({f"{k}": bytes(30 << 20) for k in range(4)}))
    content = zipped({"a": b"x"})
    for _ in range(4):
        content = zipped({"a.zip": content})
    with pytest.raises(UserError, match="nested deeper"):
        place(content)
    small = zipped({"a": bytes(20 << 20)})
    with pytest.raises(UserError, match="too many for its size"):  # each is small; together they are not
        place(zipped({f"{k}.zip": small for k in range(8)}))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 110 << 20


def directory(n, entries=None, zip64=False, name=b"a"):
    """A zip of `n` empty members in nothing but its directory, whose end may claim another number of entries."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0) + name
    member = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name
    size, entries = n * len(entry), n if entries is None else entries
    content = member + entry * n
    if zip64:
        end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, size, len(member))
        content += end + struct.pack("<4sLQL", b"PK\6\7", 0, len(content), 1)
        return content + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0)
    return content + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, entries & 0xFFFF, entries & 0xFFFF, size, len(member), 0)


@pytest.mark.parametrize("entries", [None, 1])
@pytest.mark.parametrize("zip64", [False, True])
def test_a_list_of_too_many_files_is_not_even_read(place, entries, zip64):
    assert place(directory(3, zip64=zip64)) == 3
    content = directory(400_000, entries, zip64)
    tracemalloc.start()
    with pytest.raises(
        UserError, match=r"in.zip: cannot be unpacked .its list of files has \d+ bytes, too many for 25000 files"
    ):
        place(content)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_files_are_counted_with_those_of_nested_zips(place, monkeypatch):
    with pytest.raises(UserError, match="in.zip has more than 25000 files"):
        place(directory(25_001))
    monkeypatch.setattr(archives, "MAX_MEMBERS", 10)
    inner = zipped({f"{k}": b"" for k in range(4)})
    assert place(zipped({"a.zip": inner, "b.zip": inner})) == 8
    with pytest.raises(UserError, match="in.zip: b.zip has more than 10 files, with those nested in it"):
        place(zipped({"a.zip": inner, "b.zip": inner, "c.zip": inner}))


def test_limits_stand_in_one_place():
    assert all(
        getattr(archives, name) == getattr(limits, name) for name in ("MAX_RATIO", "SMALL", "MAX_DEPTH", "MAX_MEMBERS")
    )


def test_damage_of_every_kind_is_one_error(place):
    content = zipped({"a": np.random.default_rng(0).integers(0, 4, 20_000).astype("u1").tobytes()})
    for seed in range(40):
        rng, damaged = np.random.default_rng(seed), bytearray(content)
        for k in rng.integers(40, len(content) - 100, 30):
            damaged[k] = rng.integers(256)
        with pytest.raises(UserError, match="in.zip: cannot be unpacked"):
            place(bytes(damaged))
    with pytest.raises(UserError, match="cannot be unpacked"):
        place(zipped({"x" * 300: b"1"}))


def test_a_member_cannot_be_longer_than_it_says(place, tmp_path):
    """The size in the directory is forged to 10 bytes; 5 MB must not come out."""
    content = bytearray(zipped({"a": bytes(5 << 20)}))
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = (10).to_bytes(4, "little")
    with pytest.raises(UserError, match="cannot be unpacked"):
        place(bytes(content))
    assert not (tmp_path / "out/a").exists()


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_truncated_zip_is_one_line(place, share):
    content = zipped({"a": bytes(range(256)) * 100})
    with pytest.raises(UserError, match="damaged"):
        place(content[: int(len(content) * share)])
