"""What networks of noisy pictures share: what they hear and see, and pictures of any size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.condition import Condition
from sfumato.nn.control import Control
from sfumato.nn.layers import Conditioning, computed
from sfumato.nn.text import Heard, Meanings, TextEncoder

__all__ = ["PictureNetwork"]


class PictureNetwork(nn.Module, ABC):
    """A network for images of any height, width and number of channels.

    Attributes:
        inputs: channels of what it sees, of the image, of a guess of it and of what is known of it.
        told: length of the vectors of words; 0 if there are none.
        control: a branch that follows hints, if it has one.

    Args:
        channels: channels of the images.
        embedding: length of the vector of noise level and what is asked for.
        multiple: what height and width are padded to.
        classes: number of class labels; 0 means there are none.
        vocabulary: number of words that it hears; 0 means none.
        tokens: words of a sentence, at most.
        meaning: width of what a language model says of a word; 0 if words are learned along.
        facts: for each column that it hears the number of its values, 0 for a number.
        known: whether it is shown what is known of a picture.
        guess: whether images come with a guess of what they show, in as many channels more.
        ends: whether the network hears the level at which a step ends.
        precision: "bf16" computes inside the network in bfloat16 (autocast); weights and output keep their type, and
            noise level, what is asked for and the last layer are not rounded.
    """

    def __init__(
        self,
        channels: int,
        embedding: int,
        multiple: int,
        *,
        classes: int,
        vocabulary: int,
        tokens: int,
        meaning: int,
        facts: Sequence[int],
        known: bool,
        guess: bool,
        ends: bool,
        precision: Literal["fp32", "bf16"],
    ) -> None:
        super().__init__()
        self.channels, self.multiple, self.known, self.precision = channels, multiple, known, precision
        self.shown = channels * (1 + guess)
        self.inputs = self.shown + (channels + 1) * known
        self.text = TextEncoder(vocabulary, tokens, meaning) if vocabulary else None
        self.told = self.text.width if self.text else 0
        self.conditioning = Conditioning(embedding, classes, ends, self.told, facts)
        self.control: Control | None = None

    def forward(self, x: Tensor, level: Tensor, cond: Condition | None = None, to: Tensor | None = None) -> Tensor:
        """Images x (B, C, H, W) of unit variance at noise level (B,), about -logsnr / 8, to (B, out, H, W), same type.

        A network that sees a guess takes (B, 2 C, H, W), the guess last.
        ``to`` (B,) is the level at which a step ends, for a network that hears it.

        Sizes that are no multiple are padded with zeros below and to the right, and cropped back.

        Raises:
            ValueError: x has another shape, or parts of a condition or ends are missing where the network has them, or
                given where it has none.
        """
        if x.ndim != 4 or x.shape[1] != self.shown:
            raise ValueError(f"this network takes pictures (B, {self.shown}, H, W), got {tuple(x.shape)}")
        said = Condition() if cond is None else cond
        if self.control is None and said.hint is not None:
            raise ValueError("cond has a hint, but this network was built with hint=False")
        height, width = x.shape[2:]
        margin = (0, -width % self.multiple, 0, -height % self.multiple)
        fits = not any(margin)
        seen = self._with_known(x, said.known)
        padded = seen if fits else F.pad(seen, margin)
        hint = said.hint if fits or said.hint is None else F.pad(said.hint, margin)
        with computed(x, self.precision):
            heard = self._heard(said.words)
        sentence = None if heard is None else heard.words[:, 0].to(x.dtype)
        with computed(x, "fp32"):  # nor in less by somebody's autocast around the network
            conditioning = self.conditioning(level, said.label, to, sentence, said.facts)
        with computed(x, self.precision):
            out = self._forward(padded, conditioning, heard, hint)
        return (out if fits else out[:, :, :height, :width]).to(x.dtype).contiguous()

    def read_by(self, states: Callable[[Tensor], Tensor]) -> None:
        """Let a language model read the words that this network hears; see ``sfumato.nn.text.Meanings``."""
        if self.text is None or not isinstance(self.text.word, Meanings):
            raise ValueError("this network was built to learn words along")
        self.text.word.states = states

    @abstractmethod
    def _forward(self, x: Tensor, conditioning: Tensor, heard: Heard | None, hint: Tensor | None) -> Tensor:
        """Padded images (B, inputs, H, W) to (B, out, H, W)."""

    def _heard(self, words: Tensor | None) -> Heard | None:
        if self.text is None:
            if words is not None:
                raise ValueError("cond has words, but this network was built with vocabulary=0")
            return None
        if words is None:
            raise ValueError("cond is missing: this network was built to hear sentences, and needs words")
        heard: Heard = self.text(words)
        return heard

    def _with_known(self, x: Tensor, known: Tensor | None) -> Tensor:
        """Return x with what is known of it, C + 1 channels more, of a network that is shown that."""
        if not self.known:
            if known is not None:
                raise ValueError("cond has a part that is known, but this network was built with known=False")
            return x
        nothing = x.new_zeros(len(x), self.channels + 1, *x.shape[2:])
        return torch.cat([x, nothing if known is None else known], 1)
