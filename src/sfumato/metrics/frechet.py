"""Frechet distance between two samples, as Gaussians in a feature space.

(1)  d^2 = |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))                 (Heusel et al. 1706.08500, eq. 6)

With S = V diag(e) V^T the trace of the root is that of the root of the symmetric S_1^(1/2) S_2 S_1^(1/2). On
features other than Inception's it is no FID and must not be called one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["frechet"]


def frechet(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Return d^2 of equation (1).

    Args:
        a: (n, d) features of one sample, n >= 2.
        b: (m, d) features of another, m >= 2.

    Raises:
        ValueError: fewer than two rows, or different numbers of features.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"need two samples of at least two rows and the same features, got {a.shape} and {b.shape}")
    a, b = a.astype(np.float64), b.astype(np.float64)
    s_a, s_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    values, vectors = np.linalg.eigh(s_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ s_b @ root).clip(0)).sum()
    distance = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s_a) + np.trace(s_b) - 2 * overlap
    return max(float(distance), 0.0)
