"""The average of the weights over training, with a horizon that grows with the run.

(1)  w_avg(k) = b_k w_avg(k-1) + (1 - b_k) w(k),   b_k = (1 - 1/k)^(gamma + 1)   (Karras et al. 2312.02696, eq. 1-2)
(2)  horizon = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)): the standard deviation of the weights' age, as a
     share of the run                                                              (app. C.1)

b_1 = 0, so nothing of the random start remains; a fixed b = 0.9999 would keep 74% of it after 3,000 steps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from sfumato.engine.distributed import local
from sfumato.errors import UserError

__all__ = ["PowerAverage"]


class PowerAverage:
    """Keeps ``average`` at the power-function average of ``model``; equation (1).

    Args:
        model: what is trained.
        average: a copy of it.
        horizon: in (0, 0.28]: above that no power gives it; equation (2).

    Raises:
        UserError: an impossible horizon.
    """

    def __init__(self, model: nn.Module, average: nn.Module, horizon: float) -> None:
        self.gamma = _gamma(horizon)
        self.source = [local(p.detach()) for p in model.parameters()]
        self.target = [local(p.detach()) for p in average.parameters()]

    def update(self, step: int) -> None:
        """Take in the weights after step ``step`` = 1, 2, ...; equation (1)."""
        torch._foreach_lerp_(self.target, self.source, 1 - (1 - 1 / step) ** (self.gamma + 1))


def _gamma(horizon: float) -> float:
    """Solve (2): (gamma + 2)^2 (gamma + 3) = (gamma + 1) / horizon^2."""
    if horizon > 0:
        roots = np.roots([1, 7, 16 - horizon**-2, 12 - horizon**-2])
        real = roots[np.isclose(roots.imag, 0)].real
        if (real > 0).any():
            return float(real.max())
    raise UserError(f"ema is the average's horizon as a share of the run, in (0, 0.28], got {horizon}")
