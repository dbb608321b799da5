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
from sfumato.schedule import Schedule

__all__ = ["ROWS", "Estimate", "Row", "input_scale", "row"]

Row = tuple[Tensor, Tensor]
"""(a, b) of equation (1), float64, of the shape of the times."""


def input_scale(schedule: Schedule, t: Tensor, sigma_data: float) -> Tensor:
    """Return the standard deviation of x_t, sqrt(alpha^2 sd^2 + sigma^2); EDM's 1/c_in.

    Args:
        schedule: of the process.
        t: times, float64.
        sigma_data: the data's standard deviation sd.
    """
    return (schedule.alpha(t).square() * sigma_data**2 + schedule.var(t)).sqrt()


def _edm(schedule: Schedule, t: Tensor, sigma_data: float) -> Row:
    r = input_scale(schedule, t, sigma_data)
    return schedule.sigma(t) / (sigma_data * r), -schedule.alpha(t) * sigma_data / r


ROWS: dict[str, Callable[[Schedule, Tensor, float], Row]] = {
    "x0": lambda schedule, t, sd: (torch.ones_like(t), torch.zeros_like(t)),
    "eps": lambda schedule, t, sd: (torch.zeros_like(t), torch.ones_like(t)),
    "score": lambda schedule, t, sd: (torch.zeros_like(t), -1 / schedule.sigma(t)),
    "v": lambda schedule, t, sd: (-schedule.sigma(t), schedule.alpha(t)),
    "flow": lambda schedule, t, sd: (schedule.d_alpha(t), schedule.d_sigma(t)),
    "edm": _edm,
}
"""The rows by name: (schedule, t, sigma_data) -> (a, b)."""


def row(name: str, schedule: Schedule, t: Tensor, sigma_data: float = 1.0) -> Row:
    """Return a row; equation (1).

    Args:
        name: a key of :data:`ROWS`.
        schedule: of the process.
        t: times, float64.
        sigma_data: the data's standard deviation, for "edm".

    Raises:
        UserError: an unknown name.
    """
    return choose("parameterisation", name, ROWS)(schedule, t, sigma_data)


@dataclass(frozen=True)
class Estimate:
    """What a network says about the data behind x_t, in whichever form is asked for; equation (2).

    Attributes:
        x_t: (B, ...) the noisy state.
        t: its time, float64, 0-dimensional or (B,).
        schedule: the process' schedule.
        output: (B, ...) what the network returned.
        a: row of the output, float64 of the shape of ``t``.
        b: row of the output.
        x0_var: Var(x_0 | x_t), if it is known: a number or a tensor that broadcasts to ``x_t``.
    """

    x_t: Tensor
    t: Tensor
    schedule: Schedule
    output: Tensor
    a: Tensor
    b: Tensor
    x0_var: Tensor | None = None

    @cached_property
    def x0(self) -> Tensor:
        """E[x_0 | x_t], (B, ...)."""
        alpha, sigma = self.schedule.alpha(self.t), self.schedule.sigma(self.t)
        return self._mix(sigma, -self.b, self.a * sigma - self.b * alpha)

    @cached_property
    def eps(self) -> Tensor:
        """E[eps | x_t], (B, ...); for t > 0."""
        alpha, sigma = self.schedule.alpha(self.t), self.schedule.sigma(self.t)
        return self._mix(-alpha, self.a, self.a * sigma - self.b * alpha)

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
        return spread(a, self.x_t) * self.x0 + spread(b, self.x_t) * self.eps

    def _mix(self, of_output: Tensor, of_x: Tensor, over: Tensor) -> Tensor:
        return spread(of_output / over, self.x_t) * self.output + spread(of_x / over, self.x_t) * self.x_t
