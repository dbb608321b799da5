"""The reverse SDE, step by step in its plainest discretisations.

(1)  dx = (f x - g^2 score) dt + g dw   backwards in time              (Anderson 1982; Song et al. 2011.13456, eq. 6)
(2)  Euler-Maruyama       x_s = x - (f x - g^2 score) dt + g sqrt(dt) z,   dt = t - s
(3)  reverse diffusion    x_s = (2 - alpha_ts) x + var_ts score + sqrt(var_ts) z     (app. E: the forward chain's own
     discretisation, turned round; with DDPM's chain it is ancestral sampling to first order)

(2) is an explicit step: where |f| dt > 1 it oscillates and grows, so such grids are refused. The noise of the last step
to t = 0 is left out, as in (Jolicoeur-Martineau et al. 2009.05475, sec. 4): it ends on the estimate of the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from sfumato.denoise import Model
from sfumato.dist import Rng, randn_like
from sfumato.errors import UserError
from sfumato.rows import Estimate
from sfumato.sampler.base import Sampler, first_order
from sfumato.schedule import Instant

__all__ = ["EulerMaruyama", "ReverseDiffusion"]


@dataclass(frozen=True)
class ReverseDiffusion(Sampler):
    """One network call a step; equation (3)."""

    order = 1
    stochastic = True
    source = "Song et al. 2011.13456, app. E"

    def step(
        self, model: Model, x: Tensor, t: Instant, s: Instant, memory: None, rng: Rng
    ) -> tuple[Tensor, Estimate, None]:
        estimate = model(x, t)
        if s.sigma == 0:
            return first_order(model.process, estimate, t, s), estimate, None
        rate, var = self.rates(model, t, s)
        x = (rate * x).add_(estimate.eps, alpha=-var / t.sigma)  # score = -eps / sigma
        return x.add_(randn_like(x, rng), alpha=math.sqrt(var)), estimate, None

    def rates(self, model: Model, t: Instant, s: Instant) -> tuple[float, float]:
        """Return the factor of x, and that of the score, which is the variance of the noise.

        Args:
            model: whose process it is.
            t: where the step starts.
            s: where it ends.
        """
        return 2 - t.alpha / s.alpha, -(t.sigma**2) * math.expm1(t.logsnr - s.logsnr)


@dataclass(frozen=True)
class EulerMaruyama(ReverseDiffusion):
    """One network call a step; equation (2)."""

    source = "Song et al. 2011.13456, eq. 6"

    def init(self, model: Model, x: Tensor, stops: Sequence[Instant]) -> None:
        """Refuse steps that are too long.

        Raises:
            UserError: |f| dt > 1 somewhere.
        """
        for t, s in pairwise(stops):
            growth = abs(float(model.process.schedule.f(t.t))) * (t.t - s.t)
            if s.sigma and not growth <= 1:
                raise UserError(
                    f"Euler-Maruyama is unstable here: |f| dt = {growth:.3g} > 1 at t = {t.t:.3g}; take more steps, "
                    "the grid 'logsnr', or another sampler, such as reverse-diffusion"
                )

    def rates(self, model: Model, t: Instant, s: Instant) -> tuple[float, float]:
        """Return the factor of x and that of the score; see :meth:`ReverseDiffusion.rates`."""
        sde, dt = model.process.sde(t), t.t - s.t
        return 1 - float(sde.f) * dt, float(sde.g) ** 2 * dt
