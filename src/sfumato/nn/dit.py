"""A transformer over patches of a picture and the words of a sentence together (DiT).

(1)  x <- x + g_1 A(m(x; s_1, b_1)),   x <- x + g_2 F(m(x; s_2, b_2)),   m(x; s, b) = (1 + s) norm(x) + b

with attention A, a network F for each place, and s, b, g from noise level and what is asked for, 0 at first
(Peebles and Xie 2212.09748, section 3.2, adaLN-Zero). Patches and words attend to each other as one sequence
(Esser et al. 2403.03206, section 4, with weights that both share); words that are not there are not attended to.
Queries and keys have unit scale, which keeps high learning rates stable (Dehghani et al. 2302.05442, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.layers import AFTER_SILU, attended, exactly, heads_of, started
from sfumato.nn.pictures import PictureNetwork
from sfumato.nn.text import Heard

__all__ = ["DiT"]

LONGEST = 10_000.0
"""Ratio of the longest to the shortest wave of a place (Vaswani et al. 1706.03762, section 3.5)."""


class DiT(PictureNetwork):
    """Network for images of any height, width and number of channels, in patches.

    Args:
        channels: channels of the images.
        width: of the vector of a patch, a multiple of 4.
        depth: number of blocks.
        patch: side of a patch.
        classes: as for ``PictureNetwork``.
        vocabulary: as for ``PictureNetwork``.
        tokens: as for ``PictureNetwork``.
        meaning: as for ``PictureNetwork``.
        facts: as for ``PictureNetwork``.
        known: as for ``PictureNetwork``.
        guess: as for ``PictureNetwork``.
        dropout: probability of dropping a hidden activation in training.
        out: channels of the output; by default as many as of the images.
        ends: as for ``PictureNetwork``.
        precision: as for ``PictureNetwork``.

    Raises:
        ValueError: a width that is no multiple of 4.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = 256,
        depth: int = 6,
        patch: int = 4,
        classes: int = 0,
        vocabulary: int = 0,
        tokens: int = 0,
        meaning: int = 0,
        facts: Sequence[int] = (),
        known: bool = False,
        guess: bool = False,
        dropout: float = 0.0,
        out: int | None = None,
        ends: bool = False,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        if width % 4:
            raise ValueError(f"sines and cosines of two axes need a width that is a multiple of 4, got {width}")
        super().__init__(
            channels, width, patch, classes=classes, vocabulary=vocabulary, tokens=tokens, meaning=meaning,
            facts=facts, known=known, guess=guess, ends=ends, precision=precision,
        )  # fmt: skip
        self.width, self.patch = width, patch
        self.inlet = started(nn.Conv2d(self.inputs, width, patch, stride=patch))
        self.word = started(nn.Linear(self.told, width)) if self.told else None
        self.blocks = nn.ModuleList(TransformerBlock(width, dropout) for _ in range(depth))
        self.taps = nn.ModuleList(nn.Identity() for _ in range(depth))  # pictures, for who listens to parts
        self.film = started(nn.Linear(width, (6 * depth + 2) * width), 0.0)
        self.outlet = started(nn.Linear(width, (out or channels) * patch * patch), 0.0)

    @property
    def parts(self) -> list[tuple[nn.Module, int]]:
        """What x passes through, in order, each with the channels of its output."""
        return [(tap, self.width) for tap in self.taps]

    def _forward(self, x: Tensor, conditioning: Tensor, heard: Heard | None, hint: Tensor | None) -> Tensor:
        patches = self.inlet(x)
        height, width = patches.shape[2:]
        h = patches.flatten(2).mT + places(height, width, self.width).to(patches)
        count, silent = h.shape[1], None
        if self.word is not None and heard is not None:
            h = torch.cat([h, self.word(heard.words)], 1)
            silent = F.pad(heard.silent, (count, 0))
        film = exactly(self.film, conditioning).to(patches.dtype)[:, None]
        *films, shift, scale = torch.split(film, self.width, 2)
        for k, (block, tap) in enumerate(zip(self.blocks, self.taps, strict=True)):
            h = block(h, films[6 * k : 6 * k + 6], silent)
            tap(h[:, :count].mT.unflatten(2, (height, width)))
        made = exactly(self.outlet, modulated(h[:, :count], scale, shift))
        return F.pixel_shuffle(torch.unflatten(made.mT, 2, (height, width)), self.patch)


class TransformerBlock(nn.Module):
    """Equation (1)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads_of(width)
        self.qkv = started(nn.Linear(width, 3 * width))
        self.out = started(nn.Linear(width, width))
        self.first = started(nn.Linear(width, 4 * width))
        self.second = started(nn.Linear(4 * width, width), AFTER_SILU)
        self.sharp = nn.Parameter(torch.ones(1))  # how far attention is from even
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, films: list[Tensor], silent: Tensor | None) -> Tensor:
        """Places (B, n, width), six modulations (B, 1, width) and which places are silent (B, n) to the same shape."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = films
        q, k, v = self.qkv(modulated(x, scale_1, shift_1)).chunk(3, 2)
        q, k = (F.rms_norm(each.unflatten(2, (self.heads, -1)), (each.shape[2] // self.heads,)) for each in (q, k))
        mixed = attended(self.sharp * q.flatten(2), k.flatten(2), v, self.heads, silent)
        x = x + gate_1 * self.out(mixed)
        h = self.dropout(F.silu(self.first(modulated(x, scale_2, shift_2))))
        out: Tensor = x + gate_2 * self.second(h)
        return out


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return m of (1), with the norm of each place."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[2:]), 1 + scale)


def places(height: int, width: int, length: int) -> Tensor:
    """Return sines and cosines of rows and columns, (height x width, length)."""
    waves = LONGEST ** -torch.linspace(0, 1, length // 4)
    rows, columns = (torch.arange(n)[:, None] * waves for n in (height, width))
    along, across = (torch.cat([phase.sin(), phase.cos()], 1) for phase in (rows, columns))
    return torch.cat([along[:, None].expand(-1, width, -1), across[None].expand(height, -1, -1)], 2).flatten(0, 1)
