import json
import os
import subprocess
import sys

from tests.conftest import ROOT


def test_kills_change_no_byte_and_leave_nothing(demo, vi_demo, few, trained, tmp_path):
    """Preparation, encoding, both trainings, decoding, drawing; the script that does it says what it counted.

    Four kills a stage, half of them at renames; EEG2IMAGE_KILLS asks for more.
    """
    flags = {"demo": demo.folder, "store": few, "vi_store": vi_demo.store, "trained": trained, "work": tmp_path,
             "kills": os.environ.get("EEG2IMAGE_KILLS", "4"), "seed": os.environ.get("EEG2IMAGE_KILL_SEED",
             "0")}  # fmt: skip
    command = [sys.executable, str(ROOT / "tests/faults/kills.py")]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    print(json.dumps(reports, indent=1))
    assert len(reports) == 6
    for stage, report in reports.items():
        assert not report["faults"], (stage, report["faults"])
        assert report["kills"] >= int(flags["kills"]) and report["at_renames"] > 0, stage
