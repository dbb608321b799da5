"""Langevin dynamics: sampling from the score alone.

(1)  x <- x + delta score(x) + sqrt(2 delta) z                      keeps p up to O(delta)   (Welling and Teh 2011)
(2)  annealed: at each stop, x is brought to the stop's scale and (1) is done a few times at its noise level with
     delta = size sigma_t^2                                                          (Song and Ermon 1907.05600, alg. 1)
(3)  predictor-corrector: a step of any sampler, then (1) at the level it came to   (Song et al. 2011.13456, alg. 1)

delta is a number for the whole batch that does not depend on the states, so an example never depends on its neighbours.
Both end on the estimate of the data: at sigma = 0 there is no score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sfumato.denoise import Model
from sfumato.dist import Rng, randn_like
from sfumato.errors import UserError
from sfumato.rows import Estimate
from sfumato.sampler.base import Sampler, first_order
from sfumato.schedule import Instant

__all__ = ["AnnealedLangevin", "PredictorCorrector", "langevin"]


def langevin(
    score: Callable[[Tensor], Tensor], x: Tensor, delta: float, steps: int, rng: Rng = None
) -> Iterator[Tensor]:
    """Yield the states of ``steps`` Langevin steps; equation (1).

    Args:
        score: of the law to sample, (B, ...) -> (B, ...).
        x: (B, ...) where to start.
        delta: size of a step, > 0: small against the square of the narrowest width of the law.
        steps: how many.
        rng: where the noise comes from.

    Raises:
        UserError: delta <= 0.
    """
    if not delta > 0:
        raise UserError(f"a Langevin step needs delta > 0, got {delta}")
    for _ in range(steps):
        x = _moved(x, score(x), delta, rng)
        yield x


def _moved(x: Tensor, score: Tensor, delta: float, rng: Rng) -> Tensor:
    """Return the state after one step; equation (1)."""
    return x.add(score, alpha=delta).add_(randn_like(x, rng), alpha=math.sqrt(2 * delta))


@dataclass(frozen=True)
class _Corrected(Sampler):
    """Langevin steps at one noise level.

    Attributes:
        size: of a step against the noise's variance, in (0, 1].
        repeats: Langevin steps at each stop, at least 1.
    """

    size: float = 0.1
    repeats: int = 1
    order = 1
    stochastic = True

    def __post_init__(self) -> None:
        if not (0 < self.size <= 1 and self.repeats >= 1):
            raise UserError(f"Langevin needs 0 < size <= 1 and repeats >= 1, got {self.size} and {self.repeats}")

    def _corrected(self, model: Model, x: Tensor, s: Instant, estimate: Estimate, rng: Rng) -> tuple[Tensor, Estimate]:
        """Return the state after the steps at ``s``, and the last estimate: the one given, at sigma = 0."""
        for _ in range(self.repeats if s.sigma else 0):
            estimate = model(x, s)
            x = _moved(x, estimate.score, self.size * s.sigma**2, rng)
        return x, estimate


@dataclass(frozen=True)
class AnnealedLangevin(_Corrected):
    """Langevin steps at falling noise levels; equation (2).

    The steps of a stop must bring the law down by as much as the noise falls: sizes times repeats of about 1.
    """

    size: float = 0.2
    repeats: int = 5
    source = "Song and Ermon 1907.05600, alg. 1"

    @property
    def calls(self) -> int:  # type: ignore[override]
        """Network calls a step."""
        return self.repeats

    def step(
        self, model: Model, x: Tensor, t: Instant, s: Instant, memory: Estimate | None, rng: Rng
    ) -> tuple[Tensor, Estimate, Estimate]:
        if memory is None or s.sigma == 0:  # the first step may start where no signal is left; the last has no score
            memory = model(x, t)
            x = first_order(model.process, memory, t, s)
        else:
            x = s.alpha / t.alpha * x
        x, memory = self._corrected(model, x, s, memory, rng)
        return x, memory, memory


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(_Corrected):
    """A step of another sampler, then Langevin steps; equation (3).

    Attributes:
        predictor: the other sampler.
    """

    predictor: Sampler
    source = "Song et al. 2011.13456, alg. 1"

    @property
    def calls(self) -> int:  # type: ignore[override]
        """Network calls a step."""
        return self.predictor.calls + self.repeats

    def path(self, stops: Sequence[Instant]) -> Sequence[Instant]:
        return self.predictor.path(stops)

    def init(self, model: Model, x: Tensor, stops: Sequence[Instant]) -> Any:
        return self.predictor.init(model, x, stops)

    def step(
        self, model: Model, x: Tensor, t: Instant, s: Instant, memory: Any, rng: Rng
    ) -> tuple[Tensor, Estimate, Any]:
        x, estimate, memory = self.predictor.step(model, x, t, s, memory, rng)
        return *self._corrected(model, x, s, estimate, rng), memory
