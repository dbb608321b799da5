"""Networks between data and vectors: a decoder that makes pictures or points of a vector, and an encoder back.

Both are residual networks without normalisation (Huang et al. 2501.05441, section 3): a norm in them would make what is
said of one example depend on its neighbours or take its scale away, and they train without one if every residual
branch begins at zero and its inner layer is smaller the more branches there are, by branches^(-1/2) (Zhang et al.
1901.09321, Fixup, with two layers a branch). Pictures are halved and doubled in size by bilinear interpolation, which
for a factor of two down is the mean of four pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.condition import Condition
from sfumato.nn.layers import Waves, started

__all__ = ["Decoder", "Encoder", "Paint", "Up"]

SLOPE = 0.2
FEWER = 4  # times fewer channels where pictures become vectors
GAIN = math.sqrt(2 / (1 + SLOPE**2))  # brings leaky ReLU of unit noise back to unit scale


def active(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


class Decoder(nn.Module):
    """From vectors (B, latent) and labels to data (B, *dims).

    Args:
        dims: (channels, height, width) of pictures, or (dim,) of points.
        latent: length of the vectors.
        widths: hidden channels of each level of pictures, the finest first; (width,) for points.
        blocks: residual blocks of each level.
        classes: number of class labels; 0 means there are none.
    """

    def __init__(self, dims: Sequence[int], latent: int, widths: Sequence[int], blocks: int, classes: int = 0) -> None:
        super().__init__()
        self.sides = coarsest(dims, widths)
        self.label = nn.Embedding(classes, latent) if classes else None
        self.inlet = started(nn.Linear(latent * (2 if classes else 1), flat(widths, self.sides)))
        self.spread = started(nn.Conv2d(widths[-1] // FEWER, widths[-1], 1)) if self.sides else None
        self.paint = Paint(dims, widths, blocks)

    def forward(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        """Vectors (B, latent) of unit variance and conditions to (B, *dims).

        Raises:
            ValueError: labels are missing where the network has them, or given where it has none.
        """
        if (label := given(self.label, cond)) is not None:
            z = torch.cat([z, label], 1)
        h: Tensor = self.inlet(z)
        if self.spread is not None:
            h = self.spread(h.view(len(h), -1, *self.sides).contiguous(memory_format=torch.channels_last))
        out: Tensor = self.paint(h)
        return out


class Paint(nn.Module):
    """From features of the coarsest level (B, widths[-1], ...) to data (B, *dims).

    Args:
        dims: (channels, height, width) of pictures, or (dim,) of points.
        widths: hidden channels of each level, the finest first.
        blocks: residual blocks of each level.
    """

    def __init__(self, dims: Sequence[int], widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.dims = tuple(dims)
        self.levels = nn.ModuleList(level(dims, width, blocks, len(widths)) for width in reversed(widths))
        self.narrow = nn.ModuleList(layer(dims, a, b, side=1) for a, b in pairwise(reversed(widths)))
        self.outlet = layer(dims, widths[0], dims[0], GAIN)

    def forward(self, h: Tensor, more: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """(B, widths[-1], ...) to (B, *dims); ``more`` is asked for what is added at every level, by its number from 0
        and what has come there.
        """
        for k, blocks in enumerate(self.levels):
            if k:
                h = doubled(self.narrow[k - 1](h))  # the order changes nothing but the cost
            h = blocks(h if more is None else h + more(k, h))
        return cropped(self.outlet(active(h)), self.dims)


class Up(nn.Module):
    """From data (B, *dims) to what is found in them at every level.

    Args:
        dims: (channels, height, width) of pictures, or (dim,) of points.
        widths: hidden channels of each level, the finest first.
        blocks: residual blocks of each level.
        octaves: of the waves through which it sees points; 0 for none.
    """

    def __init__(self, dims: Sequence[int], widths: Sequence[int], blocks: int, octaves: int = 0) -> None:
        super().__init__()
        if octaves and len(dims) > 1:
            raise ValueError("waves are for points: leave octaves out")
        self.sides, self.factor = coarsest(dims, widths), 2 ** (len(widths) - 1)
        self.waves = Waves(dims[0], octaves) if octaves else None
        self.inlet = layer(dims, self.waves.out if self.waves else dims[0], widths[0])
        self.levels = nn.ModuleList(level(dims, width, blocks, len(widths)) for width in widths)
        self.widen = nn.ModuleList(layer(dims, a, b, side=1) for a, b in pairwise(widths))

    def forward(self, x: Tensor, shift: Tensor | None = None) -> list[Tensor]:
        """Data (B, *dims) of unit variance to (B, width, ...) for each level, the finest first.

        ``shift`` (B, width) is added to the first features, at every place.
        """
        if self.sides:
            height, width = (side * self.factor for side in self.sides)
            x = F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))
            x = x.contiguous(memory_format=torch.channels_last)
        h, found = self.inlet(x if self.waves is None else self.waves(x)), []
        if shift is not None:
            h = h + everywhere(shift, self.sides)
        for k, blocks in enumerate(self.levels):
            if k:
                h = self.widen[k - 1](F.avg_pool2d(h, 2) if self.sides else h)
            h = blocks(h)
            found.append(h)
        return found


class Encoder(nn.Module):
    """From data (B, *dims) and labels to vectors (B, out).

    A label is added to the first features, so that all layers know it, and scales the last hidden vector: of one output
    that is a part that all classes share and the inner product with a vector of each (Miyato and Koyama 1802.05637).

    Args:
        dims: (channels, height, width) of pictures, or (dim,) of points.
        out: length of the vectors.
        widths: hidden channels of each level of pictures, the finest first; (width,) for points.
        blocks: residual blocks of each level.
        classes: number of class labels; 0 means there are none.
        octaves: of the waves through which it sees points; 0 for none.
    """

    def __init__(
        self, dims: Sequence[int], out: int, widths: Sequence[int], blocks: int, classes: int = 0, octaves: int = 0
    ) -> None:
        super().__init__()
        self.sides = coarsest(dims, widths)
        self.up = Up(dims, widths, blocks, octaves)
        self.squeeze = started(nn.Conv2d(widths[-1], widths[-1] // FEWER, 1), GAIN) if self.sides else None
        self.join = started(nn.Linear(flat(widths, self.sides), widths[-1]), GAIN)
        self.parts = [widths[0], widths[-1]]
        self.label = nn.Embedding(classes, sum(self.parts)) if classes else None
        self.outlet = started(nn.Linear(widths[-1], out), GAIN)

    def forward(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """Data (B, *dims) of unit variance and conditions to (B, out).

        Raises:
            ValueError: labels are missing where the network has them, or given where it has none.
        """
        shift = scale = None
        if (label := given(self.label, cond)) is not None:
            shift, scale = torch.split(label, self.parts, 1)
        h = self.up(x, shift)[-1]
        h = active(h) if self.squeeze is None else active(self.squeeze(active(h)))
        h = active(self.join(h.flatten(1)))
        out: Tensor = self.outlet(h if scale is None else h * (1 + scale))
        return out


class Branch(nn.Module):
    """x + inner and outer layer of it, each after a leaky ReLU."""

    def __init__(self, inner: nn.Module, outer: nn.Module) -> None:
        super().__init__()
        self.inner, self.outer = inner, outer

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, ...) to the same shape."""
        out: Tensor = x + self.outer(active(self.inner(active(x))))
        return out


