"""Estimates kept where data can be: strong guidance leaves the range that pictures have.

(1)  x_0 <- clip(x_0, -b, b) / b,   b = max(1, the q-quantile of |x_0|)   of each example
                                                                         (Saharia et al. 2205.11487, section 2.3)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.denoise import Model, cost, take
from sfumato.errors import UserError
from sfumato.guide.toward import told
from sfumato.process import Gaussian, spread
from sfumato.rows import Estimate
from sfumato.schedule import Time

__all__ = ["Thresholded"]


@dataclass(frozen=True)
class Thresholded:
    """A model of data in [-1, 1] whose estimates are brought there; equation (1).

    Args:
        model: that is asked.
        quantile: q, in (0, 1]; 1 squeezes by the farthest value.

    Raises:
        UserError: a quantile outside (0, 1].
    """

    model: Model
    quantile: float = 0.995

    def __post_init__(self) -> None:
        if not 0 < self.quantile <= 1:
            raise UserError(f"the quantile of a threshold is in (0, 1], got {self.quantile:g}")

    @property
    def process(self) -> Gaussian:
        """The model's forward process."""
        return self.model.process

    def __call__(self, x_t: Tensor, t: Time, s: Time | None = None) -> Estimate:
        """Estimate the data behind ``x_t`` (B, ...)."""
        found = self.model(x_t, t)
        bound = spread(torch.quantile(found.x0.abs().flatten(1), self.quantile, dim=1).clamp(min=1), x_t)
        return told(found, found.x0.clamp(-bound, bound) / bound)

    def cost(self, t: Time) -> int:
        """Return how many network calls an estimate at ``t`` takes."""
        return cost(self.model, t)

    def take(self, rows: Tensor) -> Thresholded:
        """Return the model for some rows of its batch."""
        return replace(self, model=take(self.model, rows))
