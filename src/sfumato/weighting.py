"""What training looks at: how often each noise level is drawn, and how much its error counts.

A weight w(t) multiplies the squared error of x_0, whatever the network predicts:

(1)  loss = E_t E_eps  w(t) |x_0 - x_0_hat(x_t, t)|^2

(2)  named after a row (a, b):  w = (D / sigma)^2, D = a sigma - b alpha: the plain error of that row's output,
     so "eps" is DDPM's simple loss (w = snr), "v" is snr + 1, "edm" is 1/c_out^2
(3)  elbo      w = 1/2 snr (-dl/dt) / p(t),  l = logsnr: the likelihood bound (Kingma et al. 2107.00630, eq. 18)
(4)  sigmoid   (3) times sigmoid(b - l), b = 2                            (Kingma and Gao 2303.00848; 2410.19324)
(5)  min-snr   w = min(snr, 5)                                            (Hang et al. 2303.09556, eq. 8)
(6)  p2        w = snr / (1 + snr)                                        (Choi et al. 2204.00227, eq. 8, k = gamma = 1)

(8) learned   loss = w err / e^u(l) + u(l), w of the network's own row, u trained with the network
                                                                          (Karras et al. 2312.02696, eq. 14-15)

At the optimum of (8) e^u = E[w err] at that level, so every level pulls alike; the loss is then 1 + E log(w err), which
may be negative and says less than the error itself.

p(t) is the density from which the times are drawn, so the expectation of (3) and (4) does not depend on it. Their
variance does. Data of standard deviation sd are no harder to denoise than a Gaussian, |x_0 - x_0_hat|^2 <= sd^2 /
(1 + snr sd^2), so under this bound (3) is the same number at every draw from

(9)  p(l) ~ sigmoid(l + 2 log sd),   int p ~ softplus(l + 2 log sd)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from sfumato.errors import UserError, choose
from sfumato.rows import ROWS, row
from sfumato.schedule import Schedule, as_time

__all__ = ["WEIGHTINGS", "Law", "Likelihood", "LogNormal", "Uncertainty", "Uniform", "weight"]


class Law(Protocol):
    """How often each time is drawn in training."""

    def times(self, n: int, schedule: Schedule, sigma_data: float, rng: torch.Generator | None) -> Tensor:
        """Draw times in (0, 1], float64, stratified: one in each n-th part of the law.

        Args:
            n: how many.
            schedule: of the process.
            sigma_data: the data's standard deviation.
            rng: CPU generator.
        """

    def density(self, t: Tensor, schedule: Schedule, sigma_data: float) -> Tensor:
        """Return p(t).

        Args:
            t: times in (0, 1), float64.
            schedule: of the process.
            sigma_data: the data's standard deviation.
        """


def _strata(n: int, rng: torch.Generator | None) -> Tensor:
    """Draw n numbers in (0, 1) with one shared shift, one in every n-th part (Kingma et al. 2107.00630, app. I.1)."""
    shift = torch.rand((), generator=rng, dtype=torch.float64)
    u = (torch.arange(n, dtype=torch.float64) + shift) / n
    return u.clamp(1e-9, 1 - 1e-9)


@dataclass(frozen=True)
class Uniform:
    """Times uniform in (0, 1), as DDPM draws its steps."""

    def times(self, n: int, schedule: Schedule, sigma_data: float, rng: torch.Generator | None) -> Tensor:
        """Draw ``n`` stratified times."""
        return _strata(n, rng)

    def density(self, t: Tensor, schedule: Schedule, sigma_data: float) -> Tensor:
        """Return 1."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class LogNormal:
    """ln(sigma / (alpha sigma_data)) ~ N(mean, std^2), whatever the schedule (Karras et al. 2206.00364, table 1).

    EDM's ln sigma ~ N(-1.2, 1.2^2) at sigma_data = 0.5 is mean = -0.5 here, where noise is measured against the
    data's own spread. Levels above the schedule's highest are drawn there.

    Attributes:
        mean: of the log of the noise level.
        std: > 0.
    """

    mean: float = -0.5
    std: float = 1.2

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise UserError(f"LogNormal needs std > 0, got {self.std}")

    def times(self, n: int, schedule: Schedule, sigma_data: float, rng: torch.Generator | None) -> Tensor:
        """Draw ``n`` stratified times."""
        log_r = math.log(sigma_data) + self.mean + self.std * torch.special.ndtri(_strata(n, rng))
        return schedule.time(-2 * log_r).clamp(max=1.0)

    def density(self, t: Tensor, schedule: Schedule, sigma_data: float) -> Tensor:
        """Return p(t) of the unclamped law."""
        z = (-schedule.logsnr(t) / 2 - math.log(sigma_data) - self.mean) / self.std
        normal = (-z.square() / 2).exp() / (self.std * math.sqrt(2 * math.pi))
        return normal * _fall(schedule, t) / 2


