"""Encoders of the image-decoding systems: EEG of a trial → one embedding, or logits. `EMBEDDERS` lists them.

ATM (Li et al., NeurIPS 2024, arXiv 2403.07721), NICE (Song et al., ICLR 2024, arXiv 2308.13234), UBP (Wu et al., CVPR
2025, arXiv 2503.04207), the networks of EEG-ImageNet (Zhu et al., arXiv 2406.07151) and SGDM's. Shapes: B trials, C
electrodes, T samples. Each has, beside the constructor of the published network,
    build(electrodes, n_times, sfreq, out, **settings)   class method: made for such trials; `out`: width, or classes
    prepare(x, sfreq, units)     static: (C, n_times) at `sfreq` Hz → what `forward` reads, as a NumPy array
    reads                        "signal", or "features" that are to be standardised by the training trials
    gives                        what its output can be: "vector" (embedding, logits), "states" (77 · 768), "latents"
    takes_people                 whether it is called with people as well: net(x, subject_ids)
    options                      flag → parameter of the constructor that it sets
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.differential_entropy import BANDS, differential_entropy
from models.electrode_positions import initial_edges
from models.hub import OnHub
from utils.errors import UserError
from utils.signals import resample

POOL, STEP, KERNEL, FILTERS = 51, 5, 25, 40  # of TSConv
STATES = (77, 768)  # of a text encoder: what DEMapper gives where it is asked for more than a vector

# ---------------------------------------------------------------- what encoders read


def resampled(n_times: int, sfreq: float, new_sfreq: float) -> int:
    """How many samples `utils.signals.resample` makes of so many."""
    return math.ceil(n_times * new_sfreq / sfreq - 1e-9)


class ReadsSignal:
    """What an encoder has that reads the signal at 250 Hz, in units of 10 µV; a whitened one as it is."""

    reads, sfreq = "signal", 250.0
    gives, takes_people, options = ("vector",), False, {}

    @classmethod
    def build(cls, electrodes: Sequence[str], n_times: int, sfreq: float, out: int, **settings) -> nn.Module:
        n = resampled(n_times, sfreq, cls.sfreq)
        try:
            return cls(n_chans=len(electrodes), n_times=n, dim=out, **settings)
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            trials = f"trials of {n_times / sfreq:g} s and {len(electrodes)} electrodes"
            raise UserError(f"{trials} are too short or too few for {cls.__name__} ({error})") from None

    @classmethod
    def prepare(cls, x: np.ndarray, sfreq: float, units: str) -> np.ndarray:
        x = resample(x, sfreq, cls.sfreq)
        return np.asarray(x / 10 if units == "microvolts" else x, np.float32)


class ReadsEntropy:
    """What an encoder has that reads differential entropy, (C · 5,) features of a trial, band by band."""

    reads = "features"
    gives, takes_people, options = ("vector", "states"), False, {}

    @classmethod
    def build(cls, electrodes: Sequence[str], n_times: int, sfreq: float, out: int, **_) -> nn.Module:
        return cls(out, n_features=len(BANDS) * len(electrodes))

    @staticmethod
    def prepare(x: np.ndarray, sfreq: float, units: str, de: str = "gaussian") -> np.ndarray:
        return differential_entropy(x, sfreq, de)


# ---------------------------------------------------------------- parts that ATM, NICE and UBP share


class TSConv(nn.Module):
    """Convolution in time, average pool, convolution over electrodes (NICE): (B, C, T) → (B, P · 40).

    Position by position; for T = 250 there are P = 36. Where fewer than 51 samples are left, the pool takes these.
    """

    def __init__(self, n_chans: int, n_times: int):
        super().__init__()
        left = n_times - KERNEL + 1
        if left < 1:
            raise ValueError(f"{n_times} samples are too few; expected {KERNEL} or more")
        self.pool = min(POOL, left)
        self.width = FILTERS * ((left - self.pool) // STEP + 1)
        self.time = nn.Conv2d(1, FILTERS, (1, KERNEL))
        self.norm1 = nn.BatchNorm2d(FILTERS)
        self.space = nn.Conv2d(FILTERS, FILTERS, (n_chans, 1))
        self.norm2 = nn.BatchNorm2d(FILTERS)
        self.dropout = nn.Dropout(0.5)
        self.mix = nn.Conv2d(FILTERS, FILTERS, 1)

    def forward(self, x: Tensor) -> Tensor:
        # The published order is convolution, then average pool. Both are linear in time, so averaging the one signal
        # first gives the same for a sixth of the work and memory.
        smooth = F.avg_pool1d(x, self.pool, 1)[:, None]  # (B, 1, C, T − 50)
        h = F.conv2d(smooth, self.time.weight, self.time.bias, (1, STEP))
        h = F.elu(self.norm1(h))  # (B, 40, C, P)
        h = self.dropout(F.elu(self.norm2(self.space(h))))  # (B, 40, 1, P)
        return self.mix(h)[:, :, 0].transpose(1, 2).flatten(1)  # (B, P, 40) → (B, P · 40)


class ResidualProjection(nn.Module):
    """Linear, x + Dropout(Linear(GELU(x))), LayerNorm: (B, width) → (B, dim)."""

    def __init__(self, width: int, dim: int, dropout: float = 0.5):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(width, dim), nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.norm(x + self.dropout(self.second(F.gelu(x))))


# ---------------------------------------------------------------- THINGS-EEG2


class ATM(ReadsSignal, nn.Module, OnHub):
    """ATM-S: electrodes as tokens beside a person's, one transformer layer, TSConv, projection; 3,075,412 parameters.

    n_chans, n_times, dim : int. Electrodes, samples a trial, width of the embedding.
    n_subjects : int. People of the table. An id that is not in it, and no id, gets the token that strangers share.
    positions : {"none", "sinusoid"}. What the published code adds to the electrodes since December 2025.
    keeps : {"electrodes", "subject_token"}. Which C of the C + 1 tokens go on: the electrodes, or what the published
        main branch keeps, the person's token and all electrodes but the last.
    n_linear : int. 1: one Linear for all; more: one a person, as in the published joint training.
    parts : sequence of {"attention", "tsconv", "mlp"}. What is there, for the ablation: without attention the
        electrodes go on as they are; without tsconv they are put end to end; without mlp the projection is one Linear.
    """

    n_heads, all_parts = 4, ("attention", "tsconv", "mlp")
    takes_people, options = True, {"positions": "positions", "atm_parts": "parts"}

    def __init__(
        self,
        n_chans: int = 63,
        n_times: int = 250,
        dim: int = 1024,
        n_subjects: int = 10,
        positions: str = "none",
        keeps: str = "electrodes",
        n_linear: int = 1,
        parts: Sequence[str] = all_parts,
    ):
        super().__init__()
        self.keeps, self.parts = keeps, tuple(parts)
        inner = n_times // self.n_heads * self.n_heads  # 248 for 250
        self.embed = nn.ModuleList(nn.Linear(n_times, n_times) for _ in range(n_linear))
        self.subjects = nn.Embedding(n_subjects, n_times)
        self.stranger = nn.Parameter(torch.randn(1, n_times))
        added = sinusoids(n_chans, n_times) if positions == "sinusoid" else None
        self.register_buffer("positions", added, persistent=False)
        self.query, self.key, self.value = (nn.Linear(n_times, inner) for _ in range(3))
        self.out = nn.Linear(inner, n_times)
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(n_times) for _ in range(3))
        self.ff1, self.ff2 = nn.Linear(n_times, 256), nn.Linear(256, n_times)
        self.dropout = nn.Dropout(0.25)
        self.tsconv = TSConv(n_chans, n_times) if "tsconv" in self.parts else None
        width = n_chans * n_times if self.tsconv is None else self.tsconv.width
        self.project = ResidualProjection(width, dim) if "mlp" in self.parts else nn.Linear(width, dim)
        if "attention" not in self.parts:  # nothing is kept that nobody trains
            for name in "embed subjects stranger query key value out norm1 norm2 norm ff1 ff2".split():
                delattr(self, name)

    def forward(self, x: Tensor, subject_ids: Tensor | None = None) -> Tensor:
        """(B, C, T), ids (B,) → (B, dim)."""
        h = self.tokens(x, subject_ids) if "attention" in self.parts else x
        return self.project(h.flatten(1) if self.tsconv is None else self.tsconv(h))

    def tokens(self, x: Tensor, subject_ids: Tensor | None = None) -> Tensor:
        """(B, C, T) → (B, C, T): what the transformer makes of the electrodes."""
        ids = torch.full((len(x),), -1, device=x.device) if subject_ids is None else subject_ids.to(x.device).long()
        known = (ids >= 0) & (ids < self.subjects.num_embeddings)
        token = torch.where(known[:, None], self.subjects(ids.where(known, 0)), self.stranger)  # (B, T)
        h = self._embedded(x, ids)  # (B, C, T)
        h = h if self.positions is None else h + self.positions
        h = self.dropout(torch.cat([token[:, None], h], dim=1))  # (B, C + 1, T)
        h = self.norm1(h + self.dropout(self._attention(h)))
        h = self.norm2(h + self.dropout(self.ff2(self.dropout(F.gelu(self.ff1(h))))))
        h = self.norm(h)
        return h[:, 1:] if self.keeps == "electrodes" else h[:, :-1]

    def _embedded(self, x: Tensor, ids: Tensor) -> Tensor:
        if len(self.embed) == 1:
            return self.embed[0](x)
        if not ((ids >= 0) & (ids < len(self.embed))).all():
            raise ValueError(f"a person outside the {len(self.embed)} of joint training has no Linear")
        weight, bias = (torch.stack([getattr(layer, name) for layer in self.embed]) for name in ("weight", "bias"))
        return torch.einsum("bct,bot->bco", x, weight[ids]) + bias[ids][:, None]

    def _attention(self, h: Tensor) -> Tensor:
        layers = self.query, self.key, self.value
        q, k, v = (layer(h).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for layer in layers)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout.p if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2))


def sinusoids(n: int, width: int) -> Tensor:
    """(n, width) positions: sine of p · 10000^(−2i / width) in the even columns, cosine in the odd ones."""
    angle = torch.arange(n)[:, None] * 10000 ** (-torch.arange(0, width, 2) / width)  # (n, width / 2)
    table = torch.zeros(n, width)
    table[:, 0::2], table[:, 1::2] = angle.sin(), angle.cos()[:, : width // 2]
    return table


class NICE(ReadsSignal, nn.Module):
    """TSConv and projection, published to 768 dimensions; weights begin small."""

    def __init__(self, n_chans: int = 63, n_times: int = 250, dim: int = 1024):
        super().__init__()
        self.tsconv = TSConv(n_chans, n_times)
        self.project = ResidualProjection(self.tsconv.width, dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, 0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) → (B, dim)."""
        return self.project(self.tsconv(x))


