"""A damaged file does no harm: it is read as before, made anew or refused in one line; see mutations.py."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.faults.mutations import OTHER, REFUSED, SAME, Places, digest, read_apart
from utils.errors import UserError

NUMBER = os.environ.get("EEG2IMAGE_MUTATIONS", "300")
SEED = os.environ.get("EEG2IMAGE_MUTATION_SEED", "1")
ONLY = os.environ.get("EEG2IMAGE_MUTATION_ONLY")  # KIND or KIND:NUMBER, as a failure names it


def test_damaged_files_of_every_kind_do_no_harm(demo, vi_demo, trained, mapped, tmp_path):
    """In a process of its own, with one thread: forking is safe there whatever ran before."""
    found = {"store": demo.store, "stimuli": vi_demo.stimuli, "pth": demo.pth, "trained": trained,
             "vi_store": vi_demo.store, "mapped": mapped}  # fmt: skip
    assert set(found) == set(Places.NAMES)
    (tmp_path / "places.json").write_text(json.dumps(found, default=str))
    command = [sys.executable, "-m", "tests.faults.mutations", tmp_path / "places.json", tmp_path / "bench",
               "--number", NUMBER, "--seed", SEED, *(["--only", ONLY] if ONLY else [])]  # fmt: skip
    alone = {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(command, cwd=ROOT, env=os.environ | alone, capture_output=True, text=True)
    print(done.stdout)
    again = "EEG2IMAGE_MUTATION_SEED=… EEG2IMAGE_MUTATION_ONLY=KIND:NUMBER repeats one of these"
    assert done.returncode == 0, f"{again}\n{done.stdout[-20_000:]}\n{done.stderr[-4000:]}"


# ---------------------------------------------------------------- the harness itself


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def refuse(text):
    def read():
        raise UserError(text)

    return read


def steer():
    """Send the terminal what a file says."""
    os.write(2, b"error: x.mat is \x1b[31mdamaged\n")  # past the scripts' own stderr, which escapes it
    sys.exit(2)


def babble():
    """Say more than a line should hold, past the end that the scripts give it."""
    os.write(2, b"error: x.mat " + b"has more " * 1000)
    sys.exit(2)


def look_up():
    return {}["no such key"]


@pytest.mark.parametrize("name, read", [
    ("signal", crash), ("signal", os.abort), ("hang", lambda: time.sleep(60)), ("traceback", look_up),
    ("traceback", lambda: os._exit(0)), ("traceback", lambda: os._exit(3)), (OTHER, lambda: "another"), (SAME,
    lambda: "healthy"),
    ("poor refusal", refuse("a file is damaged")), ("poor refusal", lambda: sys.exit("damaged")),
    ("poor refusal", steer), ("poor refusal", babble),
    (REFUSED, refuse("x.mat is\ndamaged")),
])  # fmt: skip
def test_what_comes_of_a_reader_is_classed(tmp_path, name, read):
    outcome = read_apart(read, tmp_path, digest("healthy"), "raw/x.mat", limit=2.0)
    assert outcome.kind == name, outcome
    if name == "traceback" and read is look_up:
        assert "KeyError: 'no such key'" in outcome.told and "look_up" in outcome.told


def test_a_refusal_that_names_the_folder_is_fine_and_a_second_error_line_is_not(tmp_path):
    def twice():
        print("error: first", file=sys.stderr)
        raise UserError(f"{tmp_path} is damaged")

    assert read_apart(refuse(f"{tmp_path} is damaged"), tmp_path, None).kind == REFUSED
    assert read_apart(twice, tmp_path, None).kind == "poor refusal"


def test_a_hang_ends_with_all_processes_that_it_started(tmp_path):
    def read():
        subprocess.Popen(["sleep", "61"])
        (tmp_path / "child").write_text(str(os.getpid()))
        time.sleep(60)

    assert read_apart(read, tmp_path, None, limit=2.0).kind == "hang"
    group = int((tmp_path / "child").read_text())
    with pytest.raises(ProcessLookupError):
        for _ in range(50):  # the system needs a moment
            os.killpg(group, 0)
            time.sleep(0.1)


@pytest.mark.parametrize("way", [
    lambda path: path.write_text("x"), lambda path: path.mkdir(), lambda path: (path.parent / "there").unlink(),
    lambda path: (path.parent / "there").rename(path), lambda path: os.symlink("x", path),
    lambda path: os.close(os.open(path, os.O_WRONLY | os.O_CREAT)),
])  # fmt: skip
def test_writing_elsewhere_is_noticed_and_writing_inside_is_fine(tmp_path, way):
    (tmp_path / "there").write_text("x")
    own = tmp_path / "own"
    (own / "home").mkdir(parents=True)
    (own / "there").write_text("x")
    assert read_apart(lambda: way(own / "new"), own, None).kind in (OTHER, SAME)
    assert read_apart(lambda: way(tmp_path / "new"), own, None).kind == "wrote elsewhere"
