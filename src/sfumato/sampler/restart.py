"""Restart: go back up in noise and down again, a few times, with any sampler for the way down.

(1)  at the stop nearest to ``low``, add noise up to ``high`` by q(x_t | x_s), and come down again; ``repeats`` times
                                                                    (Xu et al. 2306.14878, alg. 2)

Fresh noise contracts the errors made before; the deterministic way down adds few of its own. It pays above about 20
calls. ``low`` and ``high`` are noise levels r = sigma/alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from sfumato.denoise import Model
from sfumato.dist import Rng
from sfumato.errors import UserError
from sfumato.rows import Estimate
from sfumato.sampler.base import Sampler
from sfumato.schedule import Instant

__all__ = ["Restart"]


class _Memory(NamedTuple):
    """What is left of the way, what the inner sampler remembers, and the estimate last made."""

    rest: Sequence[Instant]
    inner: Any
    estimate: Estimate | None


@dataclass(frozen=True)
class Restart(Sampler):
    """Another sampler on a path that climbs; equation (1).

    Attributes:
        inner: the sampler for the way down.
        low: noise level r from which to climb; the paper's t_min.
        high: noise level r up to which to climb; t_max.
        repeats: climbs, at least 1.

    Raises:
        UserError: not 0 < low < high, or repeats < 1.
    """

    inner: Sampler
    low: float = 0.06
    high: float = 0.3
    repeats: int = 2
    stochastic = True
    source = "Xu et al. 2306.14878, alg. 2"

    def __post_init__(self) -> None:
        if not (0 < self.low < self.high and self.repeats >= 1):
            raise UserError(
                f"Restart needs 0 < low < high and repeats >= 1, got {self.low}, {self.high} and {self.repeats}"
            )

    @property
    def order(self) -> int:  # type: ignore[override]
        """That of the inner sampler."""
        return self.inner.order

    @property
    def calls(self) -> int:  # type: ignore[override]
        """Network calls a step; the climbs add steps."""
        return self.inner.calls

    def path(self, stops: Sequence[Instant]) -> Sequence[Instant]:
        """Return the stops with the climbs put in: each goes over the stops between high and low again."""
        distance = [abs(math.log(s.r / self.low)) if 0 < s.r < math.inf else math.inf for s in stops]
        bottom = distance.index(min(distance))
        again = [s for s in stops[: bottom + 1] if s.r <= self.high * (1 + 1e-9)]
        if len(again) < 2:
            raise UserError(
                f"the grid has no two stops in [{self.low:g}, {self.high:g}] to restart in: take more steps"
            )
        return [*stops[: bottom + 1], *again * self.repeats, *stops[bottom + 1 :]]

    def init(self, model: Model, x: Tensor, stops: Sequence[Instant]) -> _Memory:
        return _Memory(stops, self.inner.init(model, x, _descent(stops)), None)

    def step(
        self, model: Model, x: Tensor, t: Instant, s: Instant, memory: _Memory, rng: Rng
    ) -> tuple[Tensor, Estimate, _Memory]:
        rest, inner, estimate = memory
        if s.t > t.t:
            assert estimate is not None  # a path begins with a descent
            x = model.process.transition(x, t, s).sample(rng)
            return x, estimate, _Memory(rest[1:], self.inner.init(model, x, _descent(rest[1:])), estimate)
        x, estimate, inner = self.inner.step(model, x, t, s, inner, rng)
        return x, estimate, _Memory(rest[1:], inner, estimate)


def _descent(stops: Sequence[Instant]) -> Sequence[Instant]:
    """Return the stops up to the next climb."""
    end = next((k for k in range(1, len(stops)) if stops[k].t > stops[k - 1].t), len(stops))
    return stops[:end]
