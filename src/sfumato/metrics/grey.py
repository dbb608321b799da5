"""A small frozen network whose features compare grey pictures: clothes, digits, anything of strokes and shades.

It was trained by bench/features.py to name the classes of Fashion-MNIST and of scikit-learn's digits, on their training
parts alone; how often it is right on the held-out parts stands in bench/results/features.json. A feature is the mean
over all places of a channel of the last layer before the names.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["SIDE", "WEIGHTS", "Grey", "grey"]

SIDE = 28
"""Pictures are brought to this height and width."""
WEIGHTS = Path(__file__).parents[1] / "weights" / "grey.safetensors"
"""The weights that come along, half precision."""


class Grey(nn.Module):
    """Grey pictures to features and to the logits of classes.

    Args:
        classes: how many it names.
        widths: channels at 28x28, 14x14 and 7x7; the last are the features.
    """

    def __init__(self, classes: int = 20, widths: tuple[int, int, int] = (32, 64, 128)) -> None:
        super().__init__()
        one, two, three = widths
        self.stem = nn.Sequential(nn.Conv2d(1, one, 3, padding=1, bias=False), nn.BatchNorm2d(one), nn.SiLU())
        self.middle = nn.Sequential(_halve(one, two), _Block(two))
        self.top = nn.Sequential(_halve(two, three), _Block(three))
        self.names = nn.Linear(three, classes)

    def features(self, x: Tensor) -> Tensor:
        """Pictures (n, 1, 28, 28) in [-1, 1] to features (n, d)."""
        h: Tensor = self.top(self.middle(self.stem(x)))
        return h.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (n, 1, 28, 28) in [-1, 1] to logits (n, classes)."""
        out: Tensor = self.names(self.features(x))
        return out


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.second(self.first(x)))


def _halve(fine: int, coarse: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(fine, coarse, 2, stride=2, bias=False), nn.BatchNorm2d(coarse), nn.SiLU())


def grey() -> Grey:
    """Return the network that comes along, in float32, frozen."""
    network = Grey()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()}, strict=False)
    return network.eval().requires_grad_(False)


def to_grey_side(x: Tensor) -> Tensor:
    """Bring pictures (n, 1, h, w) to (n, 1, 28, 28), small ones enlarged smoothly, large ones averaged."""
    if x.shape[2:] == (SIDE, SIDE):
        return x
    return torch.nn.functional.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
