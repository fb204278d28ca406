"""SGDM's structure of a picture: a map of its edges, a VAE that learns it, and the map that a latent vector stands for.

Written from the description of the system (arXiv 2604.22649), which has no public code; what it leaves open is settled
in docs/methods.md: the structure of a picture is its map of edges, and an EEG encoder is trained towards a fixed VAE.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, sobel
from torch import Tensor, nn
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


def map_picture(structure: Tensor) -> Image.Image:
    """A (1, H, W) map from 0 to 1 as a picture, white edges on black: what ControlNet reads."""
    grey = (structure.detach().float().clamp(0, 1) * 255).round().byte().squeeze(0).cpu().numpy()
    return Image.fromarray(grey).convert("RGB")


def as_pixels(pictures: Sequence[Image.Image]) -> Tensor:
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
        layers = []
        for given, made in ((3, a), (a, b), (b, c)):
            layers += [nn.Conv2d(given, made, 4, 2, 1), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(c * inner * inner, hidden), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.structure = nn.Linear(latent, STRUCTURE)
        layers = [nn.Linear(latent, c * inner * inner), nn.Unflatten(1, (c, inner, inner))]
        for wide, narrow in ((c, b), (b, a), (a, 3)):
            layers += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1), nn.ReLU()]
        self.decoder = nn.Sequential(*layers[:-1], nn.Sigmoid())
        layers = [nn.Linear(STRUCTURE, 128 * 8 * 8), nn.Unflatten(1, (128, 8, 8))]
        for wide, narrow in ((128, 64), (64, 32), (32, 16), (16, 1)):
            layers += [nn.ReLU(), nn.ConvTranspose2d(wide, narrow, 4, 2, 1)]
        self.map_decoder = nn.Sequential(*layers)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 128, 128) from 0 to 1 → mean and logarithm of the variance of the latent, (B, latent) each."""
        h = self.encoder(x)
        return self.mean(h), self.log_variance(h)

    def map_logits(self, latent: Tensor) -> Tensor:
        """(B, latent) → (B, 1, 128, 128); their sigmoid is the map."""
        return self.map_decoder(self.structure(latent))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Restored picture, mean, logarithm of the variance, map logits."""
        mean, log_variance = self.encode(x)
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(latent), mean, log_variance, self.map_logits(latent)


def vae_loss(
    x: Tensor, maps: Tensor, outputs: tuple[Tensor, ...], map_share: float = 0.1
) -> tuple[Tensor, dict[str, Tensor]]:
    """MSE(picture) + KL / (3 · 128²) + `map_share` · BCE(map), each a mean over the batch; and its parts.

    The sum of KL is divided by the number of pixels, since MSE is a mean over them.
    x : (B, 3, 128, 128). maps : (B, 1, 128, 128). outputs : of `StructuralVAE`.
    """
    restored, mean, log_variance, logits = outputs
    kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(dim=1).mean()
    parts = {"picture": F.mse_loss(restored, x), "kl": kl / x[0].numel()}
    parts["map"] = F.binary_cross_entropy_with_logits(logits, maps)
    return parts["picture"] + parts["kl"] + map_share * parts["map"], parts
