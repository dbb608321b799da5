"""The forward process: every conditional of x_t = alpha_t x_0 + sigma_t eps.

For times s < t, with l = logsnr:

(1)  q(x_t | x_s)      = N(alpha_ts x_s, var_ts),       alpha_ts = alpha_t / alpha_s
(2)  var_ts            = sigma_t^2 - alpha_ts^2 sigma_s^2 = -sigma_t^2 expm1(l_t - l_s)
(3)  q(x_t | x_0)      = N(alpha_t x_0, sigma_t^2)       transition from s = 0
(4)  q(x_s | x_t, x_0) = N(alpha_s x_0 + sqrt(sigma_s^2 - tau^2) (x_t - alpha_t x_0) / sigma_t, tau^2)
     tau^2             = eta^2 var_ts sigma_s^2 / sigma_t^2

At eta = 1, (4) is Bayes' rule on (1) and (3) (Ho et al. 2006.11239, eq. 6-7; Kingma et al. 2107.00630, app. A.2).
Every eta in [0, 1] keeps the marginals (3); eta = 0 is deterministic (Song et al. 2010.02502, eq. 7).

The same law read on the grid k/T is the Markov chain; in the limit of small steps, the SDE:

(5)  beta_k = 1 - alpha_ts^2  with s = (k-1)/T, t = k/T   (= var_ts for variance preserving schedules)
(6)  dx = f(t) x dt + g(t) dw
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfumato.dist import Normal
from sfumato.errors import UserError
from sfumato.schedule import Schedule, Time, as_time

__all__ = ["SDE", "Chain", "Gaussian", "Process", "spread"]


def spread(coefficient: Tensor, x: Tensor) -> Tensor:
    """Cast a float64 coefficient, 0-dimensional or (B,), to the type, device and number of axes of ``x``.

    Raises:
        ValueError: neither one number nor one for each example.
    """
    if coefficient.ndim > 1 or (coefficient.ndim == 1 and len(coefficient) not in (1, len(x))):
        raise ValueError(f"times of shape {tuple(coefficient.shape)} for a batch of {len(x)}: give one, or one each")
    coefficient = coefficient.to(x.device, x.dtype)
    return coefficient.reshape(-1, *[1] * (x.ndim - 1)) if coefficient.ndim else coefficient


class Process(Protocol):
    """What turns data into noise: conditionals for times 0 <= s < t <= 1."""

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Normal:
        """Return q(x_t | x_s), one step of noise.

        Args:
            x_s: (B, ...) state at time ``s``.
            s: earlier time.
            t: later time.
        """

    def marginal(self, x_0: Tensor, t: Time) -> Normal:
        """Return q(x_t | x_0), all steps at once."""

    def posterior(self, x_t: Tensor, x_0: Tensor, t: Time, s: Time) -> Normal:
        """Return q(x_s | x_t, x_0), one step back when the data are known.

        Args:
            x_t: (B, ...) state at time ``t``.
            x_0: (B, ...) data.
            t: later time.
            s: earlier time.
        """

    def prior(self, like: Tensor) -> Normal:
        """Return the law at t = 1 from which the way back starts."""


@dataclass(frozen=True)
class SDE:
    """The coefficients of dx = f x dt + g dw at one time, float64 of the shape of that time; equation (6).

    Attributes:
        f: drift rate.
        g: diffusion, at least 0.
    """

    f: Tensor
    g: Tensor

    def drift(self, x: Tensor) -> Tensor:
        """Return f x, of the shape of ``x``."""
        return spread(self.f, x) * x


@dataclass(frozen=True)
class Chain:
    """A process read on the grid k/T: the Markov chain of DDPM.

    Attributes:
        times: (T+1,) from 0 to 1.
        betas: (T,), beta_k = 1 - alpha_ts^2, the share of signal that step k removes; equation (5).
        alpha_bars: (T,), alpha(k/T)^2 for k = 1..T, the cumulative product of 1 - beta in DDPM's notation.
    """

    times: Tensor
    betas: Tensor
    alpha_bars: Tensor


@dataclass(frozen=True)
class Gaussian:
    """Forward diffusion with Gaussian noise; equations (1) to (6).

    Arguments named ``t`` and ``s`` are times with 0 <= s < t <= 1, one number or one for each example.

    Attributes:
        schedule: alpha(t) and sigma(t).
    """

    schedule: Schedule

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Normal:
        """Return q(x_t | x_s); equations (1) and (2).

        Args:
            x_s: (B, ...) state at time ``s``.
            s: earlier time.
            t: later time.

        Raises:
            UserError: not 0 <= s < t <= 1.
        """
        s, t = _ordered(s, t)
        alpha = self.schedule.alpha(t) / self.schedule.alpha(s)
        return Normal(spread(alpha, x_s) * x_s, spread(self._var(s, t).sqrt(), x_s))

    def marginal(self, x_0: Tensor, t: Time) -> Normal:
        """Return q(x_t | x_0); equation (3).

        Args:
            x_0: (B, ...) data.
            t: time; at t = 0 the law is a point mass at ``x_0``.

        Raises:
            UserError: t outside [0, 1].
        """
        t = _within(t)
        return Normal(spread(self.schedule.alpha(t), x_0) * x_0, spread(self.schedule.sigma(t), x_0))

    def posterior(self, x_t: Tensor, x_0: Tensor, t: Time, s: Time, eta: float = 1.0) -> Normal:
        """Return q(x_s | x_t, x_0), or a member of DDIM's family with less noise; equation (4).

        Args:
            x_t: (B, ...) state at time ``t``.
            x_0: (B, ...) data, or an estimate of them.
            t: later time.
            s: earlier time; at s = 0 the law is a point mass at ``x_0``.
            eta: noise in [0, 1]; 1 is Bayes' rule, 0 is deterministic.

        Raises:
            UserError: not 0 <= s < t <= 1, or eta outside [0, 1].
        """
        s, t = _ordered(s, t)
        if not 0 <= eta <= 1:
            raise UserError(f"eta is the share of the posterior's noise and lies in [0, 1], got {eta}")
        a_s, a_t = self.schedule.alpha(s), self.schedule.alpha(t)
        sigma_s, sigma_t = self.schedule.sigma(s), self.schedule.sigma(t)
        fresh = self._var(s, t) / sigma_t.square()  # the share of x_t's noise that came after s
        keep = sigma_s * (1 - eta**2 * fresh).clamp(min=0).sqrt() / sigma_t  # coefficient of x_t
        mean = spread(keep, x_t) * x_t + spread(a_s - keep * a_t, x_t) * x_0
        return Normal(mean, spread(eta * sigma_s * fresh.sqrt(), x_t))

    def prior(self, like: Tensor) -> Normal:
        """Return N(0, sigma(1)^2) of the shape, type and device of ``like`` (B, ...)."""
        return Normal(torch.zeros_like(like), spread(self.schedule.sigma(1.0), like))

    def sde(self, t: Time) -> SDE:
        """Return the coefficients of the SDE whose marginals are (3); equation (6)."""
        t = _within(t)
        return SDE(self.schedule.f(t), self.schedule.g2(t).clamp(min=0).sqrt())

    def chain(self, steps: int) -> Chain:
        """Return the Markov chain of ``steps`` equal steps; equation (5).

        Raises:
            UserError: steps < 1.
        """
        if steps < 1:
            raise UserError(f"a chain needs at least one step, got {steps}")
        times = torch.arange(steps + 1, dtype=torch.float64) / steps
        alpha = self.schedule.alpha(times)
        return Chain(times, 1 - (alpha[1:] / alpha[:-1]).square(), alpha[1:].square())

    def _var(self, s: Tensor, t: Tensor) -> Tensor:
        """Return var_ts; the last form of (2) neither cancels nor goes below 0."""
        return -self.schedule.var(t) * torch.expm1(self.schedule.logsnr(t) - self.schedule.logsnr(s))


def _within(t: Time) -> Tensor:
    t = as_time(t)
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise UserError(f"time must lie in [0, 1], got {t.tolist()}")
    return t


def _ordered(s: Time, t: Time) -> tuple[Tensor, Tensor]:
    s, t = _within(s), _within(t)
    if not bool((s < t).all()):
        raise UserError(f"a step goes between times s < t, got s = {s.tolist()} and t = {t.tolist()}")
    return s, t
