"""The log of a run as columns: what was measured, step by step, and what happened."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.engine.gauge import EDGES
from sfumato.engine.track import read_log

__all__ = ["NUMBERS", "History", "history"]

Floats = NDArray[np.float64]

NUMBERS = ("seconds", "loss", "norm", "lr", "items_per_second", "memory", "peak")
"""What a record may say beside its step; see ``sfumato.engine.track.Track.numbers``."""


@dataclass(frozen=True)
class History:
    """A log that was read.

    Attributes:
        steps: (n,) of the records that hold numbers, rising.
        numbers: (n,) for each of :data:`NUMBERS`; NaN where a record does not say.
        levels: (n, 6) mean loss by noise level, from little noise to much.
        counts: (n, 6) examples in it.
        events: records of what happened, in the order of the log.
        broken: lines that could not be read.
    """

    steps: Floats
    numbers: dict[str, Floats]
    levels: Floats
    counts: Floats
    events: list[dict[str, Any]]
    broken: int

    def last(self, name: str) -> float | None:
        """Return the last known of some numbers."""
        known = self.numbers[name][np.isfinite(self.numbers[name])]
        return float(known[-1]) if len(known) else None

    @property
    def step(self) -> int:
        """The furthest step that the log tells of; 0 if it tells of none."""
        return int(max([*self.steps[-1:], *(event["step"] for event in self.events[-1:])], default=0))


def history(path: Path) -> History:
    """Read a log; of records of the same step the last one counts.

    Raises:
        UserError: the file cannot be read.
    """
    records, broken = read_log(path)
    events = [record for record in records if "event" in record]
    by_step = {record["step"]: record for record in records if "event" not in record}
    rows = [by_step[step] for step in sorted(by_step)]
    return History(
        np.array([row["step"] for row in rows], np.float64),
        {name: np.array([_number(row.get(name)) for row in rows]) for name in NUMBERS},
        _table(rows, "levels"),
        np.nan_to_num(_table(rows, "counts")),
        events,
        broken,
    )


def _table(rows: Sequence[Mapping[str, Any]], name: str) -> Floats:
    """Return a column of lists, (n, 6); rows of NaN where it is none."""
    width = len(EDGES) + 1
    lists = [row.get(name) for row in rows]
    fit = [part if isinstance(part, list) and len(part) == width else [None] * width for part in lists]
    return np.array([[_number(value) for value in part] for part in fit]).reshape(len(rows), width)


def _number(value: Any) -> float:
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:  # a whole number with hundreds of digits
        return math.nan
    return number if math.isfinite(number) else math.nan