@dataclass(frozen=True)
class Likelihood:
    """Levels as the likelihood bound needs them: equation (9), from the schedule's highest noise to ``clean``.

    A share of the draws is uniform in logsnr, because under (9) alone the noisiest levels would come once in thousands
    of draws, and an estimator that never looks at a level leaves out its bits.

    Attributes:
        noisy: logsnr at which the uniform share begins, unless the schedule ends before it.
        clean: logsnr at which all ends: the default is where the decoders take over (Kingma et al. 2107.00630, app. B).
        floor: the uniform share, in (0, 1).
    """

    noisy: float = -10.0
    clean: float = 13.3
    floor: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.floor < 1 and self.noisy < self.clean):
            raise UserError(f"Likelihood needs noisy < clean and 0 < floor < 1, got {self}")

    def times(self, n: int, schedule: Schedule, sigma_data: float, rng: torch.Generator | None) -> Tensor:
        """Draw ``n`` stratified times: those of the uniform share first."""
        u = _strata(n, rng)
        share = torch.where(u < self.floor, u / self.floor, (u - self.floor) / (1 - self.floor)).clamp(1e-9, 1 - 1e-9)
        even, low, high, shift = self._ends(schedule, sigma_data)
        uniform = even + share * (self.clean - even)
        rising = torch.expm1(low + share * (high - low)).log() - shift
        return schedule.time(torch.where(u < self.floor, uniform, rising)).clamp(max=1.0)

    def density(self, t: Tensor, schedule: Schedule, sigma_data: float) -> Tensor:
        """Return p(t), 0 at the levels that are never drawn."""
        logsnr = schedule.logsnr(t)
        even, low, high, shift = self._ends(schedule, sigma_data)
        uniform = self.floor * (logsnr >= even) / (self.clean - even)
        rising = (1 - self.floor) * (logsnr + shift).sigmoid() / (high - low)
        return torch.where(logsnr <= self.clean, uniform + rising, 0.0) * _fall(schedule, t)

    def _ends(self, schedule: Schedule, sigma_data: float) -> tuple[float, float, float, float]:
        """Return where the uniform share begins, and the ends of the integral of (9) with its shift 2 log sd."""
        shift, end = 2 * math.log(sigma_data), float(schedule.logsnr(1.0))
        low, high = (float(softplus(torch.tensor(at + shift, dtype=torch.float64))) for at in (end, self.clean))
        return max(end, self.noisy), low, high, shift


def _fall(schedule: Schedule, t: Tensor) -> Tensor:
    """Return -dl/dt = g^2 / sigma^2."""
    return schedule.g2(t) / schedule.var(t)


def _elbo(schedule: Schedule, t: Tensor, density: Tensor) -> Tensor:
    return schedule.logsnr(t).exp() * _fall(schedule, t) / (2 * density)


WEIGHTINGS: dict[str, Callable[[Schedule, Tensor, Tensor], Tensor]] = {
    "elbo": _elbo,
    "sigmoid": lambda schedule, t, p: _elbo(schedule, t, p) * (2 - schedule.logsnr(t)).sigmoid(),
    "min-snr": lambda schedule, t, p: schedule.logsnr(t).exp().clamp(max=5.0),
    "p2": lambda schedule, t, p: schedule.logsnr(t).sigmoid(),
}
"""The weightings that are no row: (schedule, t, p(t)) -> w(t). Every row is a weighting too; equation (2)."""


class Uncertainty(nn.Module):
    """u(l) of equation (8): a number for every unit of logsnr, linear between them, constant outside.

    Args:
        low: logsnr of the first number.
        high: of the last.
        count: how many numbers, at least 2.
    """

    GAIN = 10.0  # a network's learning rate moves its weights by 1e-3 a step; u has a way of several units to go

    def __init__(self, low: float = -10.0, high: float = 14.0, count: int = 25) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.knots = nn.Parameter(torch.zeros(count))

    def forward(self, logsnr: Tensor) -> Tensor:
        """Return u of levels (B,), of the type of the numbers."""
        last = len(self.knots) - 1
        place = ((logsnr - self.low) / (self.high - self.low) * last).clamp(0, last).to(self.knots)
        cell = place.detach().floor().clamp(max=last - 1).long()
        u: Tensor = self.GAIN * torch.lerp(self.knots[cell], self.knots[cell + 1], place - cell)
        return u


def weight(name: str, schedule: Schedule, t: Tensor, sigma_data: float, density: Tensor) -> Tensor:
    """Return w(t) of equation (1).

    Args:
        name: a key of :data:`WEIGHTINGS` or of :data:`sfumato.rows.ROWS`.
        schedule: the process' schedule.
        t: times in (0, 1], float64.
        sigma_data: the data's standard deviation.
        density: p(t), of the shape of ``t``.

    Raises:
        UserError: an unknown name.
    """
    if name in ROWS:
        now = schedule.at(as_time(t))
        a, b = row(name, schedule, now, sigma_data)
        return torch.as_tensor((a - b * now.alpha / now.sigma) ** 2).expand(as_time(t).shape)
    return choose("weighting", name, WEIGHTINGS | dict.fromkeys(ROWS))(schedule, t, density)  # type: ignore[misc]
