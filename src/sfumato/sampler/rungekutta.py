"""Runge-Kutta methods for the probability-flow ODE in the coordinates in which it has no linear part, with churn.

(1)  y = x/alpha,  r = sigma/alpha,   dy/dr = eps(x, t)                     (Karras et al. 2206.00364, eq. 3)
(2)  Euler   y' = y + (r' - r) eps(y, r)                                    the same as DDIM
     Heun    y' = y + (r' - r) (eps(y, r) + eps(y*, r')) / 2,  y* by Euler to r'                      (alg. 1)
     DPM-2   y' = y + (r' - r) eps(y*, r*),  y* by Euler to r* = sqrt(r r')          (Lu et al. 2206.00927, alg. 1)
(3)  churn: before a step, noise is added up to r^ = r (1 + g), and the step goes on from there          (alg. 2)
     y^ = y + swell sqrt(r^^2 - r^2) z,   g = min(churn / steps, sqrt(2) - 1),   where low <= r <= high

(3) happens before the network is asked: a scheduler that sees its output only comes too late for that. Steps stay Euler
where r is infinite (alpha = 0) or eps has no meaning (sigma = 0).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from sfumato.denoise import Model
from sfumato.dist import Rng, randn_like
from sfumato.errors import UserError
from sfumato.process import Gaussian
from sfumato.rows import Estimate
from sfumato.sampler.base import Sampler, first_order
from sfumato.schedule import Instant, Schedule

__all__ = ["DPM2", "Euler", "Heun", "RungeKutta"]

MOST = math.sqrt(2) - 1
"""Highest g, at which each step first doubles the noise's variance (Karras et al. 2206.00364, alg. 2)."""


@dataclass(frozen=True)
class RungeKutta(Sampler):
    """A step of equation (2) after the churn of (3).

    Attributes:
        churn: relative growth of the noise level on the whole way, at least 0; EDM's S_churn.
        low: lowest r that is churned, EDM's S_tmin.
        high: highest r that is churned, EDM's S_tmax.
        swell: factor of the churn's noise, EDM's S_noise.

    Raises:
        UserError: a churn below 0.
    """

    churn: float = 0.0
    low: float = 0.0
    high: float = math.inf
    swell: float = 1.0

    def __post_init__(self) -> None:
        if not self.churn >= 0:
            raise UserError(f"churn must be at least 0, got {self.churn}")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether steps draw noise."""
        return self.churn > 0

    def init(self, model: Model, x: Tensor, stops: Sequence[Instant]) -> float:
        """Return g of equation (3)."""
        return min(self.churn / (len(stops) - 1), MOST)

    def step(
        self, model: Model, x: Tensor, t: Instant, s: Instant, memory: float, rng: Rng
    ) -> tuple[Tensor, Estimate, float]:
        if memory and self.low <= t.r <= self.high:
            x, t = self._churned(model.process, x, t, memory, rng)
        first = model(x, t)
        if t.alpha == 0 or s.sigma == 0:
            return first_order(model.process, first, t, s), first, memory
        return self.advance(model, x, first, t, s), first, memory

    @abstractmethod
    def advance(self, model: Model, x: Tensor, first: Estimate, t: Instant, s: Instant) -> Tensor:
        """Return the state at ``s``; equation (2).

        Args:
            model: what estimates the data.
            x: (B, ...) state.
            first: the estimate at it.
            t: its time.
            s: where to go.
        """

    def _churned(self, process: Gaussian, x: Tensor, t: Instant, g: float, rng: Rng) -> tuple[Tensor, Instant]:
        """Return a noisier state and its time; equation (3). There is no time after 1."""
        later = process.schedule.at(min(float(process.schedule.time(t.logsnr - 2 * math.log1p(g))), 1.0))
        if not later.t > t.t:
            return x, t
        grown = later.alpha * math.sqrt(max(later.r**2 - t.r**2, 0.0))
        return (later.alpha / t.alpha * x).add_(randn_like(x, rng), alpha=self.swell * grown), later


class Euler(RungeKutta):
    """Euler's method: one call a step."""

    order = 1
    source = "Karras et al. 2206.00364, alg. 2"

    def advance(self, model: Model, x: Tensor, first: Estimate, t: Instant, s: Instant) -> Tensor:
        return first_order(model.process, first, t, s)


class Heun(RungeKutta):
    """Heun's method: two calls a step, one in the last."""

    order = 2
    calls = 2
    source = "Karras et al. 2206.00364, alg. 1 and 2"

    def advance(self, model: Model, x: Tensor, first: Estimate, t: Instant, s: Instant) -> Tensor:
        x = first_order(model.process, first, t, s)
        second = model(x, s)
        return x.add(second.eps - first.eps, alpha=s.alpha * (s.r - t.r) / 2)


class DPM2(RungeKutta):
    """The midpoint method with its midpoint at the geometric mean of the noise levels: two calls a step."""

    order = 2
    calls = 2
    source = "Lu et al. 2206.00927, alg. 1"

    def advance(self, model: Model, x: Tensor, first: Estimate, t: Instant, s: Instant) -> Tensor:
        middle = _middle(model.process.schedule, t, s)
        second = model(first_order(model.process, first, t, middle), middle)
        return (x * (s.alpha / t.alpha)).add_(second.eps, alpha=s.alpha * (s.r - t.r))


@lru_cache(maxsize=1024)
def _middle(schedule: Schedule, t: Instant, s: Instant) -> Instant:
    """Return the time whose noise level is the geometric mean of two, read once for a grid."""
    return schedule.at(float(schedule.time((t.logsnr + s.logsnr) / 2)))
