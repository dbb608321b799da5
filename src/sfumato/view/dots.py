"""Small pictures of points as SVG, in the colours and letters of the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sfumato.view.chart import Axis, fitting, short

__all__ = ["Point", "rows_of_dots", "scatter"]

WIDTH, HEIGHT = 420, 276
LEFT, RIGHT, TOP, BOTTOM = 84, 14, 10, 28  # margins
ROW, EDGE = 26, 8  # height of a row of dots, and room beside the outermost
NAMES = 18  # height of the line that names x
LEAST, MOST = 3.5, 16.0  # radii of points whose area tells something


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot.

    Attributes:
        x: its place.
        y: and its other one.
        size: what its area tells, above 0.
        style: its class in the style sheet.
    """

    x: float
    y: float
    size: float
    style: str


def rows_of_dots(rows: Mapping[str, Sequence[float]], styles: Mapping[str, str], real: float, label: str) -> str:
    """Draw the values of each row as dots over one scale, and what real data have as an upright line.

    Args:
        rows: values by name, which is HTML.
        styles: class of each row in the style sheet.
        real: of real data; left out if it is not finite.
        label: what it shows, for those who listen to the page; without "<" and "&".

    Returns:
        An ``<svg>`` element; "" if there is no value.
    """
    values = [value for row in rows.values() for value in row if math.isfinite(value)]
    if not values:
        return ""
    every = values + [real] * math.isfinite(real)
    x = fitting(min(every), max(every), LEFT + EDGE, WIDTH - RIGHT - EDGE)
    height = TOP + ROW * len(rows) + BOTTOM
    parts = _ticks(x, height)
    if math.isfinite(real):
        parts.append(f'<path class="mark" d="M{x(real):.1f} {TOP}V{height - BOTTOM}"/>')
    for k, (name, row) in enumerate(rows.items()):
        y = TOP + ROW * (k + 0.5)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" class="y">{name}</text>')
        parts += [_dot(x(value), y, 5.0, styles[name]) for value in row if math.isfinite(value)]
    return _svg(parts, height, label)


def scatter(points: Mapping[str, Sequence[Point]], label: str, across: str, up: str) -> str:
    """Draw points, with the name of each row beside its first.

    Args:
        points: by name, which is HTML.
        label: what it shows, for those who listen to the page; without "<" and "&".
        across: what x is, as HTML.
        up: what y is, as HTML.

    Returns:
        An ``<svg>`` element; "" if there is no point.
    """
    every = [point for row in points.values() for point in row]
    if not every:
        return ""
    xs, ys = [p.x for p in every], [p.y for p in every]
    x = Axis(min(xs), max(xs), LEFT + MOST, WIDTH - RIGHT - 3 * MOST, False)
    y = fitting(min(ys), max(ys), HEIGHT - NAMES - BOTTOM - MOST, TOP + 2 * MOST)
    largest = max(point.size for point in every)
    parts = _ticks(x, HEIGHT - NAMES)
    for tick in y.ticks():
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" class="y">{short(tick)}</text>')
    for name, row in points.items():
        for k, point in enumerate(row):
            radius = max(LEAST, MOST * math.sqrt(point.size / largest))
            parts.append(_dot(x(point.x), y(point.y), radius, point.style))
            if k == 0:
                parts.append(f'<text x="{x(point.x) + radius + 4:.1f}" y="{y(point.y) - radius:.1f}">{name}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" class="y">{across}</text>')
    parts.append(f'<text x="{LEFT + 2}" y="{TOP + 8}">{up}</text>')
    return _svg(parts, HEIGHT, label)


def _ticks(x: Axis, height: float) -> list[str]:
    parts, last = [], -math.inf
    for tick in x.ticks():
        at = x(tick)
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{height - BOTTOM}"/>')
        if at - last > 34:  # or the numbers would touch
            parts.append(f'<text x="{at:.1f}" y="{height - 8}" class="x">{short(tick)}</text>')
            last = at
    return parts


def _dot(x: float, y: float, radius: float, style: str) -> str:
    return f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'


def _svg(parts: Sequence[str], height: float, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
