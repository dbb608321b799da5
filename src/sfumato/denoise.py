"""The way back: a network that estimates the data behind x_t, and the reverse step it defines.

(1)  p_theta(x_s | x_t) = q(x_s | x_t, x_0 = x_0_hat(x_t, t))              (Ho et al. 2006.11239, sec. 3.2)
(2)  network input: x_t / sqrt(alpha^2 sd^2 + sigma^2), of unit variance   (Karras et al. 2206.00364, table 1: c_in)
     and level = -logsnr/8 = ln(sigma/alpha)/4                             (c_noise)
(3)  loss = w(t) |x_0 - x_0_hat|^2 = w(t) (sigma/D)^2 |target - output|^2, mean over dimensions; see weighting.py
(4)  mmse(t) = E |x_0 - x_0_hat(x_t, t)|^2 / d, measured on data: the variance of x_0 that the estimate leaves open,
     from which the optimal reverse variance follows                       (Bao et al. 2201.06503, eq. 7)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.dist import Normal, randn_like
from sfumato.errors import UserError, choose
from sfumato.process import Gaussian, spread
from sfumato.rows import ROWS, Estimate, input_scale, row
from sfumato.schedule import Time, as_time
from sfumato.weighting import WEIGHTINGS, Law, LogNormal, weight

__all__ = ["Denoiser", "Given", "Model", "Network"]

LEVEL_BOUND = 2.5
"""Levels of (2) beyond it (logsnr beyond 20) are given to the network as this: it can't tell them apart."""


class Model(Protocol):
    """What samplers need: a process, and an estimate for any state and time. Guidance wraps one in another."""

    @property
    def process(self) -> Gaussian:
        """The forward process."""

    def __call__(self, x_t: Tensor, t: Time) -> Estimate:
        """Estimate the data behind ``x_t`` (B, ...)."""


