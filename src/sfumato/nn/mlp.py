"""A network for points: residual blocks of one linear layer each, modulated by the noise level."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.condition import Condition
from sfumato.nn.layers import Conditioning, Waves, started

__all__ = ["MLP"]


class MLP(nn.Module):
    """Network for points of any dimension.

    Args:
        dim: numbers per point.
        width: hidden width.
        depth: number of residual blocks.
        classes: number of class labels; 0 means there are none.
        octaves: of the waves through which it sees points; 0 for none.
        out: numbers per point of the output; by default as many.
        ends: whether the network hears the level at which a step ends.
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int = 128,
        depth: int = 3,
        classes: int = 0,
        octaves: int = 0,
        out: int | None = None,
        ends: bool = False,
    ):
        super().__init__()
        self.conditioning = Conditioning(width, classes, ends)
        self.dim, self.width, self.waves = dim, width, Waves(dim, octaves)
        self.inlet = started(nn.Linear(self.waves.out, width))
        self.film = started(nn.Linear(width, 2 * width * depth), 0.0)
        self.blocks = nn.ModuleList(MLPBlock(width) for _ in range(depth))
        self.outlet = started(nn.Linear(width, out or dim), 0.0)

    @property
    def parts(self) -> list[tuple[nn.Module, int]]:
        """What x passes through, in order, each with the channels of its output."""
        return [(block, self.width) for block in self.blocks]

    def forward(self, x: Tensor, level: Tensor, cond: Condition | None = None, to: Tensor | None = None) -> Tensor:
        """Points x (B, dim) of unit variance at noise level (B,), about -logsnr / 8, to (B, out).

        ``to`` (B,) is the level at which a step ends, for a network that hears it.

        Raises:
            ValueError: x has another shape, or labels or ends are missing where the network has them, or given where it
                has none.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"this MLP takes points (B, {self.dim}), got {tuple(x.shape)}")
        label = None if cond is None else cond.label
        films = self.film(self.conditioning(level, label, to)).chunk(len(self.blocks), 1)
        h = self.inlet(self.waves(x))
        for block, film in zip(self.blocks, films, strict=True):
            h = block(h, film)
        out: Tensor = self.outlet(F.silu(F.layer_norm(h, h.shape[1:])))
        return out


class MLPBlock(nn.Module):
    """x + W2 silu(film(W1 silu(norm(x)))) with vectors (B, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.first = started(nn.Linear(width, width))
        self.second = started(nn.Linear(width, width), 0.0)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """Vectors (B, width) and modulation (B, 2 width), scale and shift, to (B, width)."""
        scale, shift = film.chunk(2, 1)
        h = self.first(F.layer_norm(x, x.shape[1:]))
        out: Tensor = x + self.second(F.silu(h * (1 + scale) + shift))
        return out
