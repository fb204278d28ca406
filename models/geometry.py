"""Similarities of one person's EEG embeddings to the candidates, for ranking: `retrieve.py --geometry`.

All but `plain` look at all embeddings of the person and at all candidates, without knowing which belong together.
(N, D) embeddings, (K, D) candidates → (N, K) similarities, float64; D directions, of which few are used.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = 10  # of CSLS; published 5 to 12
ROUNDS, TOWARDS_IDENTITY = 3, 0.5  # of procrustes


def plain(eeg: Tensor, candidates: Tensor) -> Tensor:
    """Cosine."""
    return _unit(eeg) @ _unit(candidates).T


def whiten(eeg: Tensor, candidates: Tensor) -> Tensor:
    """Cosine of what is left of both sides without their means and covariances.

    A covariance of N vectors in D directions is shrunk by Ledoit and Wolf (J. Multivar. Anal. 88:365, 2004).
    """
    return _unit(_whitened(eeg)) @ _unit(_whitened(candidates)).T


def csls(eeg: Tensor, candidates: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """2 cos − mean cosine of either side's k nearest: what is near to everything is near to nothing.

    Cross-domain similarity local scaling (Conneau et al., ICLR 2018).
    """
    cosine = plain(eeg, candidates)  # (N, K)
    of_eeg = cosine.topk(min(k, cosine.shape[1]), dim=1).values.mean(dim=1, keepdim=True)  # (N, 1)
    of_candidates = cosine.topk(min(k, cosine.shape[0]), dim=0).values.mean(dim=0, keepdim=True)  # (1, K)
    return 2 * cosine - of_eeg - of_candidates


def procrustes(eeg: Tensor, candidates: Tensor) -> Tensor:
    """CSLS after a rotation that brings pairs that are each other's nearest together; both sides without their means.

    The rotation R is the orthogonal map with the largest tr(Rᵀ (M + λ I)), M the mean outer product of the pairs and λ
    half its largest singular value: directions that no pair speaks of stay (Schönemann, Psychometrika 31:1, 1966).
    """
    x, y = (_unit(of.double() - of.double().mean(dim=0)) for of in (eeg, candidates))
    rotation = torch.eye(x.shape[1], dtype=x.dtype)
    for _ in range(ROUNDS):
        like = csls(x @ rotation, y)
        nearest = like.argmax(dim=1)  # (N,)
        mutual = (like.argmax(dim=0)[nearest] == torch.arange(len(x))).nonzero()[:, 0]
        pairs = x[mutual].T @ y[nearest[mutual]] / len(mutual)  # (D, D); some pair is always mutual: the best of all
        most = torch.linalg.matrix_norm(pairs, ord=2)
        u, _, v = torch.linalg.svd(pairs + TOWARDS_IDENTITY * most * torch.eye(len(pairs), dtype=pairs.dtype))
        rotation = u @ v
    return csls(x @ rotation, y)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.double(), dim=-1)


def _whitened(x: Tensor) -> Tensor:
    """(N, D) without mean and covariance."""
    from sklearn.covariance import ledoit_wolf

    x = x.double() - x.double().mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.from_numpy(ledoit_wolf(x.numpy(), assume_centered=True)[0]))
    return x @ (vectors * values.clamp(min=1e-12).rsqrt()) @ vectors.T
