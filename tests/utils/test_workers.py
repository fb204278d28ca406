import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from utils.paths import ROOT
from utils.workers import WorkerLost, in_order


def late(number):
    time.sleep(0.2 if number == 0 else 0.0)
    return number


def dies(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_results_come_in_order_whichever_worker_is_done_first():
    assert list(in_order(late, [(k,) for k in range(7)], 2, "x")) == list(range(7))


@pytest.mark.skipif(sys.platform != "linux", reason="macOS cannot fork")
def test_workers_have_what_was_made_before_them_whatever_python_starts_by_itself():
    default = multiprocessing.get_start_method()
    made = {}  # of a function that cannot be pickled
    try:
        multiprocessing.set_start_method("forkserver", force=True)  # Python 3.14's
        made["whitener"] = 7
        assert list(in_order(lambda k: made["whitener"] + k, [(k,) for k in range(4)], 2, "x")) == [7, 8, 9, 10]
    finally:
        multiprocessing.set_start_method(default, force=True)


def dies_at(path, number):
    return dies(number)


def test_a_worker_that_the_system_ends_is_one_line_with_its_file():
    with pytest.raises(WorkerLost, match="--workers 1"):
        list(in_order(dies, [(k,) for k in range(4)], 2, "x"))
    with pytest.raises(WorkerLost, match="^raw/S2.edf: a worker was ended"):
        list(in_order(dies_at, [(Path(f"raw/S{k}.edf"), k) for k in range(4)], 2, "x"))


PARENT = """
import os, sys, time
sys.path.insert(0, "tests/utils")
from utils.script import run_script, start_script
from utils.workers import in_order
import test_workers

start_script(lambda: None)
run_script(lambda: list(in_order(test_workers.long, [(sys.argv[1], k) for k in range(4)], 2, "x")))
"""


def long(folder, number):
    with open(os.path.join(folder, str(os.getpid())), "w"):
        pass
    time.sleep(30)


@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_workers_end_with_their_parent_however_it_ends(number, code, tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, tmp_path], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 20
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 2
    parent.send_signal(number)
    started = time.monotonic()
    _, said = parent.communicate(timeout=10)
    assert parent.returncode == code and time.monotonic() - started < 5
    while any(map(psutil.pid_exists, workers)) and time.monotonic() - started < 5:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(worker) for worker in workers)
    assert "Traceback" not in said and (number == signal.SIGKILL or "interrupted;" in said or "terminated;" in said)


IN_A_FINALISER = """
import sys, time
from utils.script import run_script, start_script

class Slow:
    def __del__(self):
        print("here", flush=True)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            pass

def main():
    Slow()
    print("went on", flush=True)
    time.sleep(5)
    print("never interrupted", flush=True)

start_script(lambda: None)
run_script(main)
"""


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interruption_that_falls_into_a_finaliser_is_not_lost(number, code):
    script = subprocess.Popen([sys.executable, "-c", IN_A_FINALISER], cwd=ROOT, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert script.stdout.readline() == "here\n"
    script.send_signal(number)
    said, complaints = script.communicate(timeout=20)
    assert script.returncode == code and "never" not in said, (said, complaints)
    assert complaints.count("\n") == 1 and "nothing was kept" in complaints
