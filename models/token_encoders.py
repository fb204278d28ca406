"""Encoders whose features are pooled into tokens: what one is, two that are trained from scratch, how any is made.

An encoder is an `nn.Module` with
    build(electrodes, brain_regions, sorted_indices, n_times, sfreq)   class method: made for trials of this kind
    prepare(x, sfreq)       (n_chans, n_times) microvolts at `sfreq` Hz → NumPy array that `forward` reads; not random
    forward(x)              → features (B, C or 1, P, width): C electrodes, or 1 where it mixes them; P moments in time
    width                   of a feature
    electrode_order         input positions of the electrodes along C; None where it mixes them
    pretrained              True: loaded from a checkpoint, frozen and cached by default; False: trained from epoch 1 on
    lr                      default of --encoder_lr
    gives, takes_people     ("tokens",), False
    trainable_parameters()  those that training may change
and, where it has blocks one behind the other,
    parameters_by_depth()   their parameters, from input to output, for --layer_decay; without it one depth
    attention_layers()      what --encoder_lora adapts; without it that is refused
`FEATURE_ENCODERS` in models/__init__.py lists them. Pipelines 4 to 6 project all that they give to one embedding;
models/eeg_encoders.py has encoders that give one themselves.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from models import FEATURE_ENCODERS, choose
from models.encoder_lora import adapter_parameters, add_adapters, merged_state, remove_adapters
from utils.checkpoints import load_weights, weights_file
from utils.errors import UserError
from utils.signals import resample


def load_encoder(
    name: str, checkpoint: str | None = None, allow_partial: bool = False, seed: int = 0, **trials
) -> nn.Module:
    """An encoder for trials of one kind, in evaluation mode, without gradients; `loaded` says what its checkpoint had.

    name : str. A key of `FEATURE_ENCODERS`.
    checkpoint : str or None. Weights of a pretrained encoder; None: random ones, for those who ask for them by name.
    allow_partial : bool. See `load_weights`.
    seed : int. Of random weights.
    electrodes, brain_regions, sorted_indices : sequences. Names and CSBrain's region codes in input order; positions
        region by region.
    n_times, sfreq : int, float. Samples a trial, and their rate in Hz.
    Raises UserError if the checkpoint does not fit, or the encoder cannot read such trials.
    """
    torch.manual_seed(seed)
    kind = choose(FEATURE_ENCODERS, name)
    own = getattr(kind, "weights", "")  # where an entry has them itself
    encoder = kind.build(**trials, **({"random": checkpoint is None} if own else {}))
    encoder.loaded, encoder.pretrained_on = None, []
    if not kind.pretrained:
        print(f"encoder: {name}, trained from scratch, {sum(p.numel() for p in encoder.parameters()):,} parameters")
    elif checkpoint is None:
        weights = f"RANDOM weights (seed {seed}), as asked for"
        print(f"encoder: {name} with {weights}; its features are not the published ones")
    else:
        place = own or checkpoint
        module, without = getattr(encoder, "net", encoder), getattr(kind, "heads", ())
        loaded = load_weights(module, weights_file(place), allow_partial, without)
        encoder.loaded = loaded._replace(content={})  # which would stay in memory
        encoder.pretrained_on = loaded.pretrained_on
        print(f"encoder: {place}: {encoder.loaded}")
    if hasattr(encoder, "proj_out"):
        encoder.proj_out = nn.Identity()  # CSBrain's own head; downstream use drops it
    return encoder.eval().requires_grad_(False)


def training_of(encoder: nn.Module, whole: bool, rank: int, decay: float, seed: int) -> str:
    """When an encoder is trained, for `AfterEncoder`. Where `rank` is not 0 it gets adapters, and they alone are.

    whole : bool. Train all of a pretrained encoder in the joint phase.
    rank, seed : int. Of the adapters.
    decay : float. `--layer_decay`; 1: one rate for all depths.
    Raises UserError where both are asked for, there is no pretrained attention to adapt, or no depth is trained.
    """
    if decay != 1 and not (encoder.pretrained and (whole or rank) and hasattr(encoder, "parameters_by_depth")):
        raise UserError("--layer_decay is of csbrain's blocks, where --train_encoder or --encoder_lora trains them")
    if rank:
        if whole:
            raise UserError("--train_encoder trains the encoder's own weights, --encoder_lora freezes them; give one")
        if not (encoder.pretrained and hasattr(encoder, "attention_layers")):
            raise UserError("--encoder_lora adapts the attention of --encoder csbrain; other encoders have no adapters")
        add_adapters(encoder.attention_layers(), rank, seed)
        n_trained = sum(p.numel() for p in adapter_parameters(encoder))
        print(f"encoder: frozen, with low-rank adapters of {n_trained:,} parameters")
    return ("joint" if whole or rank else "never") if encoder.pretrained else "always"


class AfterEncoder:
    """What models have that read EEG tokens: an encoder and a pooling before them, where no tokens are cached.

    encoder, reducer : nn.Module, optional. Without them inputs are EEG tokens.
    train_encoder : {"never", "joint", "always"}. "always" for encoders that start from scratch.
    """

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """What the encoder reads → EEG tokens (B, n, D); without an encoder, tokens pass through."""
        return x if self.encoder is None else self.reducer(self.encoder(x))

    def set_encoder_phase(self, joint: bool) -> list[nn.Parameter]:
        """Let the encoder be trained as `train_encoder` says; returns the parameters that are."""
        if self.encoder is None:
            return []
        self.encoder.requires_grad_(False)
        is_trained = self.train_encoder == "always" or (joint and self.train_encoder == "joint")
        trained = (adapter_parameters(self.encoder) or self.encoder.trainable_parameters()) if is_trained else []
        for parameter in trained:
            parameter.requires_grad_(True)
        return trained

    def encoder_groups(self, trained: Sequence[nn.Parameter], lr: float | None, decay: float) -> list[dict]:
        """An optimiser's groups of what is trained of the encoder, input first; none where nothing is.

        lr : float, optional. Default: the encoder's own.
        decay : float. Block k of K learns at lr · decay^(K − k), what lies before the first at lr · decay^K; 1: one
            group. Layer-wise decay as in BEiT (Bao et al., arXiv 2106.08254).
        """
        if not trained:
            return []
        lr, kept = self.encoder.lr if lr is None else lr, {id(p) for p in trained}
        by_depth = getattr(self.encoder, "parameters_by_depth", None)
        depths = by_depth() if by_depth and decay != 1 else [trained]
        rates = [lr * decay**above for above in reversed(range(len(depths)))]
        of_depths = [[p for p in depth if id(p) in kept] for depth in depths]
        return [{"params": params, "lr": rate} for params, rate in zip(of_depths, rates, strict=True)]

    def encoder_state(self, merge: bool = True) -> dict | None:
        """Weights of an encoder that is trained, adapters merged into them or beside them; None of a frozen one."""
        if self.train_encoder == "never":
            return None
        return merged_state(self.encoder) if merge else self.encoder.state_dict()

    def load_encoder(self, state: dict | None) -> None:
        """Take over what `encoder_state` gave. Merged weights end the encoder's adapters."""
        if state is None:
            return
        if state.keys() != self.encoder.state_dict().keys():
            remove_adapters(self.encoder)
        self.encoder.load_state_dict(state)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        if self.encoder is not None and not any(p.requires_grad for p in self.encoder.parameters()):
            self.encoder.eval()  # a frozen encoder drops nothing out
        return self


