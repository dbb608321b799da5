"""An adaptive Runge-Kutta method: every example takes the steps that it needs.

(1)  between two stops of the grid, equation (1) of density/flow.py by Dormand and Prince's method, see ode.py

The error is controlled for each example alone, so none depends on its neighbours. The grid's stops are kept: with
``steps = 2`` the grid has one between noise and data, and the method chooses all else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sfumato.denoise import Model
from sfumato.dist import Rng
from sfumato.errors import UserError
from sfumato.ode import solve
from sfumato.rows import Estimate
from sfumato.sampler.base import Sampler, first_order
from sfumato.schedule import Instant
from sfumato.score import circle

__all__ = ["Adaptive"]


@dataclass(frozen=True)
class Adaptive(Sampler):
    """At least six network calls a step; equation (1).

    Attributes:
        rtol: relative tolerance of each number of the state in each of the method's own steps, > 0.
        atol: absolute tolerance, for data of unit scale.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    order = 5
    calls = 6
    source = "Dormand and Prince 1980, table 2"

    def __post_init__(self) -> None:
        if not (self.rtol > 0 and self.atol > 0):
            raise UserError(f"tolerances must be above 0, got rtol = {self.rtol} and atol = {self.atol}")

    def step(
        self, model: Model, x: Tensor, t: Instant, s: Instant, memory: None, rng: Rng
    ) -> tuple[Tensor, Estimate, None]:
        first = model(x, t)
        if s.sigma == 0:
            return first_order(model.process, first, t, s), first, None
        start, end = (math.atan2(now.sigma, now.alpha) for now in (t, s))
        flow = circle(model, x.shape[1:])
        y = x.flatten(1) / math.hypot(t.alpha, t.sigma)
        way = solve(flow, y, start, end, rtol=self.rtol, atol=self.atol, first=abs(end - start))
        return math.hypot(s.alpha, s.sigma) * way.y.view_as(x), first, None
