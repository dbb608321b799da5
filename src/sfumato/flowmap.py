"""Teaching a network to jump, so that one call or a few do the work of many.

Every method is the loss of denoise.py with another target in the place of the data: with x_t = alpha_t x_0 +
sigma_t eps

(1)  w |x_0* - x_0_hat|^2,   x_0_hat the network's, for a step from t to s

and x_0* made by a network that is not trained meanwhile. R = sigma/alpha is the noise.

Consistency tuning: what is seen a little nearer to the data, from the same x_0 and eps, ends at the same place.
(2)  x_0* = x_0_hat(x_r, r);  x_0 where R_r = 0;   w = 1 / ((R_t - R_r) |x_0* - x_0_hat|), for a norm
     R_r = R_t max(0, 1 - 2^-(k+1) (1 + 8 sigmoid(-R_t / 2 sigma_data))), k rises    (Geng et al. 2406.14548, sec. 4)

Progressive distillation: one DDIM step of the student is two of the teacher's, t to m to s, on a grid that halves.
(3)  x_0* = (x_s - (sigma_s/sigma_t) x_t) / (alpha_s - sigma_s alpha_t / sigma_t)    (Salimans, Ho 2202.00512, app. G)

Direct distillation: one step of the student is the teacher's own way between two stops of the student's, from t to s.
(4)  x_0* of (3), x_s where a few steps of DPM-Solver++ 3M lead        (Luhman and Luhman 2101.02388, for whole ways)

Steps of any length: on z = x / (alpha + sigma), tau = sigma / (alpha + sigma), paths with given x_0 and eps are
straight, and a step from t to s is z_s = z_t + (tau_s - tau_t) u with u = eps_hat - x_0_hat. With v = eps - x_0:
(5)  AlphaFlow   u* = a v + (1 - a) u(z_r, r -> s),   z_r = z_t + (tau_r - tau_t) v,  tau_r = a tau_s + (1 - a) tau_t
                                                                                     (Zhang et al. 2510.20771, sec. 4)
(6)  MeanFlow    u* = v - (tau_t - tau_s) (v . d/dz + d/dtau_t) u(z_t, t -> s)       (Geng et al. 2505.13447, eq. 10)
     x_0* = z_t - tau_t u*

a = 1 is flow matching, a -> 0 is (6). Wherever s = t, both (5) and (6) say u* = v: the network keeps its mean.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.denoise import Denoiser, Given, squared_error
from sfumato.dist import randn_like
from sfumato.grid import R_MAX, R_MIN, logsnr
from sfumato.process import spread
from sfumato.rows import Estimate
from sfumato.sampler import Adams, generate
from sfumato.sampler.base import first_order
from sfumato.schedule import Instant, Schedule, as_time
from sfumato.weighting import weight

__all__ = [
    "METHODS", "AlphaFlow", "ConsistencyTuning", "Direct", "MeanFlow", "Method", "Progressive", "Task", "between",
    "halved", "jumps",
]  # fmt: skip

R_LEAST = 1e-4
MIDDLE = 1.6  # noise, in units of the data's, at which a student that has two calls stops on the way


class Task(NamedTuple):
    """What a step of a lesson is about.

    Attributes:
        x_0: (B, ...) data.
        cond: (B,) labels, if the networks take them.
        rng: CPU generator for the noise.
        t: (B,) times, drawn from the student's law.
        done: share of the training that is done, in [0, 1).
    """

    x_0: Tensor
    cond: Tensor | None
    rng: torch.Generator
    t: Tensor
    done: float


class Method(ABC):
    """A way to teach.

    Attributes:
        gives: what the student's estimate will stand for, a key of ``sfumato.denoise.GIVES``.
        stages: how often the teacher is replaced by the student's average on the way, and once more.
    """

    gives: str
    stages: int = 1

    @abstractmethod
    def loss(self, student: Denoiser, teacher: Denoiser, task: Task) -> Tensor:
        """Return the loss of each example, (B,).

        Args:
            student: what is trained.
            teacher: what is not: the run's own weights, or of a later stage the student's average.
            task: what the student learns from in this step.
        """


@dataclass(frozen=True)
class ConsistencyTuning(Method):
    """Equation (2).

    Attributes:
        doublings: how often the distance between t and r is halved on the way.
        power: of its own error by which an example's loss is divided: 1/2 makes the loss a norm, for which many values
            in one example are needed, see ``AlphaFlow``.
    """

    doublings: int = 8
    power: float = 0.5
    gives = "end"

    def loss(self, student: Denoiser, teacher: Denoiser, task: Task) -> Tensor:
        x_0, cond, rng, t, done = task
        schedule, sd = student.process.schedule, student.sigma_data
        noise, now = _begin(schedule, t)
        share = 2.0 ** -(1 + int(done * self.doublings)) * (1 + 8 * torch.sigmoid(-noise / (2 * sd)))
        lower = noise * (1 - share).clamp(min=0)
        eps = randn_like(x_0, rng)
        with torch.no_grad(), _same_dropout(x_0.device):
            r = schedule.at(_time(schedule, lower))
            nearer = student(_noisy(x_0, eps, r), r, cond).x0
        target = torch.where(spread(lower, x_0) > 0, nearer, x_0)
        x_t = _noisy(x_0, eps, now)
        error = _error(student(x_t, now, cond), x_t, target, torch.ones_like(noise))
        return error * (sd / (noise - lower)).to(error) / (error.detach() + 1e-8) ** self.power


@dataclass(frozen=True)
class Progressive(Method):
    """Equation (3).

    Attributes:
        calls: steps of the last grid.
        stages: how often the grid halves: the first teacher makes calls 2^stages steps.
    """

    calls: int = 4
    stages: int = 3
    gives = "step"

    def loss(self, student: Denoiser, teacher: Denoiser, task: Task) -> Tensor:
        x_0, cond, rng, t, done = task
        schedule = student.process.schedule
        steps = self.calls * 2 ** (self.stages - 1 - int(done * self.stages))
        stops = halved(schedule, self.calls, self.stages)[:: self.calls * 2**self.stages // (2 * steps)]
        k = 2 * torch.randint(0, steps, t.shape, generator=rng)
        begin, middle, end = (schedule.at(stops[k + i]) for i in range(3))
        x_t = _noisy(x_0, randn_like(x_0, rng), begin)
        with torch.no_grad():
            x_m = first_order(teacher.process, teacher(x_t, begin, cond), begin, middle)
            x_s = first_order(teacher.process, teacher(x_m, middle, cond), middle, end)
        return _step_error(student, x_t, x_s, begin, end, cond)


@dataclass(frozen=True)
class Direct(Method):
    """Equation (4): each batch is taught one of the student's steps.

    Attributes:
        calls: steps of the student.
        within: steps of the teacher in each of them.
    """

    calls: int = 1
    within: int = 4
    gives = "step"

    def loss(self, student: Denoiser, teacher: Denoiser, task: Task) -> Tensor:
        x_0, cond, rng, t, _ = task
        schedule = student.process.schedule
        stops = jumps(schedule, self.calls, student.sigma_data)
        k = int(torch.randint(0, self.calls, (), generator=rng))
        way = between(schedule, float(stops[k]), float(stops[k + 1]), self.within)
        begin, end = (schedule.at(torch.full_like(t, float(stops[i]))) for i in (k, k + 1))
        x_t = _noisy(x_0, randn_like(x_0, rng), begin)
        with torch.no_grad():
            x_s = generate(Given(teacher, cond), Adams(3, 1), x_t, way)
        return _step_error(student, x_t, x_s, begin, end, cond)


@dataclass(frozen=True)
class AlphaFlow(Method):
    """Equation (5), from flow matching to nearly the tangent.

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
        x_0, cond, rng, t, done = task
        a = max(self.least, 1 - done / self.warm)
        line = _Lines(student, x_0, randn_like(x_0, rng), t, self.still, rng)
        r = line.at(a * line.end + (1 - a) * line.begin)
        with torch.no_grad(), _same_dropout(x_0.device):
            ahead = _velocity(student(_noisy(x_0, line.eps, r), r, cond, line.s))
        return line.loss(student, a * line.v + (1 - a) * ahead, cond, self.power)