class UBP(ReadsSignal, nn.Module):
    """Linear over all electrodes and samples, and a projection; published on 17 posterior electrodes."""

    def __init__(self, n_chans: int = 17, n_times: int = 250, dim: int = 1024):
        super().__init__()
        self.project = ResidualProjection(n_chans * n_times, dim, dropout=0.3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) → (B, dim)."""
        return self.project(x.flatten(1))


class SGDM(ReadsSignal, nn.Module):
    """A recurrent and a convolutional branch, joined; written from the description: the system has no public code."""

    def __init__(self, n_chans: int = 63, n_times: int = 250, dim: int = 1536):
        super().__init__()
        if n_chans < 5:
            raise ValueError("its convolutions along electrodes need 5 or more")
        self.lstm = nn.LSTM(n_chans, 256, num_layers=2, batch_first=True, bidirectional=True)
        self.conv1, self.conv2 = nn.Conv1d(n_times, 128, 3), nn.Conv1d(128, 256, 3)
        self.first, self.second = nn.Linear(2 * 256 + 256, 1024), nn.Linear(1024, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) → (B, dim)."""
        _, (last, _) = self.lstm(x.transpose(1, 2))  # (4, B, 256): the upper layer's two directions come last
        along = F.relu(self.conv2(F.relu(self.conv1(x.transpose(1, 2)))))  # (B, 256, C − 4)
        h = torch.cat([last[-2], last[-1], along.mean(dim=-1)], dim=-1)  # (B, 768)
        return self.second(F.relu(self.first(h)))


