"""DPM-Solver++ in single steps: exponential Runge-Kutta methods, which need no past.

With lambda = log(alpha/sigma), D = x_0_hat and the exact integral (1) of weights.py with tau = 0:

(1)  2S   D at lambda_t + h/2 serves for the whole step                        (Lu et al. 2211.01095, alg. 1, r1 = 1/2)
(2)  3S   u1 at h/3 from D_0;  u2 at 2h/3 from the line through D_0, D_1;  the end from that through D_0, D_2
                                                                               (Lu et al. 2206.00927, alg. 2)

A step from alpha = 0 or to sigma = 0 is of first order, with one call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from sfumato.denoise import Model
from sfumato.dist import Rng
from sfumato.rows import Estimate
from sfumato.sampler.base import Sampler
from sfumato.sampler.weights import integral, lagrange, lam
from sfumato.schedule import Instant, Schedule

__all__ = ["DPMpp2S", "DPMpp3S"]


class _Stage(NamedTuple):
    """A way from the step's start: to ``at``, with x = keep x_t + sum weights * estimates of the stages."""

    at: Instant
    keep: float
    weights: dict[int, float]


class _Exponential(Sampler):
    """A table of stages: for each, the fraction of h where it lies and the stages whose line it integrates."""

    table: Sequence[tuple[float, tuple[int, ...]]]
    source = "Lu et al. 2211.01095, alg. 1"

    @property
    def calls(self) -> int:  # type: ignore[override]
        """Network calls a step."""
        return len(self.table)

    def init(self, model: Model, x: Tensor, stops: Sequence[Instant]) -> tuple[tuple[tuple[_Stage, ...], ...], int]:
        return _plan(type(self), model.process.schedule, tuple(stops)), 0

    def step(
        self, model: Model, x: Tensor, t: Instant, s: Instant, memory: tuple[Sequence[Sequence[_Stage]], int], rng: Rng
    ) -> tuple[Tensor, Estimate, tuple[Sequence[Sequence[_Stage]], int]]:
        plan, k = memory
        first = model(x, t)
        data = [first.x0]
        for j, stage in enumerate(plan[k]):
            u = x * stage.keep
            for i, weight in stage.weights.items():
                u.add_(data[i], alpha=weight)
            if j + 1 < len(plan[k]):
                data.append(model(u, stage.at).x0)
        return u, first, (plan, k + 1)


@lru_cache(maxsize=64)
def _plan(method: type[_Exponential], schedule: Schedule, stops: tuple[Instant, ...]) -> tuple[tuple[_Stage, ...], ...]:
    """Return the stages of every step, once for a grid."""
    return tuple(_stages(method, schedule, t, s) for t, s in pairwise(stops))


def _stages(method: type[_Exponential], schedule: Schedule, t: Instant, s: Instant) -> tuple[_Stage, ...]:
    if not (math.isfinite(t.logsnr) and math.isfinite(s.logsnr)):
        keep = s.sigma / t.sigma
        return (_Stage(s, keep, {0: s.alpha - keep * t.alpha}),)
    ends = [schedule.at(float(schedule.time(t.logsnr + c * (s.logsnr - t.logsnr)))) for c, _ in method.table[:-1]]
    stages, places = [], [lam(t)]
    for end, (_, nodes) in zip([*ends, s], method.table, strict=True):
        weights = integral(partial(lagrange, [places[j] for j in nodes]), t, end)
        stages.append(_Stage(end, end.sigma / t.sigma, dict(zip(nodes, weights, strict=True))))
        places.append(lam(end))
    return tuple(stages)


class DPMpp2S(_Exponential):
    """Two calls a step; equation (1)."""

    order = 2
    table = ((1 / 2, (0,)), (1.0, (1,)))


class DPMpp3S(_Exponential):
    """Three calls a step; equation (2)."""

    order = 3
    table = ((1 / 3, (0,)), (2 / 3, (0, 1)), (1.0, (0, 2)))
