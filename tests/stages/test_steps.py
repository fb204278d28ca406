"""What further runs have used of the test person stands in the rows of the pictures that they guide."""

from types import SimpleNamespace

import torch

from datasets.alignment import ALIGNMENTS
from stages import steps
from stages.rows import Row
from utils.processes import Processes

NOTHING, CAUSAL, SESSION = (ALIGNMENTS[name].uses for name in ("none", "causal", "session"))


def a_run(uses):
    return SimpleNamespace(model=None, dataset=SimpleNamespace(uses=uses), people=[])


def a_row(uses):
    return Row(0, "sub-01", "1", 1, 1, 0, "cup", {}, uses=uses)


def test_a_step_that_used_more_of_the_test_person_is_said_in_the_rows(monkeypatch):
    monkeypatch.setattr(steps, "open_like", lambda place, *_: (a_run(SESSION if place.name == "low" else NOTHING), []))
    rows, processes = [a_row(CAUSAL), a_row(CAUSAL)], Processes(torch.device("cpu"))
    decoded = steps.Decoded(a_run(CAUSAL), [], torch.zeros(2, 3), rows, 1.0, "", None, processes, 4)
    decoded.further("plain", "structure")
    assert [row.uses for row in rows] == [CAUSAL] * 2
    decoded.further("low", "vae_latent")
    assert [row.uses for row in rows] == [SESSION] * 2


def test_the_mean_of_several_runs_says_the_most_of_them(monkeypatch, tmp_path):
    rows = [a_row(NOTHING)]
    monkeypatch.setattr(steps, "clip_part", lambda *_: torch.ones(1, 3))
    monkeypatch.setattr(steps, "nearest_images", lambda *_: (rows, {}, 1.0))
    how = {"foundation": "", "cache_dir": None, "processes": Processes(torch.device("cpu")), "batch_size": 4}
    runs = [(a_run(NOTHING), []), (a_run(CAUSAL), [])]
    steps.decode_embedding(runs, tmp_path, None, tmp_path, **how)
    assert rows[0].uses == CAUSAL
