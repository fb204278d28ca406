"""The GPU check runs in its small form where there is no GPU; where there is one, all lines are under their limits."""

import importlib.metadata
import json
import re
import subprocess
import sys

import pytest
import torch
from packaging.requirements import Requirement

from tests.conftest import ROOT
from tests.gpu import check


def run(folder, *flags):
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "OUT": str(folder), "OMP_NUM_THREADS": "1"}
    command = ["bash", ROOT / "tests/gpu/run.sh", *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder.parent, env=environment)
    return done, json.loads((folder / "check.json").read_text())


def test_the_small_form_measures_every_line_on_the_cpu(tmp_path):
    done, lines = run(tmp_path / "gpu", "--small")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["name"] for line in lines] == list(check.LINES)
    assert all(line["rate"] > 0 and not line["wrong"] for line in lines), lines
    text = (tmp_path / "gpu/check.md").read_text()
    assert "says nothing of a GPU" in text and all(line["what"] in text for line in lines)


def needed_by(names):
    """Names of packages with all that they need."""
    waiting, found = list(names), set()
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name not in found:
            found.add(name)
            needs = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [n.name for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
    return found


def test_the_wheels_that_are_carried_are_all_that_a_bare_machine_lacks():
    said = (ROOT / "tests/gpu/run.sh").read_text().replace("\\\n#", "")
    goes = re.findall(r'^#     get \w+ "([^"]+)"([^#\n]*)', said, re.MULTILINE)
    there = needed_by(["torch", "transformers"])
    assert len(goes) == 2 and "diffusers" in goes[0][0] and "bitsandbytes" in goes[1][0]
    for pinned, others in goes:
        carried = {*pinned.split(), *others.split()}
        assert needed_by(carried) <= there | carried, needed_by(carried) - there - carried
        there |= carried


def test_a_line_that_fails_is_named_and_one_without_its_library_was_not_run(monkeypatch, tmp_path):
    def breaks(sizes):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(check.LINES, "bf16", ("first", breaks, 8, "trials"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    sizes = check.Sizes(tmp_path, torch.device("cpu"), True)
    failed, lacking = (check.measure(name, sizes) for name in ("bf16", "nf4"))
    assert failed["wrong"].startswith("FAILED: RuntimeError: out of memory") and failed["rate"] is None
    assert lacking["wrong"].startswith("not run:") and "bitsandbytes" in lacking["wrong"]
    text = check.table([failed, lacking], "a GPU")
    assert "| first |" in text and "out of memory" in text and "not run" in text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_line_of_the_hardware_table_is_under_its_limit(tmp_path):
    done, lines = run(tmp_path / "gpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(line["peak"] for line in lines if line["limit"])
