"""A ladder of latent variables: one way up through the data, and one way down that infers them or draws them.

From the coarsest level to the finest, with h what lies above and d_k what the way up found in the data at level k,

(1)  p(z_k | above) = N(m(h), s(h)^2),    q(z_k | above, x) = N(m(h) + s(h) m'(h, d_k), (s(h) s'(h, d_k))^2)
(2)  h <- blocks(h + W z_k), doubled in size for the level below it

(Sonderby et al. 1602.02282, section 2.2; that q is told relative to p is of Vahdat and Kautz 2007.03898, section 3.2).
At first q = p = N(0, 1). Inference and generation share the way down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.layers import started
from sfumato.nn.vectors import GAIN, active, coarsest, layer, level

__all__ = ["Down", "Up"]

Law = tuple[Tensor, Tensor]
"""Mean and log standard deviation."""


class Up(nn.Module):
    """From data (B, *dims) to what is found in them at every level.

    Args:
        dims: (channels, height, width) of pictures, or (dim,) of points.
        widths: hidden channels of each level, the finest first.
        blocks: residual blocks of each level.
    """

    def __init__(self, dims: Sequence[int], widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.sides, self.factor = coarsest(dims, widths), 2 ** (len(widths) - 1)
        self.inlet = layer(dims, dims[0], widths[0])
        self.levels = nn.ModuleList(level(dims, width, blocks, len(widths)) for width in widths)
        self.widen = nn.ModuleList(pointwise(dims, a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Data (B, *dims) of unit variance to (B, width, ...) for each level, the finest first."""
        if self.sides:
            height, width = (side * self.factor for side in self.sides)
            x = F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))
            x = x.contiguous(memory_format=torch.channels_last)
        h, found = self.inlet(x), []
        for k, blocks in enumerate(self.levels):
            if k:
                h = self.widen[k - 1](F.avg_pool2d(h, 2) if self.sides else h)
            h = blocks(h)
            found.append(h)
        return found


class Down(nn.Module):
    """From latent variables, coarsest first, and labels to data (B, *dims).

    Args:
        dims: (channels, height, width) of pictures, or (dim,) of points.
        latent: latent channels of each level; of points, numbers.
        widths: hidden channels of each level, the finest first.
        blocks: residual blocks of each level.
        classes: number of class labels; 0 means there are none.
    """

    def __init__(self, dims: Sequence[int], latent: int, widths: Sequence[int], blocks: int, classes: int = 0) -> None:
        super().__init__()
        self.dims, self.latent = tuple(dims), latent
        sides, down = coarsest(dims, widths), list(reversed(widths))
        self.shapes = [(latent, *(side * 2**k for side in sides)) for k in range(len(widths))]
        self.start = nn.Parameter(torch.zeros(down[0], *sides))
        self.label = nn.Embedding(classes, down[0]) if classes else None
        self.prior = nn.ModuleList(pointwise(dims, width, 2 * latent, 0.0) for width in down)
        self.posterior = nn.ModuleList(pointwise(dims, 2 * width, 2 * latent, 0.0) for width in down)
        self.take = nn.ModuleList(pointwise(dims, latent, width) for width in down)
        self.levels = nn.ModuleList(level(dims, width, blocks, len(widths)) for width in down)
        self.narrow = nn.ModuleList(pointwise(dims, a, b) for a, b in pairwise(down))
        self.outlet = layer(dims, widths[0], dims[0], GAIN)

    def forward(self, n: int, cond: Tensor | None, draw: Callable[[int, Tensor, Law], Tensor]) -> Tensor:
        """Walk down.

        Args:
            n: examples.
            cond: (n,) labels.
            draw: asked at every level, with its number from 0, h, and the law p of (1), for z_k.

        Raises:
            ValueError: labels are missing where the network has them, or given where it has none.
        """
        if (self.label is None) != (cond is None):
            raise ValueError("cond is missing, or was given to a network that was built with classes=0")
        h = self.start.expand(n, *self.start.shape)
        if self.label is not None:
            label = self.label(cond)
            h = h + label.view(*label.shape, *(1 for _ in self.dims[1:]))
        for k, blocks in enumerate(self.levels):
            if k:
                if len(self.dims) > 1:
                    h = F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False)
                h = self.narrow[k - 1](h)
            mean, log_std = self.prior[k](active(h)).chunk(2, 1)
            h = blocks(h + self.take[k](draw(k, h, (mean, log_std))))
        out: Tensor = self.outlet(active(h))
        return out[:, :, : self.dims[1], : self.dims[2]].contiguous() if len(self.dims) > 1 else out

    def relative(self, k: int, h: Tensor, found: Tensor) -> Law:
        """Return m' and log s' of (1), (B, latent, ...) each.

        Args:
            k: number of the level, from 0.
            h: what lies above.
            found: what the way up found there.
        """
        mean, log_std = self.posterior[k](active(torch.cat([h, found], 1))).chunk(2, 1)
        return mean, log_std


def pointwise(dims: Sequence[int], before: int, after: int, gain: float = 1.0) -> nn.Module:
    """Return a layer that treats every place alone; arguments as for ``layer``."""
    if len(dims) == 1:
        return started(nn.Linear(before, after), gain)
    return started(nn.Conv2d(before, after, 1), gain)
