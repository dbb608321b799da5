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

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from sfumato.dist import Dist, Normal
from sfumato.errors import UserError
from sfumato.schedule import Instant, Number, Schedule, Time, as_time

__all__ = ["SDE", "Chain", "Clean", "Gaussian", "Process", "rising", "spread"]


def spread(coefficient: Number, x: Tensor) -> Number:
    """Make a coefficient fit to multiply ``x`` (B, ...): one number stays, (B,) gets its type, device and axes.

    Raises:
        ValueError: neither one number nor one for each example.
    """
    if not isinstance(coefficient, Tensor):
        return coefficient
    if coefficient.ndim > 1 or (coefficient.ndim == 1 and len(coefficient) not in (1, len(x))):
        raise ValueError(f"times of shape {tuple(coefficient.shape)} for a batch of {len(x)}: give one, or one each")
    coefficient = coefficient.to(x.device, x.dtype)
    return coefficient.reshape(-1, *[1] * (x.ndim - 1)) if coefficient.ndim else coefficient


class Clean(Protocol):
    """What a reverse step needs of a model's estimate."""

    @property
    def x_t(self) -> Tensor:
        """The noisy state (B, ...)."""

    @property
    def x0(self) -> Tensor:
        """The estimate of the data behind it (B, ...)."""


class Process(Protocol):
    """What turns data into noise: conditionals for times 0 <= s < t <= 1."""

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Dist:
        """Return q(x_t | x_s), one step of noise.

        Args:
            x_s: (B, ...) state at time ``s``.
            s: earlier time.
            t: later time.
        """

    def marginal(self, x_0: Tensor, t: Time) -> Dist:
        """Return q(x_t | x_0), all steps at once."""

    def posterior(self, x_t: Tensor, x_0: Tensor, t: Time, s: Time) -> Dist:
        """Return q(x_s | x_t, x_0), one step back when the data are known.

        Args:
            x_t: (B, ...) state at time ``t``.
            x_0: (B, ...) data.
            t: later time.
            s: earlier time.
        """

    def prior(self, like: Tensor, t: Time = 1.0) -> Dist:
        """Return the law from which the way back starts: q(x_t) with the data's share taken away.

        Args:
            like: (B, ...) of the shape, type and device that are wanted.
            t: where the way starts.
        """

    def reverse(self, estimate: Any, t: Time, s: Time) -> Dist:
        """Return p_theta(x_s | x_t), one step back when the data are estimated.

        Args:
            estimate: the model's, made from x_t.
            t: later time.
            s: earlier time.
        """


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
        return x * spread(self.f, x)


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
        start, end = rising(self.schedule, s, t)
        std = end.sigma * _sqrt(_fresh(start, end))
        return Normal(spread(end.alpha / start.alpha, x_s) * x_s, _like(std, x_s))

    def marginal(self, x_0: Tensor, t: Time) -> Normal:
        """Return q(x_t | x_0); equation (3).

        Args:
            x_0: (B, ...) data.
            t: time; at t = 0 the law is a point mass at ``x_0``.

        Raises:
            UserError: t outside [0, 1].
        """
        (now,) = rising(self.schedule, t)
        return Normal(spread(now.alpha, x_0) * x_0, _like(now.sigma, x_0))

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
        to, start = rising(self.schedule, s, t)
        if not 0 <= eta <= 1:
            raise UserError(f"eta is the share of the posterior's noise and lies in [0, 1], got {eta}")
        keep, signal, noise = self.bridge(start, to, eta)
        return Normal(spread(keep, x_t) * x_t + spread(signal, x_t) * x_0, _like(noise, x_t))

    def bridge(self, t: Instant, s: Instant, eta: float = 1.0) -> tuple[Number, Number, Number]:
        """Return the coefficients of x_s = keep x_t + signal x_0 + noise z, z ~ N(0, 1); equation (4).

        Args:
            t: where x_t is, t > 0.
            s: where to go: earlier, or with eta = 0 also later.
            eta: noise in [0, 1].
        """
        if eta == 0:
            keep, noise = s.sigma / t.sigma, 0.0 * s.sigma
        else:
            fresh = _fresh(s, t)
            keep = s.sigma * _sqrt(1 - eta**2 * fresh) / t.sigma
            noise = eta * s.sigma * _sqrt(fresh)
        return keep, s.alpha - keep * t.alpha, noise

    def reverse(self, estimate: Clean, t: Time, s: Time) -> Normal:
        """Return p_theta(x_s | x_t): the posterior, with the estimate in the place of the data.

        Args:
            estimate: of the data behind x_t.
            t: time of x_t.
            s: earlier time; at s = 0 the law is a point mass at the estimate.

        Raises:
            UserError: not 0 <= s < t <= 1.
        """
        return self.posterior(estimate.x_t, estimate.x0, t, s)

    def prior(self, like: Tensor, t: Time = 1.0) -> Normal:
        """Return N(0, sigma(t)^2); see :meth:`Process.prior`."""
        return Normal(torch.zeros_like(like), _like(self.schedule.at(t).sigma, like))

    def sde(self, t: Time) -> SDE:
        """Return the coefficients of the SDE whose marginals are (3); equation (6)."""
        t = as_time(*rising(self.schedule, t))
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


def rising(schedule: Schedule, *times: Time) -> list[Instant]:
    """Return times with the schedule read at them, if they rise within [0, 1].

    Raises:
        UserError: they do not.
    """
    read = [schedule.at(t) for t in times]
    if not all(_all((now.t >= 0) & (now.t <= 1)) for now in read):
        raise UserError(f"time must lie in [0, 1], got {_shown(read)}")
    if not all(_all(s.t < t.t) for s, t in pairwise(read)):
        raise UserError(f"a step goes between times s < t, got {_shown(read)}")
    return read


def _shown(times: list[Instant]) -> str:
    return " and ".join(str(as_time(t).tolist()) for t in times)


def _all(truth: bool | Tensor) -> bool:
    return bool(truth.all()) if isinstance(truth, Tensor) else truth


def _sqrt(number: Number) -> Number:
    return number.clamp(min=0).sqrt() if isinstance(number, Tensor) else math.sqrt(max(number, 0.0))


def _fresh(s: Instant, t: Instant) -> Number:
    """Return var_ts / sigma_t^2, the share of x_t's noise that came after s; the last form of (2) does not cancel."""
    fall = t.logsnr - s.logsnr
    return -torch.expm1(fall) if isinstance(fall, Tensor) else -math.expm1(fall)


def _like(std: Number, x: Tensor) -> Tensor:
    """Return a standard deviation as a tensor that broadcasts to ``x``."""
    std = spread(std, x)
    return std if isinstance(std, Tensor) else x.new_tensor(std)
