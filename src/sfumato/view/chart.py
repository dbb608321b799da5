"""Small line charts as SVG, for pages that are light or dark: colours and letters come from the page's style sheet.

A chart has few points whatever is drawn: values are put into cells along x, of which the mean, the lowest and the
highest are kept, so that no peak is lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Axis", "Line", "Mark", "chart", "fitting", "short"]

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 28  # margins
CELLS = 300
SMOOTH = 0.012  # width of the smoothing Gaussian, as a share of the steps drawn
WIDE = 4.0  # a range of this ratio is drawn on a logarithmic scale
HOLE = 10.0  # a line ends where the next point is so many times as far as usual
HUGE = 1e100  # beyond it sums would overflow


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        x: (n,) rising.
        y: (n,) NaN where nothing is known.
        style: its class in the style sheet.
        weights: (n,) how much each value counts in a mean; None for all alike.
        look: the running mean, over the values themselves ("both") or without ("mean"), or the values as a line.
    """

    x: Floats
    y: Floats
    style: str
    weights: Floats | None = None
    look: Literal["both", "mean", "values"] = "both"


@dataclass(frozen=True)
class Mark:
    """Something that happened.

    Attributes:
        x: where.
        style: its class in the style sheet.
    """

    x: float
    style: str


@dataclass(frozen=True)
class _Cells:
    """A line thinned: mean place, mean value, lowest, highest and weight of each cell that holds anything."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    weight: Floats


def chart(lines: Sequence[Line], marks: Sequence[Mark], label: str, zero: bool = False) -> str:
    """Draw lines over the same x.

    Args:
        lines: the last one on top.
        marks: shown as upright lines.
        label: what it shows, for those who listen to the page; without "<" and "&".
        zero: let y begin at 0.

    Returns:
        An ``<svg>`` element; "" if no line has a value.
    """
    cells = [(_cells(line), line) for line in lines]
    cells = [(part, line) for part, line in cells if len(part.x)]
    if not cells:
        return ""
    x = Axis(min(part.x[0] for part, _ in cells), max(part.x[-1] for part, _ in cells), LEFT, WIDTH - RIGHT, False)
    low = 0.0 if zero else min(float((p.low if line.look == "both" else p.mean).min()) for p, line in cells)
    high = max(float((p.high if line.look == "both" else p.mean).max()) for p, line in cells)
    y = fitting(low, high, HEIGHT - BOTTOM, TOP)
    parts = [_frame(x, y), *_marks(x, marks)]
    parts += [
        f'<path class="raw {line.style}" d="{_range(part, x, y)}"/>' for part, line in cells if line.look == "both"
    ]
    for part, line in cells:
        mean = part.mean if line.look == "values" else _smoothed(part)
        parts.append(f'<path class="line {line.style}" d="{_path(part.x, mean, x, y)}"/>')
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return head + "".join(parts) + "</svg>"


def short(value: float) -> str:
    """Write a number for an axis: 1500 as "1.5k", 0.00025 as "2.5e-4"."""
    size = abs(value)
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if unit <= size < 1e12:
            return f"{value / unit:.3g}{letter}"
    if size == 0 or 1e-3 <= size < 1e3:
        return f"{value:.3g}"
    digits, power = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(power)}"


class Axis:
    """A scale from values to pixels, linear or logarithmic, that ends a little outside of the values."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool) -> None:
        self.log, self._start, self._end = log, start, end
        a, b = (math.log10(low), math.log10(high)) if log else (low, high)
        room = 0.04 * (b - a) if b > a else max(0.05 * abs(a), 0.01)
        along = start < end  # x ends at its last values
        self._low = a if (along and b > a) or (a == 0 and not log) else a - room
        self._high = b if along and b > a else b + room

    def __call__(self, values: Any) -> Any:
        places = np.log10(values) if self.log else values
        share = (places - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Return four to eight round values within."""
        if self.log:
            powers = range(math.floor(self._low), math.ceil(self._high) + 1)
            span = self._high - self._low
            steps = (1, 1.5, 2, 3, 4, 5, 7) if span < 0.9 else (1, 2, 5) if span < 2.5 else (1,)
            every = max(1, round(span / 6))
            found = [math.log10(k) + p for p in powers if p % every == 0 for k in steps]
            return [10**place for place in found if self._low <= place <= self._high]
        rough = (self._high - self._low) / 4
        size = 10 ** math.floor(math.log10(rough))
        step = size * next(k for k in (1, 2, 5, 10) if k * size >= rough * 0.999)
        return [k * step for k in range(math.ceil(self._low / step), math.floor(self._high / step) + 1)]


def fitting(low: float, high: float, start: float, end: float) -> Axis:
    """Return the scale that shows a range best: logarithmic if it is wide; arguments as for ``Axis``."""
    return Axis(low, high, start, end, low > 0 and high / low > WIDE)


def _cells(line: Line) -> _Cells:
    known = np.isfinite(line.y)
    weights = np.ones(len(line.x)) if line.weights is None else line.weights
    known &= weights > 0
    x, y, weights = line.x[known], line.y[known].clip(-HUGE, HUGE), weights[known]
    if len(x) <= CELLS:
        return _Cells(x, y, y, y, weights)
    cell = np.minimum((x - x[0]) / (x[-1] - x[0]) * CELLS, CELLS - 1).astype(int)
    starts = np.flatnonzero(np.diff(cell, prepend=-1))
    weight = np.add.reduceat(weights, starts)
    mean = np.add.reduceat(y * weights, starts) / weight
    where = np.add.reduceat(x, starts) / np.diff(starts, append=len(x))
    where[[0, -1]] = x[[0, -1]]  # a pixel aside, so that the line reaches both ends
    return _Cells(where, mean, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts), weight)


def _smoothed(cells: _Cells) -> Floats:
    """Return the running mean under a Gaussian that is cut at two widths, each value by its weight."""
    width = max((cells.x[-1] - cells.x[0]) * SMOOTH, 1e-12)
    apart = (cells.x[:, None] - cells.x) / width
    kernel = np.where(np.abs(apart) <= 2, np.exp(-apart * apart / 2), 0.0) * cells.weight
    return (kernel / kernel.sum(1, keepdims=True)) @ cells.mean


def _range(cells: _Cells, x: Axis, y: Axis) -> str:
    """Return a path from the lowest to the highest of each cell, a dot where they are the same."""
    rows = zip(x(cells.x), y(cells.low), y(cells.high), strict=True)
    return "".join(f"M{a:.1f} {b:.1f}V{c:.1f}" if abs(b - c) > 0.05 else f"M{a:.1f} {b:.1f}h0" for a, b, c in rows)


def _path(places: Floats, values: Floats, x: Axis, y: Axis) -> str:
    """Return a path through points, broken where the log has a hole."""
    apart = np.diff(places)
    far = HOLE * np.median(apart) if len(apart) else 0.0
    letters = ["M", *np.where(apart > far, "M", "L")]
    text = "".join(f"{letter}{a:.1f} {b:.1f}" for letter, a, b in zip(letters, x(places), y(values), strict=True))
    return f"{text}h0"  # a last point alone is a dot


def _frame(x: Axis, y: Axis) -> str:
    grid, text = [], []
    for tick in y.ticks():
        at = y(tick)
        grid.append(f"M{LEFT} {at:.1f}H{WIDTH - RIGHT}")
        text.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" class="y">{short(tick)}</text>')
    for tick in x.ticks():
        at = x(tick)
        text.append(f'<text x="{at:.1f}" y="{HEIGHT - 8}" class="x">{short(tick)}</text>')
    return f'<path class="grid" d="{"".join(grid)}"/>' + "".join(text)


def _marks(x: Axis, marks: Sequence[Mark]) -> list[str]:
    """Return upright lines, one path for each style; those within a pixel of each other are one."""
    places: dict[str, set[int]] = {}
    for mark in marks:
        at = round(x(mark.x))
        if LEFT <= at <= WIDTH - RIGHT:
            places.setdefault(mark.style, set()).add(at)
    return [
        f'<path class="mark {style}" d="{"".join(f"M{at} {TOP}V{HEIGHT - BOTTOM}" for at in sorted(found))}"/>'
        for style, found in places.items()
    ]
