"""The numbers of exponential integrators: integrals of polynomials through estimates, against the ODE's own weight.

With lambda = log(alpha/sigma), from lambda_t to lambda_s = lambda_t + h, and noise tau (0: ODE, 1: SDE):

(1)  alpha_s m int_0^h e^(-m v) p(lambda_s - v) dv,   m = 1 + tau^2     what D = x_0_hat = p adds to x_s
(2)  sigma_s m int_0^h e^(-m v) p(lambda_s - v) dv,   m = -1            what E = eps_hat = p adds to x_s
                                       (Lu et al. 2211.01095, eq. 8; 2206.00927, eq. 3.4; Xue et al. 2309.05019, eq. 14)
(3)  p = sum_j l_j, Lagrange's polynomials of the places where estimates were made

Numbers are floats; where the stops themselves are learned they are tensors of no dimension, and so are the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import mul
from typing import Literal

import numpy as np
from torch import Tensor

from sfumato.schedule import Instant, Number

__all__ = ["Source", "Weights", "integral", "lagrange", "lam", "quadrature"]

Source = Literal["x0", "eps"]
"""What the polynomial runs through: equation (1) or (2)."""

Weights = tuple[float, ...]
"""The factor of each estimate in a step."""

_PLACES, _MASSES = (part.tolist() for part in np.polynomial.legendre.leggauss(24))  # on [-1, 1]


def lam(now: Instant) -> float:
    """Return lambda = log(alpha/sigma)."""
    return _number(now.logsnr) / 2


def lagrange(nodes: Sequence[float], place: float) -> list[float]:
    """Return the value of every Lagrange polynomial of the nodes at one place; equation (3)."""
    return [math.prod((place - b) / (a - b) for j, b in enumerate(nodes) if j != i) for i, a in enumerate(nodes)]


def quadrature(values: Callable[[float], Sequence[float]], h: float) -> Weights:
    """Return the integrals of some functions from 0 to h; exact to rounding for what is integrated here."""
    rows = [values(h * (1 + place) / 2) for place in _PLACES]
    add = sum if isinstance(h, Tensor) else math.fsum
    return tuple(h / 2 * add(map(mul, _MASSES, column)) for column in zip(*rows, strict=True))


def integral(
    values: Callable[[float], Sequence[float]], now: Instant, then: Instant, of: Source = "x0", tau: float = 0.0
) -> Weights:
    """Return equation (1) or (2) for some functions p of lambda.

    Args:
        values: their values at one lambda.
        now: where the step starts.
        then: where it ends.
        of: which of the two.
        tau: noise in [0, 1], for "x0".
    """
    scale, m = (_number(then.alpha), 1 + tau**2) if of == "x0" else (_number(then.sigma), -1.0)
    end = lam(then)
    return quadrature(lambda v: [scale * m * _exp(-m * v) * value for value in values(end - v)], end - lam(now))


def _number(value: Number) -> Number:
    return value if isinstance(value, Tensor) else float(value)


def _exp(power: Number) -> Number:
    return power.exp() if isinstance(power, Tensor) else math.exp(power)
