"""What is known of a picture before it is made: a part of its pixels, shown to the network beside the noisy state.

With a mask m, 1 where pixels are known and 0 where they are hidden, a network is called with

(1)  (x_t, m, m x_0)                            one channel for m, which tells a black pixel from a hidden one

and learns p(x_0 | m x_0), whatever m is, from random masks (Saharia et al. 2111.05826, section 4.4, for one model of
many masks). Half of the masks of training show nothing, so that the same network draws whole pictures; of the rest half
hide a few rectangles (inpainting) and half show no more than them (outpainting). Rectangles may reach beyond the
picture, so halves and borders are among them.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["known", "random_masks"]

NOTHING = 0.5
"""Share of the examples of which training shows nothing."""
RECTANGLES = 3
"""In one mask, at most."""
SIDES = (0.2, 1.2)
"""Sides of a rectangle, as shares of the picture's."""


def known(x_0: Tensor, mask: Tensor) -> Tensor:
    """Return the mask and what it shows, (B, 1 + C, H, W); equation (1).

    Args:
        x_0: (B, C, H, W) pictures.
        mask: (H, W) or (B, 1, H, W), 1 where they are shown.
    """
    shown = mask.to(x_0).expand(len(x_0), 1, *x_0.shape[2:])
    return torch.cat([shown, torch.where(shown > 0, x_0, 0.0)], 1)


def random_masks(x_0: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """Draw a mask for each of some pictures (B, C, H, W), (B, 1, H, W) in {0, 1}.

    Args:
        x_0: the pictures; only their shape and device matter.
        rng: CPU generator.
    """
    b, _, height, width = x_0.shape
    side, place = torch.rand(2, b, RECTANGLES, 2, generator=rng)
    kind, count = torch.rand(2, b, generator=rng)
    half = (SIDES[0] + (SIDES[1] - SIDES[0]) * side) / 2
    used = torch.arange(RECTANGLES) <= RECTANGLES * count[:, None]
    rows, columns = (
        ((torch.arange(n) + 0.5) / n - place[..., k, None]).abs() < half[..., k, None]
        for k, n in enumerate((height, width))
    )
    inside = (rows[..., :, None] & columns[..., None, :] & used[:, :, None, None]).any(1, keepdim=True)
    share = kind[:, None, None, None]
    drawn = torch.where(share < (1 + NOTHING) / 2, ~inside, inside) & (share >= NOTHING)
    return drawn.to(x_0.device, x_0.dtype)