def level(dims: Sequence[int], width: int, blocks: int, levels: int) -> nn.Sequential:
    """Return the residual blocks of one level.

    Args:
        dims: of the data.
        width: hidden channels.
        blocks: how many.
        levels: of the whole network.
    """
    small = GAIN * (levels * blocks) ** -0.5
    return nn.Sequential(
        *(Branch(layer(dims, width, width, small), layer(dims, width, width, 0.0)) for _ in range(blocks))
    )


def layer(dims: Sequence[int], before: int, after: int, gain: float = 1.0, side: int = 3) -> nn.Module:
    """Return a convolution for pictures, or a matrix for points.

    Args:
        dims: of the data.
        before: channels of the input.
        after: channels of the output.
        gain: of its first weights.
        side: of its kernel, odd.
    """
    if len(dims) == 1:
        return started(nn.Linear(before, after), gain)
    return started(nn.Conv2d(before, after, side, padding=side // 2), gain)


def everywhere(vectors: Tensor, sides: Sequence[int]) -> Tensor:
    """Return vectors (B, width) as what can be added at every place of a picture."""
    return vectors.view(*vectors.shape, *(1 for _ in sides))


def doubled(h: Tensor) -> Tensor:
    """Return pictures (B, width, H, W) in twice their size; points (B, width) as they are."""
    if h.ndim == 2:
        return h
    return F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False)


def cropped(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return pictures without what the levels could not halve evenly; points as they are."""
    return x[:, :, : dims[1], : dims[2]].contiguous() if len(dims) > 1 else x


def coarsest(dims: Sequence[int], widths: Sequence[int]) -> tuple[int, ...]:
    """Return height and width at the coarsest level, rounded up; () for points."""
    return tuple(-(-side // 2 ** (len(widths) - 1)) for side in dims[1:])


def flat(widths: Sequence[int], sides: Sequence[int]) -> int:
    """Return the numbers that lie between the vectors and the coarsest level: of pictures only a part of its channels,
    or most weights of a network would be there.
    """
    return widths[-1] // FEWER * math.prod(sides) if sides else widths[-1]


def given(table: nn.Module | None, cond: Condition | None) -> Tensor | None:
    """Return the vectors of labels; None for a network without classes.

    Raises:
        ValueError: labels are missing where the network has classes, or given where it has none.
    """
    label = None if cond is None else cond.label
    if table is None:
        if label is not None:
            raise ValueError("cond has labels, but this network was built with classes=0")
        return None
    if label is None:
        raise ValueError("cond is missing: this network was built with classes, and needs labels")
    found: Tensor = table(label)
    return found
