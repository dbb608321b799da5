"""What nearest neighbours tell: are samples real (precision, density), is all that is real there (recall, coverage),
and are they copies.

With R real and G drawn, and r(z) the distance of z to its k-th neighbour in its own set:

(1)  precision = share of g within r(x) of some x in R            (Kynkaanniemi et al. 1904.06991, eq. 1-2)
(2)  recall    = share of x within r(g) of some g in G
(3)  density   = mean over g of |{x: |g - x| <= r(x)}| / k         (Naeem et al. 2002.09797, eq. 4); may pass 1
(4)  coverage  = share of x with some g within r(x)                (eq. 5)

k = 5, as in Naeem's code, for all four. They depend on n and m, so they are read beside the same numbers of real data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

__all__ = ["Manifolds", "manifolds", "nearest", "recalled"]

K = 5
Rows = NDArray[np.floating]


@dataclass(frozen=True)
class Manifolds:
    """Equations (1) to (4) before their means are taken.

    Attributes:
        precision: (n,) of each drawn example, 0 or 1.
        density: (n,) of each drawn example.
        recall: (m,) of each real example, 0 or 1.
        coverage: (m,) of each real example, 0 or 1.
    """

    precision: NDArray[np.float64]
    density: NDArray[np.float64]
    recall: NDArray[np.float64]
    coverage: NDArray[np.float64]


def manifolds(drawn: Rows, real: Rows, k: int = K) -> Manifolds:
    """Return what equations (1) to (4) are the means of.

    Args:
        drawn: (n, d) features, n > k.
        real: (m, d) features, m > k.
        k: which neighbour makes the radius.

    Raises:
        ValueError: too few rows, or different numbers of features.
    """
    if drawn.ndim != 2 or real.ndim != 2 or drawn.shape[1] != real.shape[1] or min(len(drawn), len(real)) <= k:
        raise ValueError(f"need more than {k} rows of the same features in both, got {drawn.shape} and {real.shape}")
    around, density, nearest = _radii(real, k), [], np.full(len(real), np.inf)
    for distance in pairwise_distances_chunked(drawn, real):
        density.append((distance <= around).sum(1))
        nearest = np.minimum(nearest, distance.min(0))
    inside = np.concatenate(density)
    return Manifolds(
        (inside > 0).astype(float), inside / k, recalled(drawn, real, k), (nearest <= around).astype(float)
    )


def recalled(drawn: Rows, real: Rows, k: int = K) -> NDArray[np.float64]:
    """Return what equation (2) is the mean of, (m,) of 0 and 1: it asks for no neighbours among the real.

    Args:
        drawn: as for :func:`manifolds`.
        real: as for :func:`manifolds`.
        k: as for :func:`manifolds`.
    """
    around, found, first = _radii(drawn, k), np.zeros(len(real), bool), 0
    for distance in pairwise_distances_chunked(drawn, real):
        found |= (distance <= around[first : first + len(distance), None]).any(0)
        first += len(distance)
    return found.astype(float)


def _radii(rows: Rows, k: int) -> NDArray[np.float64]:
    """Return each row's distance to its k-th neighbour among the others."""
    found: NDArray[np.float64] = NearestNeighbors(n_neighbors=k).fit(rows).kneighbors()[0][:, -1]
    return found


def nearest(samples: Rows, train: Rows) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return each sample's Euclidean distance to the nearest training example, (n,), and which that is, (n,).

    Args:
        samples: (n, d).
        train: (m, d).
    """
    distances, indices = NearestNeighbors(n_neighbors=1).fit(train).kneighbors(samples)
    return distances[:, 0], indices[:, 0]
