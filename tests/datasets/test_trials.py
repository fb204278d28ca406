import random

import numpy as np
import pytest
import torch

from datasets.bciciv2a_llm_dataset import DESCRIPTION as BCIC
from datasets.bciciv2a_llm_dataset import BCICIV2aLLMDataset
from datasets.recording import Trial
from datasets.splits import split_trials
from datasets.store import open_store, write_store
from datasets.trials import TextCollator, TrialDataset, shuffled_labels
from datasets.visual_imagery_llm_dataset import DESCRIPTION as VI
from datasets.visual_imagery_llm_dataset import VisualImageryLLMDataset
from utils.errors import UserError


def write(path, n=6, people=("A01", "A06", "A08"), labels=4, n_chans=22, **meta):
    """`n` trials a person, in sessions T and E."""
    rng = np.random.default_rng(0)
    part = [
        (Trial(f"{who}-{k}", k % labels, who, "TE"[k % 2], 1, k // 2 + 1), 20 * rng.standard_normal((n_chans,
        50)).astype("<f4"))
        for who in people for k in range(n)
    ]  # fmt: skip
    write_store(path, {"dataset": "BCICIV2a", "sfreq": 250.0} | meta, [part])
    return path


# ---------------------------------------------------------------- items


def test_items_are_microvolts_with_label_and_index(tmp_path):
    dataset = BCICIV2aLLMDataset(write(tmp_path / "store"), "val")
    assert len(dataset) == 6 and {trial.subject for trial in dataset.trials} == {"A06"} and dataset.sfreq == 250
    for k, item in enumerate(dataset):
        assert set(item) == {"x", "label", "image", "subject", "index"}
        assert (item["label"], item["index"], item["subject"]) == (k % 4, k, "A06")
        assert item["x"].dtype == torch.float32
        assert np.array_equal(item["x"].numpy(), dataset.store.read(dataset.trials[k]))
        item["x"].zero_()  # a caller may work in place
        assert np.array_equal(dataset[k]["x"].numpy(), dataset.store.read(dataset.trials[k]))


def test_a_part_of_each_trial_is_looked_at(tmp_path):
    dataset = BCICIV2aLLMDataset(write(tmp_path / "store"), "val")
    whole = dataset.store.read(dataset.trials[2]).copy()
    part = dataset.part((0.04, 0.16), ["frontal", "parietal"])
    electrodes = [name for name, region in zip(BCIC.montage.electrodes, BCIC.montage.region_names, strict=True)
                  if region in ("frontal", "parietal")]  # fmt: skip
    places = [BCIC.montage.electrodes.index(name) for name in electrodes]
    assert list(part.montage.electrodes) == electrodes and part.n_times == 30
    assert set(part.montage.region_names) == {"frontal", "parietal"}
    assert np.array_equal(part[2]["x"].numpy(), whole[places][:, 10:40])
    assert (part.facts["window"], part.facts["regions"]) == ([0.04, 0.16], ["frontal", "parietal"])
    assert np.array_equal(dataset[2]["x"].numpy(), whole) and dataset.montage == BCIC.montage


@pytest.mark.parametrize("window, regions, message", [
    ((0, 0.21), None, "--window 0 0.21: the trials of .* last 0.2 s"), ((-0.1, 0.1), None, "last 0.2 s"),
    ((0.1, 0.1), None, "last 0.2 s"), ((float("nan"), 0.1), None, "last 0.2 s"), ((0, float("inf")), None,
    "last 0.2 s"),
    (None, ["Frontal"], "no region or electrode Frontal; it has frontal"), (None, [], "none named"), (None,
    ["occipital"], "no region or electrode occipital"),
])  # fmt: skip
def test_a_part_that_the_trials_do_not_have_is_one_line(tmp_path, window, regions, message):
    dataset = BCICIV2aLLMDataset(write(tmp_path / "store"), "val")
    with pytest.raises(UserError, match=message):
        dataset.part(window, regions)


def test_a_protocol_chooses_the_trials(tmp_path):
    folder = write(tmp_path / "store")
    dataset = BCICIV2aLLMDataset(folder, "test", "within:A01")
    assert [(t.subject, t.session) for t in dataset.trials] == [("A01", "E")] * 3
    assert {t.subject for t in BCICIV2aLLMDataset(folder, "test", "loso:A06").trials} == {"A06"}


