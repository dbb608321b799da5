"""From one model towards others: guidance without a classifier.

With estimates x_0 of a base and of models k of weights w_k, all of the same state,

(1)  x_0 = base + sum_k w_k (model_k - base)

and as all is linear the same holds for their scores: the score of base^(1 - sum w) prod_k p_k^(w_k).

    the base         the models
    no condition     one condition       classifier-free guidance           (Ho and Salimans 2207.12598, eq. 6)
    what to avoid    what is wanted      a negative prompt
    no condition     several conditions  composition                        (Liu et al. 2206.01714, eq. 11)
    a worse model    the model           autoguidance                       (Karras et al. 2406.02507, eq. 4)

One weight of 0 is the base and one of 1 the model, bit for bit, and what has no weight is not asked. Beyond an interval
of the noise sigma/alpha the models stand alone, by their share of the weights: guidance at high noise costs diversity,
and at low noise calls that change nothing (Kynkaanniemi et al. 2404.07724, eq. 5).

(2)  x_0 <- phi x_0 std(y)/std(x_0) + (1 - phi) x_0,    y = sum_k w_k model_k / sum_k w_k,  std over each example

keeps strong guidance from over-exposing pictures (Lin et al. 2305.08891, eq. 15 and 16).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.condition import Row, short
from sfumato.denoise import Model, cost, take
from sfumato.errors import UserError
from sfumato.process import Gaussian, spread
from sfumato.rows import Estimate
from sfumato.schedule import Instant, Number, Time

__all__ = ["Guidance", "Guided"]


@dataclass(frozen=True)
class Guidance:
    """How strongly samples are drawn towards what is asked for.

    Attributes:
        weight: 0 asks for nothing, 1 is the model as it was trained, more is more of what is asked for.
        interval: of the noise sigma/alpha, within which there is guidance; (0, inf) for all.
        rescale: phi of (2), in [0, 1].
        away: what to go away from, a class index or the words of a sentence; None for no condition.
        also: what is asked for beside, each with its weight: composition.
        worse: share of the run after which the model was what to go away from, asked for the same: autoguidance; 0 for
            no such.

    Raises:
        UserError: not 0 <= low < high, a rescale outside [0, 1], a weight that is no number, or both away and worse.
    """

    weight: float
    interval: tuple[float, float] = (0.0, math.inf)
    rescale: float = 0.0
    away: Row | None = None
    also: tuple[tuple[Row, float], ...] = ()
    worse: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low < high:
            raise UserError(f"an interval of the noise sigma/alpha is 0 <= low < high, got {low:g} and {high:g}")
        if not 0 <= self.rescale <= 1:
            raise UserError(f"rescale must be in [0, 1], got {self.rescale:g}")
        if self.away is not None and self.worse:
            raise UserError("guidance goes away from one thing: give either --away or --worse")
        for weight in (self.weight, *(weight for _, weight in self.also)):
            if not math.isfinite(weight):
                raise UserError(f"a guidance weight must be a number, got {weight}")

    def words(self) -> str:
        """Return it as part of the name of a folder."""
        low, high = self.interval
        parts = [f"w{self.weight:g}"]
        parts += [] if self.away is None else [f"away{short(self.away)}"]
        parts += [f"worse{self.worse:g}"] if self.worse else []
        parts += [f"and{short(cond)}w{weight:g}" for cond, weight in self.also]
        parts += [] if (low, high) == (0.0, math.inf) else [f"from{low:g}to{high:g}"]
        parts += [f"rescale{self.rescale:g}"] if self.rescale else []
        return "-".join(parts)


@dataclass(frozen=True)
class Guided:
    """A model guided from a base towards others; equations (1) and (2).

    Args:
        base: where guidance comes from.
        towards: models and their weights.
        interval: of the noise sigma/alpha, within which there is guidance.
        rescale: phi of (2).

    Raises:
        UserError: models of different processes.
    """

    base: Model
    towards: Sequence[tuple[Model, float]]
    interval: tuple[float, float] = (0.0, math.inf)
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if any(model.process != self.process for model, _ in self.towards):
            raise UserError("models of different processes see different states: guide by one of the same schedule")

    @property
    def process(self) -> Gaussian:
        """The forward process of all."""
        return self.base.process

    def __call__(self, x_t: Tensor, t: Time, s: Time | None = None) -> Estimate:
        """Estimate the data behind ``x_t`` (B, ...)."""
        now = self.process.schedule.at(t)
        asked = [(model(x_t, now), weight, share) for model, weight, share in self._asked(now)]
        if len(asked) == 1:
            return asked[0][0]
        guided = combined([(found, weight) for found, weight, _ in asked])
        if not self.rescale:
            return guided
        aim = combined([(found, share) for found, _, share in asked if share])
        ratio = deviation(aim.x0) / deviation(guided.x0)
        return told(guided, guided.x0 * (self.rescale * ratio + 1 - self.rescale))

    def cost(self, t: Time) -> int:
        """Return how many network calls an estimate at ``t`` takes."""
        return sum(cost(model, t) for model, *_ in self._asked(self.process.schedule.at(t)))

    def take(self, rows: Tensor) -> Guided:
        """Return the model for some rows of its batch."""
        towards = [(take(model, rows), weight) for model, weight in self.towards]
        return replace(self, base=take(self.base, rows), towards=towards)

    def _asked(self, now: Instant) -> Iterator[tuple[Model, Number, float]]:
        """Yield the models that have a weight, the base first, with it and their share where there is no guidance."""
        low, high = (math.log(end) if end else -math.inf for end in self.interval)
        noise = torch.as_tensor(-now.logsnr / 2, dtype=torch.float64)
        inside = (low <= noise) & (noise <= high)
        total = sum(weight for _, weight in self.towards)
        rows = [(self.base, 1 - total, 0.0)]
        rows += [(model, w, w / total if total else 1 / len(self.towards)) for model, w in self.towards]
        for model, within, beyond in rows:
            if inside.any() == inside.all():
                weight: Number = within if inside.all() else beyond
                asked = weight != 0
            else:
                weight, asked = torch.where(inside, within, beyond), True
            if asked:
                yield model, weight, beyond


def combined(parts: Sequence[tuple[Estimate, Number]]) -> Estimate:
    """Return the sum of estimates of one state, whose weights add up to 1.

    Where all networks answer by the same row of rows.py, their outputs are summed, in which nothing cancels.

    Args:
        parts: estimates and weights, one number or one for each example.
    """
    last = parts[-1][0]
    same = all(torch.equal(_number(one.a), _number(last.a)) and torch.equal(_number(one.b), _number(last.b))
               for one, _ in parts)  # fmt: skip
    if same:
        return replace(last, output=_sum([(one.output, weight) for one, weight in parts]))
    return told(last, _sum([(one.x0, weight) for one, weight in parts]))


def told(estimate: Estimate, x0: Tensor) -> Estimate:
    """Return an estimate that says other data behind the same state."""
    return replace(estimate, output=x0, a=1.0, b=0.0)


def deviation(x: Tensor) -> Tensor:
    """Return the standard deviation of each example, (B, 1, ...)."""
    found: Tensor = spread(x.flatten(1).std(1), x)
    return found


def _sum(parts: Sequence[tuple[Tensor, Number]]) -> Tensor:
    total: Tensor = sum(x * spread(weight, x) for x, weight in parts)
    return total


def _number(a: Number) -> Tensor:
    return torch.as_tensor(a, dtype=torch.float64)
