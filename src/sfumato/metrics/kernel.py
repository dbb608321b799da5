"""Kernel distance between two samples in a feature space: unbiased at any n, where a Frechet distance is not.

(1)  k(x, y) = (x . y / d + 1)^3                                              (Binkowski et al. 1801.01401, sec. 4)
(2)  MMD^2 = mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j)
                                                                              (Gretton et al., JMLR 13, 2012, eq. 3)

On features other than Inception's it is no KID. Being unbiased it may fall below 0 where the laws are the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from sfumato.metrics.bootstrap import Figure

__all__ = ["kernel_distance"]

BLOCKS = 10


def kernel_distance(a: NDArray[np.floating], b: NDArray[np.floating], blocks: int = BLOCKS) -> Figure:
    """Return the mean of equation (2) over disjoint blocks, with the 95% interval that their spread gives.

    Args:
        a: (n, d) features of one sample, in random order, n >= 2 blocks.
        b: (m, d) features of another, m >= 2 blocks.
        blocks: at least 2, independent of each other.

    Raises:
        ValueError: too few rows, or different numbers of features.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2 * blocks:
        raise ValueError(f"need {2 * blocks} rows or more of the same features in both, got {a.shape} and {b.shape}")
    parts = zip(np.array_split(a.astype(float), blocks), np.array_split(b.astype(float), blocks), strict=True)
    values = np.array([_mmd2(x, y) for x, y in parts])
    value, half = values.mean(), stdtrit(blocks - 1, 0.975) * values.std(ddof=1) / np.sqrt(blocks)
    return Figure(float(value), float(value - half), float(value + half))


def _mmd2(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    from sklearn.metrics.pairwise import polynomial_kernel  # here, since most trainings have no use for it

    def within(x: NDArray[np.float64]) -> float:
        k = polynomial_kernel(x, degree=3)
        return float((k.sum() - np.trace(k)) / (len(x) * (len(x) - 1)))

    return within(a) + within(b) - 2 * float(polynomial_kernel(a, b, degree=3).mean())
