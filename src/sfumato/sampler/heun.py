"""Heun's method for the probability-flow ODE, in the coordinates in which it has no linear part.

(1)  y = x/alpha,  r = sigma/alpha,   dy/dr = eps(x, t)                     (Karras et al. 2206.00364, eq. 3)
(2)  y' = y + (r' - r) eps(y, r)                                    Euler, the same as DDIM
     y* = y + (r' - r) (eps(y, r) + eps(y', r')) / 2                Heun (alg. 1)

The first and last step stay Euler where r is infinite (alpha = 0) or eps has no meaning (sigma = 0).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.denoise import Model
from sfumato.dist import Rng
from sfumato.process import spread
from sfumato.rows import Estimate

__all__ = ["Heun"]


@dataclass(frozen=True)
class Heun:
    """Two network calls a step, equation (2)."""

    order = 2
    stochastic = False

    def init(self, model: Model, x: Tensor, t: Tensor) -> None:
        """Remember nothing."""

    def step(
        self, model: Model, x: Tensor, t: Tensor, s: Tensor, memory: None, rng: Rng
    ) -> tuple[Tensor, Estimate, None]:
        """Go to ``s``; see ``Sampler.step``."""
        schedule = model.process.schedule
        first = model(x, t)
        euler = model.process.posterior(x, first.x0, t, s, eta=0.0).mean
        if schedule.sigma(s) == 0 or schedule.alpha(t) == 0:
            return euler, first, None
        second = model(euler, s)
        stride = schedule.sigma(s) - schedule.alpha(s) * schedule.sigma(t) / schedule.alpha(t)  # alpha_s (r' - r)
        return euler + spread(stride / 2, x) * (second.eps - first.eps), first, None
