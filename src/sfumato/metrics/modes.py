"""How many of the modes of a known mixture samples reach, and how well they keep to them.

A count of modes alone flatters: a cloud that covers everything finds all of them. So beside it stand the share of
samples that lie in some mode and, with an extra bin for those that lie in none, the divergence of their histogram from
the true one (Srivastava et al. 1705.07761; Lin et al. 1712.04086 for the sets in the plane)

(1)  KL = sum_k q_k log(q_k / p_k),    q samples, p the mixture: (share_k on, 1 - on)

which is finite because p_k > 0 in every bin: a Gaussian in the plane has exp(-RADIUS^2 / 2) beyond RADIUS deviations.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import gammaincc, rel_entr

from sfumato.errors import UserError

__all__ = ["RADIUS", "Modes", "modes_of_labels", "modes_of_points", "sliced_wasserstein"]

RADIUS = 3.0
"""Standard deviations from a centre within which a point is of its mode."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Modes(NamedTuple):
    """What samples make of modes.

    Attributes:
        found: modes with at least one sample.
        of: modes in all.
        on: share of the samples that are of a mode.
        kl: of (1), in nats.
    """

    found: int
    of: int
    on: float
    kl: float


def modes_of_points(points: Floats, centres: Floats, spread: float) -> Modes:
    """Return what points make of equally likely Gaussians.

    Args:
        points: (n, d).
        centres: (k, d).
        spread: standard deviation of each Gaussian, the same in every direction.

    Raises:
        UserError: there are no points.
    """
    if not len(points):
        raise UserError("modes are found by samples, and there are none")
    distance, nearest = cKDTree(centres).query(points)
    inside = distance <= RADIUS * spread
    beyond = float(gammaincc(centres.shape[1] / 2, RADIUS**2 / 2))  # of a chi-squared variable
    truth = np.array([*np.full(len(centres), (1 - beyond) / len(centres)), beyond])
    return _modes(np.where(inside, nearest, len(centres)), truth)


def modes_of_labels(labels: Ints, count: int) -> Modes:
    """Return what samples make of equally likely modes that a classifier told apart: each is of one.

    Args:
        labels: (n,) in [0, count).
        count: modes.

    Raises:
        UserError: there are no labels.
    """
    if not len(labels):
        raise UserError("modes are found by samples, and there are none")
    return _modes(labels, np.array([*np.full(count, 1 / count), 0.0]))


def _modes(bins: Ints, truth: Floats) -> Modes:
    """Return the modes of samples by bin, the last for those of none."""
    share = np.bincount(bins, minlength=len(truth)) / len(bins)
    kl = float(rel_entr(share, truth).sum())
    return Modes(int((share[:-1] > 0).sum()), len(truth) - 1, float(1 - share[-1]), kl)


def sliced_wasserstein(a: Floats, b: Floats, directions: int = 200, seed: int = 0) -> float:
    """Return the sliced 2-Wasserstein distance of two sets of points (Bonneel et al. 2015), as a length.

    Args:
        a: (n, d).
        b: (n, d), as many.
        directions: onto which both are projected.
        seed: of the directions.

    Raises:
        UserError: the sets differ in size or are empty.
    """
    if a.shape != b.shape or not len(a):
        raise UserError(f"sliced Wasserstein compares as many points with as many, got {a.shape} and {b.shape}")
    to = np.random.default_rng(seed).standard_normal((a.shape[1], directions))
    to /= np.linalg.norm(to, axis=0)
    gaps = np.sort(a @ to, axis=0) - np.sort(b @ to, axis=0)
    return math.sqrt(float(np.mean(gaps**2)))