@pytest.mark.parametrize("chance", [np.random.rand, lambda: torch.rand(1).item(), random.random])
def test_a_preparation_that_changes_few_trials_at_random_is_refused(tmp_path, chance):
    dataset = BCICIV2aLLMDataset(write(tmp_path / "store"), "train")
    with pytest.raises(UserError, match="random, and what it gives is kept"):
        dataset.prepared(lambda samples, sfreq: 2 * samples if chance() < 1e-6 else samples)
    rng = np.random.default_rng(0)  # its own, which nobody sees
    with pytest.raises(UserError, match="random, and what it gives is kept"):
        dataset.prepared(lambda samples, sfreq: 2 * samples if rng.random() < 0.5 else samples)


def test_what_prepare_makes_of_a_trial_is_made_once_and_tokens_take_its_place(tmp_path):
    dataset, calls = BCICIV2aLLMDataset(write(tmp_path / "store"), "train"), []

    def prepare(samples, sfreq):
        calls.append((samples.shape, sfreq))
        return samples[:, :10].astype(np.float64) * 2

    prepared = dataset.prepared(prepare)
    calls.clear()  # of the look whether it is random
    for _ in range(2):
        x = prepared[3]["x"]
        assert x.dtype == torch.float32 and np.array_equal(x.numpy(), dataset.store.read(dataset.trials[3])[:, :10] * 2)
    assert calls == [((22, 50), 250.0)]
    tokens = torch.arange(6 * 2 * 3.0).view(6, 2, 3)
    assert (
        torch.equal(prepared.with_tokens(tokens)[4]["x"], tokens[4]) and prepared.with_tokens(tokens)[4]["label"] == 0
    )
    assert np.array_equal(dataset[3]["x"].numpy(), dataset.store.read(dataset.trials[3]))  # which nobody rewired


def test_a_random_prepare_is_refused_since_its_first_draw_would_stay(tmp_path):
    dataset, rng = BCICIV2aLLMDataset(write(tmp_path / "store"), "train"), np.random.default_rng(0)
    with pytest.raises(UserError, match="random, and what it gives is kept: augment in the training loop"):
        dataset.prepared(lambda samples, sfreq: samples + rng.standard_normal(samples.shape))


def test_some_trials_are_spread_evenly_and_too_many_are_all_of_them(tmp_path, capsys):
    dataset = BCICIV2aLLMDataset(write(tmp_path / "store", n=21), "test")
    assert (
        dataset.spread(5) == [0, 5, 10, 15, 20]
        and dataset.spread(21) == list(range(21))
        and not capsys.readouterr().out
    )
    assert dataset.spread(99) == list(range(21))
    assert "notice: --num_samples 99, but test has 21 trials" in capsys.readouterr().out
    with pytest.raises(UserError, match="no test trials"):
        BCICIV2aLLMDataset(write(tmp_path / "few", people=("A01",)), "test").spread(3)


@pytest.mark.parametrize("options, message", [
    ({"dataset": "VI"}, "is a store of VI; expected BCICIV2a"), ({"n_chans": 21},
    r"trials are \(21, 50\); BCICIV2a has 22 electrodes"),
    ({"n_chans": 23}, r"trials are \(23, 50\)"), ({"labels": 5}, "label 4 in train; expected 0 to 3"),
    ({"electrodes": [*BCIC.montage.electrodes[1:], "Fz"]}, "has other electrodes than BCICIV2a"),
])  # fmt: skip
def test_a_store_of_something_else_is_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        BCICIV2aLLMDataset(write(tmp_path / "store", **options), "train")


def test_a_dataset_can_be_had_without_a_class_of_its_own(tmp_path):
    folder = write(tmp_path / "store", people=("S01", "S17"), labels=10, n_chans=32, dataset="VI")
    store = open_store(folder)
    ours, theirs = (
        TrialDataset(folder, "train", description=VI, store=store),
        VisualImageryLLMDataset(folder, mode="train"),
    )
    assert ours.store is store and ours.trials == theirs.trials and torch.equal(ours[1]["x"], theirs[1]["x"])


# ---------------------------------------------------------------- targets


class WordTokenizer:
    """Words to numbers; 2 ends a sentence and pads, as TinyLlama's does."""

    eos_token_id = pad_token_id = 2

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return type("Ids", (), {"input_ids": [3 + sum(map(ord, w)) % 100 for w in text.split()]})


def items(n):
    return [{"x": torch.full((2, 200), float(k)), "label": k % 4, "index": k} for k in range(n)]


