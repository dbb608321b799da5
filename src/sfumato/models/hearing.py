"""What a model can be asked for, in any mix: classes by their names, sentences by words, facts by their columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

from sfumato.condition import NULL, Condition, Request, Row, Vocabulary
from sfumato.data.codec import Dataset
from sfumato.errors import UserError, nearest
from sfumato.facts import Facts

__all__ = ["Hearing"]

T = TypeVar("T")


class Hearing:
    """What a model hears, in its users' words.

    Attributes:
        classes: names of the classes; () if it takes no labels.
        vocabulary: words that it hears; None if it hears none.
        facts: columns that it hears; None if it hears none.
    """

    classes: tuple[str, ...]
    vocabulary: Vocabulary | None
    facts: Facts | None

    @property
    def knows_null(self) -> bool:
        """Whether it has learned to draw under the null condition too; see condition.py."""
        return False

    def label(self, name: str | int) -> int:
        """Return the index of a class given by name or index, or the null condition for "none".

        Raises:
            UserError: the model has no classes, or not this one.
        """
        if not self.classes:
            other = ": say with --prompt what you want" if self.vocabulary else ": train with --classes to ask for one"
            raise UserError(f"this model was trained without classes{other}")
        if str(name) in self.classes:
            return self.classes.index(str(name))
        if name == "none":
            if self.knows_null:
                return NULL
            raise UserError("this run was trained without dropping its classes, so it has no answer to none of them")
        if str(name).isdecimal() and int(name) < len(self.classes):
            return int(name)
        raise UserError(f"no class '{name}'{nearest(str(name), self.classes)}")

    def prompt(self, text: str) -> tuple[int, ...]:
        """Return the words of a sentence by their places; of "" the null condition.

        Raises:
            UserError: the model hears no sentences, or none of these words.
        """
        if self.vocabulary is None:
            other = "ask for one with --class" if self.classes else "train with --text to ask in words"
            raise UserError(f"this run was trained without captions: {other}")
        row = self.vocabulary.row(text)
        if text.strip() and set(row) == {NULL}:
            words, word = self.vocabulary.words, self.vocabulary.strange(text)[0]
            meant = f" was in the captions{nearest(word, words)}" if words else " is known to its language model"
            raise UserError(f"no word of '{text}'{meant}")
        return row

    def request(self, text: str) -> Row:
        """Return what is asked for in words: a sentence of a model that hears them, and else the name of a class.

        Raises:
            UserError: as for :meth:`prompt` and :meth:`label`.
        """
        return self.label(text) if self.vocabulary is None else self.prompt(text)

    def say(self, told: Sequence[str]) -> tuple[float, ...]:
        """Return facts that are written as name=value.

        Raises:
            UserError: the model hears none, not these, or one is not written so.
        """
        if self.facts is None:
            raise UserError("this run was trained without facts: train with --facts to ask for attributes and numbers")
        pairs = [text.partition("=") for text in told]
        for name, sign, _ in pairs:
            if not sign:
                known = ", ".join(fact.name for fact in self.facts.columns)
                raise UserError(f"'{name}' is no fact: write name=value, of {known}")
        return self.facts.row({name.strip(): value.strip() for name, _, value in pairs})

    def requests(self, indices: Sequence[int], cond: Row | None = None) -> list[Request]:
        """Return what samples are asked for by index: ``cond``, or every class, and kept sentences and facts, in turn;
        nothing of a model that cannot be asked.
        """
        if not self.hears:
            return []
        if cond is not None:
            return [self._whole(Request.of(cond))] * len(indices)
        words = [] if self.vocabulary is None else [self.vocabulary.row(text) for text in self.vocabulary.examples]
        facts = () if self.facts is None else self.facts.examples
        return [
            Request(_turn(range(len(self.classes)), i), _turn(words, i), _turn(facts, i)) for i in indices
        ]  # fmt: skip

    @property
    def hears(self) -> bool:
        """Whether it can be asked for anything."""
        return bool(self.classes or self.vocabulary or self.facts)

    def _whole(self, asked: Request) -> Request:
        """Return a request with the null condition for each part that is heard and of which nothing is said."""
        silence = None if self.vocabulary is None else (NULL,) * self.vocabulary.length
        unknown = None if self.facts is None else (math.nan,) * len(self.facts.columns)
        return Request(
            NULL if asked.label is None and self.classes else asked.label,
            silence if asked.words is None else asked.words,
            unknown if asked.facts is None else asked.facts,
        )

    def conditions(self, indices: Sequence[int], cond: Row | None = None) -> Condition | None:
        """Return :meth:`requests` as networks hear them; None of a model that cannot be asked."""
        rows = self.requests(indices, cond)
        return Condition.of(rows) if rows else None

    def conditions_of(self, dataset: Dataset, index: Tensor) -> Condition | None:
        """Return what examples are; None of a model that cannot be asked.

        Args:
            dataset: with classes, if the model was trained with them; one without a caption asks for nothing.
            index: (b,) of the examples.
        """
        label = dataset.labels[index] if self.classes and dataset.labels is not None else None
        words = facts = None
        if self.vocabulary is not None:
            captions = dataset.captions or [None] * len(dataset.items)
            words = self.vocabulary.rows([captions[k] or "" for k in index.tolist()])
        if self.facts is not None:
            facts = self.facts.rows(dataset.columns, index.tolist())
        told = any(part is not None for part in (label, words, facts))
        return Condition(label, words, facts) if told else None

    def named(self, row: Row) -> dict[str, str]:
        """Return what one sample is asked for, for its recipe.

        Args:
            row: one of :meth:`requests`.
        """
        asked, told = Request.of(row), dict[str, str]()
        if asked.label is not None:
            told["class"] = "none" if asked.label == NULL else self.classes[asked.label]
        if asked.words is not None and self.vocabulary is not None:
            told["prompt"] = self.vocabulary.told(asked.words)
        return told | (self.facts.told(asked.facts) if self.facts is not None and asked.facts is not None else {})


def _turn(kept: Sequence[T], i: int) -> T | None:
    """Return the one of what is kept whose turn it is at an index, if there is any."""
    return kept[i % len(kept)] if kept else None
