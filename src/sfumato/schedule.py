"""Noise schedules: alpha(t) and sigma(t) of the forward process, with their derivatives.

Time runs from t = 0 (data) to t = 1 (noise).

(1)  x_t = alpha(t) x_0 + sigma(t) eps,     eps ~ N(0, 1)
(2)  logsnr(t) = 2 log(alpha(t) / sigma(t)),  strictly decreasing in t
(3)  dx = f(t) x dt + g(t) dw,    f = alpha'/alpha,    g^2 = (sigma^2)' - 2 f sigma^2
     has exactly the marginals (1)             (Song et al. 2011.13456, sec. 3; Kingma et al. 2107.00630, eq. 9)

A schedule is four functions of t: ``alpha``, ``var`` (= sigma^2) and their derivatives ``d_alpha`` and ``d_var``;
all else follows. They are computed in float64 and on the device of t, and cast by whoever uses them, because
1 - alpha^2 in float32 or bfloat16 loses the early steps altogether. ``time`` inverts logsnr in closed form.
An :class:`Instant` is a time with the schedule read at it: a loop over a grid reads it once, into plain numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sfumato.errors import UserError

__all__ = ["EDM", "SCHEDULES", "VE", "VP", "Cosine", "Flow", "Instant", "Number", "Schedule", "SubVP"]
__all__ += ["Table", "Time", "as_time"]

Number = Any
"""A coefficient: a float in a loop over a grid, a float64 tensor (B,) in training. The same arithmetic serves both."""


@dataclass(frozen=True, slots=True)
class Instant:
    """A time with the schedule read at it; made by :meth:`Schedule.at`.

    Attributes:
        t: the time.
        alpha: the signal's factor.
        sigma: the noise's standard deviation.
        logsnr: 2 log(alpha/sigma).
    """

    t: Number
    alpha: Number
    sigma: Number
    logsnr: Number

    @property
    def r(self) -> Number:
        """sigma/alpha, the noise level against the signal; inf where no signal is left."""
        return self.sigma / self.alpha if isinstance(self.alpha, Tensor) or self.alpha else math.inf


Time = float | Tensor | Instant
"""A time in [0, 1]: a number, a 0-dimensional tensor, one time for each example, (B,), or any of these read already."""


def as_time(t: Time) -> Tensor:
    """Return ``t`` as a float64 tensor."""
    return torch.as_tensor(t.t if isinstance(t, Instant) else t, dtype=torch.float64)


class Schedule(ABC):
    """alpha(t) and sigma(t) on [0, 1]; every method takes a :data:`Time` and returns float64 of its shape."""

    @abstractmethod
    def alpha(self, t: Time) -> Tensor:
        """Return the signal's factor, alpha(0) = 1."""

    @abstractmethod
    def var(self, t: Time) -> Tensor:
        """Return the noise variance sigma^2, var(0) = 0."""

    @abstractmethod
    def d_alpha(self, t: Time) -> Tensor:
        """Return d alpha / dt."""

    @abstractmethod
    def d_var(self, t: Time) -> Tensor:
        """Return d sigma^2 / dt."""

    @abstractmethod
    def time(self, logsnr: Time) -> Tensor:
        """Return the time at which logsnr is reached, the inverse of (2)."""

    def at(self, t: Time) -> Instant:
        """Return ``t`` with alpha, sigma and logsnr at it: numbers for a number, float64 tensors for a tensor."""
        if isinstance(t, Instant):
            return t
        if isinstance(t, Tensor):
            t = as_time(t)
            return Instant(t, self.alpha(t), self.sigma(t), self.logsnr(t))
        return self.instants(torch.tensor([t], dtype=torch.float64))[0]

    def instants(self, times: Tensor) -> list[Instant]:
        """Return every time of (n,) as an instant of plain numbers: the schedule is read once for all."""
        columns = (times, self.alpha(times), self.sigma(times), self.logsnr(times))
        return [Instant(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def sigma(self, t: Time) -> Tensor:
        """Return the noise's standard deviation."""
        return self.var(t).sqrt()

    def d_sigma(self, t: Time) -> Tensor:
        """Return d sigma / dt; infinite at 0 where sigma grows like sqrt(t)."""
        return self.d_var(t) / (2 * self.sigma(t))

    def logsnr(self, t: Time) -> Tensor:
        """Return 2 log(alpha/sigma): +inf at t = 0, -inf where alpha is 0."""
        return 2 * self.alpha(t).log() - self.var(t).log()

    def f(self, t: Time) -> Tensor:
        """Return the drift rate of equation (3)."""
        return self.d_alpha(t) / self.alpha(t)

    def g2(self, t: Time) -> Tensor:
        """Return the squared diffusion of equation (3)."""
        return self.d_var(t) - 2 * self.f(t) * self.var(t)


@dataclass(frozen=True)
class VP(Schedule):
    """Variance preserving with beta(t) linear in t: the limit of DDPM's chain (Song et al. 2011.13456, eq. 33).

    Attributes:
        beta_min: beta(0) > 0.
        beta_max: beta(1) >= beta_min. With 0.1 and 20, alpha(1) = 0.0066.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise UserError(f"VP needs 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")

    def _log_alpha(self, t: Time) -> Tensor:
        t = as_time(t)
        return -t * (self.beta_min / 2 + t * (self.beta_max - self.beta_min) / 4)

    def alpha(self, t: Time) -> Tensor:
        return self._log_alpha(t).exp()

    def var(self, t: Time) -> Tensor:
        return -torch.expm1(2 * self._log_alpha(t))

    def d_alpha(self, t: Time) -> Tensor:
        t = as_time(t)
        return -(self.beta_min + t * (self.beta_max - self.beta_min)) / 2 * self.alpha(t)

    def d_var(self, t: Time) -> Tensor:
        return -2 * self.alpha(t) * self.d_alpha(t)

    def time(self, logsnr: Time) -> Tensor:
        return self._time_of_log_alpha(-softplus(-as_time(logsnr)) / 2)

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        a, b = (self.beta_max - self.beta_min) / 4, self.beta_min / 2
        return -2 * log_alpha / (b + (b * b - 4 * a * log_alpha).sqrt())  # the root that does not cancel


@dataclass(frozen=True)
class SubVP(VP):
    """VP's alpha with the smaller noise sigma = 1 - alpha^2 (Song et al. 2011.13456, eq. 29)."""

    def sigma(self, t: Time) -> Tensor:
        return super().var(t)

    def var(self, t: Time) -> Tensor:
        return self.sigma(t).square()

    def d_sigma(self, t: Time) -> Tensor:
        return super().d_var(t)

    def d_var(self, t: Time) -> Tensor:
        return 2 * self.sigma(t) * self.d_sigma(t)

    def time(self, logsnr: Time) -> Tensor:
        ratio = (-as_time(logsnr) / 2).exp()  # (1 - alpha^2)/alpha, solved for alpha
        return self._time_of_log_alpha(-torch.asinh(ratio / 2))


@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha(t) = cos(angle(t)) / cos(angle(0)), variance preserving (Nichol and Dhariwal 2102.09672, eq. 17).

    The paper clips the last betas of its chain; here the angle stops at ``end`` of its way, the value of
    DPM-Solver (2206.00927, app. D.4), so that alpha(1) = 0.008 and no step divides by zero.

    Attributes:
        offset: s >= 0 of the paper.
        end: fraction in (0, 1) of the angle's way at which t = 1.
    """

    offset: float = 0.008
    end: float = 0.9946

    def __post_init__(self) -> None:
        if not (self.offset >= 0 and 0 < self.end < 1):
            raise UserError(f"Cosine needs offset >= 0 and 0 < end < 1, got {self.offset} and {self.end}")

    @property
    def _speed(self) -> float:
        return math.pi / 2 * self.end / (1 + self.offset)

    @property
    def _start(self) -> float:
        return math.pi / 2 * self.offset / (1 + self.offset)

    def alpha(self, t: Time) -> Tensor:
        return torch.cos(self._start + self._speed * as_time(t)) / math.cos(self._start)

    def var(self, t: Time) -> Tensor:
        turn = self._speed * as_time(t)  # cos^2 a - cos^2 b = sin(b - a) sin(b + a): exact near t = 0
        return torch.sin(turn) * torch.sin(2 * self._start + turn) / math.cos(self._start) ** 2

    def d_alpha(self, t: Time) -> Tensor:
        return -self._speed * torch.sin(self._start + self._speed * as_time(t)) / math.cos(self._start)

    def d_var(self, t: Time) -> Tensor:
        return -2 * self.alpha(t) * self.d_alpha(t)

    def time(self, logsnr: Time) -> Tensor:
        alpha = (as_time(logsnr).sigmoid()).sqrt()
        sigma = ((-as_time(logsnr)).sigmoid()).sqrt()
        cos_b = alpha * math.cos(self._start)
        sin_b = (math.sin(self._start) ** 2 + (sigma * math.cos(self._start)) ** 2).sqrt()
        return (torch.atan2(sin_b, cos_b) - self._start) / self._speed


@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding: alpha = 1, sigma^2 = sigma_min^2 (r^(2t) - 1), r = sigma_max/sigma_min.

    This is the law given clean data at t = 0 (Song et al. 2011.13456, app. C); their sigma(t) = sigma_min r^t
    starts from data already noised by sigma_min.

    Attributes:
        sigma_min: > 0, where the growth starts.
        sigma_max: > sigma_min; about the largest distance between two data points (2006.09011).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise UserError(f"VE needs 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    @property
    def _rate(self) -> float:
        return 2 * math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(as_time(t))

    def var(self, t: Time) -> Tensor:
        return self.sigma_min**2 * torch.expm1(self._rate * as_time(t))

    def d_alpha(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))

    def d_var(self, t: Time) -> Tensor:
        return self.sigma_min**2 * self._rate * torch.exp(self._rate * as_time(t))

    def time(self, logsnr: Time) -> Tensor:
        return torch.log1p((-as_time(logsnr)).exp() / self.sigma_min**2) / self._rate


@dataclass(frozen=True)
class EDM(Schedule):
    """alpha = 1, sigma = sigma_max t: noise itself is the clock (Karras et al. 2206.00364, table 1).

    Attributes:
        sigma_max: > 0, the noise at t = 1.
    """

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not self.sigma_max > 0:
            raise UserError(f"EDM needs sigma_max > 0, got {self.sigma_max}")

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(as_time(t))

    def sigma(self, t: Time) -> Tensor:
        return self.sigma_max * as_time(t)

    def var(self, t: Time) -> Tensor:
        return self.sigma(t).square()

    def d_alpha(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))

    def d_sigma(self, t: Time) -> Tensor:
        return torch.full_like(as_time(t), self.sigma_max)

    def d_var(self, t: Time) -> Tensor:
        return 2 * self.sigma_max * self.sigma(t)

    def time(self, logsnr: Time) -> Tensor:
        return (-as_time(logsnr) / 2).exp() / self.sigma_max


@dataclass(frozen=True)
class Flow(Schedule):
    """alpha = 1 - t, sigma = t: straight lines from data to noise (Liu et al. 2209.03003, Lipman et al. 2210.02747).

    At t = 1 no signal is left (alpha = 0), so a network that predicts noise cannot be read there.
    """

    def alpha(self, t: Time) -> Tensor:
        return 1 - as_time(t)

    def sigma(self, t: Time) -> Tensor:
        return as_time(t).clone()

    def var(self, t: Time) -> Tensor:
        return as_time(t).square()

    def d_alpha(self, t: Time) -> Tensor:
        return torch.full_like(as_time(t), -1.0)

    def d_sigma(self, t: Time) -> Tensor:
        return torch.ones_like(as_time(t))

    def d_var(self, t: Time) -> Tensor:
        return 2 * as_time(t)

    def time(self, logsnr: Time) -> Tensor:
        return (-as_time(logsnr) / 2).sigmoid()


def _ddpm_betas() -> tuple[float, ...]:
    return tuple(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist())


@dataclass(frozen=True)
class Table(Schedule):
    """A chain given by its betas, read at t = k/T; between two steps beta(t) is constant.

    alpha(k/T)^2 = prod_{j<=k} (1 - beta_j) (Ho et al. 2006.11239, eq. 4). The default is that paper's table,
    1e-4 to 0.02 in 1,000 steps.

    Attributes:
        betas: T >= 1 numbers in (0, 1).
    """

    betas: Sequence[float] = field(default_factory=_ddpm_betas, repr=False)

    def __post_init__(self) -> None:
        if len(self.betas) == 0 or not all(0 < beta < 1 for beta in self.betas):
            raise UserError("a table of betas needs at least one number, each between 0 and 1 (exclusive)")
        steps = torch.log1p(-torch.tensor(self.betas, dtype=torch.float64)) / 2
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "_steps", steps)
        object.__setattr__(self, "_knots", torch.cat([steps.new_zeros(1), steps.cumsum(0)]))

    _steps: Tensor = field(init=False, repr=False, compare=False)  # log alpha_k - log alpha_{k-1}
    _knots: Tensor = field(init=False, repr=False, compare=False)  # log alpha at k/T

    def _cell(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the index of the step that holds ``t`` and the place in it, in [0, 1]."""
        place = t * len(self.betas)
        near = place.round()  # k/T * T may miss the whole number k by a rounding error
        place = torch.where((place - near).abs() < 1e-9, near, place)
        cell = place.floor().long().clamp(0, len(self.betas) - 1)
        return cell, place - cell

    def _log_alpha(self, t: Time) -> Tensor:
        cell, place = self._cell(as_time(t))
        return self._knots.to(place.device)[cell] + place * self._steps.to(place.device)[cell]

    def alpha(self, t: Time) -> Tensor:
        return self._log_alpha(t).exp()

    def var(self, t: Time) -> Tensor:
        return -torch.expm1(2 * self._log_alpha(t))

    def d_alpha(self, t: Time) -> Tensor:
        cell, _ = self._cell(as_time(t))
        return len(self.betas) * self._steps.to(cell.device)[cell] * self.alpha(t)

    def d_var(self, t: Time) -> Tensor:
        return -2 * self.alpha(t) * self.d_alpha(t)

    def time(self, logsnr: Time) -> Tensor:
        log_alpha = -softplus(-as_time(logsnr)) / 2
        knots, steps = self._knots.to(log_alpha.device), self._steps.to(log_alpha.device)
        cell = (torch.searchsorted(-knots, -log_alpha, right=True) - 1).clamp(0, len(self.betas) - 1)
        return (cell + (log_alpha - knots[cell]) / steps[cell]) / len(self.betas)


SCHEDULES: dict[str, type[Schedule]] = {
    "vp": VP,
    "cosine": Cosine,
    "subvp": SubVP,
    "ve": VE,
    "edm": EDM,
    "flow": Flow,
    "table": Table,
}
"""The schedules by the names used on the command line and in config.toml."""
