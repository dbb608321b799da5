"""What training looks at: how often each noise level is drawn, and how much its error counts.

A weight w(t) multiplies the squared error of x_0, whatever the network predicts:

(1)  loss = E_t E_eps  w(t) |x_0 - x_0_hat(x_t, t)|^2

(2)  named after a row (a, b):  w = (D / sigma)^2, D = a sigma - b alpha: the plain error of that row's output,
     so "eps" is DDPM's simple loss (w = snr), "v" is snr + 1, "edm" is 1/c_out^2
(3)  elbo      w = 1/2 snr (-dl/dt) / p(t),  l = logsnr: the likelihood bound (Kingma et al. 2107.00630, eq. 18)
(4)  sigmoid   (3) times sigmoid(b - l), b = 2                            (Kingma and Gao 2303.00848; 2410.19324)
(5)  min-snr   w = min(snr, 5)                                            (Hang et al. 2303.09556, eq. 8)
(6)  p2        w = snr / (1 + snr)                                        (Choi et al. 2204.00227, eq. 8, k = gamma = 1)

p(t) is the density from which the times are drawn, so (3) and (4) do not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfumato.errors import UserError, choose
from sfumato.rows import ROWS, row
from sfumato.schedule import Schedule

__all__ = ["WEIGHTINGS", "Law", "LogNormal", "Uniform", "weight"]


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
        a, b = row(name, schedule, t, sigma_data)
        return (a - b * schedule.alpha(t) / schedule.sigma(t)).square()
    return choose("weighting", name, WEIGHTINGS | dict.fromkeys(ROWS))(schedule, t, density)  # type: ignore[misc]
