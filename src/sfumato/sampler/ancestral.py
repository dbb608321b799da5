"""Ancestral sampling: draw x_s from the learned reverse step of the Markov chain.

(1)  x_s ~ N(mu, v),  mu = mean of q(x_s | x_t, x_0_hat)                     (Ho et al. 2006.11239, alg. 2)
(2)  v = tau^2             "small":   the posterior's variance, right if the data are one point
     v = var_ts            "large":   the forward step's variance, right if the data are N(0, 1)  (sec. 3.2)
     v = tau^2 + c^2 Var(x_0 | x_t)   "optimal":  the true variance of p(x_s | x_t), c = d mu / d x_0_hat
                                                              (Bao et al. 2201.06503, theorem 1)

With (2) optimal the chain is exact on Gaussian data in any number of steps. "small" and "large" draw no noise in a
step to t = 0, where DDPM stops at its estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sfumato.denoise import Model
from sfumato.dist import Normal, Rng
from sfumato.errors import UserError
from sfumato.rows import Estimate

__all__ = ["Ancestral"]


@dataclass(frozen=True)
class Ancestral:
    """The chain's own way back; equations (1) and (2).

    Attributes:
        variance: "small", "large" or "optimal".
    """

    variance: Literal["small", "large", "optimal"] = "small"
    order = 1
    stochastic = True

    def __post_init__(self) -> None:
        if self.variance not in ("small", "large", "optimal"):
            raise UserError(f"variance is small, large or optimal, got '{self.variance}'")

    def init(self, model: Model, x: Tensor, t: Tensor) -> None:
        """Remember nothing."""

    def step(
        self, model: Model, x: Tensor, t: Tensor, s: Tensor, memory: None, rng: Rng
    ) -> tuple[Tensor, Estimate, None]:
        """Draw x_s from the reverse step; see ``Sampler.step``.

        Raises:
            UserError: "optimal", and the model does not know Var(x_0 | x_t).
        """
        estimate = model(x, t)
        return self.law(model, estimate, t, s).sample(rng), estimate, None

    def law(self, model: Model, estimate: Estimate, t: Tensor, s: Tensor) -> Normal:
        """Return p_theta(x_s | x_t); equations (1) and (2).

        Args:
            model: whose process it is.
            estimate: the model's at ``t``.
            t: time of the state.
            s: earlier time.
        """
        q = model.process
        step = q.posterior(estimate.x_t, estimate.x0, t, s)
        if self.variance == "optimal":
            if estimate.x0_var is None:
                raise UserError("optimal variance needs Var(x_0 | x_t): call denoiser.measure_mmse(data) first")
            blur = estimate.x0_var.sqrt().expand_as(estimate.x_t)
            blur = q.posterior(torch.zeros_like(blur), blur, t, s).mean  # the mean is linear: c times blur
            return Normal(step.mean, (step.std.square() + blur.square()).sqrt())
        if self.variance == "large" and s > 0:
            return Normal(step.mean, q.transition(estimate.x_t, s, t).std)
        return step
