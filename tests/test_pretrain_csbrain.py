"""Pretraining on small stores of two montages, and what its weights are for."""

import runpy

import pytest
import torch

from datasets.description import load_description
from models.CSBrain import CSBrain
from tests.conftest import ROOT, flat, interrupted_before, read_jsonl, run_inside, small_store
from utils.files import read_json

SCRIPT = "pretrain_csbrain.py"
PEOPLE = ["A01", "A02", "A06", "A08"]


@pytest.fixture(scope="module")
def pretrain():
    return runpy.run_path(str(ROOT / SCRIPT))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    two = small_store(folder / "2a", load_description("BCICIV2a"), PEOPLE, trials=4, sfreq=200.0, seconds=2.0)
    other = small_store(
        folder / "2b", load_description("BCICIV2b"), ["B01", "B02", "B06", "B08"], trials=4, seconds=1.0
    )
    return [two, other]


def flags(stores, folder, **more):
    known = {"epochs": 2, "batch_size": 4, "warmup": 1, "cuda": -1, "keep": ["all"]}
    return flat({"datasets_dir": list(map(str, stores)), "output_dir": folder} | known | more)


@pytest.fixture(scope="module")
def whole(stores, tmp_path_factory):
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    done = run_inside(SCRIPT, *flags(stores, folder))
    assert "2 stores, 16 / 8 train / val trials of 6 people; 8,902,000 parameters" in done.out
    return folder


def test_two_montages_train_one_set_of_weights_that_the_other_scripts_read(whole, few, script, tmp_path):
    history = read_jsonl(whole / "metrics.jsonl")
    assert [epoch["val"]["share explained"]["n"] for epoch in history] == [8, 8]
    checkpoint = torch.load(whole / "csbrain_epoch2.pth", weights_only=True)
    expected = "BCICIV2a/A01 BCICIV2a/A02 BCICIV2a/A06 BCICIV2b/B01 BCICIV2b/B02 BCICIV2b/B06"
    assert checkpoint["pretrained_on"] == expected.split()
    flags_of = ["--model", "linear_probe", "--datasets_dir", few, "--downstream_dataset", "BCICIV2a", "--epochs", 1,
                "--output_dir", tmp_path / "probe",
                "--foundation_dir", whole / "csbrain_epoch2.pth"]  # fmt: skip
    probe = script("baseline.py", *flags_of, "--cuda", -1, "--cache_dir", tmp_path / "cache")
    assert probe.code == 0, probe.err
    assert read_json(tmp_path / "probe/run.json")["encoder_loaded"] == {"loaded": 295, "of": 295}
    # a person who was pretrained on is no stranger
    again = script("baseline.py", *flags_of, "--output_dir", tmp_path / "no", "--protocol", "loso:A02", "--cuda", -1)
    assert again.code == 2 and "was pretrained on trials of BCICIV2a/A02, who is tested" in again.error_line


def test_random_weights_begin_small(pretrain):
    description = load_description("BCICIV2b")
    montage, x = description.montage, torch.randn(4, 3, 4, 200)
    model = CSBrain.build(montage.brain_regions, montage.sorted_indices)
    assert model(x).std() > 100  # the published initialisation
    pretrain["start_small"](model)
    assert not model(x).any() and 0.1 < model.encoder(model.patch_embedding(x), model.TemEmbedEEGLayer,
                                                      model.BrainEmbedEEGLayer).std() < 10  # fmt: skip


def test_weights_that_are_gone_on_from_bring_the_people_they_were_pretrained_on(stores, whole, script, tmp_path):
    more = {"epochs": 1, "foundation_dir": whole / "csbrain_epoch2.pth"}
    done = script(SCRIPT, *flags(stores[1:], tmp_path / "on", **more))
    assert done.code == 0 and "trials of 3 people" in done.out, done.err
    content = torch.load(tmp_path / "on/csbrain_epoch1.pth", weights_only=True)
    people = "BCICIV2a/A01 BCICIV2a/A02 BCICIV2a/A06 BCICIV2b/B01 BCICIV2b/B02 BCICIV2b/B06".split()
    assert content["pretrained_on"] == read_json(tmp_path / "on/run.json")["pretrained_on"] == people


