"""Embedding of EEG → embedding of an image, by a small diffusion model; embedding of EEG → a captioner's vision tokens.

Both as published with ATM (Li et al., NeurIPS 2024, arXiv 2403.07721). The prior has 9,675,648 parameters for 1024
dimensions.
"""

import math
from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (1024, 512, 256, 128, 64)
SINUSOIDS = 512
STEPS, GUIDANCE = 50, 5.0  # of sampling, as published


def time_sinusoids(t: Tensor, width: int = SINUSOIDS) -> Tensor:
    """(B,) times → (B, width): cosines, then sines, of t · 10000^(−2i / width)."""
    rates = torch.exp(-math.log(10000) * torch.arange(width // 2, device=t.device) / (width // 2))
    angle = t.float()[:, None] * rates  # (B, width / 2)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Sinusoids of a time → a vector that is added at one level."""

    def __init__(self, width: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(SINUSOIDS, width), nn.Linear(width, width)

    def forward(self, sinusoids: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoids)))


class DiffusionPriorUNet(nn.Module):
    """Noise in an image's embedding, from the noisy embedding, the time and an embedding of EEG. Names as published.

    dim, condition_dim : int. Widths of the image's and of the EEG's embedding.
    widths : sequence of int. Of the levels, from the entry inwards.
    """

    def __init__(self, dim: int = 1024, condition_dim: int = 1024, widths: Sequence[int] = WIDTHS):
        super().__init__()
        self.input_layer = nn.Sequential(nn.Linear(dim, widths[0]), nn.LayerNorm(widths[0]), nn.SiLU())
        for way, sizes in (("encode", widths), ("decode", widths[::-1])):
            pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
            layers = [nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.SiLU(), nn.Dropout(0.1)) for a, b in pairs]
            self.add_module(f"{way}_time_embedding", nn.ModuleList(TimeEmbedding(a) for a, _ in pairs))
            self.add_module(f"{way}_cond_embedding", nn.ModuleList(nn.Linear(condition_dim, a) for a, _ in pairs))
            self.add_module(f"{way}_layers", nn.ModuleList(layers))
        self.output_layer = nn.Linear(widths[0], dim)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
        """(B, D) noisy embeddings, (B,) times 0 to 999, (B, D') condition → (B, D) noise.

        kept : (B,) bool, optional. Rows that keep their condition; the others are as without one.
        """
        sinusoids = time_sinusoids(t)
        x, skipped = self.input_layer(x), []
        parts = self.encode_time_embedding, self.encode_cond_embedding, self.encode_layers
        for time, conditioned, layer in zip(*parts, strict=True):
            skipped.append(x)  # what the way back adds again, before time and condition
            x = layer(x + time(sinusoids) + self._shift(conditioned, condition, kept))
        parts = self.decode_time_embedding, self.decode_cond_embedding, self.decode_layers
        for time, conditioned, layer in zip(*parts, strict=True):
            x = layer(x + time(sinusoids) + self._shift(conditioned, condition, kept)) + skipped.pop()
        return self.output_layer(x)

    @staticmethod
    def _shift(layer: nn.Linear, condition: Tensor | None, kept: Tensor | None) -> Tensor | float:
        if condition is None:  # not even the bias
            return 0.0
        return layer(condition) if kept is None else layer(condition) * kept[:, None]


