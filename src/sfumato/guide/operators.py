"""What is seen of data: linear operators, each a function from states (B, C, H, W) to what was measured of them.

Pictures are states in [-1, 1]; where an operator takes means, so are what it gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.dist import stream
from sfumato.errors import UserError

__all__ = ["Blur", "Grey", "Known", "Operator", "Projections", "Smaller"]

Operator = Callable[[Tensor], Tensor]
"""A linear function of states; it need not be one of these."""


@dataclass(frozen=True)
class Known:
    """The values that a mask shows: inpainting.

    Args:
        mask: (H, W), (C, H, W) or like the states, 1 where a value is known and 0 elsewhere.
    """

    mask: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape, 0 where nothing is known."""
        return x * self.mask.to(x.device, x.dtype)


@dataclass(frozen=True)
class Smaller:
    """Means of squares of pixels: super-resolution.

    Args:
        factor: side of a square.
    """

    factor: int = 4

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H / factor, W / factor).

        Raises:
            UserError: the factor does not divide height and width.
        """
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            height, width = x.shape[-2:]
            raise UserError(f"pictures of {height}x{width} cannot be seen {self.factor} times smaller: not divisible")
        return F.avg_pool2d(x, self.factor)


@dataclass(frozen=True)
class Blur:
    """A Gaussian blur, the borders repeated: deblurring.

    Args:
        radius: its standard deviation, in pixels.
    """

    radius: float = 1.5

    @cached_property
    def kernel(self) -> Tensor:
        """(2 r + 1,) the weights of a row, which sum to 1; r reaches three deviations."""
        reach = max(1, math.ceil(3 * self.radius))
        at = torch.arange(-reach, reach + 1, dtype=torch.float64)
        weights = torch.exp(-0.5 * (at / self.radius) ** 2)
        return weights / weights.sum()

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        kernel = self.kernel.to(x.device, x.dtype).expand(x.shape[1], 1, 1, -1)
        reach = kernel.shape[-1] // 2
        rows = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel, groups=x.shape[1])
        padded = F.pad(rows, (0, 0, reach, reach), mode="replicate")
        return F.conv2d(padded, kernel.transpose(2, 3), groups=x.shape[1])


@dataclass(frozen=True)
class Grey:
    """The mean of the channels: colourising."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 1, H, W)."""
        return x.mean(1, keepdim=True)


@dataclass(frozen=True)
class Projections:
    """Random projections of unit length: compressed sensing.

    Args:
        share: of as many numbers as a state has.
        seed: of the projections.
    """

    share: float = 0.25
    seed: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """(B, ...) to (B, m)."""
        return x.flatten(1) @ self.matrix(x[0].numel()).to(x.device, x.dtype).T

    def matrix(self, dim: int) -> Tensor:
        """Return the projections, (m, dim)."""
        return _projections(max(1, round(self.share * dim)), dim, self.seed)


@lru_cache(maxsize=4)
def _projections(count: int, dim: int, seed: int) -> Tensor:
    """Draw them once: they are asked for at every call of a network."""
    return F.normalize(torch.randn(count, dim, generator=stream(seed), dtype=torch.float64), dim=1)