def test_an_interrupted_pretraining_goes_on_to_the_same_weights(stores, whole, script, tmp_path, monkeypatch):
    with interrupted_before(2, monkeypatch):
        assert script(SCRIPT, *flags(stores, tmp_path / "cut")).code == 130
    assert script(SCRIPT, *flags(stores, tmp_path / "cut"), "--resume").code == 0
    a, b = (torch.load(run / "csbrain_epoch2.pth", weights_only=True) for run in (whole, tmp_path / "cut"))
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])


def test_models_of_two_montages_share_every_weight(pretrain):
    montages = [load_description(name).montage for name in ("BCICIV2a", "VI")]
    first = CSBrain.build(montages[0].brain_regions, montages[0].sorted_indices).eval()
    other = pretrain["with_weights_of"](first, montages[1]).eval()
    for (name, one), (name_too, two) in zip(first.named_parameters(), other.named_parameters(), strict=True):
        assert name == name_too and one is two
    alone = CSBrain.build(montages[1].brain_regions, montages[1].sorted_indices).eval()
    alone.load_state_dict(first.state_dict())
    x = torch.randn(2, 32, 3, 200)
    assert torch.equal(other(x), alone(x))


def test_hidden_patches_are_as_many_and_what_is_hidden_is_not_seen(pretrain):
    montage = load_description("BCICIV2a").montage
    model = CSBrain.build(montage.brain_regions, montage.sorted_indices).eval()
    x = torch.randn(3, 22, 4, 200)
    hidden = pretrain["hidden_patches"](x, 0.5)
    assert hidden.shape == (3, 22, 4) and hidden.flatten(1).sum(dim=1).tolist() == [44] * 3
    assert pretrain["hidden_patches"](x, 0.0).flatten(1).sum(dim=1).tolist() == [1] * 3
    with torch.no_grad():
        made, was = pretrain["reconstruct"](model, x, hidden)
        assert torch.equal(was, x[:, model.sorted_indices][hidden])
        changed = x.clone()
        in_order = x[:, model.sorted_indices].clone()
        in_order[hidden] = 100.0  # whatever stands there
        changed[:, model.sorted_indices] = in_order
        assert torch.allclose(pretrain["reconstruct"](model, changed, hidden)[0], made, atol=1e-4)


def test_learning_explains_what_is_hidden(pretrain):
    """Slow waves that all electrodes share: what is hidden can be told from what is seen."""
    torch.manual_seed(0)
    montage = load_description("BCICIV2b").montage
    model = CSBrain.build(montage.brain_regions, montage.sorted_indices)
    t = torch.arange(200) / 200
    x = torch.stack([torch.sin(2 * torch.pi * (2 * t + phase)).expand(3, 2, 200) for phase in torch.rand(24)])
    optimizer, losses = torch.optim.AdamW(model.parameters(), 1e-3), []
    for _ in range(25):
        made, was = pretrain["reconstruct"](model, x, pretrain["hidden_patches"](x, 0.3))
        losses.append(loss := (made - was).square().mean())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


def test_whitened_trials_are_refused(script, tmp_path):
    from datasets.store import open_store, write_store

    store = open_store(small_store(tmp_path / "plain", load_description("BCICIV2b"), ["B01", "B06"], trials=2))
    rows = [(trial, store.read(trial).copy()) for trial in store.trials]
    write_store(tmp_path / "white", {"sfreq": 200.0, "dataset": "BCICIV2b", "units": "no unit"}, [rows])
    done = script(SCRIPT, *flags([tmp_path / "white"], tmp_path / "run"))
    assert done.code == 2 and "holds whitened trials" in done.error_line
    assert not (tmp_path / "run/run.json").exists()