class TrainedFromScratch(nn.Module):
    """What both encoders below have: they mix the electrodes, and read (C, T) at `sfreq` Hz."""

    pretrained, electrode_order, lr = False, None, 1e-3
    gives, takes_people = ("tokens",), False

    @classmethod
    def build(cls, electrodes: Sequence[str], n_times: int, sfreq: float, **_) -> nn.Module:
        return cls(len(electrodes), int(n_times * cls.sfreq / sfreq))

    def prepare(self, x: np.ndarray, sfreq: float) -> np.ndarray:
        """(C, n_times) microvolts → (C, T) at the encoder's rate, in units of 10 µV."""
        return (resample(x, sfreq, self.sfreq) / 10).astype(np.float32)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(self.parameters())


class EEGNet(TrainedFromScratch):
    """EEGNet-8,2 (Lawhern et al., J. Neural Eng. 15:056013, 2018) up to its classifier: 16 features every 250 ms.

    n_chans, n_times : int. Electrodes; samples a trial at 128 Hz.
    dropout : float. 0.25 is the paper's value across people, 0.5 within a person.
    """

    sfreq, filters, depth = 128.0, 8, 2
    width = filters * depth

    def __init__(self, n_chans: int, n_times: int, dropout: float = 0.25):
        super().__init__()
        f, wide = self.filters, self.width
        # kernels of even length: one zero more behind than before keeps the length
        conv = nn.Conv2d(1, f, (1, 64), bias=False)
        self.temporal = nn.Sequential(nn.ZeroPad2d((31, 32, 0, 0)), conv, nn.BatchNorm2d(f))
        self.spatial = nn.Conv2d(f, wide, (n_chans, 1), groups=f, bias=False)
        self.after_spatial = nn.Sequential(nn.BatchNorm2d(wide), nn.ELU(), nn.AvgPool2d((1, 4)), nn.Dropout(dropout))
        convs = nn.Conv2d(wide, wide, (1, 16), groups=wide, bias=False), nn.Conv2d(wide, wide, 1, bias=False)
        pooled = nn.BatchNorm2d(wide), nn.ELU(), nn.AvgPool2d((1, 8)), nn.Dropout(dropout)
        self.separable = nn.Sequential(nn.ZeroPad2d((7, 8, 0, 0)), *convs, *pooled)
        if n_times < 32:
            raise UserError(f"trials are too short for eegnet, which pools over 0.25 s: {n_times} samples at 128 Hz")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, T) → (B, 1, T / 32, 16)."""
        h = self.temporal(x[:, None])  # (B, 8, C, T)
        weight = torch.renorm(self.spatial.weight, 2, 0, 1.0)  # the paper's limit on each spatial filter's norm
        h = nn.functional.conv2d(h, weight, groups=self.filters)  # (B, 16, 1, T)
        h = self.separable(self.after_spatial(h))  # (B, 16, 1, T / 32)
        return h.permute(0, 2, 3, 1)


class EvokedSamples(TrainedFromScratch):
    """Samples of an evoked response: means over a 32nd of a second, standardised, and 16 weighted sums of them.

    What linear discriminant analysis of time samples reads (Blankertz et al., NeuroImage 56, 2011), as one token a
    trial. On few trials of few electrodes a network that learns filters first has nothing over it.

    n_chans, n_times : int. Electrodes; means a trial.
    """

    sfreq, width = 32.0, 16  # Hz

    def __init__(self, n_chans: int, n_times: int, dropout: float = 0.5):
        super().__init__()
        if n_times < 8:
            raise UserError(f"trials are too short for evoked, which needs 0.25 s: {n_times} means at 32 Hz")
        self.norm, self.dropout = nn.BatchNorm1d(n_chans * n_times), nn.Dropout(dropout)
        self.sums = nn.Linear(n_chans * n_times, self.width)

    def prepare(self, x: np.ndarray, sfreq: float) -> np.ndarray:
        """(C, n_times) microvolts → (C, T): means, in units of 10 µV."""
        n = int(x.shape[-1] * self.sfreq / sfreq)
        fine = resample(x, sfreq, 4 * self.sfreq)[..., : 4 * n]  # so that means are alike at every rate
        return (fine.reshape(len(x), n, 4).mean(axis=-1) / 10).astype(np.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, T) → (B, 1, 1, 16)."""
        return self.sums(self.dropout(self.norm(x.flatten(1))))[:, None, None]


