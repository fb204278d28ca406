"""Augmentations of training trials, for `--augment`: each changes a batch in the training loop; nothing of it is kept.

(B, C, T) or (B, C, P, 200) what the encoder reads, (B,) labels → both, changed or not. All chance is from PyTorch's
seeded generator.
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
    signal = x.flatten(2)  # (B, C, T): patches of a second, (B, C, P, 200), follow each other in time
    n_times = signal.shape[-1]
    most = max(1, round(MOST * n_times))
    steps = torch.randint(-most, most + 1, (len(x),), device=x.device)
    place = (torch.arange(n_times, device=x.device) - steps[:, None]) % n_times  # (B, T)
    return signal.gather(-1, place[:, None].expand_as(signal)).view_as(x), labels
