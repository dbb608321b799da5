"""The log of a run as columns: what was measured, step by step, and what happened."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
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
    events: list[dict[str, Any]] = []
    rows: dict[int, array[float]] = {}
    broken = 0
    for record in read_log(path):
        if record is None:
            broken += 1
        elif "event" in record:
            events.append(record)
        else:
            rows[record["step"]] = _row(record)
    steps = sorted(rows)
    bins, known = len(EDGES) + 1, len(NUMBERS)
    table = np.array([rows[step] for step in steps], np.float64).reshape(len(steps), known + 2 * bins)
    return History(
        np.array(steps, np.float64),
        dict(zip(NUMBERS, table[:, :known].T, strict=True)),
        table[:, known : known + bins],
        np.nan_to_num(table[:, known + bins :]),
        events,
        broken,
    )


def _row(record: Mapping[str, Any]) -> array[float]:
    """Return the numbers of a record, its levels and their counts: packed, for a log may have a million records."""
    values = [record.get(name) for name in NUMBERS]
    for name in ("levels", "counts"):
        part = record.get(name)
        values += part if isinstance(part, list) and len(part) == len(EDGES) + 1 else [None] * (len(EDGES) + 1)
    return array("d", map(_number, values))


def _number(value: Any) -> float:
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:  # a whole number with hundreds of digits
        return math.nan
    return number if math.isfinite(number) else math.nan
