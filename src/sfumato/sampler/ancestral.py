"""Ancestral sampling: draw x_s from the learned reverse step of the Markov chain.

(1)  x_s ~ N(mu, v),  mu = mean of q(x_s | x_t, x_0_hat)                     (Ho et al. 2006.11239, alg. 2)
(2)  v = tau^2             "small":   the posterior's variance, right if the data are one point
     v = var_ts            "large":   the forward step's variance, right if the data are N(0, 1)  (sec. 3.2)
     v = tau^2 + c^2 Var(x_0 | x_t)   "optimal":  the true variance of p(x_s | x_t), c = d mu / d x_0_hat
                                                              (Bao et al. 2201.06503, theorem 1)
     v = tau^(2 - 2f) var_ts^f   "learned": between the first two, with f in [0, 1] from the network
                                                              (Nichol and Dhariwal 2102.09672, eq. 15)

With (2) optimal the chain is exact on Gaussian data in any number of steps. All but "optimal" draw no noise in a
step to t = 0, where DDPM stops at its estimate. "small" is the reverse step of any process, tokens included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sfumato.denoise import Model, learned_step
from sfumato.dist import Dist, Normal, Rng
from sfumato.errors import UserError, choose
from sfumato.process import spread
from sfumato.rows import Estimate
from sfumato.sampler.base import Sampler
from sfumato.schedule import Instant, Time

__all__ = ["Ancestral", "Variance"]

Variance = Literal["small", "large", "optimal", "learned"]
"""Names of equation (2)."""

SOURCES = {
    "small": "Ho et al. 2006.11239, alg. 2",
    "large": "Ho et al. 2006.11239, sec. 3.2",
    "optimal": "Bao et al. 2201.06503, thm. 1",
    "learned": "Nichol and Dhariwal 2102.09672, eq. 15",
}
"""The variances, and where they come from."""


@dataclass(frozen=True)
class Ancestral(Sampler):
    """The chain's own way back; equations (1) and (2).

    Attributes:
        variance: "small", "large", "optimal" or "learned".
    """

    variance: Variance = "small"
    order = 1
    stochastic = True

    def __post_init__(self) -> None:
        choose("variance", self.variance, SOURCES)

    @property
    def source(self) -> str:  # type: ignore[override]
        """Paper and equation."""
        return SOURCES[self.variance]

    def step(
        self, model: Model, x: Tensor, t: Instant, s: Instant, memory: None, rng: Rng
    ) -> tuple[Tensor, Estimate, None]:
        estimate = model(x, t)
        return self.law(model, estimate, t, s).sample(rng), estimate, None

    def law(self, model: Model, estimate: Estimate, t: Time, s: Time) -> Dist:
        """Return p_theta(x_s | x_t); equations (1) and (2).

        Args:
            model: whose process it is.
            estimate: the model's at ``t``.
            t: time of the state.
            s: earlier time.

        Raises:
            UserError: the model does not know what this variance is made from.
        """
        q = model.process
        small = q.reverse(estimate, t, s)
        if self.variance == "small":
            return small
        if not isinstance(small, Normal):
            raise UserError(f"'{self.variance}' is a variance of Gaussian steps: tokens have variance 'small' only")
        if self.variance == "optimal":
            if estimate.x0_var is None:
                raise UserError("optimal variance needs Var(x_0 | x_t): call denoiser.measure_mmse(data) first")
            _, signal, _ = q.bridge(q.schedule.at(t), q.schedule.at(s))
            open_ = spread(signal, small.mean) ** 2 * estimate.x0_var
            return Normal(small.mean, (small.std.square() + open_).sqrt())
        if self.variance == "learned":
            return learned_step(q, estimate, t, s)
        large = q.transition(estimate.x_t, s, t).std
        return Normal(small.mean, torch.where(small.std > 0, large, 0.0))
