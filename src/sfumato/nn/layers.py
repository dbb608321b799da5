"""The parts both networks are made of: how they start, hear the noise level, normalise and attend.

Weights start so that activations keep unit scale: those of a layer are normal with variance gain^2 / fan_in, and the
gain after SiLU is 1 / sqrt(E[silu(z)^2]) = 1.6765 for z ~ N(0, 1). Layers that end a residual branch, and the output
layer, start at zero: a fresh network passes its input through all blocks and answers zero.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AFTER_SILU", "Attention", "Conditioning", "channel_norm", "started"]

AFTER_SILU = 1.6765
"""Gain that brings silu of unit noise back to unit scale, 1 / sqrt(E[silu(z)^2])."""
HEAD_WIDTH = 32

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def started(layer: Layer, gain: float = 1.0) -> Layer:
    """Gives `layer` its first weights: normal with standard deviation gain / sqrt(fan_in), and no bias.

    Args:
        layer: the layer, changed in place.
        gain: size of the output for an input of unit scale; `AFTER_SILU` undoes the shrinking of a SiLU before.

    Returns:
        The same layer.
    """
    assert layer.bias is not None
    fan_in = layer.weight.numel() / layer.bias.numel()
    with torch.no_grad():
        layer.weight.normal_(std=gain / math.sqrt(fan_in))
        layer.bias.zero_()
    return layer


class Conditioning(nn.Module):
    """Noise level, and class label if there are classes, to one vector that modulates every block.

    The level is read through 16 cosines and 16 sines with frequencies from 1/2 to 8 radians per unit. The shortest
    wave is 6 nats of log-SNR long (level is about -logsnr / 8): fine enough to tell all levels apart, smooth enough for
    derivatives by the level, which flow maps and consistency training take.

    A network that makes steps of any length hears the level of their end too. What it adds is 0 at first, and 0 for
    ever where a step has no length.

    Args:
        width: length of the vector.
        classes: number of class labels; 0 means there are none.
        ends: whether the level of a step's end is heard.
    """

    frequencies: Tensor

    def __init__(self, width: int, classes: int = 0, ends: bool = False):
        super().__init__()
        self.classes = classes
        self.register_buffer("frequencies", 0.5 * 16 ** torch.linspace(0, 1, 16), persistent=False)
        self.inner = started(nn.Linear(32, width), math.sqrt(2))
        self.outer = started(nn.Linear(width, width), AFTER_SILU)
        self.label = nn.Embedding(classes, width) if classes else None
        self.end = nn.Linear(32, width, bias=False) if ends else None
        if self.end is not None:
            nn.init.zeros_(self.end.weight)

    def forward(self, level: Tensor, cond: Tensor | None, to: Tensor | None = None) -> Tensor:
        """Levels (B,), labels (B,) below classes and levels of ends (B,) to vectors (B, width).

        A label below 0 is none: it adds nothing.

        Raises:
            ValueError: labels or ends are missing where the network has them, or given where it has none.
        """
        if self.label is None and cond is not None:
            raise ValueError("cond was given, but this network was built with classes=0")
        if self.label is not None and cond is None:
            raise ValueError(f"cond is missing: this network was built with classes={self.classes}")
        if (self.end is None) != (to is None):
            raise ValueError("a network for steps of any length needs the level of their end, and no other takes one")
        waves = self._waves(level)
        h: Tensor = self.outer(F.silu(self.inner(waves)))
        if self.end is not None and to is not None:
            h = h + self.end(self._waves(to) - waves)
        if self.label is not None and cond is not None:
            h = h + torch.where((cond < 0)[:, None], 0.0, self.label(cond.clamp(min=0)))
        return F.silu(h)

    def _waves(self, level: Tensor) -> Tensor:
        phase = level[:, None] * self.frequencies
        return torch.cat([phase.cos(), phase.sin()], 1)


def channel_norm(x: Tensor) -> Tensor:
    """Every pixel of x (B, C, H, W) to zero mean and unit variance over its channels.

    On channels-last memory this is torch's layer norm on a view, with no copy. GroupNorm has no fast kernel for that
    memory order, and convolutions are fastest in it.
    """
    return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Residual self-attention over the pixels of (B, C, H, W), in heads of 32 channels (one head if C is no multiple).

    The softmax is written out: at the 16 to 49 tokens measured it trains faster on a CPU than torch's fused
    kernel, and it has forward-mode derivatives, which the fused one lacks.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.heads = channels // HEAD_WIDTH if channels % HEAD_WIDTH == 0 else 1
        self.qkv = started(nn.Linear(channels, 3 * channels))
        self.out = started(nn.Linear(channels, channels), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        b, c, h, w = x.shape
        tokens = F.layer_norm(x.permute(0, 2, 3, 1).reshape(b, h * w, c), (c,))
        q, k, v = self.qkv(tokens).view(b, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-1, -2)
        # bfloat16 has three digits: too few for a sum over tokens
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
        mixed: Tensor = self.out((weights @ v).transpose(1, 2).reshape(b, h * w, c))
        return x + mixed.view(b, h, w, c).permute(0, 3, 1, 2)
