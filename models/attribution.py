"""Integrated gradients: what each electrode, moment and band of a trial adds to the probability of an answer."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.signal import butter, sosfiltfilt
from torch import Tensor

BANDS = ((1, 4), (4, 8), (8, 13), (13, 30), (30, 45))  # Hz: delta, theta, alpha (mu), beta, low gamma


def mean_gradient(probability: Callable[[Tensor], Tensor], x: Tensor, steps: int = 32) -> Tensor:
    """The gradient of a probability, averaged along the straight way from silence to each trial.

    Times x it is Sundararajan et al.'s integrated gradient (ICML 2017): its sum over a trial is the probability less
    that of silence, but for the error of `steps` midpoints.

    probability : callable. (B, …) what an encoder reads → (B,). x : (B, …) tensor. Returns (B, …).
    """
    total = torch.zeros_like(x)
    for step in range(steps):
        at = ((step + 0.5) / steps * x).detach().requires_grad_(True)
        total += torch.autograd.grad(probability(at).sum(), at)[0]
    return total / steps


def by_band(x: np.ndarray, sfreq: float) -> dict[str, np.ndarray]:
    """(…, T) signals in parts whose sum they are: one a band (fourth-order Butterworth, zero phase), and the rest."""
    parts, rest = {}, np.asarray(x, np.float64).copy()
    for low, high in BANDS:
        if high < sfreq / 2:
            sos = butter(4, (low, high), "bandpass", fs=sfreq, output="sos")
            parts[f"{low:g}-{high:g} Hz"] = sosfiltfilt(sos, x, axis=-1)
            rest -= parts[f"{low:g}-{high:g} Hz"]
    return parts | {"other": rest}
