"""DPM-Solver++ 2M: an exponential integrator that uses the estimate of the step before.

With lambda = log(alpha/sigma) and h = lambda_s - lambda_t, the probability-flow ODE is solved exactly for constant D:

(1)  x_s = sigma_s/sigma_t x_t - alpha_s expm1(-h) D                          (Lu et al. 2211.01095, eq. 8)
(2)  1st order: D = x_0_hat(x_t, t), which is DDIM
     2M:        D = x_0_hat_t + h/(2 h_prev) (x_0_hat_t - x_0_hat_prev)       (alg. 2)

The first step has nothing to look back to, and a step to sigma = 0 has h infinite: both are first order. (1) with any
D is the mean of the process' posterior with eta = 0, so no formula stands twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.denoise import Model
from sfumato.dist import Rng
from sfumato.process import spread
from sfumato.rows import Estimate

__all__ = ["DPMpp2M"]

Memory = tuple[Tensor, Tensor] | None
"""The estimate of the data at the step before, and its logsnr; None before the first step."""


@dataclass(frozen=True)
class DPMpp2M:
    """One network call a step, second order; equation (2)."""

    order = 2
    stochastic = False

    def init(self, model: Model, x: Tensor, t: Tensor) -> Memory:
        """Remember nothing yet."""
        return None

    def step(
        self, model: Model, x: Tensor, t: Tensor, s: Tensor, memory: Memory, rng: Rng
    ) -> tuple[Tensor, Estimate, Memory]:
        """Go to ``s``; see ``Sampler.step``."""
        schedule = model.process.schedule
        estimate = model(x, t)
        data, now, then = estimate.x0, schedule.logsnr(t), schedule.logsnr(s)
        if memory is not None and then.isfinite():
            before, past = memory
            data = data + spread((then - now) / (2 * (now - past)), x) * (data - before)
        return model.process.posterior(x, data, t, s, eta=0.0).mean, estimate, (estimate.x0, now)
