"""What a sentence says to a picture: an encoder of its words, and the attention of every place to them.

Words mean what training finds for each of them, or what a language model that stays as it is says of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.layers import AFTER_SILU, attended, heads_of, started

__all__ = ["Cross", "Heard", "Meanings", "TextEncoder"]

WIDTH, DEPTH = 128, 2


class Heard(NamedTuple):
    """A sentence as networks hear it.

    Attributes:
        words: (B, 1 + length, width), first the sentence as a whole.
        silent: (B, 1 + length), true where there is no word.
    """

    words: Tensor
    silent: Tensor


class TextEncoder(nn.Module):
    """A small transformer over the words of a sentence, trained with the network that hears it.

    A sentence without words is the null condition: then only the place that stands for the whole is heard.

    Args:
        vocabulary: number of words.
        length: words of a sentence, at most.
        meaning: width of what a language model says of a word; 0 if words are learned along.
        width: of the vectors.
        depth: number of layers.
    """

    def __init__(self, vocabulary: int, length: int, meaning: int = 0, width: int = WIDTH, depth: int = DEPTH):
        super().__init__()
        self.width, self.length = width, length
        self.word = Meanings(meaning, width) if meaning else Words(vocabulary, width)
        self.place = nn.Parameter(torch.randn(1 + length, width))
        self.layers = nn.ModuleList(Layer(width) for _ in range(depth))

    def forward(self, cond: Tensor) -> Heard:
        """Words (B, length) by their places in the vocabulary, below 0 for none, to what is heard of them.

        Raises:
            ValueError: sentences of another length.
        """
        if cond.ndim != 2 or cond.shape[1] != self.length:
            raise ValueError(f"this network hears sentences (B, {self.length}), got {tuple(cond.shape)}")
        silent = F.pad(cond < 0, (1, 0))
        words = F.pad(self.word(cond), (0, 0, 1, 0)) + self.place
        for layer in self.layers:
            words = layer(words, silent)
        return Heard(F.layer_norm(words, (self.width,)), silent)


class Words(nn.Embedding):
    """A vector for each word, learned along; where there is none, below 0, that of the first, which nobody hears."""

    def forward(self, words: Tensor) -> Tensor:
        """Words (B, length) to (B, length, width)."""
        return super().forward(words.clamp(min=0))


class Meanings(nn.Module):
    """What a language model says of the words of a sentence, which is not trained, through a layer that is.

    Args:
        meaning: width of what it says.
        width: of the vectors.

    Attributes:
        states: words (B, length), below 0 for none, to what it says of them (B, length, meaning); given later, so that
            a network can be built, counted and saved without it.
    """

    def __init__(self, meaning: int, width: int):
        super().__init__()
        self.layer = started(nn.Linear(meaning, width))
        self.states: Callable[[Tensor], Tensor] | None = None

    def forward(self, words: Tensor) -> Tensor:
        """Words (B, length) to (B, length, width).

        Raises:
            ValueError: no language model was given.
        """
        if self.states is None:
            raise ValueError("this network hears words by a language model, and was given none")
        found = self.states(words)
        out: Tensor = self.layer(F.layer_norm(found, found.shape[2:]))
        return out


class Layer(nn.Module):
    """Attention among words and a network for each of them, both residual."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = heads_of(width)
        self.qkv = started(nn.Linear(width, 3 * width))
        self.out = started(nn.Linear(width, width), 0.0)
        self.first = started(nn.Linear(width, 2 * width))
        self.second = started(nn.Linear(2 * width, width), 0.0)

    def forward(self, x: Tensor, silent: Tensor) -> Tensor:
        """Words (B, n, width), of which some are silent (B, n), to the same shape."""
        q, k, v = self.qkv(F.layer_norm(x, x.shape[2:])).chunk(3, 2)
        x = x + self.out(attended(q, k, v, self.heads, silent))
        out: Tensor = x + self.second(AFTER_SILU * F.silu(self.first(F.layer_norm(x, x.shape[2:]))))
        return out


class Cross(nn.Module):
    """Residual attention of the places of a picture (B, C, H, W) to the words of a sentence.

    Args:
        channels: of the picture.
        width: of the words.
    """

    def __init__(self, channels: int, width: int = WIDTH):
        super().__init__()
        self.heads = heads_of(channels)
        self.q = started(nn.Linear(channels, channels))
        self.kv = started(nn.Linear(width, 2 * channels))
        self.out = started(nn.Linear(channels, channels), 0.0)

    def forward(self, x: Tensor, heard: Heard) -> Tensor:
        """(B, C, H, W) to the same shape."""
        b, c, h, w = x.shape
        q = self.q(F.layer_norm(x.permute(0, 2, 3, 1).reshape(b, h * w, c), (c,)))
        k, v = self.kv(heard.words).chunk(2, 2)
        mixed: Tensor = self.out(attended(q, k, v, self.heads, heard.silent))
        return x + mixed.view(b, h, w, c).permute(0, 3, 1, 2)
