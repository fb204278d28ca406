"""Augmentations of training trials, for `--augment`: each changes a batch in the training loop; nothing of it is kept.

(B, …, T) what the encoder reads, (B,) labels → both, changed or not. All chance is from PyTorch's seeded generator.
"""

import torch

SPREAD = 0.2  # standard deviation of a trial's gain around 1
MOST = 0.05  # share of a trial's length by which it is shifted at most, to either side


def amplitude(x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Multiply each trial by a gain of its own: 1 ± 0.2."""
    gain = 1 + SPREAD * torch.randn(len(x), *[1] * (x.ndim - 1), device=x.device)
    return x * gain, labels


def shift(x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Move each trial in time by up to 5 % of its length; what leaves at one end comes back at the other."""
    most = max(1, round(MOST * x.shape[-1]))
    steps = torch.randint(-most, most + 1, (len(x),), device=x.device)
    place = (torch.arange(x.shape[-1], device=x.device) - steps[:, None]) % x.shape[-1]  # (B, T)
    place = place.view(len(x), *[1] * (x.ndim - 2), -1).expand_as(x)
    return x.gather(-1, place), labels
