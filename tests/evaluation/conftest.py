"""A run whose files a test may change."""

import shutil

import pytest


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"
