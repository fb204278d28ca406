import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

from datasets.alignment import ADAPTATIONS
from datasets.recording import Trial
from stages import adaptation
from stages.adaptation import Adapter, class_weights, information_loss, set_straight
from stages.rows import Readout, Row
from utils.errors import UserError

CPU = torch.device("cpu")


def net(n_features=4):
    """Batch normalisation and a linear layer that tells two classes by their first feature."""
    made = nn.Sequential(nn.BatchNorm1d(n_features), nn.Linear(n_features, 2))
    with torch.no_grad():
        made[1].weight.zero_()
        made[1].weight[:, 0] = torch.tensor([-1.0, 1.0])
        made[1].bias.zero_()
    return made.eval().requires_grad_(False)


class Trials:
    """Trials of two sessions whose first feature is shifted otherwise than in training."""

    def __init__(self, n=60, shift=1.5, seed=0):
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, 2, 2 * n)
        self.x = torch.from_numpy(rng.standard_normal((2 * n, 4)).astype(np.float32))
        self.x[:, 0] = torch.from_numpy(2.0 * self.labels - 1 + 0.5 * rng.standard_normal(2 * n)) + shift
        self.trials = [Trial(f"{k}", int(self.labels[k]), "P1", "TE"[k // n], 1 + k % 2, k + 1) for k in range(2 * n)]

    def __len__(self):
        return len(self.trials)

    def __getitem__(self, place):
        return {"x": self.x[place], "index": place}


def decoded(kind, trials, model, size=10, chosen=None):
    """Probabilities by place, in the order in which an Adapter asks for them."""
    adapter, said = Adapter(kind, model, model[0], trials, CPU), {}
    for batch in adapter.batches(range(len(trials)) if chosen is None else chosen, size):
        adapter.before(batch)
        with torch.no_grad():
            said |= dict(zip(batch, model(trials.x[batch]).softmax(dim=-1), strict=True))
        adapter.after(batch)
    adapter.restore()
    return said


def right(said, trials):
    return np.mean([int(p.argmax()) == trials.labels[place] for place, p in said.items()])


def test_sure_and_mixed_answers_have_the_least_loss():
    sure_and_mixed, undecided, one_answer = torch.eye(2).repeat(5, 1), torch.full((10, 2), 0.5), torch.eye(2)[[0] * 10]
    assert information_loss(sure_and_mixed) == pytest.approx(-np.log(2), abs=1e-4)
    assert information_loss(undecided) == pytest.approx(0, abs=1e-4)
    assert information_loss(one_answer) == pytest.approx(0, abs=1e-4)


def test_a_session_that_is_shifted_is_decoded_better_when_it_is_learned_from(monkeypatch):
    monkeypatch.setattr(adaptation, "STEPS", 150)
    trials, model = Trials(), net()
    accuracies = {kind: right(decoded(kind, trials, model), trials) for kind in ADAPTATIONS}
    assert accuracies["none"] < 0.75
    assert accuracies["im"] > accuracies["none"] + 0.15 and accuracies["im_causal"] > accuracies["none"] + 0.05


def test_without_the_second_term_all_trials_would_get_one_answer(monkeypatch):
    """The guard: the same steps on the mean entropy alone end in one class, and with the second term they do not."""
    trials, model = Trials(shift=1.0), net()
    monkeypatch.setattr(adaptation, "STEPS", 300)
    answers = lambda said: np.bincount([int(p.argmax()) for p in said.values()], minlength=2)  # noqa: E731
    guarded = answers(decoded("im", trials, model))
    monkeypatch.setattr(adaptation, "information_loss", lambda p: information_loss(p, diversity=0.0))
    alone = answers(decoded("im", trials, model))
    assert guarded.min() > 0.3 * len(trials) and alone.min() < 0.25 * len(trials)


def test_a_causal_answer_is_bit_equal_whatever_comes_after():
    trials, model = Trials(), net()
    before = decoded("im_causal", trials, model)
    order = [place for batch in Adapter("im_causal", model, model[0], trials, CPU).batches(range(120), 10)
             for place in batch]  # fmt: skip
    runs = [(trials.trials[place].session, trials.trials[place].run) for place in order]
    assert runs == sorted(runs, reverse=True) or runs == [*sorted(runs[:60]), *sorted(runs[60:])]
    later = order[30:60]
    trials.x[later] = 50 * torch.randn(30, 4)
    after = decoded("im_causal", trials, model)
    assert all(torch.equal(before[place], after[place]) for place in order[:30])
    assert not all(torch.equal(before[place], after[place]) for place in later)
    assert all(torch.equal(before[place], after[place]) for place in order[60:])  # the other session begins anew
    whole = decoded("im", trials, model)
    assert not any(torch.equal(whole[place], after[place]) for place in order[:30])


def test_what_training_has_left_is_put_back_and_learns_nothing_more():
    trials, model = Trials(), net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for kind in ADAPTATIONS:
        decoded(kind, trials, model)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_all_trials_of_a_session_are_learned_from_whichever_are_decoded():
    trials, model = Trials(), net()
    whole, few = decoded("im", trials, model), decoded("im", trials, model, chosen=[3, 70, 90])
    assert list(few) == [3, 70, 90] and all(torch.equal(whole[place], few[place]) for place in few)


def test_an_encoder_without_batch_normalisation_or_with_kept_tokens_is_refused():
    with pytest.raises(UserError, match="no batch normalisation"):
        Adapter("im", None, nn.Linear(3, 3), Trials(), CPU)
    with pytest.raises(UserError, match="its tokens are kept"):
        Adapter("im", None, None, Trials(), CPU)
    Adapter("none", None, None, SimpleNamespace(trials=[]), CPU)
    with pytest.raises(UserError, match="class head's answers, and --lambda_cls 0"):
        adaptation.check_learns("im", net()[0], head=False)
    adaptation.check_learns("im", net()[0], head=True)
    adaptation.check_learns("prior", None, head=False)


def test_of_several_processes_each_decodes_its_share():
    trials, model = Trials(), net()
    for kind in ADAPTATIONS:
        adapter = Adapter(kind, model, model[0], trials, CPU)
        shares = [adapter.batches(range(120), 15, rank, 2) for rank in range(2)]
        assert sorted(shares[0] + shares[1]) == sorted(adapter.batches(range(120), 15))  # the same for any number
        assert sum(map(len, shares[0])) == sum(map(len, shares[1])) == 60


def answers(p, labels, sessions=None):
    """Rows of one person with probabilities (N, 2) and a text's keyword."""
    rows = []
    for k, (of, label) in enumerate(zip(p, labels, strict=True)):
        session = "T" if sessions is None else sessions[k]
        readouts = {"keyword": Readout(0, 0.5), "head": Readout(int(of[1] > of[0]), 0.5, of.round(6).tolist())}
        rows.append(Row(k, "P1", session, 1, k + 1, int(label), f"{label}", readouts))
    return rows


def leaning(rng, n=200, by=1.5):
    """Probabilities that tell two equally frequent classes, and lean to the second one."""
    labels = rng.permutation(n) % 2
    logits = 2.0 * labels - 1 + rng.standard_normal(n) + by
    return np.stack([1 / (1 + np.exp(logits)), 1 / (1 + np.exp(-logits))], axis=1), labels


def accuracy(rows):
    return np.mean([row.readouts["head"].label == row.true_label for row in rows])


@pytest.mark.parametrize("kind", ["prior", "prior_causal"])
def test_a_decoder_that_leans_to_a_class_is_set_straight(kind):
    p, labels = leaning(np.random.default_rng(0))
    rows = answers(p, labels)
    straight = set_straight(rows, kind)
    assert accuracy(rows) < 0.7 and accuracy(straight) > 0.8
    assert np.mean([row.readouts["head"].label for row in straight]) == pytest.approx(0.5, abs=0.1)
    assert [row.readouts["keyword"] for row in straight] == [row.readouts["keyword"] for row in rows]
    assert all(sum(row.readouts["head"].probabilities) == pytest.approx(1, abs=1e-5) for row in straight)
    assert set_straight(rows, "none") == set_straight(rows, "im") == rows


def test_a_causal_prior_knows_nothing_of_later_trials_and_a_session_nothing_of_another():
    p, labels = leaning(np.random.default_rng(1), n=60)
    whole = set_straight(answers(p, labels), "prior_causal")
    part = set_straight(answers(p[:25], labels[:25]), "prior_causal")
    assert [row.readouts for row in whole[:25]] == [row.readouts for row in part]
    order = np.random.default_rng(2).permutation(60)  # rows in another order are of the same recording
    rows = answers(p, labels)
    mixed = set_straight([rows[k] for k in order], "prior_causal")
    assert [mixed[k].readouts for k in np.argsort(order)] == [row.readouts for row in whole]
    halves = set_straight(answers(p, labels, sessions="T" * 30 + "E" * 30), "prior")
    alone = set_straight(answers(p[:30], labels[:30]), "prior")
    assert [row.readouts for row in halves[:30]] == [row.readouts for row in alone]


def test_of_few_trials_the_leaning_is_hardly_believed():
    p = np.array([[0.1, 0.9]])
    (once,), (often,) = ([np.divide(*class_weights(np.repeat(p, n, axis=0)))] for n in (1, 500))
    assert 1 < once < 1.5 and often > 5


# experiments without an effect: EEG2IMAGE_NULLS=1000 does as many of each kind, in a minute
NULLS = {"prior": 1000, "prior_causal": 100, "im": 60, "im_causal": 30}
NULLS |= dict.fromkeys(NULLS, int(os.environ["EEG2IMAGE_NULLS"])) if "EEG2IMAGE_NULLS" in os.environ else {}


def are_chance(correct, n):
    """Of experiments without an effect the mean is chance, and a test at 5 % finds at most one in twenty."""
    few = np.sqrt(1000 / len(correct))
    assert np.mean(correct) / n == pytest.approx(0.5, abs=0.01 * few)
    assert np.mean(np.array(correct) >= int(binom.ppf(0.95, n, 0.5)) + 1) < 0.05 + 0.02 * few


@pytest.mark.parametrize("kind", ["prior", "prior_causal"])
def test_answers_to_noise_stay_at_chance_when_they_are_set_straight(kind):
    rng, n, correct = np.random.default_rng(3), 40, []
    for _ in range(NULLS[kind]):
        labels, logits = rng.permutation(n) % 2, rng.standard_normal(n) + rng.normal()
        p = np.stack([1 / (1 + np.exp(logits)), 1 / (1 + np.exp(-logits))], axis=1)
        correct.append(round(n * accuracy(set_straight(answers(p, labels), kind))))
    are_chance(correct, n)


@pytest.mark.parametrize("kind", ["im", "im_causal"])
def test_what_is_learned_of_noise_stays_at_chance(kind):
    model, n, correct = net(), 10, []  # trials of each of two sessions
    for seed in range(NULLS[kind]):
        trials = Trials(n=n, seed=seed)
        trials.labels = np.random.default_rng((seed, 1)).integers(0, 2, 2 * n)
        correct.append(round(2 * n * right(decoded(kind, trials, model, size=5), trials)))
    are_chance(correct, 2 * n)


def test_recordings_with_classes_of_their_own_are_refused():
    description = SimpleNamespace(tasks=["draw"], name="VI")
    with pytest.raises(UserError, match="hold different classes"):
        adaptation.check_prior("prior", SimpleNamespace(description=description))
    adaptation.check_prior("im", SimpleNamespace(description=description))
