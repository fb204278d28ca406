"""What a user does to a running script: Ctrl-C, SIGTERM, a second run in the same folder."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from datasets.store import open_store
from tests.conftest import ROOT, read_jsonl
from tests.utils.test_locks import holder


def start(name, *args):
    """A script in a process of its own, still running."""
    command = [sys.executable, str(ROOT / name), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stop(running, when, number):
    """Send a signal once `when` holds; how long it took to end, its code and what it said."""
    until = time.monotonic() + 60
    while not when() and running.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    children = psutil.Process(running.pid).children(recursive=True)
    os.kill(running.pid, number)
    started = time.monotonic()
    _, err = running.communicate(timeout=60)
    seconds = time.monotonic() - started
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    assert "Traceback" not in err, err
    return seconds, running.returncode, err


def holds_a_file(unfinished):
    """Whether an unfinished store has the trials of a recording (2.1 MB) for certain, since it has a part of the next
    one.
    """
    return unfinished.exists() and unfinished.stat().st_size > 3_000_000


@pytest.mark.parametrize(
    "number, code, word", [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_preparing_stops_at_once_keeps_its_files_and_goes_on(demo, script, tmp_path, number, code, word):
    flags = ("--skip_download", "--raw_dir", demo.raw, "--lmdb_dir", tmp_path / "store")
    unfinished = tmp_path / ".store.unfinished/data.mdb"
    seconds, found, err = stop(start("prepare_data.py", *flags), lambda: holds_a_file(unfinished), number)
    assert seconds < 5 and found == code
    assert (
        err.strip().splitlines()[-1]
        == f"{word}; files that are prepared are kept; the same command goes on behind them"
    )
    assert unfinished.exists() and not (tmp_path / "store").exists()
    again = script("prepare_data.py", *flags)
    assert again.code == 0 and "were prepared by a run that was interrupted" in again.out
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert (tmp_path / "store/data.mdb").read_bytes() == (demo.store / "data.mdb").read_bytes()


def test_an_unfinished_store_of_other_settings_or_other_files_is_begun_anew(demo, script, tmp_path):
    flags = ["--skip_download", "--raw_dir", demo.raw, "--lmdb_dir", tmp_path / "store"]
    stop(
        start("prepare_data.py", *flags), lambda: holds_a_file(tmp_path / ".store.unfinished/data.mdb"), signal.SIGKILL
    )
    other = script("prepare_data.py", *flags, "--tmax", 5.0)
    assert other.code == 0 and "were prepared by a run" not in other.out
    assert open_store(tmp_path / "store").shape == (22, 750) and [p.name for p in tmp_path.iterdir()] == ["store"]


def test_training_ends_in_one_line_and_goes_on(demo, few, script, tmp_path):
    flags = demo.training(tmp_path / "run", datasets_dir=few, epochs=3)
    seconds, code, err = stop(start("finetune_eeg_llm.py", *flags), (tmp_path / "run/last.pth").exists, signal.SIGTERM)
    assert seconds < 10 and code == 143
    assert err.strip().splitlines()[-1] == "terminated; finished epochs are kept; go on with --resume"
    assert not list((tmp_path / "run").glob(".*"))  # neither lock nor half a file
    assert script("finetune_eeg_llm.py", *flags, "--resume").code == 0
    assert [row["epoch"] for row in read_jsonl(tmp_path / "run/metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("name", ["prepare", "train", "map", "generate"])
def test_a_second_run_in_the_same_folder_is_refused(demo, vi_demo, trained, script, tmp_path, name):
    folder = tmp_path / "out"
    command, lock = {
        "prepare": (["prepare_data.py", "--skip_download", "--raw_dir", demo.raw, "--lmdb_dir", folder],
        tmp_path / ".out.lock"),
        "train": (["finetune_eeg_llm.py", *demo.training(folder)], folder / ".lock"),
        "map": (["finetune_eeg_to_image.py", *vi_demo.mapping(folder)], folder / ".lock"),
        "generate": (["generate.py", *demo.generation(trained, folder)], folder / ".lock"),
    }[name]  # fmt: skip
    check_refused(script, command, lock)


LOCKED = {  # script → what it must be given beside the folder that it writes
    "prepare_data_things.py": ["--skip_download", "--lmdb_dir"],
    "prepare_data_imagenet.py": ["--pth_path", "x.pth", "--lmdb_dir"],
    "prepare_data_own.py": ["files:x/{subject}.edf", "--lmdb_dir"],
    "finetune_eeg_to_clip.py": ["--protocol", "joint", "--output_dir"],
    "train_prior.py": ["--model_dir", "x", "--output_dir"],
    "train_structure.py": ["--output_dir"],
    "pretrain_csbrain.py": ["--datasets_dir", "x", "--output_dir"],
    "generate_eeg2img.py": ["--output_dir"],
    "generate_text_states.py": ["--output_dir"],
    "retrieve.py": ["x", "--output_dir"],
    "attribute.py": ["x", "--datasets_dir", "x", "--output_dir"],
    "baseline.py": ["--model", "csp_lda", "--output_dir"],
    "draw_true_class.py": [],
}


@pytest.mark.parametrize("name", LOCKED)
def test_a_second_run_of_a_script_of_any_pipeline_is_refused(script, tmp_path, name):
    prepares = "--lmdb_dir" in LOCKED[name]
    lock = tmp_path / ".out.lock" if prepares else tmp_path / "out/.lock"
    check_refused(script, [name, *LOCKED[name], tmp_path / "out"], lock)


def check_refused(script, command, lock):
    """A run whose folder another process holds ends in one line and writes nothing."""
    lock.parent.mkdir(exist_ok=True)
    first = holder(lock)
    try:
        done = script(*command)
        assert (
            done.code == 2
            and f"process {first.pid} on " in done.error_line
            and "choose another folder" in done.error_line
        )
        assert [path.name for path in lock.parent.iterdir()] == [lock.name]
    finally:
        first.kill()
        first.wait()
