"""Tables by one command: what is to do is said first, what is there is not made again, and a kill costs one step."""

import os
import re
import signal
import subprocess
import time

import pytest

from tests.conftest import ROOT

STEPS = """
set -euo pipefail
source {root}/sh/steps.sh
steps() {{
  step first 2 a/done make a
  step second 3 b/done make b
  step third 1 c/done make c
}}
make() {{ mkdir -p "$1"; echo "$1" >> order; sleep "${{2:-0}}"; {more}; echo made > "$1/done"; }}
do_steps
"""


def run(folder, more=":", **options):
    script = folder / "steps_here.sh"
    script.write_text(STEPS.format(root=ROOT, more=more))
    return subprocess.run(["bash", str(script)], cwd=folder, capture_output=True, text=True, **options)


def order(folder):
    return (folder / "order").read_text().split()


def test_all_steps_are_said_beforehand_with_their_time_and_done_in_order(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0 and order(tmp_path) == ["a", "b", "c"]
    plan, _, doing = done.stdout.partition("steps: 3, about 6 min in all")
    assert re.findall(r"(\w+) \(about (\d) min\)", plan) == [("first", "2"), ("second", "3"), ("third", "1")]
    assert re.findall(r"== (\w+) \(step (\d) of 3", doing) == [("first", "1"), ("second", "2"), ("third", "3")]


def test_a_second_run_does_nothing(tmp_path):
    run(tmp_path)
    again = run(tmp_path)
    assert again.returncode == 0 and "nothing; all is there" in again.stdout and order(tmp_path) == ["a", "b", "c"]


def test_a_step_that_fails_ends_the_run_and_the_next_run_goes_on_there(tmp_path):
    done = run(tmp_path, more='if [ "$1" = b ]; then exit 7; fi')
    assert done.returncode == 7 and order(tmp_path) == ["a", "b"] and not (tmp_path / "b/done").exists()
    again = run(tmp_path)
    assert again.returncode == 0 and order(tmp_path) == ["a", "b", "b", "c"] and "steps: 2, about 4" in again.stdout


def test_a_step_that_leaves_nothing_is_an_error(tmp_path):
    done = run(tmp_path, more='if [ "$1" = a ]; then return 0; fi')
    assert done.returncode == 1 and done.stderr == "error: first has not written a/done\n" and order(tmp_path) == ["a"]


def test_after_a_kill_the_same_command_goes_on(tmp_path):
    script = tmp_path / "steps_here.sh"
    script.write_text(
        STEPS.format(root=ROOT, more='if [ "$1" = b ] && [ ! -e waited ]; then touch waited; sleep 60; fi')
    )
    process = subprocess.Popen(["bash", str(script)], cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True)
    while not (tmp_path / "waited").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert order(tmp_path) == ["a", "b"]
    again = subprocess.run(["bash", str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0 and order(tmp_path) == ["a", "b", "b", "c"]


def test_what_is_made_from_all_is_planned_where_any_of_them_is(tmp_path):
    text = STEPS.format(root=ROOT, more=":").replace(
        "step third", "if [ b/done -nt c/done ]; then rm -f c/done; fi\n  made_from_all third"
    )
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "done").touch()
    (tmp_path / "b/done").unlink()
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "steps: 2" in done.stdout and order(tmp_path) == ["b", "c"], done.stderr


@pytest.mark.parametrize("name, what", [("reproduce_tables.sh", "demo, 2b or full"), ("ablations.sh", "demo or full")])
def test_another_word_is_one_line(name, what):
    done = subprocess.run(["bash", str(ROOT / "sh" / name), "everything"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.strip().endswith(f"error: say {what}")


@pytest.mark.parametrize("name, what, steps", [
    ("reproduce_tables.sh", "demo", 50), ("reproduce_tables.sh", "2b", 35), ("reproduce_tables.sh", "full", 45),
    ("ablations.sh", "demo", 20), ("ablations.sh", "full", 20),
])  # fmt: skip
def test_every_step_of_the_real_scripts_names_a_flag_that_exists(name, what, steps, tmp_path):
    """The plan of a bare machine; then each step's command, with python replaced by a check of its flags."""
    (tmp_path / "sh").mkdir()
    for script in (ROOT / "sh").glob("*.sh"):
        (tmp_path / "sh" / script.name).write_text(script.read_text())
    (tmp_path / "sh/setup.sh").write_text('cd "$(dirname "${BASH_SOURCE[0]}")/.."\nexport PATH="$PWD/bin:$PATH"\n')
    (tmp_path / "bin").mkdir()
    said = tmp_path / "said"
    demo = "if [ $1 = prepare_demo.py ]; then mkdir -p pth/demo/clip; touch pth/demo/clip/model.safetensors; fi"
    (tmp_path / "bin/python").write_text(f'#!/bin/bash\nprintf "%s\\n" "$*" >> {said}\n{demo}\n')
    (tmp_path / "bin/python").chmod(0o755)
    # every step finds its result there as soon as it is done
    text = (
        (tmp_path / "sh/steps.sh")
        .read_text()
        .replace('  "$@"\n', '  "$@"\n  mkdir -p "$(dirname "$result")"; touch "$result"\n')
    )
    (tmp_path / "sh/steps.sh").write_text(text)
    done = subprocess.run(["bash", f"sh/{name}", what], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"\(about \d+ min\)", done.stdout)) >= steps
    commands = said.read_text().splitlines()
    assert len(commands) >= steps
    flags = {}
    for command in re.split(r"\n| -- python ", "\n".join(commands)):  # what sweep.py runs is a command as well
        script, *words = command.split()
        flags.setdefault(script, set()).update(word for word in words if word.startswith("--"))
    for script, used in flags.items():
        source = (ROOT / script).read_text() + (ROOT / "utils/flags.py").read_text()
        missing = {flag for flag in used if f'"{flag}"' not in source and not flag.startswith(("--lambda_", "--no-"))}
        assert not missing, f"{script} has no {missing}"
    again = subprocess.run(["bash", f"sh/{name}", what], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0 and "nothing; all is there" in again.stdout
    assert said.read_text().splitlines() == commands
