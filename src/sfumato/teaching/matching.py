"""Matching laws: what the student draws shall have the teacher's law, at every noise level. Notation of base.py.

With x = x_0_hat of the student, from noise alone, x_tau = alpha_tau x + sigma_tau eps at a random level, D the
teacher's estimate of the data in x_tau, and C that of a critic, a copy of the teacher that meanwhile learns to denoise
what the student draws:

(1)  loss = w [(D - C) . (D - x) - a |D - C|^2],   w = 1 / mean |D - x|           (Zhou et al. 2404.04057, eq. 23)

If C is right, C = E[x | x_tau], both terms have the mean |D - C|^2: the squared difference of the scores of the two
laws but for a factor, 0 where the laws are one. Gradients pass D and C on their way to x, but leave their weights
alone. So they miss how C would follow the student, and a of the second term, which is all that a student could gain
by deceiving C, comes off.

A student of several calls is taught one of its steps at a time, on what its own steps before have made: it learns from
the states that it will meet. Of the data only the labels are used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from sfumato.denoise import Denoiser, Given
from sfumato.dist import randn_like
from sfumato.sampler import Consistency, generate
from sfumato.schedule import Instant, Schedule
from sfumato.teaching.base import Method, Task, jumps, noisy

__all__ = ["Matching"]

START = 5.0  # noise, in units of the data's, that counts as pure: what the teacher makes of it is no mere mean
MIDDLE = 1.0  # noise at the last stop before 0, if there are several


@dataclass(frozen=True)
class Matching(Method):
    """Equation (1).

    Attributes:
        calls: steps of the student.
        a: of (1).
    """

    calls: int = 1
    a: float = 1.0
    gives = "end"
    critic = True
    pace = 0.3  # a critic that cannot follow lets the student fall apart

    def loss(self, student: Denoiser, teacher: Denoiser, task: Task) -> Tensor:
        x_0, cond, rng, t, _, critic = task
        assert critic is not None
        x = self._drawn(student, x_0, cond, rng)
        now = student.process.schedule.at(t)
        x_t = noisy(x, randn_like(x, rng), now)
        real, fake = teacher(x_t, now, cond).x0, _still(critic, x_t, now, cond)
        far, off = real - fake, real - x
        w = 1 / off.detach().abs().flatten(1).mean(1).clamp(min=1e-4)
        matching = w * (far * (off - self.a * far)).flatten(1).mean(1)
        return matching + critic.loss(x.detach(), cond, rng, t)

    def stops(self, schedule: Schedule, calls: int, sigma_data: float) -> Tensor:
        return jumps(schedule, calls, sigma_data, START, MIDDLE)

    def _drawn(self, student: Denoiser, like: Tensor, cond: Tensor | None, rng: torch.Generator) -> Tensor:
        """Return x_0_hat of one of the student's steps, chosen at random, of the shape of ``like``."""
        stops = self.stops(student.process.schedule, self.calls, student.sigma_data)
        k = int(torch.randint(0, self.calls, (), generator=rng))
        x = student.process.prior(like, float(stops[0])).sample(rng)
        if k:
            x = generate(Given(student, cond), Consistency(), x, stops[: k + 1], rng=rng)
        return student(x, student.process.schedule.at(stops[k].expand(len(x))), cond).x0


def _still(model: Denoiser, x_t: Tensor, now: Instant, cond: Tensor | None) -> Tensor:
    """Return x_0_hat of a model whose weights get no gradient from it."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    estimate: Tensor = functional_call(model, weights, (x_t, now, cond)).x0
    return estimate
