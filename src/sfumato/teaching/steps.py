"""Steps of the teacher's that the student does in one. Notation of base.py.

Progressive distillation: one DDIM step of the student is two of the teacher's, t to m to s, on a grid that halves.
(1)  x_0* = (x_s - (sigma_s/sigma_t) x_t) / (alpha_s - sigma_s alpha_t / sigma_t)    (Salimans, Ho 2202.00512, app. G)

Direct distillation: one step of the student is the teacher's own way between two stops of the student's, from t to s.
(2)  x_0* of (1), x_s where a few steps of DPM-Solver++ 3M lead        (Luhman and Luhman 2101.02388, for whole ways)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.condition import Condition
from sfumato.denoise import Denoiser, Given
from sfumato.dist import randn_like
from sfumato.grid import R_MAX, R_MIN, logsnr
from sfumato.process import spread
from sfumato.sampler import Adams, generate
from sfumato.sampler.base import first_order
from sfumato.schedule import Instant, Schedule
from sfumato.teaching.base import Method, Task, error_of, jumps, noisy, own_weight

__all__ = ["Direct", "Progressive", "between", "halved"]


@dataclass(frozen=True)
class Progressive(Method):
    """Equation (1).

    Attributes:
        calls: steps of the last grid.
        stages: how often the grid halves: the first teacher makes calls 2^stages steps.
    """

    calls: int = 4
    stages: int = 3
    gives = "step"

    def stops(self, schedule: Schedule, calls: int, sigma_data: float) -> Tensor:
        return halved(schedule, calls, self.stages)[:: 2**self.stages]

    def loss(self, student: Denoiser, teacher: Denoiser, task: Task) -> Tensor:
        x_0, cond, rng, t, done, *_ = task
        schedule = student.process.schedule
        steps = self.calls * 2 ** (self.stages - 1 - int(done * self.stages))
        stops = halved(schedule, self.calls, self.stages)[:: self.calls * 2**self.stages // (2 * steps)]
        k = 2 * torch.randint(0, steps, t.shape, generator=rng)
        begin, middle, end = (schedule.at(stops[k + i]) for i in range(3))
        x_t = noisy(x_0, randn_like(x_0, rng), begin)
        with torch.no_grad():
            x_m = first_order(teacher.process, teacher(x_t, begin, cond), begin, middle)
            x_s = first_order(teacher.process, teacher(x_m, middle, cond), middle, end)
        return _step_error(student, x_t, x_s, begin, end, cond)


@dataclass(frozen=True)
class Direct(Method):
    """Equation (2): each batch is taught one of the student's steps.

    Attributes:
        calls: steps of the student.
        within: steps of the teacher in each of them.
    """

    calls: int = 1
    within: int = 4
    gives = "step"

    def loss(self, student: Denoiser, teacher: Denoiser, task: Task) -> Tensor:
        x_0, cond, rng, t, *_ = task
        schedule = student.process.schedule
        stops = jumps(schedule, self.calls, student.sigma_data)
        k = int(torch.randint(0, self.calls, (), generator=rng))
        way = between(schedule, float(stops[k]), float(stops[k + 1]), self.within)
        begin, end = (schedule.at(torch.full_like(t, float(stops[i]))) for i in (k, k + 1))
        x_t = noisy(x_0, randn_like(x_0, rng), begin)
        with torch.no_grad():
            x_s = generate(Given(teacher, cond), Adams(3, 1), x_t, way)
        return _step_error(student, x_t, x_s, begin, end, cond)


def halved(schedule: Schedule, calls: int, stages: int) -> Tensor:
    """Return the first grid of progressive distillation; every 2^stages-th of its stops is the last.

    Args:
        schedule: of the process.
        calls: steps of the last.
        stages: how often it halves.
    """
    return logsnr(calls * 2**stages, schedule)


def between(schedule: Schedule, t: float, s: float, steps: int) -> Tensor:
    """Return stops from t to s, evenly spaced in logsnr; a step to 0 is from the usual lowest noise.

    Args:
        schedule: of the process.
        t: where the way begins.
        s: where it ends, before t.
        steps: of the way.
    """
    first, last = (min(-float(schedule.logsnr(at)) / 2, math.log(R_MAX)) if at else math.log(R_MIN) for at in (t, s))
    noise = torch.linspace(first, last, steps + (s > 0), dtype=torch.float64)
    stops = schedule.time(-2 * noise).clamp(max=1.0)
    stops[0] = t
    return torch.cat([stops, stops.new_zeros(1)]) if s == 0 else torch.cat([stops[:-1], stops.new_tensor([s])])


def _step_error(
    student: Denoiser, x_t: Tensor, x_s: Tensor, begin: Instant, end: Instant, cond: Condition | None
) -> Tensor:
    """Return the error, (B,), for a step that should lead from x_t to x_s; equation (1)."""
    keep, signal, _ = student.process.bridge(begin, end, eta=0.0)
    target = (x_s - spread(keep, x_t) * x_t) / spread(signal, x_t)
    return error_of(student(x_t, begin, cond), x_t, target, own_weight(student, begin))
