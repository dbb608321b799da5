"""A branch beside a U-Net that follows a hint: a picture of what shall be where."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from sfumato.nn.layers import exactly, started
from sfumato.nn.text import Heard

__all__ = ["Control"]


class Control(nn.Module):
    """The way down of a U-Net once more, which sees a hint too, and what it adds to each level; 0 at first.

    (1)  h_k <- h_k + Z_k g_k,    Z_k = 0 at first                   (Zhang et al. 2302.05543, eq. 2 and fig. 3)

    with h_k what leaves level k of the U-Net's way down and g_k what leaves that of the branch. So a fresh branch
    changes nothing, and the U-Net can rest while the branch learns.

    Args:
        down: the U-Net's stages on its way down, with which the branch begins.
        shrink: what lies between them.
        film: from the conditioning to the modulations of the U-Net, those of its way down first.
        sizes: of these.
        channels: of the hint.
    """

    def __init__(
        self, down: nn.ModuleList, shrink: nn.ModuleList, film: nn.Linear, sizes: Sequence[int], channels: int = 1
    ) -> None:
        super().__init__()
        widths = [int(stage.width) for stage in down]  # type: ignore[arg-type]
        self.sizes = list(sizes)
        self.down, self.shrink = copy.deepcopy(down), copy.deepcopy(shrink)
        self.film = nn.Linear(film.in_features, sum(sizes))
        self.inlet = started(nn.Conv2d(channels, widths[0], 3, padding=1))
        self.outlets = nn.ModuleList(started(nn.Conv2d(width, width, 1), 0.0) for width in widths)
        self.begin(down, shrink, film)

    @torch.no_grad()
    def begin(self, down: nn.ModuleList, shrink: nn.ModuleList, film: nn.Linear) -> None:
        """Take the weights of a U-Net's way down; arguments as for the class."""
        self.down.load_state_dict(down.state_dict())
        self.shrink.load_state_dict(shrink.state_dict())
        self.film.weight.copy_(film.weight[: self.film.out_features])
        self.film.bias.copy_(film.bias[: self.film.out_features])

    def forward(self, h: Tensor, hint: Tensor, conditioning: Tensor, heard: Heard | None) -> Iterator[Tensor]:
        """What enters the U-Net's first stage (B, width, H, W) and a hint (B, channels, H, W): yields what is added to
        what leaves each of its stages.
        """
        films = iter(torch.split(exactly(self.film, conditioning).to(h.dtype)[:, :, None, None], self.sizes, 1))
        h = h + self.inlet(hint).to(h.dtype)
        for stage, outlet, shrink in zip(self.down, self.outlets, [*self.shrink, None], strict=True):
            h = stage(h, films, heard)
            yield outlet(h)
            h = h if shrink is None else shrink(h)
