"""Distributions: what every conditional of a process returns.

A :class:`Normal` here is diagonal and knows nothing of time. The first axis is the batch: ``log_prob`` and ``kl``
sum over all other axes and return one number per example, in nats.

(1)  log N(x; m, s^2) = -1/2 sum [ ((x - m)/s)^2 + log(2 pi s^2) ]
(2)  KL(N(m1, s1^2) || N(m2, s2^2)) = sum [ log(s2/s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2 ]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Normal", "Rng", "per_example", "randn_like", "stream"]

Rng = torch.Generator | Sequence[torch.Generator] | None
"""Where noise comes from: one generator for the batch, one for each example (then an example's noise does not
depend on its neighbours), or None for PyTorch's global state."""

_PRIME = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads consecutive keys over all 64 bits (SplitMix64)


def stream(*keys: int) -> torch.Generator:
    """Return a generator that is a function of the keys alone, such as (seed, step, rank).

    Consecutive or swapped keys give unrelated streams; nothing is kept between calls, so any step can be remade.

    Args:
        keys: whole numbers of any sign.

    Returns:
        A CPU generator.
    """
    state = len(keys)
    for key in keys:  # SplitMix64's finaliser (Steele, Lea, Flood 2014), once for each key
        state = (state + key + 1) * _PRIME % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return torch.Generator().manual_seed(state % 2**63)


def randn_like(x: Tensor, rng: Rng = None) -> Tensor:
    """Draw standard normal noise of the shape, type and device of ``x``.

    Args:
        x: (B, ...).
        rng: see :data:`Rng`; a sequence must hold B generators.

    Returns:
        (B, ...) noise. With CPU generators the numbers are the same on every device.

    Raises:
        ValueError: a sequence of another length than the batch.
    """
    if rng is None:
        return torch.randn_like(x)
    if isinstance(rng, torch.Generator):
        return torch.randn(x.shape, generator=rng, dtype=x.dtype, device=rng.device).to(x.device)
    if len(rng) != len(x):
        raise ValueError(f"{len(rng)} generators for a batch of {len(x)}")
    draws = [torch.randn(x.shape[1:], generator=g, dtype=x.dtype, device=g.device) for g in rng]
    return torch.stack(draws).to(x.device)


def per_example(x: Tensor) -> Tensor:
    """Sum over all axes but the first: (B, ...) -> (B,)."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


@dataclass(frozen=True)
class Normal:
    """A diagonal normal distribution.

    Attributes:
        mean: (B, ...).
        std: at least 0, of a shape that broadcasts to ``mean``. Zero is a point mass: it can be sampled, but has
            no density.
    """

    mean: Tensor
    std: Tensor

    def sample(self, rng: Rng = None) -> Tensor:
        """Draw one sample of the shape of ``mean``, differentiable in both parameters."""
        return self.mean + self.std * randn_like(self.mean, rng)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log density at ``x`` (B, ...) in nats, (B,); equation (1)."""
        z = (x - self.mean) / self.std
        return -0.5 * per_example(z.square() + (2 * math.pi * self.std.square()).log())

    def kl(self, other: Normal) -> Tensor:
        """Return KL(self || other) in nats, (B,); equation (2)."""
        ratio = self.std / other.std
        shift = (self.mean - other.mean) / other.std
        return per_example(0.5 * (ratio.square() + shift.square() - 1) - ratio.log())
