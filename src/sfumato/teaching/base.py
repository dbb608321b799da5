"""What every way to teach shares: the loss, what it is about, and where steps begin.

Every method is the loss of denoise.py with another target in the place of the data: with x_t = alpha_t x_0 +
sigma_t eps

(1)  w |x_0* - x_0_hat|^2,   x_0_hat the network's, for a step from t to s

and x_0* made by networks that are not trained by it. R = sigma/alpha is the noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sfumato.condition import Condition
from sfumato.denoise import Denoiser, squared_error
from sfumato.grid import R_MAX
from sfumato.process import spread
from sfumato.rows import Estimate
from sfumato.schedule import Instant, Schedule, as_time
from sfumato.weighting import weight

__all__ = [
    "Method", "Task", "beginning", "error_of", "jumps", "noisy", "own_weight", "same_dropout", "still", "time_of",
]  # fmt: skip

R_LEAST = 1e-4


class Task(NamedTuple):
    """What a step of a lesson is about.

    Attributes:
        x_0: (B, ...) data.
        cond: of each example, if the networks hear any.
        rng: CPU generator for the noise.
        t: (B,) times, drawn from the student's law.
        done: share of the training that is done, in [0, 1).
        beside: what learns beside the student, by name; see ``Method.beside``.
        step: its number, from 0, since the method began.
    """

    x_0: Tensor
    cond: Condition | None
    rng: torch.Generator
    t: Tensor
    done: float
    beside: Mapping[str, nn.Module] = MappingProxyType({})
    step: int = 0


class Method(ABC):
    """A way to teach.

    Attributes:
        gives: what the student's estimate will stand for, a key of ``sfumato.denoise.GIVES``.
        stages: how often the teacher is replaced by the student's average on the way, and once more.
        law: mean and standard deviation of the log of the noise, in units of the data's, at which the student is
            taught; None for the teacher's.
        pace: of the student, as a share of the learning rate.
        pace_beside: of what learns beside it.
        momentum: whether the optimiser may keep a momentum of gradients.
        lead: steps with which it begins, and that are quicker than the others.
        share: of the training, at its end, that it has where it finishes what another began.
        after: steps that the other must have done by then.
        ema: horizon of the student's average, as a share of what it is taught; None for the teacher's.
        contrast: whether the variance of its samples is brought to the data's at the end; contrast.py.
    """

    gives: str
    stages: int = 1
    law: tuple[float, float] | None = None
    pace: float = 1.0
    pace_beside: float = 1.0
    momentum: bool = True
    lead: int = 0
    share: float = 1.0
    after: int = 0
    ema: float | None = None
    contrast: bool = False

    @abstractmethod
    def loss(self, student: Denoiser, teacher: Denoiser, task: Task) -> Tensor:
        """Return the loss of each example, (B,).

        Args:
            student: what is trained.
            teacher: what is not: the run's own weights, or of a later stage the student's average.
            task: what the student learns from in this step.
        """

    def beside(self, teacher: Denoiser) -> dict[str, nn.Module]:
        """Return the networks that learn beside the student, by name: usually none.

        Args:
            teacher: as the lesson begins.
        """
        return {}

    def finish(self, stops: tuple[float, ...]) -> Method | None:
        """Return the method that has its share of the training at the end, if it is not this one.

        It begins with the student's average, and its own average begins with it.

        Args:
            stops: times of the student's usual way back.
        """
        return None

    def stops(self, schedule: Schedule, calls: int, sigma_data: float) -> Tensor:
        """Return the times of the student's usual way back, (calls + 1,) that fall to 0.

        Args:
            schedule: of the process.
            calls: steps.
            sigma_data: the data's standard deviation.
        """
        return jumps(schedule, calls, sigma_data)


def jumps(schedule: Schedule, calls: int, sigma_data: float, first: float = math.inf, middle: float = 1.6) -> Tensor:
    """Return times evenly spaced in log noise, and 0: (calls + 1,).

    Args:
        schedule: of the process.
        calls: steps.
        sigma_data: the data's standard deviation, the unit of noise here.
        first: noise where the way starts; by default that of t = 1, or R_MAX if that is more.
        middle: noise of the last stop before 0, if there are several.
    """
    highest = min(math.exp(-float(schedule.logsnr(1.0)) / 2), R_MAX, first * sigma_data)
    noise = torch.logspace(math.log10(highest), math.log10(middle * sigma_data), calls, dtype=torch.float64)
    stops = schedule.time(-2 * noise.log()).clamp(max=1.0)
    return torch.cat([stops, stops.new_zeros(1)])


def noisy(x_0: Tensor, eps: Tensor, now: Instant) -> Tensor:
    """Return x_t of data and noise, (B, ...).

    Args:
        x_0: (B, ...) data.
        eps: (B, ...) noise.
        now: (B,) times.
    """
    return spread(now.alpha, x_0) * x_0 + spread(now.sigma, x_0) * eps


def beginning(schedule: Schedule, t: Tensor) -> tuple[Tensor, Instant]:
    """Return R and times of steps that begin at t, or where R is R_MAX: a schedule's own end may be pure noise.

    Args:
        schedule: of the process.
        t: (B,) times.
    """
    noise = (-schedule.logsnr(t) / 2).exp().clamp(max=R_MAX)
    return noise, schedule.at(time_of(schedule, noise))


def time_of(schedule: Schedule, noise: Tensor) -> Tensor:
    """Return the times of noise levels, at least the smallest that a network hears.

    Args:
        schedule: of the process.
        noise: (B,) levels R.
    """
    return schedule.time(-2 * noise.clamp(min=R_LEAST).log()).clamp(max=1.0)


def error_of(estimate: Estimate, x_t: Tensor, target: Tensor, w: Tensor) -> Tensor:
    """Return the error of (1), (B,).

    Args:
        estimate: the student's.
        x_t: (B, ...) state.
        target: (B, ...) x_0*.
        w: (B,) weights.
    """
    eps = (x_t - spread(estimate.t.alpha, x_t) * target) / spread(estimate.t.sigma, x_t)
    return squared_error(estimate, target, eps, w)


def own_weight(student: Denoiser, now: Instant) -> Tensor:
    """Return w under which (1) is the plain error of the network's own output.

    Args:
        student: whose network.
        now: (B,) times.
    """
    time = as_time(now)
    return weight(student.parameterisation, student.process.schedule, time, student.sigma_data, torch.ones_like(time))


def still(model: nn.Module, *inputs: Any) -> Any:
    """Return what a model says of inputs, so that its weights get no gradient from it."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return functional_call(model, weights, inputs)


@contextmanager
def same_dropout(device: torch.device) -> Iterator[None]:
    """Leave the global random state as it was, so that the next call of a network drops the same activations.

    Args:
        device: of the network.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
