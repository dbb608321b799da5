"""A small change of a network's weights, of low rank: few numbers that few examples can teach.

(1)  W = W_0 + s B A,    A (r, in) ~ N(0, 1/in) and B (out, r) = 0 at first       (Hu et al. 2106.09685, eq. 3)

for the weight of every linear and convolutional layer, that of a convolution as the matrix of its rows. W_0 rests; s is
1 in training, and says afterwards how much of what was learned is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["LowRank", "adapt", "merge"]

LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


class LowRank(nn.Module):
    """Equation (1) for one weight.

    Args:
        weight: W_0.
        rank: r; at most what the weight's own is.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        rank = min(rank, rows, columns)
        self.a = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.b = nn.Parameter(torch.zeros(rows, rank))
        self.share = 1.0

    def forward(self, weight: Tensor) -> Tensor:
        """W_0 to W, of its shape."""
        return weight + self.share * (self.b @ self.a).view_as(weight)


def adapt(network: nn.Module, rank: int) -> None:
    """Let a network learn by equation (1) alone, in place.

    Args:
        network: with its weights.
        rank: of the change of each.
    """
    network.requires_grad_(False)
    for layer in [module for module in network.modules() if isinstance(module, LAYERS)]:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))


def merge(network: nn.Module, share: float = 1.0) -> None:
    """Give a network that was adapted plain weights again, in place.

    Args:
        network: that was adapted.
        share: s of (1); 0 for W_0.
    """
    for change in [module for module in network.modules() if isinstance(module, LowRank)]:
        change.share = share
    for layer in [module for module in network.modules() if parametrize.is_parametrized(module)]:
        parametrize.remove_parametrizations(layer, "weight")
