"""Benchmarks are not run here, for no test asserts a time; but they start, and their rivals compute the right thing."""

import importlib
import time

import numpy as np
import pytest
import torch

from benchmarks import common
from benchmarks.csbrain_forward import transcribed
from tests.conftest import ROOT
from tests.models.test_csbrain import build

NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_starts_and_the_readme_explains_it(name):
    module = importlib.import_module(f"benchmarks.{name}")
    assert name == "common" or callable(module.main)
    assert f"`{name}.py`" in (ROOT / "benchmarks/README.md").read_text()


@pytest.mark.parametrize("name", ["bcic_22ch_4patch", "vi_32ch_4patch"])
def test_the_transcription_of_csbrain_is_the_published_model(shared, name):
    golden = np.load(shared / f"golden/{name}.npz")
    model = build(golden["brain_regions"].tolist(), golden["sorted_indices"].tolist())
    with torch.no_grad():
        y = transcribed(model, torch.from_numpy(golden["x"])).numpy()
    assert np.abs(y - golden["y"]).max() < 1e-4 * np.sqrt(np.mean(golden["y"] ** 2))


def test_the_transcription_fits_any_electrodes_and_number_of_patches():
    model = build([0, 1, 1, 4, 4, 4, 7], range(7))
    x = torch.randn(2, 7, 12, 200)
    with torch.no_grad():
        assert torch.allclose(transcribed(model, x), model(x), atol=1e-4)


def test_sides_take_turns_and_the_first_round_does_not_count(monkeypatch):
    order, clock = [], iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    seconds = common.in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == list("abbaabba") and seconds == {"a": [1, 1, 1], "b": [1, 1, 1]}
    assert common.ratio([2, 6, 4], [1, 2, 1]) == "3.00 (2.00 to 4.00)"


def test_things_like_stores_have_an_embedding_of_every_image(tmp_path):
    from datasets.store import description_of_store
    from datasets.trials import load_splits
    from stages.clip_features import read_clip_features

    store, features = common.things_store(tmp_path, 200, n_times=50, width=8)
    splits = load_splits(store, description_of_store(store), "within:sub-01")
    known, _ = read_clip_features([str(features)], {})
    trials = [trial for dataset in splits.values() for trial in dataset.trials]
    assert len(trials) == 220 and {trial.image for trial in trials} == set(known)
    classes = splits["train"].store.meta["classes"]
    assert all(f"_{classes[trial.label]}/" in trial.image for trial in trials)


def test_every_line_of_the_hardware_table_fits_in_full_size():
    """On tensors without numbers; and no picture takes more than the placement on a GPU reckons with."""
    from benchmarks import memory_of_pictures as memory
    from models.memory import OF_DENOISER, OF_VAE

    work = {}

    def line(name, modules, does, grad=False, limit=memory.LIMIT):
        _, weights, most = memory.peak(modules, does, grad)
        assert weights < most <= limit, name
        work[name] = 1e9 * (most - weights)

    for stage in memory.HARDWARE:
        with memory.without_numbers():
            stage(line)
    one, eight = (
        work[name] for name in ("SD 1.5, IP-Adapter and ControlNet: denoise", "the same, 8 pictures together: denoise")
    )
    assert max(one, eight / 8) < OF_DENOISER * 2 * 64**2 * 320 * 2 < 1.5 * one
    decode = work["SD 1.5 and IP-Adapter: decode the picture"]
    assert decode < OF_VAE * 512**2 * 128 * 2 < 1.5 * decode and len(work) == 9
