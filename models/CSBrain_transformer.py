"""CSBrain's encoder stack and the two embedding modules that all of its layers share.

Source: arXiv 2506.23075. Parameter names are the published checkpoint's.
"""

import torch
from torch import nn

from models.CSBrain_transformerlayer import CSBrain_TransformerEncoderLayer

REGION_CODES = (0, 1, 2, 3, 4)  # frontal, parietal, temporal, occipital, central: the regions with weights


def multiscale_convs(d_model: int, kernel_sizes: list[tuple[int]]) -> nn.ModuleList:
    """Convolutions along one axis whose outputs, D/2 + D/4 + … + D/4, concatenate to D channels."""
    n = len(kernel_sizes)
    widths = [d_model // 2 ** min(i + 1, n - 1) for i in range(n)]  # 100, 50, 50 for three kernels
    pairs = zip(widths, kernel_sizes, strict=True)
    return nn.ModuleList(nn.Conv2d(d_model, width, (k, 1), padding=(k // 2, 0)) for width, (k,) in pairs)


class TemEmbedEEGLayer(nn.Module):
    """Multi-scale convolutions along the patches of each electrode, zero-padded."""

    def __init__(self, d_model: int, kernel_sizes: list[tuple[int]]):
        super().__init__()
        self.convs = multiscale_convs(d_model, kernel_sizes)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """(B, C, P, D) → (B, C, P, D)."""
        b, c, p, d = h.shape
        # The published code reinterprets each (P, D) block as (D, P) instead of transposing it, and back.
        # The published weights were trained so; a transpose here would be tidier and wrong.
        h = h.reshape(b * c, d, p, 1)
        h = torch.cat([conv(h) for conv in self.convs], dim=1)  # (B·C, D, P, 1)
        return h.reshape(b, c, p, d)


class BrainEmbedEEGLayer(nn.Module):
    """Per region, multi-scale convolutions along its electrodes; other region codes contribute nothing."""

    def __init__(self, d_model: int, kernel_sizes: list[tuple[int]], area_config: dict):
        super().__init__()
        self.area_config = area_config
        blocks = {f"region_{code}": multiscale_convs(d_model, kernel_sizes) for code in REGION_CODES}
        self.region_blocks = nn.ModuleDict(blocks)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """(B, C, P, D) in region order → (B, C, P, D)."""
        b, _, p, d = h.shape
        out = torch.zeros_like(h)
        for name, area in self.area_config.items():
            if name not in self.region_blocks:
                continue
            n = area["channels"]
            x = h[:, area["slice"]].permute(0, 2, 3, 1).reshape(b * p, d, n, 1)
            scales = []
            for conv in self.region_blocks[name]:
                pad = conv.padding[0]
                # circular around the region; one electrode has nothing to wrap around
                padded = nn.functional.pad(x, (0, 0, pad, pad), mode="circular" if n > 1 else "constant")
                scales.append(nn.functional.conv2d(padded, conv.weight, conv.bias))
            out[:, area["slice"]] = torch.cat(scales, dim=1).view(b, p, d, n).permute(0, 3, 1, 2)
        return out


class CSBrain_TransformerEncoder(nn.Module):
    """The stack of transformer layers; the caller adds the shared embeddings before each of them."""

    def __init__(self, n_layer: int, d_model: int, nhead: int, dim_feedforward: int, area_config: dict, dropout: float):
        super().__init__()
        settings = d_model, nhead, dim_feedforward, area_config, dropout
        self.layers = nn.ModuleList(CSBrain_TransformerEncoderLayer(*settings) for _ in range(n_layer))

    def forward(self, h: torch.Tensor, temporal: nn.Module, spatial: nn.Module) -> torch.Tensor:
        """(B, C, P, D) → (B, C, P, D); `temporal` and `spatial` are added before every layer."""
        for layer in self.layers:
            h = h + temporal(h)
            h = layer(h + spatial(h))
        return h
