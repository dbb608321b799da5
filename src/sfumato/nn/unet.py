"""The image network: a U-Net whose choices were measured (`bench/network_speed.py`).

Tensors stay in channels-last memory, where convolutions are fastest; the norm is a layer norm over channels, which
needs no copy there; all blocks' modulations come from one matrix product.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.control import Control
from sfumato.nn.layers import AFTER_SILU, Attention, channel_norm, exactly, started
from sfumato.nn.pictures import PictureNetwork
from sfumato.nn.text import Cross, Heard

__all__ = ["UNet"]


class UNet(PictureNetwork):
    """Network for images of any height, width and number of channels.

    Args:
        channels: channels of the images.
        widths: hidden channels per level; every level after the first halves height and width.
        blocks: residual blocks per level, on the way down and again on the way up.
        attention: per level, whether self-attention follows its blocks. Its cost grows with (height x width)^2.
        classes: number of class labels; 0 means there are none.
        vocabulary: number of words that it hears; 0 means none. All levels but the finest attend to
            them, or the only one.
        tokens: words of a sentence, at most.
        meaning: as for ``PictureNetwork``.
        facts: for each column that it hears the number of its values, 0 for a number.
        known: whether it is shown what is known of a picture; by default nothing is.
        guess: as for ``PictureNetwork``.
        hint: whether it has a branch that follows a hint; see control.py.
        dropout: probability of dropping a hidden activation in training.
        out: channels of the output; by default as many as of the images.
        ends: whether the network hears the level at which a step ends.
        precision: "bf16" computes inside the network in bfloat16 (autocast); weights and output keep their type.

    Raises:
        ValueError: `attention` and `widths` differ in length.
    """

    def __init__(
        self,
        channels: int,
        *,
        widths: Sequence[int] = (32, 64, 96),
        blocks: int = 2,
        attention: Sequence[bool] = (False, False, True),
        classes: int = 0,
        vocabulary: int = 0,
        tokens: int = 0,
        meaning: int = 0,
        facts: Sequence[int] = (),
        known: bool = False,
        guess: bool = False,
        hint: bool = False,
        dropout: float = 0.0,
        out: int | None = None,
        ends: bool = False,
        precision: Literal["fp32", "bf16"] = "fp32",
    ):
        if len(attention) != len(widths):
            raise ValueError(f"attention has {len(attention)} entries for {len(widths)} levels: give one per level")
        embedding = 4 * widths[0]
        super().__init__(
            channels, embedding, 2 ** (len(widths) - 1), classes=classes, vocabulary=vocabulary, tokens=tokens,
            meaning=meaning, facts=facts, known=known, guess=guess, ends=ends, precision=precision,
        )  # fmt: skip
        told = self.told
        self.inlet = started(nn.Conv2d(self.inputs, widths[0], 3, padding=1))
        hearing = [told * (k > 0 or len(widths) == 1) for k in range(len(widths))]
        levels = list(zip(widths, attention, hearing, strict=True))
        self.down = nn.ModuleList(Stage(w, blocks, a, dropout, told) for w, a, told in levels)
        self.up = nn.ModuleList(Stage(w, blocks, a, dropout, told) for w, a, told in levels)
        steps = list(itertools.pairwise(widths))
        self.shrink = nn.ModuleList(started(nn.Conv2d(fine, coarse, 2, stride=2)) for fine, coarse in steps)
        # gain 2: of the four taps of a 2x2 kernel with stride 2, every output pixel sees one
        self.grow = nn.ModuleList(started(nn.ConvTranspose2d(coarse, fine, 2, stride=2), 2) for fine, coarse in steps)
        self.join = nn.ModuleList(started(nn.Conv2d(2 * fine, fine, 1)) for fine, _ in steps)
        self.film_sizes = [2 * w for w in (*widths, *reversed(widths)) for _ in range(blocks)]
        self.film = started(nn.Linear(embedding, sum(self.film_sizes)), 0.0)
        self.outlet = started(nn.Conv2d(widths[0], out or channels, 3, padding=1), 0.0)
        sizes = self.film_sizes[: len(widths) * blocks]
        self.control = Control(self.down, self.shrink, self.film, sizes) if hint else None

    @property
    def parts(self) -> list[tuple[nn.Module, int]]:
        """What x passes through, in order, each with the channels of its output."""
        stages = [*self.down, *reversed(self.up)]
        return [(stage, stage.width) for stage in stages]

    def _forward(self, x: Tensor, conditioning: Tensor, heard: Heard | None, hint: Tensor | None) -> Tensor:
        # channels-last memory from here on; said with permute, which vmap knows, unlike memory formats
        h = self.inlet(x).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        film = exactly(self.film, conditioning).to(h.dtype)[:, :, None, None]
        films = iter(torch.split(film, self.film_sizes, 1))
        skips = []
        added = None if self.control is None or hint is None else self.control(h, hint, conditioning, heard)
        for stage, shrink in zip(self.down, [*self.shrink, None], strict=True):
            h = stage(h, films, heard)
            h = h if added is None else h + next(added)
            if shrink is not None:
                skips.append(h)
                h = shrink(h)
        h = self.up[-1](h, films, heard)
        for i in reversed(range(len(skips))):
            h = self.grow[i](h)
            h = self.up[i](self.join[i](torch.cat([h, skips[i]], 1)), films, heard)
        return exactly(self.outlet, F.silu(channel_norm(h)))


class Stage(nn.Module):
    """The residual blocks of one level, then attention to itself and to words of length `told`, if asked for."""

    def __init__(self, width: int, blocks: int, attention: bool, dropout: float, told: int):
        super().__init__()
        self.width = width
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(blocks))
        self.attention = Attention(width) if attention else None
        self.cross = Cross(width, told) if told else None

    def forward(self, x: Tensor, films: Iterator[Tensor], heard: Heard | None) -> Tensor:
        """Images (B, width, H, W), taking the next modulation for each block, to the same shape."""
        for block in self.blocks:
            x = block(x, next(films))
        if self.attention is not None:
            x = self.attention(x)
        return x if self.cross is None else self.cross(x, heard)


class Block(nn.Module):
    """x + conv2(drop(silu(film(conv1(silu(norm(x))))))). A second norm, before film, cost up to 7% for nothing."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.first = started(nn.Conv2d(width, width, 3, padding=1), AFTER_SILU)
        self.second = started(nn.Conv2d(width, width, 3, padding=1), 0.0)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """Images (B, width, H, W) and modulation (B, 2 width, 1, 1), scale and shift, to the same shape."""
        scale, shift = film.chunk(2, 1)
        h = self.first(F.silu(channel_norm(x)))
        h = F.silu(torch.addcmul(shift, h, 1 + scale))
        out: Tensor = x + self.second(self.dropout(h))
        return out
