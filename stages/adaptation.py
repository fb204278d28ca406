"""`--adapt`: what is learned of unlabelled test trials.

im: batch normalisation's scale and shift, while trials are decoded. Information maximisation (Liang et al., ICML 2020,
SHOT; on EEG Wimpff et al., 2024, arXiv 2311.18520): a few steps make each trial's answer sure and all answers together
as mixed as classes are. Without the second term all trials would soon get one answer. Only for encoders with batch
normalisation.
prior: how often a session's answers name each class (Saerens et al., Neural Comput. 14:21, 2002). Classes are taken to
be equally frequent in a session, as instructions usually have it; a decoder that leans to one class is set straight.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from datasets.alignment import ADAPTATIONS
from datasets.trials import TrialDataset
from stages.rows import Readout, Row, most_likely, with_probabilities
from utils.errors import UserError

STEPS, LR = 10, 0.01  # of Adam: of a session; causal: after each batch
PRIOR = 10  # trials: of so many the leaning to a class is believed by half


def information_loss(p: Tensor, diversity: float = 1.0) -> Tensor:
    """(N, K) probabilities → mean entropy of a trial less the entropy of the mean, in nats.

    diversity : float. Weight of the second term.
    """
    p = p.clamp(min=1e-6)
    of_mean = p.mean(dim=0)
    return -(p * p.log()).sum(dim=-1).mean() + diversity * (of_mean * of_mean.log()).sum()


def normalisation_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Scales and shifts of batch normalisation; UserError where there are none."""
    kinds = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
    found = [p for part in module.modules() if isinstance(part, kinds) for p in (part.weight, part.bias)]
    if not found:
        raise UserError("--adapt im: this encoder has no batch normalisation (eegnet, shallow have)")
    return found


def check_learns(kind: str, encoder: nn.Module | None, head: bool) -> None:
    """Raise UserError where batch normalisation is to learn, and cannot.

    encoder : nn.Module, optional. None: its tokens are kept. head : bool. Whether there is a class head, whose answers
        teach it.
    """
    if ADAPTATIONS[kind].changes != "encoder":
        return
    if encoder is None:
        raise UserError("--adapt im: the encoder is frozen, and its tokens are kept; eegnet, shallow are trained")
    if not head:
        raise UserError("--adapt im learns from the class head's answers, and --lambda_cls 0 leaves it out")
    normalisation_parameters(encoder)


