import json
import os
import subprocess
import sys

import pytest

from utils.errors import UserError
from utils.locks import only_one, remove_stale
from utils.paths import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from utils.locks import only_one
with only_one(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(path, seconds=60.0):
    """Another process that holds a lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, path, str(seconds)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_process_is_told_who_is_writing(tmp_path):
    first = holder(tmp_path / ".lock")
    try:
        with pytest.raises(UserError) as error, only_one(tmp_path / ".lock"):
            pass
        who = json.loads((tmp_path / ".lock").read_text())
        assert f"process {first.pid} on {who['host']}, since {who['since']}" in str(error.value)
    finally:
        first.kill()
        first.wait()


def test_a_lock_of_a_process_that_was_killed_is_taken_over(tmp_path):
    first = holder(tmp_path / ".lock")
    first.kill()
    first.wait()
    assert (tmp_path / ".lock").exists()
    with only_one(tmp_path / ".lock"):
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"process": "1; rm", "host": 3}', b"x" * 100_000])
def test_a_lock_file_that_says_nothing_holds_nobody(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content)
    with only_one(tmp_path / ".lock"):
        pass
    assert not (tmp_path / ".lock").exists()


def test_who_may_wait_waits_and_says_for_whom(tmp_path, capsys):
    first = holder(tmp_path / ".lock", 1.0)
    with only_one(tmp_path / ".lock", "encodes the same trials") as waited:
        assert waited
    assert f"process {first.pid}" in capsys.readouterr().out
    first.wait()


def test_a_folder_that_was_made_for_the_lock_alone_goes_with_it(tmp_path):
    with pytest.raises(UserError), only_one(tmp_path / "new/deep/.lock"):
        raise UserError("a flag was wrong")
    assert list(tmp_path.iterdir()) == []
    with only_one(tmp_path / "new/.lock"):
        (tmp_path / "new/result").write_text("x")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["result"]


def test_a_link_or_a_pipe_in_a_locks_place_is_not_followed(tmp_path):
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / ".lock").symlink_to(tmp_path / "thesis")
    os.mkfifo(tmp_path / ".pipe")
    (tmp_path / ".tokens-a.lock").symlink_to(tmp_path / "thesis")
    for name in (".lock", ".pipe"):
        with pytest.raises(OSError), only_one(tmp_path / name):
            pass
    remove_stale(tmp_path, ".tokens-*.lock")
    assert (tmp_path / "thesis").read_text() == "years of work"
