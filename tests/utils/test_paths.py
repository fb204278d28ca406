import os
import subprocess
import sys
import time

import pytest

from utils.paths import ROOT, append, remove_leftovers, workplace, written_whole
from utils.script import run_script


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path):
    (tmp_path / "results.json").write_text("old")
    with pytest.raises(RuntimeError), written_whole(tmp_path / "results.json") as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert (tmp_path / "results.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_files_and_folders_are_replaced_whole(tmp_path):
    for text in ("first", "second"):
        with written_whole(tmp_path / "deep/folder") as unfinished:
            unfinished.mkdir()
            (unfinished / text).write_text(text)
        with written_whole(tmp_path / "deep/file") as unfinished:
            unfinished.write_text(text)
    assert [p.name for p in (tmp_path / "deep/folder").iterdir()] == ["second"]
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["file", "folder"]


def test_what_is_written_is_on_the_disk_before_it_has_its_name_and_the_name_after(tmp_path, monkeypatch):
    """A power cut cannot be tried here; the order of the calls that guard against it can."""
    order, plain = [], {name: getattr(os, name) for name in ("fsync", "replace")}

    def fsync(opened):
        order.append(("fsync", os.readlink(f"/proc/self/fd/{opened}").rsplit("/")[-1]))
        return plain["fsync"](opened)

    def replace(source, target):
        order.append(("replace", os.path.basename(target)))
        return plain["replace"](source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with written_whole(tmp_path / "lora") as unfinished:
        unfinished.mkdir()
        (unfinished / "weights").write_bytes(b"x")
    assert order == [("fsync", "weights"), ("fsync", "lora"), ("replace", "lora"), ("fsync", tmp_path.name)]


DIES = """
import os, signal, sys
from pathlib import Path
from utils.paths import written_whole
place, when = Path(sys.argv[1]), sys.argv[2]
if when == "between the renames":
    plain = os.replace
    def replace(source, target):
        os.kill(os.getpid(), signal.SIGKILL)
    os.replace = replace
with written_whole(place) as unfinished:
    unfinished.mkdir()
    (unfinished / "new").write_text("new")
    if when == "while writing":
        os.kill(os.getpid(), signal.SIGKILL)
    if when == "lives":
        print("writing", flush=True)
        sys.stdin.read()
"""


def dying(place, when, **options):
    return subprocess.Popen([sys.executable, "-c", DIES, place, when], cwd=ROOT, **options)


def test_what_a_dead_process_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    dying(tmp_path / "store", "while writing").wait()
    living = dying(tmp_path / "store", "lives", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert living.stdout.readline() == b"writing\n"
    making = tmp_path / f".other.part-{living.pid}-abcdefgh"  # a workplace in the making
    making.mkdir()
    (tmp_path / ".my.part-list").mkdir()  # somebody else's
    remove_leftovers(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left[:2] == [".my.part-list", making.name] and left[2].startswith(".store.part-") and len(left) == 3
    os.utime(making, (time.time() - 60,) * 2)
    remove_leftovers(tmp_path)
    (tmp_path / ".my.part-list").rmdir()
    assert len(list(tmp_path.iterdir())) == 1
    living.communicate()
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/old").write_text("old")
    dying(tmp_path / "store", "between the renames").wait()
    assert not (tmp_path / "store").exists()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert (tmp_path / "store/new").read_text() == "new"


def test_the_next_writer_of_the_same_name_removes_what_was_left(tmp_path):
    dying(tmp_path / "store", "while writing").wait()
    with workplace(tmp_path, "store") as folder:
        assert [path for path in tmp_path.iterdir()] == [folder]


def test_what_was_left_in_the_folders_of_a_run_goes_where_that_is_asked_for(tmp_path):
    (tmp_path / "low_level").mkdir()
    dying(tmp_path / "low_level/store", "while writing").wait()
    remove_leftovers(tmp_path)
    assert list((tmp_path / "low_level").iterdir())
    remove_leftovers(tmp_path, deep=True)
    assert not list((tmp_path / "low_level").iterdir())
    (tmp_path / "low_level/store").mkdir()
    dying(tmp_path / "low_level/store", "between the renames").wait()
    remove_leftovers(tmp_path, deep=True)
    assert (tmp_path / "low_level/store/new").read_text() == "new"


def test_a_script_leaves_what_another_run_begins_in_a_folder_below_its_own(tmp_path):
    making = tmp_path / f"A01/.last.pth.part-{os.getpid()}-abcdefgh"  # as evaluate.py --output_dir RUNS may meet it
    making.mkdir(parents=True)
    run_script(lambda: None, [tmp_path / ".lock"])
    assert making.is_dir()


def test_a_name_with_the_characters_of_a_pattern_is_a_name(tmp_path):
    dying(tmp_path / "run[1]*", "while writing").wait()
    remove_leftovers(tmp_path, "run[1]*")
    assert not list(tmp_path.iterdir())


def test_what_is_added_does_not_go_through_a_link(tmp_path):
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / "timing.jsonl").symlink_to(tmp_path / "thesis")
    with pytest.raises(OSError):
        append(tmp_path / "timing.jsonl", b"x")
    assert (tmp_path / "thesis").read_text() == "years of work"