class Adapter:
    """Batches of trials in the order in which they are decoded, and what is learned before or after each.

    kind : str. A key of ADAPTATIONS.
    logits : callable. (B, …) what the encoder reads → (B, K).
    encoder : nn.Module. Whose batch normalisation learns; between sessions it is what training has left.
    dataset : TrialDataset. All of its trials of a session are learned from, whichever are decoded.
    """

    def __init__(
        self, kind: str, logits: Callable, encoder: nn.Module | None, dataset: TrialDataset, device: torch.device
    ):
        self.adaptation, self.logits, self.dataset, self.device = ADAPTATIONS[kind], logits, dataset, device
        self.works = self.adaptation.changes == "encoder"
        self.session, self.seen, self.places = None, [], {}
        if self.works:
            check_learns(kind, encoder, head=True)
            self.parameters = normalisation_parameters(encoder)
            self.trained = [p.detach().clone() for p in self.parameters]
            for place, trial in enumerate(dataset.trials):
                self.places.setdefault((trial.subject, trial.session), []).append(place)
            for places in self.places.values():
                places.sort(key=lambda place: (dataset.trials[place].run, dataset.trials[place].trial))

    def batches(self, chosen: Sequence[int], size: int, rank: int = 0, n_processes: int = 1) -> list[list[int]]:
        """Places of `chosen` in batches; where sessions are adapted to, session by session in the order of recording.

        rank, n_processes : int. Of several processes each one has its share: every n-th batch, or session. So a batch
            is the same for any number of them, and what is read of it to the last digit.
        """
        if not self.works:
            return [list(chosen[k : k + size]) for k in range(0, len(chosen), size)][rank::n_processes]
        asked = set(chosen)
        groups = [[place for place in of if place in asked] for of in list(self.places.values())[rank::n_processes]]
        return [group[k : k + size] for group in groups for k in range(0, len(group), size)]

    def before(self, batch: Sequence[int]) -> None:
        """What comes before a batch is decoded: a new session begins with the trained weights."""
        if not self.works:
            return
        trial = self.dataset.trials[batch[0]]
        if (session := (trial.subject, trial.session)) != self.session:
            self.restore()
            self.session = session
            if not self.adaptation.causal:
                self._learn(self.places[session])

    def after(self, batch: Sequence[int]) -> None:
        """What comes after: causal adaptation learns from all trials of the session so far."""
        if self.works and self.adaptation.causal:
            self.seen += batch
            self._learn(self.seen)

    def restore(self) -> None:
        """Put back what training has left."""
        self.session, self.seen = None, []
        if self.works:
            for parameter, value in zip(self.parameters, self.trained, strict=True):
                parameter.data.copy_(value)

    def _learn(self, places: Sequence[int]) -> None:
        x = torch.stack([self.dataset[place]["x"] for place in places]).to(self.device)
        before = [p.requires_grad for p in self.parameters]
        for parameter, value in zip(self.parameters, self.trained, strict=True):
            parameter.requires_grad_(True)
            parameter.data.copy_(value)  # each time from what training has left, not from the last step
        optimizer = torch.optim.Adam(self.parameters, LR)
        with torch.enable_grad():
            for _ in range(STEPS):
                loss = information_loss(self.logits(x).float().softmax(dim=-1))
                grads = torch.autograd.grad(loss, self.parameters)
                for parameter, grad in zip(self.parameters, grads, strict=True):
                    parameter.grad = grad
                optimizer.step()
        for parameter, needs in zip(self.parameters, before, strict=True):
            parameter.grad = None
            parameter.requires_grad_(needs)


# ---------------------------------------------------------------- prior


def check_prior(kind: str, dataset: TrialDataset) -> None:
    """Raise UserError where a session's classes are not equally frequent by design: each recording has its own."""
    if ADAPTATIONS[kind].changes == "answers" and dataset.description.tasks:
        raise UserError(f"--adapt {kind}: recordings of {dataset.description.name} hold different classes")


def set_straight(rows: Sequence[Row], kind: str) -> list[Row]:
    """Rows whose probabilities name all classes equally often in each person's session, as far as `PRIOR` believes.

    kind : str. A key of ADAPTATIONS; what does not change answers leaves the rows as they are. Read-outs without
        probabilities, such as keywords, stay.
    """
    adaptation, changed = ADAPTATIONS[kind], list(rows)
    if adaptation.changes != "answers" or not rows:
        return changed
    sessions: dict[tuple, list[int]] = {}
    for place in sorted(range(len(rows)), key=lambda k: (rows[k].run, rows[k].trial)):
        sessions.setdefault((rows[place].subject, rows[place].session), []).append(place)
    for name in with_probabilities(rows):
        for places in sessions.values():
            p = np.array([rows[place].readouts[name].probabilities for place in places])  # (N, K)
            straight = p * class_weights(p)
            if adaptation.causal:
                straight = np.stack([p[n] * class_weights(p[: n + 1]) for n in range(len(p))])
            straight = (straight / straight.sum(axis=1, keepdims=True)).round(6).tolist()
            for place, of_trial in zip(places, straight, strict=True):
                readout = Readout(most_likely(of_trial), rows[place].readouts[name].chance, of_trial)
                changed[place] = replace(changed[place], readouts=changed[place].readouts | {name: readout})
    return changed


def class_weights(p: np.ndarray, steps: int = 50) -> np.ndarray:
    """(N, K) probabilities → (K,) weights under which they name all classes equally often; of few trials, milder."""
    weights = np.ones(p.shape[1])
    for _ in range(steps):
        weighted = np.maximum(p, 1e-6) * weights
        mean = (weighted / weighted.sum(axis=1, keepdims=True)).mean(axis=0)
        weights = weights / mean
        weights /= weights.sum()
    return weights ** (len(p) / (len(p) + PRIOR))
