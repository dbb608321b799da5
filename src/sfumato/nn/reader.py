"""A reader of what the parts of another network make of a noisy state: which class it is of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Reader"]

WIDTH, SLOPE = 64, 0.2


class Reader(nn.Module):
    """From features of every part to a class: two layers at every place, the mean over places, the sum over parts.

    The features know the noise level, as their network heard it.

    Args:
        widths: channels of the features, for each part of the network.
        classes: number of classes.
    """

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.inlets = nn.ModuleList(nn.Linear(width, WIDTH) for width in widths)
        self.hidden = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in widths)
        self.outlet = nn.Linear(WIDTH, classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features (B, places, C) of every part to (B, classes) logits."""
        told = []
        for each, inlet, hidden in zip(features, self.inlets, self.hidden, strict=True):
            told.append(F.leaky_relu(hidden(F.leaky_relu(inlet(each), SLOPE)), SLOPE).mean(1))
        logits: Tensor = self.outlet(torch.stack(told).sum(0))
        return logits
