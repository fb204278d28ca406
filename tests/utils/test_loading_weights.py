"""Weights of strangers: found wherever they lie in a checkpoint, and never a few of them for all."""

import pytest
import torch
from torch import nn

from utils.checkpoints import load_weights
from utils.errors import UserError


def network() -> nn.Module:
    """Twelve names, some of which begin as a stranger's prefix may: with "encoder."."""
    parts = {"encoder": nn.Sequential(*(nn.Linear(3, 3) for _ in range(5))), "head": nn.Linear(3, 2)}
    return nn.ModuleDict(parts)


def behind(prefix: str):
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


def with_more(prefix: str):
    return lambda state: behind(prefix)(state) | {"classifier.0.weight": torch.zeros(4, 2), "epoch": 7}


# how it was saved → what is made of the weights, whether it is said where they lie, whether something is left aside
SAVED = {
    "plain": (dict, False, False),
    "compiled": (behind("_orig_mod."), False, False),
    "parallel and compiled": (behind("module._orig_mod."), False, False),
    "compiled inside": (lambda s: {k.replace("encoder.", "encoder._orig_mod."): v for k, v in s.items()}, False, False),
    "model": (
        lambda s: {"model": s, "epoch": 4, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
        True,
        False,
    ),
    "state_dict": (lambda s: {"state_dict": s, "hyper_parameters": {"lr": 1e-3}}, True, False),
    "model_state_dict": (lambda s: {"epoch": 1, "model_state_dict": behind("module.")(s)}, True, False),
    "a key nobody thought of": (lambda s: {"run": {"ema": {"params": s}}}, True, False),
    "backbone": (with_more("backbone."), True, True),
    "encoder": (with_more("encoder."), True, True),
    "all of it": (lambda s: {"state_dict": with_more("module.model.encoder._orig_mod.")(s)}, True, True),
}


@pytest.mark.parametrize("saved, said, aside", SAVED.values(), ids=SAVED)
def test_weights_are_found_wherever_they_lie(saved, said, aside, tmp_path, capsys):
    theirs, ours = network(), network()
    torch.save(saved(theirs.state_dict()), tmp_path / "weights.pth")
    assert not torch.equal(ours["head"].weight, theirs["head"].weight)
    loaded = load_weights(ours, tmp_path / "weights.pth")
    assert (loaded.loaded, loaded.of) == (12, 12) and str(loaded) == "12/12 loaded"
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    out = capsys.readouterr().out
    assert ("its weights lie" in out) == said and ("classifier.0.weight" in out) == aside


def test_of_two_places_that_fit_the_one_that_is_left_out_is_named(tmp_path, capsys):
    theirs, ours = network(), network()
    torch.save({"model": theirs.state_dict(), "model_ema": network().state_dict()}, tmp_path / "weights.pth")
    load_weights(ours, tmp_path / "weights.pth")
    assert "under 'model'; not taken: model_ema" in capsys.readouterr().out
    assert torch.equal(ours["head"].weight, theirs["head"].weight)


@pytest.mark.parametrize("kept, fits", [(12, True), (11, True), (10, False), (0, False)])
def test_allow_partial_needs_nearly_all_names(kept, fits, tmp_path):
    state = dict(list(network().state_dict().items())[:kept]) | {"another.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="does not fit: "):
        load_weights(network(), tmp_path / "weights.pth")
    if fits:
        assert load_weights(network(), tmp_path / "weights.pth", allow_partial=True)[:2] == (kept, 12)
        return
    before = (ours := network()).state_dict()["head.weight"].clone()
    with pytest.raises(UserError, match=rf"{kept} of 12 names fit, --allow_partial needs 90%") as error:
        load_weights(ours, tmp_path / "weights.pth", allow_partial=True)
    assert "\n" not in str(error.value) and torch.equal(ours["head"].weight, before)