def test_targets_end_with_the_end_token_inside_the_mask():
    batch = TextCollator(BCIC, WordTokenizer())(items(8))
    assert batch["x"].shape == (8, 2, 200) and batch["label"].tolist() == [0, 1, 2, 3] * 2
    assert batch["target_ids"].shape == batch["target_mask"].shape
    for ids, mask in zip(batch["target_ids"], batch["target_mask"], strict=True):
        kept = ids[mask]
        assert kept[-1] == 2 and (kept[:-1] != 2).all()
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)  # padded on the right


def test_a_phrasing_depends_on_seed_epoch_and_trial_only():
    collator = TextCollator(BCIC, WordTokenizer(), seed=1)
    together = collator(items(40))

    def target(batch, i):
        return batch["target_ids"][i][batch["target_mask"][i]].tolist()

    assert all(target(together, i) == target(collator([item]), 0) for i, item in enumerate(items(40)))
    collator.epoch = 1
    assert any(target(together, i) != target(collator(items(40)), i) for i in range(40))


# ---------------------------------------------------------------- the shuffled-label control


def session(who, session, labels, run=1):
    return [Trial(f"{who}{session}{run}{k}", label, who, session, run, k) for k, label in enumerate(labels)]


def test_labels_are_shuffled_within_a_recording_and_stay_as_frequent_in_it():
    recordings = [session("A01", "T", [0, 0, 0, 0]), session("A01", "E", [1] * 5 + [2] * 5), session("A02", "T",
        range(4)),
                  session("A02", "T", [3] * 6 + [0, 1] * 6, run=2)]  # fmt: skip
    mixed = [trial for four in zip(*(r + [None] * 18 for r in recordings), strict=False) for trial in four if trial]
    assert mixed[0].key[:4] != mixed[1].key[:4]
    for seed in range(5):
        shuffled = dict(zip((t.key for t in mixed), shuffled_labels(mixed, seed), strict=True))
        for recording in recordings:
            assert sorted(shuffled[t.key] for t in recording) == sorted(t.label for t in recording)
        assert [shuffled[t.key] for t in recordings[3]] != [t.label for t in recordings[3]]


def test_shuffled_labels_say_nothing_about_the_true_ones_and_repeat_with_the_seed():
    trials = [t for k in range(40) for t in session(f"A{k:02d}", "T", np.arange(48) % 4)]
    shuffled, true = np.array(shuffled_labels(trials, seed=3)), np.array([t.label for t in trials])
    table = np.zeros((4, 4))
    np.add.at(table, (true, shuffled), 1)
    assert np.abs(table / 480 - 0.25).max() < 0.08  # four standard deviations
    assert (
        len({tuple(shuffled[48 * k : 48 * k + 48]) for k in range(40)}) == 40
    )  # no recording is shuffled like another
    assert shuffled.tolist() == shuffled_labels(trials, seed=3) != shuffled_labels(trials, seed=4)


def test_in_visual_imagery_the_control_keeps_what_the_recording_tells():
    """Trials keep their task, so guessing within the recording, 30 %, is what the control scores."""
    labels = {"AVI": [0, 1, 2] * 40, "FVI": [3, 4, 5] * 40, "OVI": [6, 7, 8, 9] * 40}
    trials = [
        t for s in range(20) for run, of in enumerate(labels.values(), 1) for t in session(f"S{s:02d}", "01", of, run)
    ]
    shuffled, true = np.array(shuffled_labels(trials, seed=0)), np.array([t.label for t in trials])
    task = np.array([0] * 3 + [1] * 3 + [2] * 4)
    assert (task[shuffled] == task[true]).all()
    assert np.mean(shuffled == true) == pytest.approx(0.30, abs=0.02)


def test_a_recording_is_shuffled_alike_under_every_protocol(tmp_path):
    folder = write(tmp_path / "store", n=40, people=[f"A0{k}" for k in range(1, 10)])
    of = {}
    for protocol in ("published", "loso:A03", "loso:A08", "within:A03", "within:A08"):
        for split, trials in split_trials(open_store(folder), BCIC, protocol).items():
            dataset = BCICIV2aLLMDataset(folder, split, protocol).shuffled(5)
            for trial, label, item in zip(trials, dataset.labels, dataset, strict=True):
                assert of.setdefault(trial.key, label) == label == item["label"], (protocol, trial.key)
    assert len(of) == 360 and any(of[t.key] != t.label for t in open_store(folder).trials)
