"""EEG of a trial → an embedding, text states, latents or logits: an encoder with what stands before and behind it."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from models import EMBEDDERS, FEATURE_ENCODERS, choose
from models.contrastive import LogitScale
from models.eeg_encoders import STATES, ResidualProjection, is_states

WHITENED = 10.0  # microvolts in place of a deviation of one: what encoders that read microvolts expect


def embedder_named(name: str) -> type:
    """The encoder class of --encoder in pipelines 4 to 6: one of `EMBEDDERS`, else one whose features become tokens."""
    return choose(EMBEDDERS, name) if name in EMBEDDERS else choose(FEATURE_ENCODERS, name)


class EEGEmbedding(nn.Module):
    """An encoder of one embedding, features standardised before it, the scale of its similarities beside it.

    name : str. A key of `EMBEDDERS` or `FEATURE_ENCODERS`.
    out : int. Width of the embedding, 77 · 768 for text states, or the number of classes.
    electrodes, n_times, sfreq, units : sequence of str, int, float in Hz, str. Of the trials, as they are read.
    n_tokens, token_width : int. For cached tokens of a frozen encoder: what it gives.
    de : {"gaussian", "published"}. Kind of differential entropy.
    settings : what else the encoder is made with, such as ATM's `positions`.
    """

    def __init__(
        self, name, out, electrodes, n_times, sfreq, units, de="gaussian", n_tokens=0, token_width=0, **settings
    ):
        super().__init__()
        self.sfreq, self.units, self.de, self.out = sfreq, units, de, out
        kind = embedder_named(name)
        if n_tokens:
            self.net, self.reads = ResidualProjection(n_tokens * token_width, out), "tokens"
        elif "tokens" in kind.gives:
            self.net, self.reads = FromScratch(kind, electrodes, n_times, sfreq, out), "signal"
        else:
            self.net = kind.build(electrodes, n_times, sfreq, out, **settings)
            self.reads = self.net.reads
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

    def standardise_by(self, x: Tensor) -> None:
        """Take mean and standard deviation of (N, …) training features; a signal stays as it is."""
        if self.reads != "signal":
            flat = x.flatten(1).float()
            self.mean.copy_(flat.mean(dim=0))
            self.sd.copy_(flat.std(dim=0).clamp(min=1e-6))

    def forward(self, x: Tensor, subject_ids: Tensor | None = None) -> Tensor:
        """(B, C, T), (B, 5 · C) or tokens (B, n, width); people's places in the table (B,) → (B, out) or (B, 77, D)."""
        if self.reads != "signal":
            x = (x.flatten(1) - self.mean) / self.sd
        y = self.net(x, subject_ids) if getattr(self.net, "takes_people", False) else self.net(x)
        if is_states(self.out):
            return y.unflatten(1, (STATES[0], -1)) if y.ndim == 2 else y
        return y.flatten(1)


class FromScratch(nn.Module):
    """An encoder of tokens, trained from epoch 1 on, and a projection of all its features: (B, …) → (B, dim)."""

    takes_people = False

    def __init__(self, kind: type, electrodes: Sequence[str], n_times: int, sfreq: float, dim: int):
        super().__init__()
        self.encoder = kind.build(electrodes=list(electrodes), n_times=n_times, sfreq=sfreq)
        trial = self.encoder.prepare(np.zeros((len(electrodes), n_times), np.float32), sfreq)
        with torch.no_grad():
            width = self.encoder.eval()(torch.from_numpy(np.asarray(trial, np.float32))[None]).numel()
        self.project = ResidualProjection(width, dim)

    def prepare(self, x: np.ndarray, sfreq: float, units: str) -> np.ndarray:
        return self.encoder.prepare(x if units == "microvolts" else WHITENED * x, sfreq)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.encoder(x).flatten(1))
