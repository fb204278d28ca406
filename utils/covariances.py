"""Means of covariance matrices."""

import numpy as np


def riemannian_means(covariances: np.ndarray, causal: bool) -> np.ndarray:
    """(N, C, C) positive definite → (1, C, C), their Riemannian mean; causal: (N, C, C), of each and those before it.

    A causal mean goes 1/n of the way to the n-th matrix (Zanini et al., IEEE Trans. Biomed. Eng. 65:1107, 2018).
    """
    # slow to import
    from pyriemann.geometry.geodesic import geodesic_riemann
    from pyriemann.geometry.mean import mean_riemann

    if not causal:
        return mean_riemann(covariances)[None]
    means = [covariances[0]]
    for n, covariance in enumerate(covariances[1:], start=2):
        means.append(geodesic_riemann(means[-1], covariance, 1 / n))
    return np.stack(means)
