"""Consistency tuning: what is seen a little nearer to the data, from the same x_0 and eps, ends at the same place.

Notation of base.py.

(1)  x_0* = x_0_hat(x_r, r);  x_0 where R_r = 0;   w = 1 / ((R_t - R_r) |x_0* - x_0_hat|), for a norm
(2)  R_r = R_t max(0, 1 - 2^-(k+1) (1 + 8 sigmoid(-R_t / 2 sigma_data))), k rises    (Geng et al. 2406.14548, sec. 4)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.denoise import Denoiser
from sfumato.dist import randn_like
from sfumato.process import spread
from sfumato.teaching.base import Method, Task, beginning, error_of, noisy, same_dropout, time_of

__all__ = ["ConsistencyTuning"]


@dataclass(frozen=True)
class ConsistencyTuning(Method):
    """Equations (1) and (2).

    Attributes:
        doublings: how often the distance between t and r is halved on the way.
        power: of its own error by which an example's loss is divided: 1/2 makes the loss a norm, for which many values
            in one example are needed, see ``sfumato.teaching.AlphaFlow``.
    """

    doublings: int = 8
    power: float = 0.5
    gives = "end"
    law = (-0.4, 2.0)  # Geng et al. 2406.14548, at sigma_data = 0.5

    def loss(self, student: Denoiser, teacher: Denoiser, task: Task) -> Tensor:
        x_0, cond, rng, t, done, *_ = task
        schedule, sd = student.process.schedule, student.sigma_data
        noise, now = beginning(schedule, t)
        share = 2.0 ** -(1 + int(done * self.doublings)) * (1 + 8 * torch.sigmoid(-noise / (2 * sd)))
        lower = noise * (1 - share).clamp(min=0)
        eps = randn_like(x_0, rng)
        with torch.no_grad(), same_dropout(x_0.device):
            r = schedule.at(time_of(schedule, lower))
            nearer = student(noisy(x_0, eps, r), r, cond).x0
        target = torch.where(spread(lower, x_0) > 0, nearer, x_0)
        x_t = noisy(x_0, eps, now)
        error = error_of(student(x_t, now, cond), x_t, target, torch.ones_like(noise))
        return error * (sd / (noise - lower)).to(error) / (error.detach() + 1e-8) ** self.power
