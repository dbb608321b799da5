"""What is told of examples in columns: attributes by their values, and numbers.

A column whose every entry is a number is heard as one,

(1)  (v - mean) / std    over the training examples,

and every other by the place of its value among those that are met. NaN stands for what is not told, and asks for
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import UserError, nearest

__all__ = ["Fact", "Facts"]

MOST_VALUES = 1_000
"""Different values of an attribute."""
EXAMPLES = 256
"""Rows that are kept, to be asked for where nothing else is."""
Columns = Mapping[str, Sequence[str | None]]


@dataclass(frozen=True)
class Fact:
    """One column.

    Attributes:
        name: of the column.
        values: of an attribute, in order; () for a number.
        mean: of a number.
        std: of a number, above 0.
    """

    name: str
    values: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    @staticmethod
    def of(name: str, told: Sequence[str | None], data: str) -> Fact:
        """Return what a column tells.

        Args:
            name: of the column.
            told: its entries, None where there is none.
            data: whose they are, for errors.

        Raises:
            UserError: no entry, one value alone, or too many different ones.
        """
        found = [text for text in told if text is not None]
        different = sorted(set(found))
        if len(different) < 2:
            raise UserError(
                f"'{data}': column '{name}' tells {len(different)} different values: nothing to be asked for"
            )
        numbers = [_number(text) for text in found]
        if all(map(math.isfinite, numbers)):
            values = torch.tensor(numbers, dtype=torch.float64)
            return Fact(name, (), float(values.mean()), float(values.std(correction=0)))
        if len(different) > MOST_VALUES:
            raise UserError(f"'{data}': column '{name}' has {len(different):,} values, more than {MOST_VALUES:,}: "
                            "leave it out of --facts")  # fmt: skip
        return Fact(name, tuple(different))

    def place(self, text: str | None) -> float:
        """Return how an entry is heard, NaN for None.

        Raises:
            UserError: it is no number, or a value that was never met.
        """
        if text is None:
            return math.nan
        if not self.values:
            number = _number(text)
            if not math.isfinite(number):
                raise UserError(f"'{self.name}' is a number, and '{text}' is none")
            return (number - self.mean) / self.std
        if text not in self.values:
            raise UserError(f"no '{text}' among the values of '{self.name}'{nearest(text, self.values)}")
        return float(self.values.index(text))

    def told(self, place: float) -> str | None:
        """Return the entry behind what is heard, None for NaN."""
        if math.isnan(place):
            return None
        return self.values[round(place)] if self.values else f"{place * self.std + self.mean:.6g}"


@dataclass(frozen=True)
class Facts:
    """The columns that a model hears.

    Attributes:
        columns: in their order.
        examples: rows to ask for in turn where none is asked for.
    """

    columns: tuple[Fact, ...]
    examples: tuple[tuple[float, ...], ...]

    @staticmethod
    def of(columns: Columns, wanted: Sequence[str], data: str) -> Facts:
        """Return what some columns tell.

        Args:
            columns: by name, with an entry for each example.
            wanted: names of those that are heard.
            data: whose they are, for errors.

        Raises:
            UserError: no such column, or one that cannot be heard.
        """
        for name in wanted:
            if name not in columns:
                known = nearest(name, columns) if columns else "; write a metadata.csv with file_name and more columns"
                raise UserError(f"'{data}': no column '{name}'{known}")
        found = tuple(Fact.of(name, columns[name], data) for name in dict.fromkeys(wanted))
        rows = list(zip(*(columns[fact.name] for fact in found), strict=True))
        kept = rows[:: max(1, len(rows) // EXAMPLES)][:EXAMPLES]
        places = (tuple(f.place(text) for f, text in zip(found, row, strict=True)) for row in kept)
        return Facts(found, tuple(places))

    @property
    def kinds(self) -> tuple[int, ...]:
        """For each column the number of its values, 0 for a number."""
        return tuple(len(fact.values) for fact in self.columns)

    def row(self, told: Mapping[str, str]) -> tuple[float, ...]:
        """Return how entries by the name of their column are heard.

        Raises:
            UserError: no such column, or an entry that is not heard there.
        """
        names = [fact.name for fact in self.columns]
        for name in told:
            if name not in names:
                raise UserError(f"nothing is heard of '{name}'{nearest(name, names)}")
        return tuple(fact.place(told.get(fact.name)) for fact in self.columns)

    def rows(self, columns: Columns, index: Sequence[int]) -> Tensor:
        """Return how examples are heard, (n, columns) float32; values that were never met are not."""

        def heard(fact: Fact, text: str | None) -> float:
            return math.nan if fact.values and text not in fact.values else fact.place(text)

        blank: Sequence[str | None] = [None] * (max(index, default=0) + 1)
        told = [(fact, columns.get(fact.name, blank)) for fact in self.columns]
        return torch.tensor([[heard(fact, texts[k]) for fact, texts in told] for k in index], dtype=torch.float32)

    def told(self, row: Sequence[float]) -> dict[str, str]:
        """Return the entries that a row stands for, by column, without those that are not told."""
        found = {fact.name: fact.told(place) for fact, place in zip(self.columns, row, strict=True)}
        return {name: text for name, text in found.items() if text is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return it as data.json holds it."""
        rows = [[None if math.isnan(place) else place for place in row] for row in self.examples]
        return {"columns": [asdict(fact) for fact in self.columns], "examples": rows}

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> Facts:
        """Read what :meth:`to_dict` gave.

        Raises:
            ValueError: it is damaged.
        """
        columns = tuple(
            Fact(str(each["name"]), tuple(map(str, each["values"])), float(each["mean"]), float(each["std"]))
            for each in record["columns"]
        )
        rows = tuple(tuple(math.nan if x is None else float(x) for x in row) for row in record["examples"])
        if not columns or not rows or any(len(row) != len(columns) for row in rows):
            raise ValueError("facts need columns, and examples of all of them")
        if any(not fact.std > 0 or len(fact.values) > MOST_VALUES for fact in columns):
            raise ValueError("a number needs a deviation above 0, and an attribute not too many values")
        return Facts(columns, rows)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
