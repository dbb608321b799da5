"""The parts networks are made of: how they start, hear the noise level, see points, normalise and attend.

Weights start so that activations keep unit scale: those of a layer are normal with variance gain^2 / fan_in, and the
gain after SiLU is 1 / sqrt(E[silu(z)^2]) = 1.6765 for z ~ N(0, 1). Layers that end a residual branch, and the output
layer, start at zero: a fresh network passes its input through all blocks and answers zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "AFTER_SILU", "Attention", "Conditioning", "Told", "Waves", "attended", "channel_norm", "computed", "exactly",
    "heads_of", "started",
]  # fmt: skip

AFTER_SILU = 1.6765
"""Gain that brings silu of unit noise back to unit scale, 1 / sqrt(E[silu(z)^2])."""
HEAD_WIDTH = 32
NUMBER_OCTAVES = 3
"""Of the waves by which a number is heard: the shortest is 1.6 deviations long."""

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


def computed(like: Tensor, precision: Literal["fp32", "bf16"]) -> torch.autocast:
    """Return a context in which networks compute in a precision; weights keep their type.

    Args:
        like: a tensor on the device where they do.
        precision: "bf16" for bfloat16 (autocast).
    """
    return torch.autocast(like.device.type, torch.bfloat16, enabled=precision == "bf16")


def exactly(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """Return what a layer makes of x in the precision of its weights, also inside of a network that computes in less.

    It is for what speaks to all of a picture at once: rounded there, samples of few calls show it.
    """
    with computed(x, "fp32"):
        out: Tensor = layer(x.to(layer.weight.dtype))
    return out


class Conditioning(nn.Module):
    """Noise level, and what is asked for if anything is, to one vector that modulates every block.

    The level is read through 16 cosines and 16 sines with frequencies from 1/2 to 8 radians per unit. The shortest
    wave is 6 nats of log-SNR long (level is about -logsnr / 8): fine enough to tell all levels apart, smooth enough for
    derivatives by the level, which flow maps and consistency training take.

    A network that makes steps of any length hears the level of their end too. What it adds is 0 at first, and 0 for
    ever where a step has no length.

    Args:
        width: length of the vector.
        classes: number of class labels; 0 means there are none.
        ends: whether the level of a step's end is heard.
        text: length of the vector of a sentence; 0 means there are no sentences.
        facts: for each column that is heard the number of its values, 0 for a number.
    """

    frequencies: Tensor

    def __init__(
        self, width: int, classes: int = 0, ends: bool = False, text: int = 0, facts: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("frequencies", 0.5 * 16 ** torch.linspace(0, 1, 16), persistent=False)
        self.inner = started(nn.Linear(32, width), math.sqrt(2))
        self.outer = started(nn.Linear(width, width), AFTER_SILU)
        self.label = nn.Embedding(classes, width) if classes else None
        self.sentence = started(nn.Linear(text, width)) if text else None
        self.facts = nn.ModuleList(Told(values, width) for values in facts)
        self.end = nn.Linear(32, width, bias=False) if ends else None
        if self.end is not None:
            nn.init.zeros_(self.end.weight)

    def forward(
        self,
        level: Tensor,
        label: Tensor | None,
        to: Tensor | None = None,
        sentence: Tensor | None = None,
        facts: Tensor | None = None,
    ) -> Tensor:
        """Levels (B,), labels (B,) below classes, levels of ends (B,), vectors of sentences (B, text) and facts (B,
        columns) to vectors (B, width). A label below 0 is none, and so is a fact that is NaN: they add nothing.

        Raises:
            ValueError: labels, facts or ends are missing where the network has them, or given where it has none.
        """
        if len(self.facts) != (0 if facts is None else facts.shape[1]):
            heard = "none" if facts is None else facts.shape[1]
            raise ValueError(f"this network was built with {len(self.facts)} facts, and cond has {heard}")
        if self.label is None and label is not None:
            raise ValueError("cond has labels, but this network was built with classes=0")
        if self.label is not None and label is None:
            raise ValueError(f"cond is missing: this network was built with classes={self.classes}, and needs labels")
        if (self.end is None) != (to is None):
            raise ValueError("a network for steps of any length needs the level of their end, and no other takes one")
        waves = self._waves(level)
        h: Tensor = self.outer(F.silu(self.inner(waves)))
        if self.end is not None and to is not None:
            h = h + self.end(self._waves(to) - waves)
        if self.label is not None and label is not None:
            h = h + torch.where((label < 0)[:, None], 0.0, self.label(label.clamp(min=0)))
        if self.sentence is not None:
            h = h + self.sentence(sentence)
        for k, told in enumerate(self.facts):
            h = h + told(facts[:, k]) if facts is not None else h
        return F.silu(h)

    def _waves(self, level: Tensor) -> Tensor:
        phase = level[:, None] * self.frequencies
        return torch.cat([phase.cos(), phase.sin()], 1)


class Told(nn.Module):
    """One fact as a vector: an attribute by a table of its values, a number by its waves.

    Args:
        values: of an attribute; 0 for a number.
        width: length of the vector.
    """

    def __init__(self, values: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(values, width) if values else None
        self.waves = Waves(1, 0 if values else NUMBER_OCTAVES)
        self.number = None if values else started(nn.Linear(self.waves.out, width))

    def forward(self, fact: Tensor) -> Tensor:
        """(B,) places of values, or numbers of unit variance, NaN for nothing, to (B, width), 0 for nothing."""
        known = fact.nan_to_num(0.0)
        told: Tensor
        if self.table is not None:
            told = self.table(known.long())
        else:
            assert self.number is not None
            told = self.number(self.waves(known[:, None]))
        return torch.where(fact.isnan()[:, None], 0.0, told)


class Waves(nn.Module):
    """Numbers with their waves, (x, cos 2^k x, sin 2^k x) for k < octaves: a network that sees them can bend sharply.

    Without them it learns slow functions first and fine detail late (Tancik et al. 2006.10739; Kingma et al.
    2107.00630, appendix C, for diffusion).

    Args:
        dim: numbers of an example.
        octaves: how many doublings of the frequency, from 1 radian per unit on; 0 leaves x alone.
    """

    def __init__(self, dim: int, octaves: int):
        super().__init__()
        self.octaves = octaves
        self.out = dim * (1 + 2 * octaves)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim) to (B, out)."""
        phases = [2.0**k * x for k in range(self.octaves)]
        return torch.cat([x, *(phase.cos() for phase in phases), *(phase.sin() for phase in phases)], 1)


