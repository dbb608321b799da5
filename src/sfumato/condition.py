"""What a sample may be asked for, and the condition that asks for nothing.

(1)  in training cond <- null, for a share p of the examples       (Ho and Salimans 2207.12598, alg. 1)
(2)  of another share p, each word and each fact is left out with probability 1/2: who asks says less than captions do,
     and what is to be avoided is often said in one word

A :class:`Condition` says of each example what it is asked to be, in any mix: a class, the words of a sentence by their
places in a :class:`Vocabulary`, attributes and numbers (facts.py), and what is known of it already. The null condition
is a value like any other, so networks, samplers and files need to know no second way to be asked: no class, a sentence
without words, no fact. What is known stays known under it, as it is no wish.

A network that has learned both p(x | cond) and p(x) can be guided from one to the other; see guide/toward.py.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import UserError

__all__ = [
    "MOST_TOKENS",
    "MOST_WORDS",
    "NULL",
    "Condition",
    "Request",
    "Row",
    "Vocabulary",
    "captioned",
    "short",
    "words_of",
]

NULL = -1
"""The label that asks for no class; of a sentence, where there is no word."""
MOST_WORDS, MOST_TOKENS = 8192, 32
"""Words of a vocabulary, and words of a sentence that are heard."""
EXAMPLES = 256
"""Captions that are kept, to be asked for where nothing else is."""


@dataclass(frozen=True)
class Request:
    """What one sample is asked for, part by part; None for a part of which nothing is said.

    Attributes:
        label: index of a class.
        words: of a sentence, by their places.
        facts: as ``sfumato.facts`` hears them.
    """

    label: int | None = None
    words: tuple[int, ...] | None = None
    facts: tuple[float, ...] | None = None

    @staticmethod
    def of(row: Row) -> Request:
        """Return a request for which something shorter may stand: a label, or the words of a sentence."""
        if isinstance(row, Request):
            return row
        return Request(row) if isinstance(row, int) else Request(words=row)


Row = int | tuple[int, ...] | Request
"""What one sample is asked for; a label or the words of a sentence stand for a request of nothing else."""
NOTHING = {"label": NULL, "words": NULL, "facts": math.nan}
"""The null condition of each part that is a wish."""


@dataclass(frozen=True)
class Condition:
    """What each of B examples is asked to be, part by part; None for a part of which nothing is ever said.

    Attributes:
        label: (B,) indices of classes, ``NULL`` for none.
        words: (B, length) words by their places in a vocabulary, ``NULL`` where there is none.
        facts: (B, columns) attributes and numbers as ``sfumato.facts`` hears them, NaN for what is not told.
        known: (B, 1 + C, H, W) what is known of a picture, as ``sfumato.known`` has it; None where nothing is.
        hint: (B, 1, H, W) what it shall look like in outline, as ``sfumato.hint`` has it; None where nothing is told.
    """

    label: Tensor | None = None
    words: Tensor | None = None
    facts: Tensor | None = None
    known: Tensor | None = None
    hint: Tensor | None = None

    @staticmethod
    def of(rows: Sequence[Row]) -> Condition:
        """Return what samples are asked for, one row for each, with the parts that the first of them has.

        Args:
            rows: of the same parts.
        """
        requests = [Request.of(row) for row in rows]
        told = [name for name in NOTHING if getattr(requests[0], name) is not None]
        parts = {name: [getattr(each, name) for each in requests] for name in told}
        return Condition(**{name: torch.tensor(part) for name, part in parts.items()})

    @property
    def parts(self) -> dict[str, Tensor]:
        """The parts of which something is said, by name."""
        return {name: part for name, part in vars(self).items() if part is not None}

    @property
    def _wishes(self) -> dict[str, Tensor]:
        return {name: part for name, part in self.parts.items() if name in NOTHING}

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def __getitem__(self, rows: Tensor | slice) -> Condition:
        """Return the conditions of some examples."""
        return Condition(**{name: part[rows] for name, part in self.parts.items()})

    def to(self, device: torch.device | str) -> Condition:
        """Return it on a device."""
        return Condition(**{name: part.to(device) for name, part in self.parts.items()})

    def asking(self, row: Row) -> Condition:
        """Return what asks all of these examples for one thing, ``NULL`` for nothing; known and hint stay."""
        asked = {name: getattr(Request.of(row), name) for name in NOTHING}
        wanted = {name: NOTHING[name] if value is None else value for name, value in asked.items()}
        return replace(self, **{
            name: torch.tensor(wanted[name], device=part.device, dtype=part.dtype).expand_as(part)
            for name, part in self._wishes.items()
        })  # fmt: skip

    def dropped(self, share: float, rng: torch.Generator | None = None) -> Condition:
        """Return conditions of which a share is replaced by the null condition, and one thinned; equations (1) and (2).

        Args:
            share: in [0, 1]; nothing is drawn for 0.
            rng: CPU generator.
        """
        if not share:
            return self
        gone = torch.rand(len(self), generator=rng) < share
        left = self._thinned(share, rng)
        return replace(left, **{
            name: part.masked_fill(gone.to(part.device).view(-1, *[1] * (part.ndim - 1)), NOTHING[name])
            for name, part in left._wishes.items()
        })  # fmt: skip

    def _thinned(self, share: float, rng: torch.Generator | None) -> Condition:
        """Return conditions of which a share has lost half of its words and facts, by chance; equation (2)."""
        left = {}
        for name in ("words", "facts"):
            part: Tensor | None = getattr(self, name)
            if part is not None:
                thin = torch.rand(len(part), 1, generator=rng) < share
                lost = thin & (torch.rand(part.shape, generator=rng) < 0.5)
                left[name] = part.masked_fill(lost.to(part.device), NOTHING[name])
        if "words" in left:  # those that are left come first, in their order
            order = (left["words"] == NULL).long().argsort(dim=1, stable=True)
            left["words"] = left["words"].gather(1, order)
        return replace(self, **left)


def short(cond: Row | str) -> str:
    """Return what is asked for as part of the name of a file: a label, or some digits that stand for all else."""
    return str(cond) if isinstance(cond, int) else hashlib.sha256(repr(cond).encode()).hexdigest()[:8]


def words_of(text: str) -> list[str]:
    """Return the words of a text: small letters, numbers and signs, each sign alone."""
    return re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFKC", text).casefold())


def captioned(captions: Sequence[str | None], data: str) -> tuple[list[str], tuple[str, ...]]:
    """Return the captions of items that have all one, and some different ones to ask for.

    Args:
        captions: of all items, None where one has none.
        data: whose they are, for errors.

    Raises:
        UserError: an item has none.
    """
    whole = [caption for caption in captions if caption is not None]
    if not whole or len(whole) < len(captions):
        missing = f"{len(captions) - len(whole):,} of its {len(captions):,} items have no caption"
        raise UserError(
            f"'{data}': {missing if whole else 'has no captions'}; write a .txt beside each picture, or a "
            "metadata.jsonl with file_name and text, or leave --text out"
        )
    different = list(dict.fromkeys(whole))
    return whole, tuple(different[:: max(1, len(different) // EXAMPLES)][:EXAMPLES])


@dataclass(frozen=True)
class Vocabulary:
    """The words that a model knows.

    Attributes:
        words: in the order of their places.
        length: words of a sentence that are heard.
        examples: sentences to ask for in turn where none is asked for.
    """

    words: tuple[str, ...]
    length: int
    examples: tuple[str, ...]

    @staticmethod
    def of(captions: Sequence[str | None], data: str) -> Vocabulary:
        """Return the vocabulary of some captions: the words that are met most, as far as ``MOST_WORDS``.

        Args:
            captions: of all items, None where one has none.
            data: whose they are, for errors.

        Raises:
            UserError: an item has none, or there is no word in them.
        """
        whole, examples = captioned(captions, data)
        told = [words_of(caption) for caption in whole]
        counts = Counter(word for words in told for word in words)
        if not counts:
            raise UserError(f"'{data}': there is no word in its captions; write some, or leave --text out")
        known = sorted(counts, key=lambda word: (-counts[word], word))[:MOST_WORDS]
        return Vocabulary(tuple(known), min(MOST_TOKENS, max(map(len, told))), examples)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self.words)}

    def strange(self, text: str) -> list[str]:
        """Return the words of a text that are not known, and not heard."""
        return [word for word in dict.fromkeys(words_of(text)) if word not in self._places]

    def row(self, text: str) -> tuple[int, ...]:
        """Return the places of the words of a text that are known, with ``NULL`` after the last, ``length`` numbers."""
        known = [self._places[word] for word in words_of(text) if word in self._places][: self.length]
        return (*known, *[NULL] * (self.length - len(known)))

    def rows(self, texts: Sequence[str]) -> Tensor:
        """Return the conditions of texts, (n, length)."""
        found = {text: self.row(text) for text in set(texts)}
        return torch.tensor([found[text] for text in texts]).view(len(texts), self.length)

    def told(self, row: Sequence[int]) -> str:
        """Return the words that a row of :meth:`rows` stands for, with a space between any two."""
        return " ".join(self.words[place] for place in row if place != NULL)

    def to_dict(self) -> dict[str, Any]:
        """Return it as data.json holds it."""
        return {"words": list(self.words), "length": self.length, "examples": list(self.examples)}

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> Vocabulary:
        """Read what :meth:`to_dict` gave.

        Args:
            record: of a vocabulary.

        Raises:
            ValueError: it is damaged.
        """
        words, length, examples = (record[key] for key in ("words", "length", "examples"))
        texts = [*words, *examples]
        if not (words and examples and all(isinstance(text, str) for text in texts)):
            raise ValueError("a vocabulary needs words and examples")
        if not (isinstance(length, int) and 0 < length <= MOST_TOKENS and len(words) <= MOST_WORDS):
            raise ValueError(f"a vocabulary of {len(words)} words for sentences of {length}")
        return Vocabulary(tuple(words), length, tuple(examples))
