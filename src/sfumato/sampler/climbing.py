"""Ways back that climb: up in noise by q(x_t | x_s) and down again, with any sampler for the way down.

Fresh noise contracts the errors made before; a deterministic way down adds few of its own.

Restart climbs in one place; ``low`` and ``high`` are noise levels r = sigma/alpha. It pays above about 20 calls:

(1)  at the stop nearest to ``low``, add noise up to ``high``, and come down again; ``repeats`` times
                                                                    (Xu et al. 2306.14878, alg. 2)

RePaint knows a part of the data, where a mask is true, and goes over every step to let it meet the rest:

(2)  x_s <- x_s' ~ q(x_s | x_0) where the mask is true, after each step down to s; each step ``repeats`` times in all
                                                                    (Lugmayr et al. 2201.09865, alg. 1, jumps of 1)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.denoise import Model
from sfumato.dist import Rng
from sfumato.errors import UserError
from sfumato.rows import Estimate
from sfumato.sampler.base import Sampler
from sfumato.schedule import Instant

__all__ = ["RePaint", "Restart"]


class _Memory(NamedTuple):
    """What is left of the way, what the inner sampler remembers, and the estimate last made."""

    rest: Sequence[Instant]
    inner: Any
    estimate: Estimate | None


@dataclass(frozen=True)
class _Climbing(Sampler):
    """Another sampler on a path that climbs.

    Attributes:
        inner: the sampler for the way down.
    """

    inner: Sampler
    stochastic = True

    @property
    def order(self) -> int:  # type: ignore[override]
        """That of the inner sampler."""
        return self.inner.order

    @property
    def calls(self) -> int:  # type: ignore[override]
        """Network calls a step; the climbs add steps."""
        return self.inner.calls

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


@dataclass(frozen=True)
class Restart(_Climbing):
    """Another sampler that climbs in one place; equation (1).

    Attributes:
        low: noise level r from which to climb; the paper's t_min.
        high: noise level r up to which to climb; t_max.
        repeats: climbs, at least 1.

    Raises:
        UserError: not 0 < low < high, or repeats < 1.
    """

    low: float = 0.06
    high: float = 0.3
    repeats: int = 2
    source = "Xu et al. 2306.14878, alg. 2"

    def __post_init__(self) -> None:
        if not (0 < self.low < self.high and self.repeats >= 1):
            raise UserError(
                f"Restart needs 0 < low < high and repeats >= 1, got {self.low}, {self.high} and {self.repeats}"
            )

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


@dataclass(frozen=True)
class RePaint(_Climbing):
    """Another sampler that keeps what is known; equation (2).

    Attributes:
        known: (B, ...) data; where the mask is false they do not matter.
        mask: that broadcasts to them, true where they are known.
        repeats: of each step, at least 1.

    Raises:
        UserError: repeats < 1.
    """

    known: Tensor
    mask: Tensor
    repeats: int = 5
    source = "Lugmayr et al. 2201.09865, alg. 1"

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UserError(f"RePaint takes each step once or more often, got {self.repeats}")

    def path(self, stops: Sequence[Instant]) -> Sequence[Instant]:
        """Return the stops with every step but that to the end gone over again."""
        *steps, last = pairwise(stops)
        again = [stop for t, s in steps for stop in [s, *[t, s] * (self.repeats - 1)]]
        return [stops[0], *again, last[1]]

    def step(
        self, model: Model, x: Tensor, t: Instant, s: Instant, memory: _Memory, rng: Rng
    ) -> tuple[Tensor, Estimate, _Memory]:
        x, estimate, memory = super().step(model, x, t, s, memory, rng)
        if s.t < t.t:
            x = torch.where(self.mask, model.process.marginal(self.known, s).sample(rng), x)
        return x, estimate, memory


def _descent(stops: Sequence[Instant]) -> Sequence[Instant]:
    """Return the stops up to the next climb."""
    end = next((k for k in range(1, len(stops)) if stops[k].t > stops[k - 1].t), len(stops))
    return stops[:end]
