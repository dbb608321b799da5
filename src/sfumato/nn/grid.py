"""Networks between pictures and a grid of vectors, each of which stands where what it tells of is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from sfumato.nn.layers import computed
from sfumato.nn.vectors import GAIN, Paint, Up, active, coarsest, layer

__all__ = ["GridDecoder", "GridEncoder"]


class GridEncoder(nn.Module):
    """From pictures (B, *dims) to (B, out, height, width) of the coarsest level.

    Args:
        dims: (channels, height, width) of the pictures.
        out: channels of the grid.
        widths: hidden channels of each level, the finest first; every level but the first halves the sides.
        blocks: residual blocks of each level.
        precision: "bf16" computes inside the network in bfloat16 (autocast); weights and output keep their type.
    """

    def __init__(
        self,
        dims: Sequence[int],
        out: int,
        widths: Sequence[int],
        blocks: int,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        super().__init__()
        self.precision = precision
        self.up = Up(dims, widths, blocks)
        self.outlet = layer(dims, widths[-1], out, GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (B, *dims) of unit variance to (B, out, height, width)."""
        with computed(x, self.precision):
            found: Tensor = self.outlet(active(self.up(x)[-1]))
        return found.to(x.dtype)


class GridDecoder(nn.Module):
    """From (B, latent, height, width) to pictures (B, *dims).

    Attributes:
        sides: (height, width) of the grid.

    Args:
        dims: (channels, height, width) of the pictures.
        latent: channels of the grid.
        widths: hidden channels of each level, the finest first.
        blocks: residual blocks of each level.
        precision: as for ``GridEncoder``.
    """

    def __init__(
        self,
        dims: Sequence[int],
        latent: int,
        widths: Sequence[int],
        blocks: int,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        super().__init__()
        self.precision = precision
        self.sides = coarsest(dims, widths)
        self.inlet = layer(dims, latent, widths[-1])
        self.paint = Paint(dims, widths, blocks)

    def forward(self, z: Tensor) -> Tensor:
        """(B, latent, height, width) to pictures (B, *dims) of unit variance."""
        with computed(z, self.precision):
            out: Tensor = self.paint(self.inlet(z))
        return out.to(z.dtype)
