"""The networks of DCGAN (Radford et al. 1511.06434, figure 1 and section 4), for pictures of any size.

They hold what a tutorial gives: strided convolutions between halves of the size, batch normalisation, ReLU, tanh at the
end, first weights of deviation 0.02. The normalisation is always by the batch at hand, so averaged weights need no
statistics of their own; what is drawn together is always a batch of one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.condition import Condition
from sfumato.nn.vectors import SLOPE, cropped, given

__all__ = ["Critic", "Generator"]

DEVIATION = 0.02  # of the first weights


class Generator(nn.Module):
    """From vectors (B, latent) and labels to pictures (B, *dims) between -1 and 1.

    Args:
        dims: (channels, height, width).
        latent: length of the vectors.
        widths: hidden channels of each level below the pictures, the finest first.
        classes: number of class labels; 0 means there are none.
    """

    def __init__(self, dims: Sequence[int], latent: int, widths: Sequence[int], classes: int = 0) -> None:
        super().__init__()
        self.dims, first = tuple(dims), _coarsest(dims, widths)
        self.label = nn.Embedding(classes, latent) if classes else None
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent * (2 if classes else 1), widths[-1], first, bias=False)]
        for a, b in pairwise((*reversed(widths), dims[0])):
            layers += [_norm(a), nn.ReLU(), nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Tanh()).apply(_start)

    def forward(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        """Vectors (B, latent) and conditions to (B, *dims).

        Raises:
            ValueError: labels are missing where the network has them, or given where it has none.
        """
        if (label := given(self.label, cond)) is not None:
            z = torch.cat([z, label], 1)
        return cropped(self.layers(z[:, :, None, None]), self.dims)


class Critic(nn.Module):
    """From pictures (B, *dims) and labels to (B, 1); a label is a picture more, as bright everywhere.

    Args:
        dims: (channels, height, width).
        widths: hidden channels of each level below the pictures, the finest first.
        classes: number of class labels; 0 means there are none.
    """

    def __init__(self, dims: Sequence[int], widths: Sequence[int], classes: int = 0) -> None:
        super().__init__()
        self.step, self.label = 2 ** len(widths), nn.Embedding(classes, dims[0]) if classes else None
        layers: list[nn.Module] = []
        for k, (a, b) in enumerate(pairwise((dims[0] * (2 if classes else 1), *widths))):
            layers += [nn.Conv2d(a, b, 4, 2, 1, bias=False), *[_norm(b)] * bool(k), nn.LeakyReLU(SLOPE)]
        last = nn.Conv2d(widths[-1], 1, _coarsest(dims, widths), bias=False)
        self.layers = nn.Sequential(*layers, last, nn.Flatten()).apply(_start)

    def forward(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """Pictures (B, *dims) and conditions to (B, 1).

        Raises:
            ValueError: labels are missing where the network has them, or given where it has none.
        """
        if (label := given(self.label, cond)) is not None:
            x = torch.cat([x, label[:, :, None, None].expand_as(x)], 1)
        out: Tensor = self.layers(F.pad(x, (0, -x.shape[-1] % self.step, 0, -x.shape[-2] % self.step)))
        return out


def _coarsest(dims: Sequence[int], widths: Sequence[int]) -> tuple[int, int]:
    height, width = (-(-side // 2 ** len(widths)) for side in dims[1:])
    return height, width


def _norm(width: int) -> nn.Module:
    return nn.BatchNorm2d(width, track_running_stats=False)


def _start(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, std=DEVIATION)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, DEVIATION)
