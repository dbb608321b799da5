"""Samplers of networks that jump: along the flow to any stop, or to its end and back to a stop with new noise.

(1)  x_s = alpha_s x_0_hat + sigma_s eps_hat     both estimated for the step from t to s: the flow map itself
                                                 (Boffi et al. 2406.07507, def. 2.1); of a mean it is DDIM's step
(2)  x_s = alpha_s x_0_hat + sigma_s z           x_0_hat where the flow through x_t ends
                                                 (Song et al. 2303.01469, alg. 1)

If x_0_hat is exact, (1) and (2) are right for steps of any length: one call draws from the model's law. Where it is
not, (2) forgets the errors of earlier steps, all but what they did to x_0_hat.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.denoise import Model, meaning
from sfumato.dist import Rng
from sfumato.rows import Estimate
from sfumato.sampler.base import Sampler, first_order
from sfumato.schedule import Instant

__all__ = ["Consistency", "FlowMap"]


@dataclass(frozen=True)
class FlowMap(Sampler):
    """One network call a step, equation (1)."""

    order = 1
    source = "Boffi et al. 2406.07507, def. 2.1"
    takes = ("mean", "map", "step")

    def step(
        self, model: Model, x: Tensor, t: Instant, s: Instant, memory: None, rng: Rng
    ) -> tuple[Tensor, Estimate, None]:
        estimate = model(x, t, s=s) if meaning(model) == "map" else model(x, t)
        return first_order(model.process, estimate, t, s), estimate, None


@dataclass(frozen=True)
class Consistency(Sampler):
    """One network call a step, equation (2)."""

    order = 1
    stochastic = True
    source = "Song et al. 2303.01469, alg. 1"
    takes = ("end", "map")

    def step(
        self, model: Model, x: Tensor, t: Instant, s: Instant, memory: None, rng: Rng
    ) -> tuple[Tensor, Estimate, None]:
        estimate = model(x, t, s=0.0) if meaning(model) == "map" else model(x, t)
        return model.process.marginal(estimate.x0, s).sample(rng), estimate, None
