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

At the end of the training data are asked after all, by rivalry.py: what the teacher does not know of them, and what (1)
forgives, shows there. A student of one call comes near enough to the data for that later than one of several: before,
rivalry lets recall fall (measured).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from sfumato.condition import Condition
from sfumato.denoise import Denoiser, Given
from sfumato.dist import randn_like
from sfumato.sampler import Consistency, generate
from sfumato.schedule import Schedule
from sfumato.teaching.base import Method, Task, jumps, noisy
from sfumato.teaching.rivalry import Rivalry

__all__ = ["Matching"]

START = 5.0  # noise, in units of the data's, that counts as pure: what the teacher makes of it is no mere mean
MIDDLE = 1.0  # noise at the last stop before 0, if there are several
NEAR = 2_000  # steps after which a student of one call is near enough to the data for a rival


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
    pace = 0.3  # a critic that cannot follow lets the student fall apart

    def loss(self, student: Denoiser, teacher: Denoiser, task: Task) -> Tensor:
        cond, rng, t, critic = task.cond, task.rng, task.t, cast(Denoiser, task.beside["critic"])
        x = self._own_step(student, task.x_0, cond, rng)
        now, eps = student.process.schedule.at(t), randn_like(x, rng)
        x_t = noisy(x, eps, now)
        state = x_t.detach().requires_grad_()
        said = critic(state, now, cond)  # once for both losses, of which each goes one way back through it
        real, fake = teacher(x_t, now, cond).x0, said.x0.detach().requires_grad_()
        far, off = real - fake, real - x
        w = 1 / off.detach().abs().flatten(1).mean(1).clamp(min=1e-4)
        matching = w * (far * (off - self.a * far)).flatten(1).mean(1)
        return matching + _through(said.x0, fake, matching, state, x_t) + critic.loss_of(said, x.detach(), eps, t)

    def beside(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {"critic": copy.deepcopy(teacher).requires_grad_(True)}

    def finish(self, stops: tuple[float, ...]) -> Method | None:
        return Rivalry(stops) if self.calls > 1 else Rivalry(stops, share=0.5, after=NEAR)

    def stops(self, schedule: Schedule, calls: int, sigma_data: float) -> Tensor:
        return jumps(schedule, calls, sigma_data, START, MIDDLE)

    def _usual(self, student: Denoiser) -> Tensor:
        return self.stops(student.process.schedule, self.calls, student.sigma_data)

    def _own_step(self, student: Denoiser, like: Tensor, cond: Condition | None, rng: torch.Generator) -> Tensor:
        """Return x_0_hat of one of the student's steps, chosen at random, of the shape of ``like``."""
        stops, k = self._usual(student), int(torch.randint(0, self.calls, (), generator=rng))
        x = student.process.prior(like, float(stops[0])).sample(rng)
        if k:
            x = generate(Given(student, cond), Consistency(), x, stops[: k + 1], rng=rng)
        return student(x, student.process.schedule.at(stops[k].expand(len(x))), cond).x0


def _through(output: Tensor, stand_in: Tensor, loss: Tensor, state: Tensor, x_t: Tensor) -> Tensor:
    """Return zeros, (B,), with the gradient at x_t that a loss has through a network whose weights shall have none.

    Args:
        output: (B, ...) the network's, of ``state``.
        stand_in: (B, ...) its values, of which the loss is made.
        loss: (B,) of the stand-in.
        state: (B, ...) the values of x_t.
        x_t: (B, ...) where the gradient goes.
    """
    (there,) = torch.autograd.grad(loss.sum(), stand_in, retain_graph=True)
    (here,) = torch.autograd.grad(output, state, there, retain_graph=True)
    return (here * (x_t - state.detach())).flatten(1).sum(1)
