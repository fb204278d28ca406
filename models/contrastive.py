"""Contrastive training towards embeddings, and retrieval among candidates: losses, ranks, exact k-way scores."""

from math import comb, log

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LogitScale(nn.Module):
    """What similarities are multiplied by: trained as a logarithm, 1 / 0.07 at first, 100 at most."""

    def __init__(self, first: float = 1 / 0.07, most: float = 100.0):
        super().__init__()
        self.logarithm, self.most = nn.Parameter(torch.tensor(log(first))), most

    def forward(self) -> Tensor:
        return self.logarithm.exp().clamp(max=self.most)


def info_nce(
    eeg: Tensor, targets: Tensor, scale: Tensor | float, images: Tensor | None = None, unit_eeg: bool = True
) -> Tensor:
    """Symmetric InfoNCE of embeddings (B, D) and their targets (B, D); the targets are brought to unit length.

    L = ½ Σ_rows −log softmax(s · e tᵀ) at the positives / B + the same over columns. An image that comes several times
    in a batch is no negative of itself: with `images` the wanted distribution is uniform over its copies.
    images : (B,) tensor, optional. Which image a row's target is. None: a row is its only positive, as published.
    unit_eeg : bool. Whether the embeddings are brought to unit length as well; UBP does not.
    """
    eeg = F.normalize(eeg, dim=-1) if unit_eeg else eeg
    logits = scale * eeg @ F.normalize(targets, dim=-1).T  # (B, B)
    same = torch.eye(len(eeg), device=eeg.device) if images is None else (images[:, None] == images[None]).to(logits)
    wanted = same / same.sum(dim=1, keepdim=True)  # symmetric before; rows and columns have equal sums
    return (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2


def retrieval_ranks(eeg: Tensor, candidates: Tensor, own: Tensor) -> Tensor:
    """(N,) ranks, best 1, of each embedding's own candidate by cosine; among equals it comes last.

    eeg : (N, D). candidates : (K, D). own : (N,) which candidate is an embedding's own.
    """
    return ranks_among(F.normalize(eeg.double(), dim=-1) @ F.normalize(candidates.double(), dim=-1).T, own)


def ranks_among(like: Tensor, own: Tensor) -> Tensor:
    """(N,) ranks, best 1, of each row's own candidate by similarities (N, K); among equals it comes last."""
    return (like >= like.gather(1, own[:, None])).sum(dim=1)


def k_way(rank: int, n_candidates: int, k: int, top: int = 1) -> float:
    """The chance that the own candidate is among the best `top` of itself and k − 1 others drawn at random.

    P = Σ_{j < top} C(r − 1, j) · C(n − r, k − 1 − j) / C(n − 1, k − 1), for rank r of n: exact, nothing is drawn.
    Raises ValueError where rank or k are out of range.
    """
    if not 1 <= rank <= n_candidates or not 1 <= k <= n_candidates or top < 1:
        raise ValueError(f"rank {rank} of {n_candidates}, {k}-way, top {top}: out of range")
    better, worse = rank - 1, n_candidates - rank
    ways = sum(comb(better, j) * comb(worse, k - 1 - j) for j in range(min(top, k)))
    return ways / comb(n_candidates - 1, k - 1)
