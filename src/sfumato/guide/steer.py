"""Guidance by somebody who reads noisy states: what log p(y | x_t) rises by is added to the score.

(1)  score <- score + w grad_x log p(y | x_t)                     (Dhariwal and Nichol 2105.05233, alg. 2)
(2)  x_0 <- x_0 + w sigma^2/alpha grad_x log p(y | x_t)           the same, as score = (alpha x_0 - x_t) / sigma^2
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.denoise import Model, cost, take
from sfumato.guide.toward import told
from sfumato.process import Gaussian, spread
from sfumato.rows import Estimate
from sfumato.schedule import Instant, Time

__all__ = ["Steered"]


@dataclass(frozen=True)
class Steered:
    """A model steered by a reader of noisy states; equation (2).

    Where a schedule leaves no signal (alpha = 0) a reader knows nothing, and the model stands alone.

    Args:
        model: that is asked.
        log_p: from states (B, ...) and their time to log p(y | x_t), (B,), up to a constant.
        weight: w.
    """

    model: Model
    log_p: Callable[[Tensor, Instant], Tensor]
    weight: float = 1.0

    @property
    def process(self) -> Gaussian:
        """The model's forward process."""
        return self.model.process

    def __call__(self, x_t: Tensor, t: Time, s: Time | None = None) -> Estimate:
        """Estimate the data behind ``x_t`` (B, ...)."""
        now = self.process.schedule.at(t)
        found = self.model(x_t, now)
        if not self.weight or not bool(torch.as_tensor(now.alpha).all()):
            return found
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            (rise,) = torch.autograd.grad(self.log_p(x, now).sum(), x)
        return told(found, found.x0 + self.weight * spread(now.sigma**2 / now.alpha, x_t) * rise)

    def cost(self, t: Time) -> int:
        """Return how many network calls an estimate at ``t`` takes, the reader's not counted."""
        return cost(self.model, t)

    def take(self, rows: Tensor) -> Steered:
        """Return the model for some rows of its batch; a reader that holds a thing for each row has a ``take`` too."""
        log_p = self.log_p.take(rows) if hasattr(self.log_p, "take") else self.log_p
        return replace(self, model=take(self.model, rows), log_p=log_p)
