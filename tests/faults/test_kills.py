"""Whatever is killed goes on to the bytes of an undisturbed run; every script has its command here."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages import TARGETS
from tests.conftest import ROOT
from tests.faults.commands import NOT_KILLED, stages
from tests.faults.places import Places

KILLS = os.environ.get("EEG2IMAGE_KILLS")  # asked for: of every command, half of them at renames; else one of most
SEED = os.environ.get("EEG2IMAGE_KILL_SEED", "0")


def test_kills_change_no_byte_and_leave_nothing(places, tmp_path):
    """Every command of every pipeline; the process that does it says what it counted."""
    command = [sys.executable, "-m", "tests.faults.kills", places, tmp_path, "--seed", SEED,
               *(["--kills", KILLS] if KILLS else ["--kills", "1", "--quick"])]  # fmt: skip
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    print(json.dumps(reports, indent=1))
    assert reports.keys() == {name for name, stage in the_stages().items() if KILLS or not stage.slow}
    for name, report in reports.items():
        assert not report["faults"], (name, report["faults"])
        assert report["kills"] >= int(KILLS or 1), name
    assert 0 < sum(report["at_renames"] for report in reports.values()) < sum(r["kills"] for r in reports.values())


# ---------------------------------------------------------------- the harness itself


def the_stages():
    return stages(Places(**dict.fromkeys(Places.NAMES, "somewhere")), lambda name: Path("somewhere"))


@pytest.fixture
def asked(monkeypatch):
    """Script → the arguments of its commands, as the script reads them."""
    found = {}
    for stage in the_stages().values():
        script, *flags = map(str, stage.command(Path("work"), False))
        monkeypatch.setattr(sys, "argv", [script, *flags])
        found.setdefault(script, []).append(importlib.import_module(Path(script).stem).parse_args())
    return found


def test_every_script_is_killed_or_says_why_not(asked):
    """Whoever adds one adds its command to `commands.py`, or a line to `NOT_KILLED`."""
    scripts = {path.name for path in ROOT.glob("*.py")}
    assert asked.keys() | NOT_KILLED.keys() == scripts and not asked.keys() & NOT_KILLED.keys()


def test_every_target_and_every_model_of_a_training_script_is_killed(asked):
    assert {args.target for args in asked["finetune_eeg_to_clip.py"]} == set(TARGETS)
    for script in ("train_prior", "train_structure"):
        recipes = importlib.import_module(script).RECIPES
        assert {args.what for args in asked[f"{script}.py"]} == set(recipes), script
