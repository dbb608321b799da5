"""A way back that was learned for one number of steps: where it stops, and what each step makes of the estimates.

(1)  x_{k+1} = keep_k x_k + sum_j w_kj x_0_hat_{k-j},     x_0_hat_k = x_0_hat(x_k, h_k)

h_k is the time that the network hears, near the stop t_k itself (Xia et al. 2308.12870 shift it; Tong et al. 2405.15506
learn the stops; Zhou et al., S4S 2502.17423, the weights). Every multistep sampler of ``adams.py`` is such a table;
``sfumato tune-sampler`` starts from one and makes its end come near that of many steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from sfumato.denoise import Model
from sfumato.dist import Rng
from sfumato.errors import UserError
from sfumato.rows import Estimate
from sfumato.sampler.base import Sampler
from sfumato.schedule import Instant

__all__ = ["Tuned"]


@dataclass(frozen=True)
class Tuned(Sampler):
    """Equation (1): one network call a step, for the stops that it was learned on alone.

    Attributes:
        stops: (n + 1) times that fall to 0.
        heard: (n) times h_k.
        keep: (n) factors of the state.
        weights: (n) rows of factors of the estimates, newest first.

    Raises:
        UserError: numbers that are no such table.
    """

    stops: tuple[float, ...]
    heard: tuple[float, ...]
    keep: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    order = 1
    source = "learned by tune-sampler"

    def __post_init__(self) -> None:
        n = len(self.heard)
        fits = n >= 1 and len(self.stops) == n + 1 and len(self.keep) == len(self.weights) == n
        numbers = [*self.stops, *self.heard, *self.keep, *(w for row in self.weights for w in row)]
        if not (fits and all(1 <= len(row) <= k + 1 for k, row in enumerate(self.weights))):
            raise UserError(f"a tuned sampler needs stops, times and weights for each of its steps, got {self}")
        if not (all(map(math.isfinite, numbers)) and all(0 < h <= 1 for h in self.heard)):
            raise UserError("a tuned sampler has a number that is not finite, or a time outside (0, 1]")

    def init(self, model: Model, x: Tensor, stops: Sequence[Instant]) -> tuple[int, tuple[Tensor, ...]]:
        if [stop.t for stop in stops] != list(self.stops):
            raise UserError(f"this sampler was tuned for its own {len(self.heard)} steps: leave --grid out")
        return 0, ()

    def step(
        self, model: Model, x: Tensor, t: Instant, s: Instant, memory: tuple[int, tuple[Tensor, ...]], rng: Rng
    ) -> tuple[Tensor, Estimate, tuple[int, tuple[Tensor, ...]]]:
        k, past = memory
        estimate = model(x, model.process.schedule.at(self.heard[k]))
        past = (estimate.x0, *past)[: max(map(len, self.weights))]
        x = self.keep[k] * x
        for weight, x0 in zip(self.weights[k], past, strict=False):
            x = x.add_(x0, alpha=weight)
        return x, estimate, (k + 1, past)

    def to_dict(self) -> dict[str, Any]:
        """Return a record for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> Tuned:
        """Return what ``to_dict`` made a record of.

        Raises:
            UserError: the record is damaged.
        """
        try:
            rows = tuple(tuple(map(float, row)) for row in record["weights"])
            stops, heard, keep = (tuple(map(float, record[name])) for name in ("stops", "heard", "keep"))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"a tuned sampler's record is damaged ({error!r}): tune it again") from error
        return Tuned(stops, heard, keep, rows)
