"""SGDM's structure of a picture: a map of its edges, a VAE that is told it, and the map that a latent vector stands for.

Written from the description of the system (arXiv 2604.22649), which has no public code; what it leaves open is settled in
docs/methods.md: the structure of a picture is its map of edges, and what an EEG encoder is trained towards stands still.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, sobel
from torch import nn
from torch.nn import functional as F

EDGE = 128  # pixels, of the VAE's pictures and of maps
SIGMA, BRIGHTEST = 1.0, 99  # of the Gaussian before Sobel, pixels; the percentile that becomes 1
STRUCTURE = 256  # width of the vector that a map is made from
LATENT = 512


def structure_map(picture: Image.Image) -> np.ndarray:
    """(128, 128) float32 strength of edges from 0 to 1: grey, Gaussian, Sobel, over its 99th percentile."""
    grey = np.asarray(picture.convert("L").resize((EDGE, EDGE), Image.Resampling.BICUBIC), np.float64) / 255
    smooth = gaussian_filter(grey, SIGMA)
    strength = np.hypot(sobel(smooth, 0), sobel(smooth, 1))
    brightest = np.percentile(strength, BRIGHTEST)
    if brightest < 1e-6:  # where hardly anything is an edge, or nothing
        brightest = max(float(strength.max()), 1e-6)
    return np.clip(strength / brightest, 0, 1).astype(np.float32)


def map_picture(structure: torch.Tensor) -> Image.Image:
    """A (1, H, W) map from 0 to 1 as a picture, white edges on black: what ControlNet reads."""
    grey = (structure.detach().float().clamp(0, 1) * 255).round().byte().squeeze(0).cpu().numpy()
    return Image.fromarray(grey).convert("RGB")


def as_pixels(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """(N, 3, 128, 128) from 0 to 1: what the VAE reads."""
    resized = [np.asarray(p.convert("RGB").resize((EDGE, EDGE), Image.Resampling.BICUBIC)) for p in pictures]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255


class StructuralVAE(nn.Module):
    """Picture (B, 3, 128, 128) → latent (B, 512) → picture; and a structure vector → map of edges.

    103,228,291 parameters as described, and 2,277,745 of the map's decoder.

    widths : sequence of int. Channels of the three convolutions.
    hidden : int. Width between them and the latent.
    """

    def __init__(self, latent: int = LATENT, widths: Sequence[int] = (64, 128, 256), hidden: int = 1024):
        super().__init__()
        a, b, c = widths
        inner = EDGE // 8  # 16 × 16 places
        self.encoder = nn.Sequential(
            nn.Conv2d(3, a, 4, 2, 1), nn.ReLU(), nn.Conv2d(a, b, 4, 2, 1), nn.ReLU(), nn.Conv2d(b, c, 4, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(c * inner * inner, hidden), nn.ReLU(),
        )  # fmt: skip
        self.mean, self.log_variance = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.structure = nn.Linear(latent, STRUCTURE)
        self.decoder = nn.Sequential(
            nn.Linear(latent, c * inner * inner), nn.Unflatten(1, (c, inner, inner)),
            nn.ConvTranspose2d(c, b, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(b, a, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(a, 3, 4, 2, 1), nn.Sigmoid(),
        )  # fmt: skip
        layers = [nn.Linear(STRUCTURE, 128 * 8 * 8), nn.Unflatten(1, (128, 8, 8))]
        for wide, narrow in ((128, 64), (64, 32), (32, 16), (16, 1)):
            layers += [nn.ReLU(), nn.ConvTranspose2d(wide, narrow, 4, 2, 1)]
        self.map_decoder = nn.Sequential(*layers)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, 128, 128) from 0 to 1 → mean and logarithm of the variance of the latent, (B, latent) each."""
        h = self.encoder(x)
        return self.mean(h), self.log_variance(h)

    def map_logits(self, latent: torch.Tensor) -> torch.Tensor:
        """(B, latent) → (B, 1, 128, 128); their sigmoid is the map."""
        return self.map_decoder(self.structure(latent))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Restored picture, mean, logarithm of the variance, map logits."""
        mean, log_variance = self.encode(x)
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(latent), mean, log_variance, self.map_logits(latent)


def vae_loss(
    x: torch.Tensor, maps: torch.Tensor, outputs: tuple[torch.Tensor, ...], map_share: float = 0.1
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """MSE(picture) + KL / (3 · 128²) + `map_share` · BCE(map), each a mean over the batch; and its parts.

    The sum of KL is divided by the number of pixels, since MSE is a mean over them.
    x : (B, 3, 128, 128). maps : (B, 1, 128, 128). outputs : of `StructuralVAE`.
    """
    restored, mean, log_variance, logits = outputs
    kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(dim=1).mean()
    parts = {"picture": F.mse_loss(restored, x), "kl": kl / x[0].numel(),
             "map": F.binary_cross_entropy_with_logits(logits, maps)}  # fmt: skip
    return parts["picture"] + parts["kl"] + map_share * parts["map"], parts
