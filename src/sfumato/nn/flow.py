"""A density of vectors that can be learned and drawn from: a normalising flow of affine couplings.

With z split in halves (a, b), a coupling is                          (Dinh et al. 1605.08803, equations 7 and 8)

(1)  a' = a,   b' = b exp(S tanh(s(a)/S)) + t(a),    log|det| = sum S tanh(s(a)/S)

and the halves change places after each. From vectors to noise it is read so, from noise to vectors backwards; S bounds
what one coupling may stretch, so that no example far from the others can break the training.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.condition import Condition
from sfumato.nn.layers import AFTER_SILU, started
from sfumato.nn.vectors import given

__all__ = ["Flow"]

STRETCH = 2.0  # S


class Flow(nn.Module):
    """Vectors as noise that went through invertible layers; standard normal before training.

    Args:
        dim: length of the vectors, at least 2.
        width: hidden width of each coupling.
        couplings: how many; an even number treats both halves alike.
        classes: number of class labels; 0 means there are none.

    Raises:
        ValueError: vectors of one number have no halves.
    """

    def __init__(self, dim: int, width: int = 128, couplings: int = 6, classes: int = 0) -> None:
        super().__init__()
        if dim < 2:
            raise ValueError(f"a coupling needs vectors of two numbers or more, got {dim}")
        self.sizes = [dim // 2 if k % 2 else dim - dim // 2 for k in range(couplings)]
        self.couplings = nn.ModuleList(Coupling(size, dim - size, width, classes) for size in self.sizes)

    def forward(self, z: Tensor, cond: Condition | None = None) -> tuple[Tensor, Tensor]:
        """Vectors (B, dim) and conditions to noise (B, dim) and log|det| (B,)."""
        log_det = z.new_zeros(len(z))
        for coupling, size in zip(self.couplings, self.sizes, strict=True):
            a, b = z[:, :size], z[:, size:]
            stretch, shift = coupling(a, cond)
            z = torch.cat([b * stretch.exp() + shift, a], 1)
            log_det = log_det + stretch.sum(1)
        return z, log_det

    def inverse(self, noise: Tensor, cond: Condition | None = None) -> Tensor:
        """Noise (B, dim) and conditions to vectors (B, dim)."""
        for coupling, size in reversed(list(zip(self.couplings, self.sizes, strict=True))):
            b, a = noise[:, :-size], noise[:, -size:]
            stretch, shift = coupling(a, cond)
            noise = torch.cat([a, (b - shift) * (-stretch).exp()], 1)
        return noise

    def log_prob(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        """Vectors (B, dim) and conditions to their log density in nats, (B,)."""
        noise, log_det = self.forward(z, cond)
        return log_det - noise.square().sum(1) / 2 - z.shape[1] / 2 * math.log(2 * math.pi)


class Coupling(nn.Module):
    """s and t of (1), zero at first."""

    def __init__(self, size: int, other: int, width: int, classes: int) -> None:
        super().__init__()
        self.inlet = started(nn.Linear(size, width))
        self.label = nn.Embedding(classes, width) if classes else None
        self.hidden = started(nn.Linear(width, width), AFTER_SILU)
        self.outlet = started(nn.Linear(width, 2 * other), 0.0)

    def forward(self, a: Tensor, cond: Condition | None) -> tuple[Tensor, Tensor]:
        """(B, size) to stretch and shift of the other half, (B, other) each."""
        h = self.inlet(a)
        if (label := given(self.label, cond)) is not None:
            h = h + label
        stretch, shift = self.outlet(F.silu(self.hidden(F.silu(h)))).chunk(2, 1)
        return STRETCH * torch.tanh(stretch / STRETCH), shift
