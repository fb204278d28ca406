"""`--adapt`: batch normalisation's scale and shift learn from unlabelled test trials, while they are decoded.

Information maximisation (Liang et al., ICML 2020, SHOT; on EEG Wimpff et al., 2024, arXiv 2311.18520): a few steps
make each trial's answer sure and all answers together as mixed as classes are. Without the second term all trials
would soon get one answer. Only for encoders with batch normalisation.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from datasets.alignment import ADAPTATIONS
from datasets.trials import TrialDataset
from utils.errors import UserError

STEPS, LR = 10, 0.01  # of Adam: of a session; causal: after each batch


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
        self.works = kind != "none"
        self.session, self.seen, self.places = None, [], {}
        if self.works:
            if encoder is None:
                raise UserError(
                    "--adapt im: the encoder is frozen, and its tokens are kept; eegnet, shallow are trained"
                )
            self.parameters = normalisation_parameters(encoder)
            self.trained = [p.detach().clone() for p in self.parameters]
            for place, trial in enumerate(dataset.trials):
                self.places.setdefault((trial.subject, trial.session), []).append(place)
            for places in self.places.values():
                places.sort(key=lambda place: (dataset.trials[place].run, dataset.trials[place].trial))

    def batches(self, chosen: Sequence[int], size: int, rank: int = 0, n_processes: int = 1) -> list[list[int]]:
        """Places of `chosen` in batches; where sessions are adapted to, session by session in the order of recording.

        rank, n_processes : int. Of several processes each one has its share: every n-th trial, or session.
        """
        groups = [list(chosen)[rank::n_processes]]
        if self.works:
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
