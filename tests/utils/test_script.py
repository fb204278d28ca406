"""How a script begins."""

import platform
import subprocess
import sys

import pytest

from tests.conftest import ROOT

FAULTS = """
import resource
import numpy as np
from utils.script import keep_freed_memory

if {keeps}:
    keep_freed_memory()
np.ones(25_000_000, np.float32)  # 100 MB, freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(25_000_000, np.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_arrays_are_used_again_where_the_system_would_clear_their_pages_anew():
    faults = {}
    for keeps in (True, False):
        command = [sys.executable, "-c", FAULTS.format(keeps=keeps)]
        faults[keeps] = int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert faults[True] < 0.2 * faults[False], faults
