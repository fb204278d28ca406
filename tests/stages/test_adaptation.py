from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from datasets.alignment import ADAPTATIONS
from datasets.recording import Trial
from stages import adaptation
from stages.adaptation import Adapter, information_loss
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


def test_of_several_processes_each_decodes_its_share():
    trials, model = Trials(), net()
    for kind in ADAPTATIONS:
        adapter = Adapter(kind, model, model[0], trials, CPU)
        shares = [[p for batch in adapter.batches(range(120), 16, rank, 2) for p in batch] for rank in range(2)]
        assert sorted(shares[0] + shares[1]) == list(range(120)) and len(shares[0]) == 60
