"""What may stand between EEG tokens and the projection: `--adapter`. A frozen encoder stays; this learns."""

import torch
from torch import Tensor, nn


class TokenMixer(nn.Module):
    """(B, n, D) → (B, n, D): a learned position a token, and one block of attention; at first the identity.

    A few hundred thousand parameters for CSBrain's tokens (D = 200). It lets tokens of other regions and moments be
    compared, which the projection, one token at a time, cannot.

    n_tokens, width : int. Of a trial; D.
    """

    n_heads = 4

    def __init__(self, n_tokens: int, width: int, dropout: float = 0.1):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(n_tokens, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        heads = next(n for n in range(self.n_heads, 0, -1) if width % n == 0)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        first, last = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.feed_forward = nn.Sequential(first, nn.GELU(), nn.Dropout(dropout), last)
        for last in (self.attention.out_proj, self.feed_forward[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.positions  # (B, n, D)
        h = self.norm1(tokens)
        tokens = tokens + self.attention(h, h, h, need_weights=False)[0]
        return tokens + self.feed_forward(self.norm2(tokens))
