"""DDIM: the family of reverse steps that keep the marginals, deterministic at eta = 0.

(1)  x_s ~ q_eta(x_s | x_t, x_0_hat),  eq. (4) of process.py                  (Song et al. 2010.02502, eq. 12)

At eta = 0 it is Euler's method for the probability-flow ODE in sigma/alpha; at eta = 1 it is ancestral sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.denoise import Model
from sfumato.dist import Rng, randn_like
from sfumato.errors import UserError
from sfumato.rows import Estimate
from sfumato.sampler.base import Sampler
from sfumato.schedule import Instant

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM(Sampler):
    """One network call a step, equation (1).

    Attributes:
        eta: noise in [0, 1].
    """

    eta: float = 0.0
    order = 1
    source = "Song et al. 2010.02502, eq. 12"

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta lies in [0, 1], 0 for no noise, got {self.eta}")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether steps draw noise."""
        return self.eta > 0

    def step(
        self, model: Model, x: Tensor, t: Instant, s: Instant, memory: None, rng: Rng
    ) -> tuple[Tensor, Estimate, None]:
        estimate = model(x, t)
        keep, signal, noise = model.process.bridge(t, s, self.eta)
        x = estimate.combine(keep, signal)
        return x.add_(randn_like(x, rng), alpha=noise) if noise else x, estimate, None