class ShallowFBCSPNet(TrainedFromScratch):
    """ShallowFBCSPNet (Schirrmeister et al., Human Brain Mapping 38:5391, 2017) up to its classifier: log power.

    n_chans, n_times : int. Electrodes; samples a trial at 250 Hz.
    """

    sfreq, filters = 250.0, 40
    together = 4  # pooled moments, 60 ms apart, that make one token of 160 features
    width = filters * together

    def __init__(self, n_chans: int, n_times: int, dropout: float = 0.5):
        super().__init__()
        self.temporal = nn.Conv2d(1, self.filters, (1, 25))
        self.spatial = nn.Conv2d(self.filters, self.filters, (n_chans, 1), bias=False)
        self.norm, self.pool = nn.BatchNorm2d(self.filters), nn.AvgPool2d((1, 75), stride=(1, 15))
        self.dropout = nn.Dropout(dropout)
        if n_times < 24 + 75 + 15 * (self.together - 1):
            raise UserError(f"trials are too short for shallow, which needs 0.6 s: {n_times} samples at 250 Hz")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, T) → (B, 1, P, 160); a 4 s trial gives 15 tokens."""
        h = self.norm(self.spatial(self.temporal(x[:, None])))  # (B, 40, 1, T')
        h = self.dropout(self.pool(h.square()).clamp(min=1e-6).log())[:, :, 0]  # (B, 40, T'')
        n = h.shape[-1] // self.together
        h = h[..., : n * self.together].unflatten(-1, (n, self.together))  # (B, 40, P, 4)
        return h.permute(0, 2, 1, 3).flatten(2)[:, None]