class LowLevel(ReadsSignal, nn.Module):
    """ATM's way to the latents of an image model's VAE: (B, C, T) → (B, 4, 64, 64); 143,333,268 parameters.

    latents : sequence of int. Channels, and height and width, which are equal and a power of 2: as many doublings as it
        takes, the narrowest of the published six.
    """

    widths = (1024, 512, 256, 128, 64, 32)
    gives = ("latents",)

    @classmethod
    def build(cls, electrodes: Sequence[str], n_times: int, sfreq: float, out: int, **settings) -> "LowLevel":
        return cls(len(electrodes), resampled(n_times, sfreq, cls.sfreq), **settings)

    def __init__(self, n_chans: int = 63, n_times: int = 250, latents: Sequence[int] = (4, 64, 64)):
        super().__init__()
        channels, height, width = latents
        doublings = int(math.log2(max(height, 1)))
        if not height == width == 2**doublings or not 1 <= doublings <= len(self.widths):
            gives = "low_level gives square latents of an edge of 2 to 64 by powers of 2"
            raise UserError(f"{gives}; the image model has {height} × {width}")
        self.embed = nn.Linear(n_times, 128)
        layers, inner = [], n_chans * 128
        for wide in self.widths[-doublings:]:
            layers += [nn.ConvTranspose2d(inner, wide, 4, 2, 1), nn.BatchNorm2d(wide), nn.ReLU()]
            inner = wide
        layers += [nn.ConvTranspose2d(inner, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, channels, 1)]
        self.upsampler = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsampler(self.embed(x).flatten(1)[:, :, None, None])