def channel_norm(x: Tensor) -> Tensor:
    """Every pixel of x (B, C, H, W) to zero mean and unit variance over its channels.

    On channels-last memory this is torch's layer norm on a view, with no copy. GroupNorm has no fast kernel for that
    memory order, and convolutions are fastest in it.
    """
    return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)


def heads_of(channels: int) -> int:
    """Return the number of heads of an attention: of 32 channels each, or one if that leaves a rest."""
    return channels // HEAD_WIDTH if channels % HEAD_WIDTH == 0 else 1


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int, silent: Tensor | None = None) -> Tensor:
    """Return what queries find in values by their keys, (B, n, C).

    The softmax is written out: at the 16 to 49 tokens measured it trains faster on a CPU than torch's fused
    kernel, and it has forward-mode derivatives, which the fused one lacks.

    Args:
        q: (B, n, C) queries.
        k: (B, m, C) keys.
        v: (B, m, C) values.
        heads: into which the channels are parted.
        silent: (B, m), true where there is nothing to be found; not everywhere.
    """
    b, n, c = q.shape
    q, k, v = (each.view(b, -1, heads, c // heads).transpose(1, 2) for each in (q, k, v))
    scores = (q * (c // heads) ** -0.5) @ k.transpose(-1, -2)
    if silent is not None:
        scores = scores.masked_fill(silent[:, None, None], -torch.inf)
    # bfloat16 has three digits: too few for a sum over tokens
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
    return (weights @ v).transpose(1, 2).reshape(b, n, c)


class Attention(nn.Module):
    """Residual self-attention over the pixels of (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.heads = heads_of(channels)
        self.qkv = started(nn.Linear(channels, 3 * channels))
        self.out = started(nn.Linear(channels, channels), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        b, c, h, w = x.shape
        tokens = F.layer_norm(x.permute(0, 2, 3, 1).reshape(b, h * w, c), (c,))
        q, k, v = self.qkv(tokens).chunk(3, 2)
        mixed: Tensor = self.out(attended(q, k, v, self.heads))
        return x + mixed.view(b, h, w, c).permute(0, 3, 1, 2)
