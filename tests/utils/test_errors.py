import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from utils.errors import UserError, loading
from utils.paths import ROOT
from utils.script import run_script


class Panic(BaseException):
    """What a library written in Rust panics with is no Exception."""


def fails_with(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "error", [ValueError("not\na number"), KeyError("x"), Panic("index out of range"), MemoryError()]
)
def test_a_librarys_failure_to_load_is_one_line_with_file_and_reason(error, capsys):
    def main():
        with loading("model/config.json", "give another folder"):
            raise error

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and type(error).__name__ in said
    assert said.startswith("error: model/config.json: cannot be loaded (") and said.endswith("give another folder\n")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EIO, errno.ENAMETOOLONG])
def test_what_a_place_is_to_blame_for_is_one_line(code, capsys):
    with pytest.raises(SystemExit) as stop:
        run_script(fails_with(OSError(code, os.strerror(code), "/mnt/share/run")))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said == f"error: /mnt/share/run: {os.strerror(code)}; choose another place\n"


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
])  # fmt: skip
def test_too_little_memory_is_one_line(error, capsys):
    with pytest.raises(SystemExit) as stop:
        run_script(fails_with(error))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: not enough memory (") and said.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: 1 / 0)
    with pytest.raises(FileNotFoundError):
        run_script(fails_with(FileNotFoundError(errno.ENOENT, "x", "y")))


@pytest.mark.parametrize(
    "number, code, word", [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_term_ends_a_script_as_ctrl_c_does_and_says_how_to_go_on(number, code, word, capsys):
    cleaned = []

    def main():
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            cleaned.append(True)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        run_script(main, go_on="go on with --resume")
    assert stop.value.code == code and cleaned and signal.getsignal(number) is before
    assert capsys.readouterr().err == f"{word}; go on with --resume\n"


IMPORTING = """
import os, signal, sys, time
from utils.script import start_script
start_script(lambda: None)
try:
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))  # in the middle of an import that catches everything
    time.sleep(5)
except BaseException:
    print("caught")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interruption_during_the_imports_is_one_line(name):
    done = subprocess.run([sys.executable, "-c", IMPORTING, name], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 128 + getattr(signal, name) and done.stdout == ""
    assert done.stderr == "interrupted before anything began\n"


PRINTING = """
import sys
from utils.script import start_script, run_script
from utils.progress import progress
start_script(lambda: None)
def main():
    for _ in progress(range(3), desc="×"):
        print("2 × 3 = 6 µV", "\\ud800")
    print("x" * 100_000, flush=True)
    print("×", file=sys.stderr)
    open(sys.argv[1], "w").write("done")
run_script(main)
"""


@pytest.mark.parametrize("how", ["ascii", "closed pipe", "full disk", "closed"])
def test_output_never_fails_a_run(how, tmp_path):
    command = [sys.executable, "-c", PRINTING, tmp_path / "result"]
    options = {"cwd": ROOT, "env": os.environ | ({"PYTHONIOENCODING": "ascii"} if how == "ascii" else {})}
    if how == "ascii":
        done = subprocess.run(command, capture_output=True, **options)
        assert done.stdout.startswith(rb"2 \xd7 3 = 6 \xb5V \ud800")
    elif how == "closed pipe":
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, **options)
        os.close(writing)
        assert b"rror" not in done.stderr
    elif how == "full disk":
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=full, **options)
    else:
        done = subprocess.run(["bash", "-c", '"$@" >&- 2>&-', "bash", *map(str, command)], **options)
    assert done.returncode == 0 and (tmp_path / "result").read_text() == "done"


def test_a_user_error_is_one_line_however_many_it_had(capsys):
    with pytest.raises(SystemExit):
        run_script(fails_with(UserError("one\ntwo   three")))
    assert capsys.readouterr().err == "error: one two three\n"


def test_what_a_file_says_does_not_steer_the_terminal():
    said = "A\\x1b]0;owned\\x07\\x1b[31mB\\tC\\u202e"
    code = f"from utils.script import start_script; start_script(lambda: None); print('{said}')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "A\\x1b]0;owned\\x07\\x1b[31mB\tC\\u202e\n"


REPEATED = """
import sys, time
from utils.script import run_script, start_script

def main():
    try:
        print("begun", flush=True)
        time.sleep(10)
    finally:
        time.sleep(0.3)  # what is half-written goes
        print("cleaned", flush=True)

start_script(lambda: None)
run_script(main)
"""


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_impatient_user_does_not_disturb_the_end(number, code):
    script = subprocess.Popen([sys.executable, "-c", REPEATED], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
                              text=True)  # fmt: skip
    assert script.stdout.readline() == "begun\n"
    for _ in range(8):
        script.send_signal(number)
        time.sleep(0.01)
    out, err = script.communicate(timeout=20)
    assert script.returncode == code and out == "cleaned\n" and err.count("\n") == 1 and "nothing was kept" in err
