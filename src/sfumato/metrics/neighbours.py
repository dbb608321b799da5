"""Distances to the nearest training example: whether a model copies what it saw."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

__all__ = ["nearest_distances"]


def nearest_distances(samples: NDArray[np.floating], train: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return each sample's Euclidean distance to the nearest training example, (n,).

    Args:
        samples: (n, d).
        train: (m, d).
    """
    found: NDArray[np.float64] = NearestNeighbors(n_neighbors=1).fit(train).kneighbors(samples)[0][:, 0]
    return found
