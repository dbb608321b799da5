"""Small sets in the plane with known shapes, made when asked for: the same points every time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sfumato.data.points import Points
from sfumato.data.source import Source, array_reader
from sfumato.errors import choose

__all__ = ["CENTRES", "SPREAD", "open_named"]

TRAIN, TEST = 20_000, 5_000

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rng = np.random.Generator


def open_named(name: str) -> Source:
    """Open a toy set by its name: 20,000 training points, 5,000 held out."""
    name = {"points": "moons"}.get(name, name)
    make, classes = choose("toy set", name, _TOYS)

    def part(count: int, seed: int) -> Source:
        points, labels = make(np.random.default_rng([*name.encode(), seed]), count)
        names = None if labels is None else [classes[label] for label in labels.tolist()]
        return Source(
            name if seed == 0 else f"{name} (held out)",
            Points(),
            array_reader(points.astype(np.float32), names),
            classes=classes,
            test=part(TEST, 1) if seed == 0 else None,
        )

    return part(TRAIN, 0)


def _moons(rng: Rng, count: int) -> tuple[Floats, Ints]:
    """Two half circles of radius 1, the second turned and moved into the mouth of the first; noise 0.05."""
    which, angle = rng.integers(2, size=count), rng.uniform(0, np.pi, count)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    lower = np.array([1.0, 0.5]) - upper
    return np.where(which[:, None] == 0, upper, lower) + 0.05 * rng.standard_normal((count, 2)), which


_ANGLE = np.arange(8) * np.pi / 4
_ROWS, _COLUMNS = np.divmod(np.arange(25), 5)

CENTRES: dict[str, Floats] = {
    "ring8": 2 * np.stack([np.cos(_ANGLE), np.sin(_ANGLE)], axis=1),
    "grid25": np.stack([2.0 * _COLUMNS - 4, 2.0 * _ROWS - 4], axis=1),
}
"""Where the modes of a set of Gaussians lie, (k, 2): on a circle of radius 2, and on the grid {-4, -2, 0, 2, 4}^2."""
SPREAD = 0.1
"""Standard deviation of each of them."""


def _gaussians(centres: Floats, rng: Rng, count: int) -> tuple[Floats, Ints]:
    which = rng.integers(len(centres), size=count)
    return centres[which] + SPREAD * rng.standard_normal((count, 2)), which


def _spirals(rng: Rng, count: int) -> tuple[Floats, Ints]:
    """Two arms of one and a half turns, radius = angle / pi, opposite each other; noise 0.05."""
    which = rng.integers(2, size=count)
    # The square root spreads points evenly along the arm, whose length grows as the square of the angle.
    angle = 3 * np.pi * np.sqrt(rng.uniform(0, 1, count))
    arm = (angle / np.pi)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.where(which[:, None] == 0, arm, -arm) + 0.05 * rng.standard_normal((count, 2)), which


def _checkerboard(rng: Rng, count: int) -> tuple[Floats, None]:
    """Uniform on the eight dark squares of a 4x4 board over [-4, 4]^2."""
    row, half = rng.integers(4, size=count), rng.integers(2, size=count)
    corner = np.stack([2 * half + row % 2, row], axis=1)
    return 2 * (corner + rng.uniform(0, 1, (count, 2))) - 4, None


_Toy = tuple[Callable[[Rng, int], tuple[Floats, Ints | None]], tuple[str, ...]]

_TOYS: dict[str, _Toy] = {
    "moons": (_moons, ("upper", "lower")),
    "ring8": (partial(_gaussians, CENTRES["ring8"]), tuple(map(str, range(8)))),
    "grid25": (partial(_gaussians, CENTRES["grid25"]), tuple(map(str, range(25)))),
    "spirals": (_spirals, ("first", "second")),
    "checkerboard": (_checkerboard, ()),
}
