"""What a picture shall look like in outline: hints that are read off pictures, for a network to learn to follow.

    edges    1 where the picture changes: the largest of its channels' gradients (Sobel), against `EDGE` of the range
    mask     1 where it is not its ground, the median of its border, by more than `GROUND` of the range

A hint is a function of a picture, so any data teach it, and any picture can be followed. It is (B, 1, H, W) of 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["HINTS", "edges", "silhouette"]

EDGE = 0.3
"""Change across a pixel, as a share of the range of values, from which it is an edge."""
GROUND = 0.1
"""Difference from the ground, as a share of that range."""
RANGE = 2.0
"""Of the values of states."""


def edges(x_0: Tensor) -> Tensor:
    """Return where pictures (B, C, H, W) change."""
    across = x_0.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
    kernels = torch.stack([across, across.T])[:, None]
    padded = F.pad(x_0.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    steep = F.conv2d(padded, kernels).norm(dim=1).view_as(x_0).amax(1, keepdim=True)
    return (steep > EDGE * RANGE).to(x_0.dtype)


def silhouette(x_0: Tensor) -> Tensor:
    """Return where pictures (B, C, H, W) are not their ground."""
    border = torch.cat([x_0[:, :, 0], x_0[:, :, -1], x_0[:, :, :, 0], x_0[:, :, :, -1]], 2)
    far = (x_0 - border.median(2).values[:, :, None, None]).abs().amax(1, keepdim=True)
    return (far > GROUND * RANGE).to(x_0.dtype)


HINTS: dict[str, Callable[[Tensor], Tensor]] = {"edges": edges, "mask": silhouette}
"""By name: states (B, C, H, W) -> what is told of them, (B, 1, H, W)."""
