"""One CSBrain transformer layer: attention across windows, attention across regions, feed-forward.

Source: "CSBrain: A Cross-scale Spatiotemporal Brain Foundation Model for EEG Decoding", NeurIPS 2025,
arXiv 2506.23075. Parameter names are the published checkpoint's.
"""

import torch
from torch import nn
from torch.nn import functional as F

MAX_WINDOW = 5  # patches; the published window length


def region_attention_mask(area_config: dict) -> torch.Tensor:
    """Which pairs of electrodes may attend to each other.

    Group g takes electrode number g modulo the region's size from every region; a pair may attend if some group
    holds both.
    area_config : dict. `CSBrain.area_config`: region name to {"channels": n, "slice": slice}.
    Returns (C, C) bool tensor, True where attention is **forbidden** (PyTorch's convention).
    """
    slices = [area["slice"] for area in area_config.values()]
    n_chans = max(s.stop for s in slices)
    allowed = torch.zeros(n_chans, n_chans, dtype=torch.bool)
    for g in range(max(s.stop - s.start for s in slices)):
        group = [s.start + g % (s.stop - s.start) for s in slices]
        allowed[torch.tensor(group)[:, None], torch.tensor(group)] = True
    return ~allowed


class CSBrain_TransformerEncoderLayer(nn.Module):
    """Pre-norm layer on (B, C, P, D) with electrodes in region order; `area_config`: see `CSBrain`."""

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int, area_config: dict, dropout: float = 0.1):
        super().__init__()
        self.inter_region_attn = nn.MultiheadAttention(d_model, nhead, dropout=dropout, batch_first=True)
        self.inter_window_attn = nn.MultiheadAttention(d_model, nhead, dropout=dropout, batch_first=True)
        self.global_fc = nn.Linear(d_model, d_model)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d_model) for _ in range(3))
        self.dropout1, self.dropout2, self.dropout3 = (nn.Dropout(dropout) for _ in range(3))
        self.activation = nn.GELU()

        self.region_slices = [area["slice"] for area in area_config.values()]
        # Facts of the montage and not weights: the published state dict has none of them.
        sizes = torch.tensor([s.stop - s.start for s in self.region_slices])
        self.register_buffer("region_of", torch.arange(len(sizes)).repeat_interleave(sizes), persistent=False)
        self.register_buffer("forbidden_pairs", region_attention_mask(area_config), persistent=False)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """(B, C, P, D) → (B, C, P, D)."""
        h = h + self.dropout1(self._window_attention(self.norm1(h)))
        h = h + self.dropout2(self._region_attention(self.norm2(h)))
        return h + self.dropout3(self.linear2(self.dropout(self.activation(self.linear1(self.norm3(h))))))

    def _window_attention(self, h: torch.Tensor) -> torch.Tensor:
        b, c, p, d = h.shape
        w = min(p, MAX_WINDOW)
        n = -(-p // w)  # windows, the last one padded with zeros that take part like any patch
        if n == 1 and not self.training:  # one window: its weight is 1, so queries and keys change nothing
            attention = self.inter_window_attn
            return attention.out_proj(F.linear(h, attention.in_proj_weight[-d:], attention.in_proj_bias[-d:]))
        h = F.pad(h, (0, 0, 0, n * w - p))  # (B, C, n·w, D)
        h = h.view(b, c, n, w, d).transpose(2, 3).reshape(b * c * w, n, d)  # same slot of every window
        h = self.inter_window_attn(h, h, h, need_weights=False)[0]
        h = h.view(b, c, w, n, d).transpose(2, 3).reshape(b, c, n * w, d)
        return h[:, :, :p]

    def _region_attention(self, h: torch.Tensor) -> torch.Tensor:
        b, c, p, d = h.shape
        means = torch.stack([h[:, s].mean(dim=1) for s in self.region_slices], dim=1)  # (B, regions, P, D)
        h = h + self.global_fc(means)[:, self.region_of]  # (B, C, P, D)
        h = h.transpose(1, 2).reshape(b * p, c, d)
        h = self.inter_region_attn(h, h, h, attn_mask=self.forbidden_pairs, need_weights=False)[0]
        return h.view(b, p, c, d).transpose(1, 2)