@dataclass(frozen=True)
class MeanFlow(Method):
    """Equation (6), by forward-mode differentiation, in float32 whatever the network's precision.

    Attributes:
        still: share of the examples with s = t.
        power: as for ``AlphaFlow``.
    """

    still: float = 0.25
    power: float = 0.75
    gives = "map"

    def loss(self, student: Denoiser, teacher: Denoiser, task: Task) -> Tensor:
        x_0, cond, rng, t, _ = task
        line = _Lines(student, x_0, randn_like(x_0, rng), t, self.still, rng)

        def u(z: Tensor, tau: Tensor) -> Tensor:
            here = line.at(tau)
            return _velocity(student(z * spread(here.alpha + here.sigma, z).to(z), here, cond, line.s))

        with torch.no_grad(), _same_dropout(x_0.device):
            z = line.x_t / spread(line.t.alpha + line.t.sigma, x_0)
            _, slope, *_ = torch.func.jvp(u, (z, line.begin), (line.v, torch.ones_like(line.begin)))
        return line.loss(student, line.v - spread(line.begin - line.end, x_0).to(x_0) * slope, cond, self.power)


METHODS: dict[str, Callable[[int], Method]] = {
    "consistency": lambda calls: ConsistencyTuning(),
    "direct": lambda calls: Direct(calls, within=max(4, 8 // calls)),
    "progressive": lambda calls: Progressive(calls),
    "alphaflow": lambda calls: AlphaFlow(),
    "meanflow": lambda calls: MeanFlow(),
}
"""The methods by name, for a number of calls that the student will be asked for."""


def halved(schedule: Schedule, calls: int, stages: int) -> Tensor:
    """Return the first grid of progressive distillation; every 2^stages-th of its stops is the last.

    Args:
        schedule: of the process.
        calls: steps of the last.
        stages: how often it halves.
    """
    return logsnr(calls * 2**stages, schedule)


def jumps(schedule: Schedule, calls: int, sigma_data: float) -> Tensor:
    """Return the stops of a student whose steps go from pure noise to the data, (calls + 1,) times from 1 to 0.

    Args:
        schedule: of the process.
        calls: steps.
        sigma_data: the data's standard deviation; the last stop before 0 has MIDDLE times as much noise.
    """
    highest = min(math.exp(-float(schedule.logsnr(1.0)) / 2), R_MAX)
    noise = torch.logspace(math.log10(highest), math.log10(MIDDLE * sigma_data), calls, dtype=torch.float64)
    stops = schedule.time(-2 * noise.log()).clamp(max=1.0)
    return torch.cat([stops, stops.new_zeros(1)])


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


class _Lines:
    """Straight lines through given data and noise, and a step on each from t to an earlier s; notation of (5).

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
        noise, self.t = _begin(self.schedule, t)
        self.begin = noise / (1 + noise)
        share = torch.rand(t.shape, generator=rng, dtype=torch.float64)
        kind = torch.rand(t.shape, generator=rng, dtype=torch.float64)
        end = torch.where(kind < still + self.HOME, 0.0, share * self.begin)
        self.end = torch.where(kind < still, self.begin, end)
        self.s = self.at(self.end)
        self.x_t = _noisy(x_0, eps, self.t)

    def at(self, tau: Tensor) -> Instant:
        """Return the time of sigma / (alpha + sigma) = tau."""
        return self.schedule.at(_time(self.schedule, tau / (1 - tau)))

    def loss(self, student: Denoiser, u: Tensor, cond: Tensor | None, power: float) -> Tensor:
        """Return the loss of each example, for the average velocity ``u`` it should have."""
        scale = spread(self.t.alpha + self.t.sigma, self.x_0).to(self.x_0)
        target = self.x_t / scale - spread(self.begin, self.x_0).to(self.x_0) * u
        error = _error(student(self.x_t, self.t, cond, self.s), self.x_t, target, _weight(student, self.t))
        return error / (error.detach() + 1e-3) ** power


def _velocity(estimate: Estimate) -> Tensor:
    return estimate.eps - estimate.x0


def _noisy(x_0: Tensor, eps: Tensor, now: Instant) -> Tensor:
    return spread(now.alpha, x_0) * x_0 + spread(now.sigma, x_0) * eps


def _begin(schedule: Schedule, t: Tensor) -> tuple[Tensor, Instant]:
    """Return R and times of steps that begin at t, or where R is R_MAX: a schedule's own end may be pure noise."""
    noise = (-schedule.logsnr(t) / 2).exp().clamp(max=R_MAX)
    return noise, schedule.at(_time(schedule, noise))


def _time(schedule: Schedule, noise: Tensor) -> Tensor:
    """Return the times of noise levels, at least the smallest that a network hears."""
    return schedule.time(-2 * noise.clamp(min=R_LEAST).log()).clamp(max=1.0)


def _error(estimate: Estimate, x_t: Tensor, target: Tensor, w: Tensor) -> Tensor:
    """Return the error of (1), (B,)."""
    eps = (x_t - spread(estimate.t.alpha, x_t) * target) / spread(estimate.t.sigma, x_t)
    return squared_error(estimate, target, eps, w)


def _step_error(
    student: Denoiser, x_t: Tensor, x_s: Tensor, begin: Instant, end: Instant, cond: Tensor | None
) -> Tensor:
    """Return the error of (1), (B,), for a step that should lead from x_t to x_s; equation (3)."""
    keep, signal, _ = student.process.bridge(begin, end, eta=0.0)
    target = (x_s - spread(keep, x_t) * x_t) / spread(signal, x_t)
    return _error(student(x_t, begin, cond), x_t, target, _weight(student, begin))


def _weight(student: Denoiser, now: Instant) -> Tensor:
    """Return w under which (1) is the plain error of the network's own output."""
    time = as_time(now)
    return weight(student.parameterisation, student.process.schedule, time, student.sigma_data, torch.ones_like(time))


@contextmanager
def _same_dropout(device: torch.device) -> Iterator[None]:
    """Leave the global random state as it was, so that the next call of a network drops the same activations."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
