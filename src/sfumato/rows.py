"""Parameterisations: what a network's output stands for, as one row (a, b).

(1)  output = a x_0 + b eps,   with   x_t = alpha x_0 + sigma eps
(2)  D = a sigma - b alpha,    x_0 = (sigma output - b x_t) / D,    eps = (a x_t - alpha output) / D

One 2x2 inverse (2) converts every row into every other. The rows, at one time t:

    x0     (1, 0)
    eps    (0, 1)                                Ho et al. 2006.11239
    score  (0, -1/sigma)                         grad log p_t(x_t) = -E[eps | x_t] / sigma (Vincent 2011)
    v      (-sigma, alpha)                       Salimans and Ho 2202.00512, sec. 4
    flow   (alpha', sigma')                      dx_t/dt given x_0 and eps; Lipman et al. 2210.02747
    edm    (sigma / (sd r), -alpha sd / r),      r^2 = alpha^2 sd^2 + sigma^2, sd = sigma_data
           the target of EDM's F, ((1 - c_skip alpha) / c_out, -c_skip sigma / c_out) with the zeros of c_out
           cancelled (Karras et al. 2206.00364, eq. 7 and app. B.6, for any alpha)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sfumato.errors import choose
from sfumato.process import spread
from sfumato.schedule import Instant, Number, Schedule, Time

__all__ = ["ROWS", "Estimate", "Row", "input_scale", "row"]

Row = tuple[Number, Number]
"""(a, b) of equation (1), of the shape of the times."""


def input_scale(schedule: Schedule, t: Time, sigma_data: float) -> Number:
    """Return the standard deviation of x_t, sqrt(alpha^2 sd^2 + sigma^2); EDM's 1/c_in.

    Args:
        schedule: of the process.
        t: time.
        sigma_data: the data's standard deviation sd.
    """
    return _spread_of(schedule.at(t), sigma_data)


def _spread_of(now: Instant, sigma_data: float) -> Number:
    root: Number = (now.alpha**2 * sigma_data**2 + now.sigma**2) ** 0.5
    return root


def _edm(schedule: Schedule, now: Instant, sigma_data: float) -> Row:
    r = _spread_of(now, sigma_data)
    return now.sigma / (sigma_data * r), -now.alpha * sigma_data / r


def _flow(schedule: Schedule, now: Instant, sigma_data: float) -> Row:
    a, b = schedule.d_alpha(now.t), schedule.d_sigma(now.t)
    return (a, b) if isinstance(now.t, Tensor) else (float(a), float(b))


ROWS: dict[str, Callable[[Schedule, Instant, float], Row]] = {
    "x0": lambda schedule, now, sd: (1.0, 0.0),
    "eps": lambda schedule, now, sd: (0.0, 1.0),
    "score": lambda schedule, now, sd: (0.0, -1 / now.sigma),
    "v": lambda schedule, now, sd: (-now.sigma, now.alpha),
    "flow": _flow,
    "edm": _edm,
}
"""The rows by name: (schedule, instant, sigma_data) -> (a, b)."""


def row(name: str, schedule: Schedule, t: Time, sigma_data: float = 1.0) -> Row:
    """Return a row; equation (1).

    Args:
        name: a key of :data:`ROWS`.
        schedule: of the process.
        t: time.
        sigma_data: the data's standard deviation, for "edm".

    Raises:
        UserError: an unknown name.
    """
    return choose("parameterisation", name, ROWS)(schedule, schedule.at(t), sigma_data)


@dataclass(eq=False)
class Estimate:
    """What a network says about the data behind x_t, in whichever form is asked for; equation (2).

    Attributes:
        x_t: (B, ...) the noisy state.
        t: its time.
        schedule: the process' schedule.
        output: (B, ...) what the network returned.
        a: row of the output, of the shape of the time.
        b: row of the output.
        variance: finds Var(x_0 | x_t), if it is known; asked only where it is wanted.
        fraction: (B, ...) where in [0, 1] the reverse step's log variance lies, if the network says so.
    """

    x_t: Tensor
    t: Instant
    schedule: Schedule
    output: Tensor
    a: Number
    b: Number
    variance: Callable[[Estimate], Tensor | None] | None = None
    fraction: Tensor | None = None

    @cached_property
    def x0(self) -> Tensor:
        """E[x_0 | x_t], (B, ...)."""
        return self.combine(0.0, 1.0)

    @cached_property
    def x0_var(self) -> Tensor | None:
        """Var(x_0 | x_t), if it is known, of a shape that broadcasts to ``x_t``."""
        return None if self.variance is None else self.variance(self)

    @cached_property
    def eps(self) -> Tensor:
        """E[eps | x_t], (B, ...); for t > 0."""
        return self._mix(-self.t.alpha / self._over, self.a / self._over)

    @cached_property
    def score(self) -> Tensor:
        """grad_x log p_t(x_t), (B, ...); for t > 0."""
        return self.read("score")

    @cached_property
    def velocity(self) -> Tensor:
        """dx/dt of the probability-flow ODE, alpha' x_0 + sigma' eps, (B, ...); for t > 0."""
        return self.read("flow")

    def read(self, name: str, sigma_data: float = 1.0) -> Tensor:
        """Return the estimate in another parameterisation, a' x_0 + b' eps.

        Args:
            name: a key of :data:`ROWS`.
            sigma_data: the data's standard deviation, for "edm".

        Raises:
            UserError: an unknown name.
        """
        a, b = row(name, self.schedule, self.t, sigma_data)
        return self.x0 * spread(a, self.x_t) + self.eps * spread(b, self.x_t)

    def combine(self, keep: Number, signal: Number) -> Tensor:
        """Return keep x_t + signal x0, (B, ...): a step's update in as many operations as x0 itself takes."""
        return self._mix(signal * self.t.sigma / self._over, keep - signal * self.b / self._over)

    @property
    def _over(self) -> Number:
        """D of equation (2)."""
        return self.a * self.t.sigma - self.b * self.t.alpha

    def _mix(self, of_output: Number, of_x: Number) -> Tensor:
        scaled = spread(of_x, self.x_t) * self.x_t
        if isinstance(of_output, Tensor):
            return scaled + spread(of_output, self.x_t) * self.output
        return torch.add(scaled, self.output, alpha=of_output)