# ---------------------------------------------------------------- EEG-ImageNet


class ImageNetEEGNet(ReadsSignal, nn.Module):
    """The EEGNet of EEG-ImageNet: (B, C, T) at 1000 Hz → (B, K) logits.

    16,064 parameters for 62 × 400 and 80 classes.
    """

    sfreq, gives = 1000.0, ("vector", "states")  # its last layer alone grows with what is asked for

    @classmethod
    def build(cls, electrodes: Sequence[str], n_times: int, sfreq: float, out: int, **_) -> "ImageNetEEGNet":
        n = resampled(n_times, sfreq, cls.sfreq)
        if n < 75:
            raise UserError(f"trials of {n_times / sfreq:g} s are too short for eegnet, which pools over 40 ms twice")
        return cls(out, len(electrodes), n)

    def __init__(self, n_classes: int = 80, n_chans: int = 62, n_times: int = 400):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, (1, 200), padding=(0, 100), bias=False)
        self.depthwise_conv = nn.Conv2d(8, 16, (n_chans, 1), groups=8, bias=False)
        self.separable_conv1 = nn.Conv2d(16, 16, (1, 16), padding=(0, 8), groups=16, bias=False)
        self.separable_conv2 = nn.Conv2d(16, 16, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(8), nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.pool1, self.pool2, self.dropout = nn.AvgPool2d((1, 4)), nn.AvgPool2d((1, 10)), nn.Dropout(0.5)
        self.fc1 = nn.Linear(16 * (((n_times + 1) // 4 + 1) // 10), n_classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x[:, None]))  # (B, 8, C, T + 1)
        h = self.dropout(self.pool1(F.elu(self.bn2(self.depthwise_conv(h)))))  # (B, 16, 1, (T + 1) / 4)
        h = self.separable_conv2(self.separable_conv1(h))
        h = self.dropout(self.pool2(F.elu(self.bn3(h))))  # (B, 16, 1, 10)
        return self.fc1(h.flatten(1))


class DEClassifier(ReadsEntropy, nn.Module):
    """The MLP of EEG-ImageNet on differential entropy: (B, 310) → (B, K) logits."""

    def __init__(self, n_classes: int = 80, n_features: int = 310):
        super().__init__()
        self.l1, self.l2, self.l3 = nn.Linear(n_features, 256), nn.Linear(256, 128), nn.Linear(128, n_classes)
        self.bn1, self.bn2, self.dropout = nn.BatchNorm1d(256), nn.BatchNorm1d(128), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(F.relu(self.bn1(self.l1(x))))
        return self.l3(self.dropout(F.relu(self.bn2(self.l2(h)))))


def is_states(out: int) -> bool:
    """Whether an output of this width is a text encoder's states, and no vector or logits."""
    return out > 64 * STATES[0] and out % STATES[0] == 0


class DEMapper(ReadsEntropy, nn.Module):
    """EEG-ImageNet's way to text states: (B, 310) → (B, 77, 768); 123,593,472 parameters."""

    @classmethod
    def build(cls, electrodes: Sequence[str], n_times: int, sfreq: float, out: int, **_) -> "DEMapper":
        return cls(len(BANDS) * len(electrodes), (STATES[0], out // STATES[0]) if is_states(out) else (1, out))

    def __init__(self, n_features: int = 310, states: Sequence[int] = STATES):
        super().__init__()
        self.states = tuple(states)
        self.fc1, self.fc2 = nn.Linear(n_features, 1024), nn.Linear(1024, 2048)
        self.fc3 = nn.Linear(2048, self.states[0] * self.states[1])
        self.bn1, self.bn2, self.dropout = nn.BatchNorm1d(1024), nn.BatchNorm1d(2048), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(F.relu(self.bn1(self.fc1(x))))
        h = self.dropout(F.relu(self.bn2(self.fc2(h))))
        return self.fc3(h).unflatten(-1, self.states)


class RGNN(ReadsEntropy, nn.Module):
    """A graph over electrodes with learned edges: (B, C · 5), electrode by electrode → (B, K) logits.

    edges : (C · (C + 1) / 2,) tensor, optional. Lower triangle with diagonal, row by row: `initial_edges`; else ones.
    """

    n_hops = 2

    @classmethod
    def build(cls, electrodes: Sequence[str], n_times: int, sfreq: float, out: int, **_) -> "RGNN":
        return cls(out, len(electrodes), len(BANDS), initial_edges(electrodes))

    @staticmethod
    def prepare(x: np.ndarray, sfreq: float, units: str, de: str = "gaussian") -> np.ndarray:
        """Electrode by electrode; the published code hands over the bands one after the other as if they were that."""
        by_band = differential_entropy(x, sfreq, de).reshape(len(BANDS), -1)
        return np.ascontiguousarray(by_band.T).ravel()

    def __init__(self, n_classes: int = 80, n_chans: int = 62, n_features: int = 5, edges: Tensor | None = None):
        super().__init__()
        self.n_chans, self.n_features = n_chans, n_features
        self.edge_weight = nn.Parameter(torch.ones(n_chans * (n_chans + 1) // 2) if edges is None else edges.clone())
        self.register_buffer("triangle", torch.tril_indices(n_chans, n_chans), persistent=False)
        self.bn, self.bn1 = nn.BatchNorm1d(n_chans * n_features), nn.BatchNorm1d(200)
        self.lin, self.fc, self.dropout = nn.Linear(n_features, 200), nn.Linear(200, n_classes), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn(x).unflatten(-1, (self.n_chans, self.n_features))  # (B, C, 5)
        lower = torch.zeros(self.n_chans, self.n_chans, device=x.device, dtype=x.dtype)
        lower = lower.index_put(tuple(self.triangle), self.edge_weight)
        edges = lower + lower.T - torch.diag(lower.diagonal())  # symmetric
        degree = edges.abs().sum(dim=1).clamp(min=1e-12) ** -0.5
        edges = degree[:, None] * edges * degree[None]
        for _ in range(self.n_hops):
            h = edges @ h
        h = F.relu(self.lin(h)).sum(dim=1)  # (B, 200)
        return self.fc(self.dropout(self.bn1(h)))
