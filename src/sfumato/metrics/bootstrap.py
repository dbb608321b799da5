"""How far a value would move if other examples had been drawn: 95% intervals by the bootstrap.

(1)  value + (q - mean over rounds), q the 2.5% and 97.5% quantiles of the value on examples drawn anew with replacement
                                                                                        (Efron, Ann. Statist. 7, 1979)

The quantiles are taken around their own mean, because a Frechet distance of examples that occur twice is larger: (1) is
the spread of the value at this n, not a statement on its bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Figure", "of_one", "of_two"]

ROUNDS = 1000
ROUNDS_OF_TWO = 50  # the quantiles then lie within about a tenth of the interval

Rows = NDArray[np.floating]


class Figure(NamedTuple):
    """A value with its 95% interval.

    Attributes:
        value: of the examples at hand.
        low: end of the interval.
        high: the other.
    """

    value: float
    low: float
    high: float


def of_one(values: Rows, seed: int, statistic: Callable[[Rows], np.floating] = np.mean) -> Figure:
    """Return a statistic of one number an example with its interval.

    Args:
        values: (n,).
        seed: of the draws.
        statistic: of (n,); by default the mean.
    """
    rng, values = np.random.default_rng(seed), np.asarray(values, np.float64)
    rounds = [float(statistic(values[rng.integers(len(values), size=len(values))])) for _ in range(ROUNDS)]
    return _figure(float(statistic(values)), np.array(rounds))


def of_two(a: Rows, b: Rows, seed: int, statistic: Callable[[Rows, Rows], float]) -> Figure:
    """Return a statistic of two samples with its interval, both drawn anew in every round.

    Args:
        a: (n, d) one sample.
        b: (m, d) the other.
        seed: of the draws.
        statistic: of both.
    """
    rng = np.random.default_rng(seed)
    rounds = [
        statistic(a[rng.integers(len(a), size=len(a))], b[rng.integers(len(b), size=len(b))])
        for _ in range(ROUNDS_OF_TWO)
    ]
    return _figure(statistic(a, b), np.array(rounds))


def _figure(value: float, rounds: NDArray[np.float64]) -> Figure:
    low, high = np.quantile(rounds, [0.025, 0.975]) - rounds.mean()
    return Figure(value, value + float(low), value + float(high))