class DiffusionPrior(nn.Module):
    """The published network with its noise schedule, on standardised embeddings.

    Times go from 0 to 999, β from 1e-4 to 0.02, linear. `clip_sample` is off: the default cuts at ±1 what has unit
    variance.

    dim, condition_dim : int. Widths of the image's and of the EEG's embedding.
    components : int, optional. Principal components that the network works in (see `standardise_by`); default: none.
    """

    def __init__(
        self, dim: int = 1024, condition_dim: int = 1024, widths: Sequence[int] = WIDTHS, components: int | None = None
    ):
        super().__init__()
        inner = components or dim
        self.net = DiffusionPriorUNet(inner, condition_dim, widths)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("sd", torch.ones(inner))
        self.register_buffer("axes", torch.zeros(components, dim) if components else None)

    def standardise_by(self, targets: Tensor) -> None:
        """Take mean and deviations of (N, D) training targets; or, of components, the axes and one scale for all.

        Embeddings of a small CLIP, or of few images, fill few dimensions. Noise fills all of them, and most of what a
        network learns then is the noise where no embedding is.
        """
        targets = targets.float()
        self.mean.copy_(targets.mean(dim=0))
        if self.axes is None:
            self.sd.copy_(targets.std(dim=0).clamp(min=1e-6))
        else:
            _, _, axes = torch.linalg.svd(targets - self.mean, full_matrices=False)
            self.axes.copy_(axes[: len(self.axes)])
            self.sd.fill_(float(((targets - self.mean) @ self.axes.T).square().mean().sqrt().clamp(min=1e-6)))

    def standardised(self, x: Tensor) -> Tensor:
        """(B, D) embeddings → what the network works in."""
        x = x - self.mean
        return (x if self.axes is None else x @ self.axes.T) / self.sd

    def restored(self, z: Tensor) -> Tensor:
        """The way back: (B, D) embeddings."""
        z = z * self.sd
        return (z if self.axes is None else z @ self.axes) + self.mean

    @staticmethod
    def schedule() -> DDPMScheduler:
        """A new schedule: it counts the steps of one sampling."""
        betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
        return DDPMScheduler(num_train_timesteps=1000, clip_sample=False, **betas)

    def loss(self, target: Tensor, condition: Tensor, drop: float = 0.1) -> Tensor:
        """MSE of the noise at random times, for (B, D) embeddings of images.

        Each row loses its condition with probability `drop`.
        """
        x = self.standardised(target)
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),), device=x.device)
        kept = torch.rand(len(x), device=x.device) >= drop
        noisy = self.schedule().add_noise(x, noise, t)
        return F.mse_loss(self.net(noisy, t, condition, kept), noise)

    forward = loss  # what several processes train together is a call of the module

    @torch.no_grad()
    def sample(self, condition: Tensor, seeds: Sequence[int], steps: int = STEPS, guidance: float = GUIDANCE) -> Tensor:
        """(B, D') embeddings of EEG → (B, D) embeddings of images, one for each row's seed.

        A row's noise is its seed's, drawn on the CPU: the same in every batch and on every device, up to rounding.
        guidance : float. Times the difference that the condition makes; 1: the conditional noise itself.
        """
        self.eval()
        schedule, device = self.schedule(), condition.device
        schedule.set_timesteps(steps)
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        x = torch.stack([torch.randn(len(self.sd), generator=g) for g in noise]).to(device)
        for t in schedule.timesteps:
            times = t.to(device).expand(len(x))
            conditional, plain = self.net(x, times, condition), self.net(x, times)
            x = schedule.step(plain + guidance * (conditional - plain), t, x, generator=noise).prev_sample
        return self.restored(x)


def components_of(targets: Tensor, share: float = 0.999) -> int:
    """How many principal components hold this share of the variance of (N, D) targets."""
    variance = torch.linalg.svdvals(targets.float() - targets.float().mean(dim=0)).square()
    return int((variance.cumsum(0) < share * variance.sum()).sum()) + 1


class CaptionAdapter(nn.Module):
    """Embedding of EEG (B, D) → the tokens that a captioner sees (B, n, width).

    1,052,676 parameters for GIT's (257, 1024).
    """

    def __init__(self, dim: int = 1024, n_tokens: int = 257, width: int = 1024):
        super().__init__()
        self.spread, self.spread_norm = nn.Linear(1, n_tokens), nn.LayerNorm(n_tokens)
        self.project, self.norm = nn.Linear(dim, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.spread_norm(self.spread(x[..., None]))  # (B, D, n)
        return self.norm(self.project(x.transpose(1, 2)))  # (B, n, width)
