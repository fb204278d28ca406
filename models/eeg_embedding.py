"""EEG of a trial → an embedding, text states or logits: an encoder with what stands before and behind it."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from models import EMBEDDERS, choose
from models.contrastive import LogitScale
from models.eeg_encoders import ATM, STATES, ResidualProjection, is_states


class EEGEmbedding(nn.Module):
    """An encoder of one embedding, features standardised before it, the scale of its similarities beside it.

    name : str. A key of `EMBEDDERS`; else of an encoder of tokens, which a projection follows.
    out : int. Width of the embedding, 77 · 768 for text states, or the number of classes.
    electrodes, n_times, sfreq, units : of the trials, as they are read.
    n_tokens, token_width : int. For encoders of tokens: what they give.
    de : {"gaussian", "published"}. Kind of differential entropy.
    settings : what else the encoder is made with, such as ATM's `positions`.
    """

    def __init__(
        self, name: str, out: int, electrodes: Sequence[str], n_times: int, sfreq: float, units: str, de: str = "gaussian",
        n_tokens: int = 0, token_width: int = 0, **settings,
    ):  # fmt: skip
        super().__init__()
        self.sfreq, self.units, self.de, self.out = sfreq, units, de, out
        if name in EMBEDDERS and not n_tokens:
            self.net = choose(EMBEDDERS, name).build(electrodes, n_times, sfreq, out, **settings)
            self.reads = self.net.reads
        else:
            self.net, self.reads = ResidualProjection(n_tokens * token_width, out), "tokens"
        width = {"tokens": n_tokens * token_width, "features": 5 * len(electrodes), "signal": 0}[self.reads]
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("sd", torch.ones(width))
        self.scale = LogitScale()

    def prepare(self, x: np.ndarray, sfreq: float) -> np.ndarray:
        """(C, n_times) samples of the store → what `forward` reads of one trial."""
        more = {"de": self.de} if self.reads == "features" else {}
        return self.net.prepare(x, sfreq, self.units, **more)

    @staticmethod
    def preparing(name: str, units: str) -> Callable:
        """How an encoder of `EMBEDDERS` prepares (C, n_times) samples in `units`, at a rate in Hz."""
        kind = choose(EMBEDDERS, name)
        return lambda x, sfreq: kind.prepare(x, sfreq, units)

    def standardise_by(self, x: torch.Tensor) -> None:
        """Take mean and standard deviation of (N, …) training features; a signal stays as it is."""
        if self.reads != "signal":
            flat = x.flatten(1).float()
            self.mean.copy_(flat.mean(dim=0))
            self.sd.copy_(flat.std(dim=0).clamp(min=1e-6))

    def forward(self, x: torch.Tensor, subject_ids: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C, T), (B, 5 · C) or tokens (B, n, width); ids (B,) of people in the table → (B, out), text states (B, 77, D)."""
        if self.reads != "signal":
            x = (x.flatten(1) - self.mean) / self.sd
        y = self.net(x, subject_ids) if isinstance(self.net, ATM) else self.net(x)
        if is_states(self.out):
            return y.unflatten(1, (STATES[0], -1)) if y.ndim == 2 else y
        return y.flatten(1)
