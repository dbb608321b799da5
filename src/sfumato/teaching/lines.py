"""Steps of any length, learnt from the data alone. Notation of base.py.

On z = x / (alpha + sigma), tau = sigma / (alpha + sigma), paths with given x_0 and eps are straight, and a step from t
to s is z_s = z_t + (tau_s - tau_t) u with u = eps_hat - x_0_hat. With v = eps - x_0:

(1)  AlphaFlow   u* = a v + (1 - a) u(z_r, r -> s),   z_r = z_t + (tau_r - tau_t) v,  tau_r = a tau_s + (1 - a) tau_t
                                                                                     (Zhang et al. 2510.20771, sec. 4)
(2)  MeanFlow    u* = v - (tau_t - tau_s) (v . d/dz + d/dtau_t) u(z_t, t -> s)       (Geng et al. 2505.13447, eq. 10)
     x_0* = z_t - tau_t u*

a = 1 is flow matching, a -> 0 is (2). Wherever s = t, both (1) and (2) say u* = v: the network keeps its mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.condition import Condition
from sfumato.denoise import Denoiser
from sfumato.dist import randn_like
from sfumato.process import spread
from sfumato.rows import Estimate
from sfumato.schedule import Instant
from sfumato.teaching.base import Method, Task, beginning, error_of, noisy, own_weight, same_dropout, time_of

__all__ = ["AlphaFlow", "MeanFlow"]


@dataclass(frozen=True)
class AlphaFlow(Method):
    """Equation (1), from flow matching to nearly the tangent.

    Attributes:
        least: the lowest a.
        warm: share of the training after which a is as low.
        still: share of the examples with s = t.
        power: of its own error by which an example's loss is divided (Geng et al. 2505.13447, sec. 4.3). Above 0 it
            takes the mean for something nearer to the median, which for many values in one example is the same.
    """

    least: float = 0.05
    warm: float = 0.7
    still: float = 0.25
    power: float = 0.75
    gives = "map"

    def loss(self, student: Denoiser, teacher: Denoiser, task: Task) -> Tensor:
        x_0, cond, rng, t, done, *_ = task
        a = max(self.least, 1 - done / self.warm)
        line = Lines(student, x_0, randn_like(x_0, rng), t, self.still, rng)
        r = line.at(a * line.end + (1 - a) * line.begin)
        with torch.no_grad(), same_dropout(x_0.device):
            ahead = velocity(student(noisy(x_0, line.eps, r), r, cond, line.s))
        return line.loss(student, a * line.v + (1 - a) * ahead, cond, self.power)


@dataclass(frozen=True)
class MeanFlow(Method):
    """Equation (2), by forward-mode differentiation, in float32 whatever the network's precision.

    Attributes:
        still: share of the examples with s = t.
        power: as for ``AlphaFlow``.
    """

    still: float = 0.25
    power: float = 0.75
    gives = "map"

    def loss(self, student: Denoiser, teacher: Denoiser, task: Task) -> Tensor:
        x_0, cond, rng, t, *_ = task
        line = Lines(student, x_0, randn_like(x_0, rng), t, self.still, rng)

        def u(z: Tensor, tau: Tensor) -> Tensor:
            here = line.at(tau)
            return velocity(student(z * spread(here.alpha + here.sigma, z).to(z), here, cond, line.s))

        with torch.no_grad(), same_dropout(x_0.device):
            z = line.x_t / spread(line.t.alpha + line.t.sigma, x_0)
            _, slope, *_ = torch.func.jvp(u, (z, line.begin), (line.v, torch.ones_like(line.begin)))
        return line.loss(student, line.v - spread(line.begin - line.end, x_0).to(x_0) * slope, cond, self.power)


class Lines:
    """Straight lines through given data and noise, and a step on each from t to an earlier s; notation of (1).

    Args:
        student: whose process it is.
        x_0: (B, ...) data.
        eps: (B, ...) noise.
        t: (B,) where the steps begin.
        still: share of them that have no length.
        rng: for their ends: HOME of them at the data, the others with tau_s uniform in (0, tau_t).
    """

    HOME = 0.35

    def __init__(
        self, student: Denoiser, x_0: Tensor, eps: Tensor, t: Tensor, still: float, rng: torch.Generator
    ) -> None:
        self.schedule, self.x_0, self.eps, self.v = student.process.schedule, x_0, eps, eps - x_0
        noise, self.t = beginning(self.schedule, t)
        self.begin = noise / (1 + noise)
        share = torch.rand(t.shape, generator=rng, dtype=torch.float64)
        kind = torch.rand(t.shape, generator=rng, dtype=torch.float64)
        end = torch.where(kind < still + self.HOME, 0.0, share * self.begin)
        self.end = torch.where(kind < still, self.begin, end)
        self.s = self.at(self.end)
        self.x_t = noisy(x_0, eps, self.t)

    def at(self, tau: Tensor) -> Instant:
        """Return the time of sigma / (alpha + sigma) = tau."""
        return self.schedule.at(time_of(self.schedule, tau / (1 - tau)))

    def loss(self, student: Denoiser, u: Tensor, cond: Condition | None, power: float) -> Tensor:
        """Return the loss of each example, for the average velocity ``u`` it should have."""
        scale = spread(self.t.alpha + self.t.sigma, self.x_0).to(self.x_0)
        target = self.x_t / scale - spread(self.begin, self.x_0).to(self.x_0) * u
        error = error_of(student(self.x_t, self.t, cond, self.s), self.x_t, target, own_weight(student, self.t))
        return error / (error.detach() + 1e-3) ** power


def velocity(estimate: Estimate) -> Tensor:
    return estimate.eps - estimate.x0