class Network(Protocol):
    """A network: (x (B, ...) of unit variance, level (B,), cond) -> output (B, ...)."""

    def __call__(self, x: Tensor, level: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the output in the denoiser's parameterisation."""


class Denoiser(nn.Module):
    """A network with a process: estimates x_0, steps back, and can be trained.

    Args:
        network: called as ``network(x, level, cond)`` with ``x`` of unit variance and level of shape (B,);
            equation (2). It returns the shape of ``x``.
        process: the forward process.
        parameterisation: what the output stands for, a key of ``sfumato.rows.ROWS``.
        weighting: what the loss weighs, a key of ``sfumato.weighting.WEIGHTINGS`` or of ``ROWS``; by default the
            plain error of the network's own output.
        sigma_data: the data's standard deviation, > 0: measure it (digits in [-1, 1] have 0.75, not 0.5).
        law: how often each noise level is drawn in training; by default log-normal.

    Raises:
        UserError: an unknown name, sigma_data <= 0, or a parameterisation that cannot be inverted at t = 1
            ("eps" or "score" where alpha(1) = 0).
    """

    mmse_logsnr: Tensor
    mmse: Tensor

    def __init__(
        self,
        network: nn.Module,
        process: Gaussian,
        *,
        parameterisation: str = "edm",
        weighting: str | None = None,
        sigma_data: float = 0.5,
        law: Law | None = None,
    ) -> None:
        super().__init__()
        choose("parameterisation", parameterisation, ROWS)
        weighting = parameterisation if weighting is None else weighting
        choose("weighting", weighting, dict.fromkeys([*ROWS, *WEIGHTINGS]))
        if not 0 < sigma_data < float("inf"):
            raise UserError(f"sigma_data must be above 0, got {sigma_data}: is every item of the data the same?")
        if parameterisation in ("eps", "score") and float(process.schedule.alpha(1.0)) == 0:
            raise UserError(
                f"'{parameterisation}' can't be read at t = 1, where {type(process.schedule).__name__} leaves no "
                "signal (alpha = 0): use x0, v, flow or edm"
            )
        self.network = network
        self.process = process
        self.parameterisation = parameterisation
        self.weighting = weighting
        self.sigma_data = sigma_data
        self.law: Law = LogNormal() if law is None else law
        self.register_buffer("mmse_logsnr", torch.linspace(-10, 12, 45))  # falling noise, as np.interp needs
        self.register_buffer("mmse", torch.full((45,), torch.nan))

    def forward(self, x_t: Tensor, t: Time, cond: Tensor | None = None) -> Estimate:
        """Estimate the data behind ``x_t``.

        Args:
            x_t: (B, ...) state at time ``t``.
            t: time in (0, 1], one number or one for each example.
            cond: (B,) labels, if the network takes them.
        """
        t = as_time(t)
        schedule = self.process.schedule
        scaled = x_t / spread(input_scale(schedule, t, self.sigma_data), x_t)
        level = (-schedule.logsnr(t) / 8).clamp(-LEVEL_BOUND, LEVEL_BOUND)
        output = self.network(scaled, level.to(x_t.device, x_t.dtype).expand(len(x_t)), cond)
        a, b = row(self.parameterisation, schedule, t, self.sigma_data)
        return Estimate(x_t, t, schedule, output, a, b, self._x0_var(t, x_t))

    def reverse(self, x_t: Tensor, t: Time, s: Time, cond: Tensor | None = None) -> Normal:
        """Return p_theta(x_s | x_t) for s < t; equation (1). Arguments as in :meth:`forward`.

        Raises:
            UserError: not 0 <= s < t <= 1.
        """
        return self.process.posterior(x_t, self.forward(x_t, t, cond).x0, t, s)

    def loss(self, x_0: Tensor, cond: Tensor | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Return the training loss of each example at a random time, (B,); equation (3).

        Args:
            x_0: (B, ...) data.
            cond: (B,) labels, if the network takes them.
            rng: CPU generator for the times and the noise.
        """
        schedule, sd = self.process.schedule, self.sigma_data
        t = self.law.times(len(x_0), schedule, sd, rng)
        eps = randn_like(x_0, rng)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        estimate = self.forward(spread(alpha, x_0) * x_0 + spread(sigma, x_0) * eps, t, cond)
        a, b = estimate.a, estimate.b
        w = weight(self.weighting, schedule, t, sd, self.law.density(t, schedule, sd))
        w = w * (sigma / (a * sigma - b * alpha)).square()
        error = spread(a, x_0) * x_0 + spread(b, x_0) * eps - estimate.output
        return w.to(x_0.device, x_0.dtype) * error.square().flatten(1).mean(1)

    @torch.no_grad()
    def measure_mmse(self, x_0: Tensor, cond: Tensor | None = None, rng: torch.Generator | None = None) -> None:
        """Measure equation (4) on data and keep it with the weights, for ancestral sampling of optimal variance.

        Args:
            x_0: (B, ...) data; a few hundred examples are enough, one batch for each noise level.
            cond: (B,) labels, if the network takes them.
            rng: CPU generator for the noise.
        """
        for k, logsnr in enumerate(self.mmse_logsnr.tolist()):
            t = self.process.schedule.time(logsnr).clamp(max=1.0)
            x_t = self.process.marginal(x_0, t).sample(rng)
            self.mmse[k] = (x_0 - self.forward(x_t, t, cond).x0).square().mean()

    def _x0_var(self, t: Tensor, like: Tensor) -> Tensor | None:
        """Read the measured mmse at ``t``, interpolated in logsnr and logarithm; None before it is measured."""
        if bool(self.mmse[0].isnan()):
            return None
        logsnr = self.process.schedule.logsnr(t).detach().cpu().numpy()
        read = np.interp(logsnr, self.mmse_logsnr.cpu().numpy(), self.mmse.cpu().log().numpy())
        return spread(torch.as_tensor(read).exp(), like)


@dataclass(frozen=True)
class Given:
    """A denoiser with its condition filled in: the model of p(x | cond) that samplers take.

    Attributes:
        denoiser: a conditional denoiser.
        cond: (B,) labels, one for each row of the states to come.
    """

    denoiser: Denoiser
    cond: Tensor | None

    @property
    def process(self) -> Gaussian:
        """The denoiser's forward process."""
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Time) -> Estimate:
        """Estimate the data behind ``x_t`` (B, ...) under the condition."""
        return self.denoiser.forward(x_t, t, self.cond)
