"""A damaged file does no harm: it is read as before, made anew or refused in one line; see mutations.py."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch

from readers.recordings import FORMATS
from stages.checkpoints import KINDS as CHECKPOINTS
from tests.conftest import ROOT
from tests.faults.damage import HUGE, RAN, damage, enlarge, unpickled, with_code
from tests.faults.kinds import digest
from tests.faults.mutations import OTHER, REFUSED, SAME, read_apart
from tests.faults.reading import not_reached, reached_by, that_open_files
from tests.faults.seen_kinds import NOT_REACHED, NOT_WRITTEN
from utils.errors import UserError
from utils.files import read_json

NUMBER = os.environ.get("EEG2IMAGE_MUTATIONS")  # asked for: of all kinds, else fewer of those that are quick and mended
SEED = os.environ.get("EEG2IMAGE_MUTATION_SEED", "1")
ONLY = os.environ.get("EEG2IMAGE_MUTATION_ONLY")  # KIND or KIND:NUMBER, as a failure names it


@pytest.fixture(scope="module")
def bench(places, tmp_path_factory):
    """All that the harness said and found, in a process of its own, with one thread: forking is safe there."""
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "tests.faults.mutations", places, folder, "--seed", SEED,
               *(["--number", NUMBER] if NUMBER else ["--number", "130", "--quick"]),
               *(["--only", ONLY] if ONLY else [])]  # fmt: skip
    alone = {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(command, cwd=ROOT, env=os.environ | alone, capture_output=True, text=True)
    print(done.stdout)
    return done, json.loads((folder / "found.json").read_text()) if (folder / "found.json").exists() else None


def test_damaged_files_of_every_kind_do_no_harm(bench):
    done, _ = bench
    again = "EEG2IMAGE_MUTATION_SEED=… EEG2IMAGE_MUTATION_ONLY=KIND:NUMBER repeats one of these"
    assert done.returncode == 0, f"{again}\n{done.stdout[-20_000:]}\n{done.stderr[-4000:]}"


@pytest.mark.skipif(bool(ONLY), reason="one kind alone")
def test_every_function_that_opens_a_file_is_reached_by_a_kind_or_says_why_not(bench):
    """Whoever adds one adds a kind to `kinds.py` or `seen_kinds.py`, or a line to `NOT_REACHED`."""
    lacking = [name for name in bench[1]["not_reached"] if not any(fnmatch(name, known) for known in NOT_REACHED)]
    assert not lacking
    gone = [known for known in NOT_REACHED if not any(fnmatch(name, known) for name in that_open_files())]
    assert not gone  # a line without a function


@pytest.mark.skipif(bool(ONLY), reason="one kind alone")
def test_every_format_and_checkpoint_that_is_read_is_damaged(bench):
    names = {Path(file).name for files in bench[1]["files"].values() for file in files}
    endings = [end for end in FORMATS if end not in NOT_WRITTEN and not any(name.endswith(end) for name in names)]
    assert not endings
    lacking = [kind.name for kind in CHECKPOINTS.values() if not any(fnmatch(n, kind.name.format("*")) for n in names)]
    assert not lacking


def test_a_function_that_opens_a_file_is_found_however_it_does(tmp_path):
    (tmp_path / "readers").mkdir()
    lines = ["import json", "def a(path): return json.loads(path.read_text())", "class B:",
             "    def c(self, path):", "        with open(path, 'rb') as file: return file.read()",
             "def d(path): open(path, 'w').write('x')", "def e(path): return by(path, scipy.io.loadmat)",
             "def f(path): return g(path)"]  # fmt: skip
    (tmp_path / "readers/new.py").write_text("\n".join(lines))
    assert set(that_open_files(tmp_path)) == {"readers.new.a", "readers.new.B.c", "readers.new.e"}
    assert not_reached(reached := set()) and reached_by(
        lambda: read_json(ROOT / "demo/assets/clip/config.json"), reached
    )
    assert "utils.files.read_json" not in not_reached(reached) and "utils.files.read_csv" in not_reached(reached)


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


@pytest.mark.parametrize("name", ["x.pkl", "x.npy", "x.pt"])
def test_what_calls_a_function_when_it_is_unpickled_does_so_and_is_noticed(tmp_path, name):
    path, content = tmp_path / name, {"a": [1, "b"]}
    if name == "x.npy":
        np.save(path, content)
    else:
        path.write_bytes(pickle.dumps(content, protocol=4)) if name == "x.pkl" else torch.save(content, path)
    own = tmp_path / "own"
    own.mkdir()
    evil = with_code(path.read_bytes())
    outcome = read_apart(lambda: str(unpickled(evil)[0]), own, digest(str(content)))
    assert outcome.kind == "ran code" and (own / "home" / RAN).is_dir()


def test_memory_beyond_the_healthy_files_is_noticed(tmp_path):
    def read():
        return len(np.ones(1 << 26))  # 0.5 GB

    assert read_apart(read, tmp_path, digest(1 << 26), most=1 << 28).kind == "memory"
    assert read_apart(read, tmp_path, digest(1 << 26), most=1 << 30).kind == SAME


def test_a_huge_number_is_found_however_deep_and_made_where_there_is_none():
    rng = np.random.default_rng(0)
    for content in ({"a": [{"b": 3, "c": True}]}, {"a": "x"}):
        way, made = damage(rng, json.dumps(content).encode(), "config.json", enlarge)
        assert way == "enlarge" and any(str(number) in made.decode() for number in HUGE)
