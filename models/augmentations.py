"""Augmentations of training trials, for `--augment`: each changes a batch in the training loop; nothing of it is kept.

(B, C, T) or (B, C, P, 200) what the encoder reads, (B,) labels → both, changed or not. All chance is from PyTorch's
seeded generator. One that depends on the trials is a class with `of_trials(electrodes, mirrored, classes)`.
"""

import re
from collections.abc import Sequence

import torch

from utils.errors import UserError

SPREAD = 0.2  # standard deviation of a trial's gain around 1
MOST = 0.05  # share of a trial's length by which it is shifted at most, to either side


def amplitude(x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Multiply each trial by a gain of its own: 1 ± 0.2."""
    gain = 1 + SPREAD * torch.randn(len(x), *[1] * (x.ndim - 1), device=x.device)
    return x * gain, labels


def shift(x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Move each trial in time by up to 5 % of its length; what leaves at one end comes back at the other."""
    signal = x.flatten(2)  # (B, C, T): patches of a second, (B, C, P, 200), follow each other in time
    n_times = signal.shape[-1]
    most = max(1, round(MOST * n_times))
    steps = torch.randint(-most, most + 1, (len(x),), device=x.device)
    place = (torch.arange(n_times, device=x.device) - steps[:, None]) % n_times  # (B, T)
    return signal.gather(-1, place[:, None].expand_as(signal)).view_as(x), labels


def cutmix(x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Put a piece of another trial of the same class into each: up to half of its length, at the same moment."""
    signal = x.flatten(2)  # (B, C, T)
    n_times = signal.shape[-1]
    alike = (labels[:, None] == labels).float()  # (B, B); a trial alone of its class gets a piece of itself
    other = torch.multinomial(alike, 1)[:, 0]
    length = torch.randint(0, n_times // 2 + 1, (len(x), 1), device=x.device)
    start = (torch.rand(len(x), 1, device=x.device) * (n_times - length + 1)).long()
    time = torch.arange(n_times, device=x.device)
    inside = (time >= start) & (time < start + length)  # (B, T)
    return torch.where(inside[:, None], signal[other], signal).view_as(x), labels


class Mirror:
    """Exchange left and right in half of the trials: electrodes, and the classes that a side belongs to.

    places : sequence of int. For each electrode the one whose signal it gets.
    labels : sequence of int. What a class becomes: left hand becomes right hand, and feet stay feet.
    """

    def __init__(self, places: Sequence[int], labels: Sequence[int]):
        self.places, self.labels = torch.tensor(places), torch.tensor(labels)

    @classmethod
    def of_trials(cls, electrodes: Sequence[str], mirrored: Sequence[tuple[str, str]], classes: Sequence[str]):
        """For trials of these electrodes, of which some are pairs; UserError where none are."""
        if not mirrored:
            raise UserError(f"--augment mirror: no two of the electrodes {', '.join(electrodes)} mirror each other")
        other, labels = {a: b for pair in mirrored for a, b in (pair, pair[::-1])}, mirrored_labels(classes)
        sides = ", ".join(f"{classes[k]} ↔ {classes[label]}" for k, label in enumerate(labels) if label > k)
        print(f"mirror: {len(mirrored)} pair(s) of electrodes change places, and of the classes {sides or 'none'}")
        return cls([list(electrodes).index(other.get(name, name)) for name in electrodes], labels)

    def __call__(self, x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.rand(len(x), device=x.device) < 0.5
        swapped = self.both(x)
        labels = torch.where(chosen, self.labels.to(labels.device)[labels], labels)
        return torch.where(chosen.view(-1, *[1] * (x.ndim - 1)), swapped, x), labels

    def both(self, x: torch.Tensor) -> torch.Tensor:
        """All trials, left and right exchanged."""
        return x[:, self.places.to(x.device)]


def mirrored_labels(classes: Sequence[str]) -> list[int]:
    """For each class the one of the same name with left for right; itself where a name has neither.

    Raises UserError where a class has a side, and the other side is no class.
    """
    names, other, labels = [name.lower() for name in classes], {"left": "right", "right": "left"}, []
    for name in classes:
        across = re.sub("left|right", lambda found: other[found[0]], name.lower())
        words = re.split("[^a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower())  # LeftHand: left, hand
        if across not in names and other.keys() & set(words):
            raise UserError(f"--augment mirror: the class {name!r} would become {across!r}, which is none")
        labels.append(names.index(across if across in names else name.lower()))  # a leftover has no rightover
    return labels
