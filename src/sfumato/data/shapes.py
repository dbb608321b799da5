"""Pictures 32x32 of drawn shapes with captions that say all of them: a set whose answers a program can read.

    one     "a small red circle at the top left"     size, colour, shape and one of nine places
    many    "two large blue rings"                   how many of one kind, anywhere
    two     "a red circle above a green cross"       two kinds, and how they lie

Some pairs of colour and shape (`UNSEEN`) are in no caption of the set, so that a model can be asked for what it never
saw. `draw` draws what a `Scene` says; `sfumato.data.scenes` reads it back from the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sfumato.data.image import Pictures
from sfumato.data.source import Array, Source, array_reader

__all__ = ["COLOURS", "COUNTS", "PLACES", "RELATIONS", "SHAPES", "SIDE", "SIZES", "UNSEEN", "Scene", "Thing", "draw",
           "open_named", "outline", "scenes"]  # fmt: skip

Floats = NDArray[np.float64]
T = TypeVar("T")

SIDE = 32
"""Height and width of a picture."""
COLOURS = {
    "red": (220, 40, 40), "green": (30, 160, 60), "blue": (40, 80, 220), "yellow": (240, 200, 30),
    "purple": (140, 50, 180), "orange": (245, 130, 30), "pink": (250, 150, 200), "black": (30, 30, 30),
}  # fmt: skip
"""Names and values of the colours; the ground is white."""
SHAPES = ("circle", "square", "triangle", "cross", "ring")
"""Names of the shapes."""
SIZES = {"small": 3.8, "large": 6.0}
"""Half the height of a shape, in pixels; drawn up to 5% larger or smaller."""
COUNTS = {"two": 2, "three": 3}
"""Of things of one kind; three are small."""
PLACES = {
    f"{up} {side}".strip() or "middle": (8 + 8 * (side != "left") + 8 * (side == "right"),
                                         8 + 8 * (up != "top") + 8 * (up == "bottom"))
    for up, side in product(("top", "", "bottom"), ("left", "", "right"))
}  # fmt: skip
"""Names and centres (x, y) of the nine places; drawn up to a pixel beside."""
RELATIONS = {"above": (0, 1), "left of": (1, 0)}
"""How the first of two things lies to the second, and the direction (x, y) from it to that one."""
UNSEEN = tuple((list(COLOURS)[(3 * k + 1) % len(COLOURS)], shape) for k, shape in enumerate(SHAPES))
"""Pairs of colour and shape of which the set shows none."""

TRAIN, TEST = 20_000, 2_000
_TOGETHER = 1_000
_GAP = 1.5  # pixels at least between two things


@dataclass(frozen=True)
class Thing:
    """One shape in a picture.

    Attributes:
        shape: one of `SHAPES`.
        colour: a key of `COLOURS`.
        x: of its centre, in pixels from the left.
        y: of its centre, in pixels from above.
        radius: half its height, in pixels.
    """

    shape: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def words(self) -> str:
        """What it is called: "a red ring"."""
        return f"{'an' if self.colour[0] in 'aeiou' else 'a'} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        caption: that says it.
        things: in the order of the caption.
        size: a key of `SIZES`, where the caption tells it.
        place: a key of `PLACES`, of one thing.
        relation: a key of `RELATIONS`, of two kinds.
    """

    caption: str
    things: tuple[Thing, ...]
    size: str | None = None
    place: str | None = None
    relation: str | None = None


def scenes(count: int, seed: int, unseen: bool = False) -> list[Scene]:
    """Return scenes drawn by chance, half of them of one thing.

    Args:
        count: how many.
        seed: of them.
        unseen: every scene with a pair of `UNSEEN`, instead of none.
    """
    rng = np.random.default_rng(seed)
    pairs = list(product(COLOURS, SHAPES))
    seen = [pair for pair in pairs if pair not in UNSEEN]
    kinds = (_one, _one, _many, _two)
    made = []
    for _ in range(count):
        first = _some(rng, UNSEEN if unseen else seen)
        second = _some(rng, [pair for pair in seen if pair[0] != first[0]])
        made.append(_some(rng, kinds)(rng, first, second))
    return made


def _some(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def _one(rng: np.random.Generator, pair: tuple[str, str], _: tuple[str, str]) -> Scene:
    (colour, shape), size, place = pair, _some(rng, tuple(SIZES)), _some(rng, tuple(PLACES))
    x, y = PLACES[place] + rng.uniform(-1, 1, 2)
    where = "in the middle" if place == "middle" else f"at the {place}"
    thing = Thing(shape, colour, x, y, _radius(rng, size))
    return Scene(f"a {size} {colour} {shape} {where}", (thing,), size, place=place)


def _many(rng: np.random.Generator, pair: tuple[str, str], _: tuple[str, str]) -> Scene:
    (colour, shape), name = pair, _some(rng, tuple(COUNTS))
    size = "small" if name == "three" else _some(rng, tuple(SIZES))
    radius = _radius(rng, size)
    while True:  # one draw in ten fits, of two large ones
        centres = rng.uniform(radius + 1, SIDE - radius - 1, (COUNTS[name], 2))
        apart = np.abs(centres[:, None] - centres).max(-1) + 99 * np.eye(len(centres))
        if apart.min() >= 2 * radius + _GAP:
            break
    things = tuple(Thing(shape, colour, x, y, radius) for x, y in centres)
    return Scene(f"{name} {size} {colour} {shape}{'es' if shape == 'cross' else 's'}", things, size)


def _two(rng: np.random.Generator, first: tuple[str, str], second: tuple[str, str]) -> Scene:
    relation = _some(rng, tuple(RELATIONS))
    along = np.array(RELATIONS[relation], float)
    middle = SIDE / 2 + rng.uniform(-3, 3, 2)
    apart, beside = rng.uniform(5.5, 7), rng.uniform(-2, 2)
    offset = apart * along + beside * along[::-1]
    radius = _radius(rng, "small")
    ends = [Thing(shape, colour, x, y, radius) for (colour, shape), (x, y) in
            zip((first, second), (middle - offset, middle + offset), strict=True)]  # fmt: skip
    return Scene(f"{ends[0].words} {relation} {ends[1].words}", tuple(ends), relation=relation)


def _radius(rng: np.random.Generator, size: str) -> float:
    return float(SIZES[size] * rng.uniform(0.95, 1.05))


def outline(shape: str, x: Floats, y: Floats) -> Floats:
    """Return how far points lie outside a shape of radius 1, about; below 0 inside.

    Args:
        shape: one of `SHAPES`.
        x: of the points, to the right of its centre.
        y: of the points, below its centre.
    """
    if shape == "circle":
        return np.hypot(x, y) - 1
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.9
    if shape == "triangle":
        return np.maximum(y - 0.9, 0.88 * abs(x) - 0.47 * y - 0.47)
    if shape == "cross":
        return np.minimum(np.maximum(abs(x) - 0.32, abs(y) - 1), np.maximum(abs(x) - 1, abs(y) - 0.32))
    return abs(np.hypot(x, y) - 0.74) - 0.26


def draw(some: Sequence[Scene]) -> NDArray[np.uint8]:
    """Return the pictures of scenes, (n, 32, 32, 3)."""
    pixels = np.full((len(some), SIDE, SIDE, 3), 255.0)
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    for picture, scene in zip(pixels, some, strict=True):
        for thing in scene.things:
            x, y = (columns - thing.x) / thing.radius, (rows - thing.y) / thing.radius
            share = np.clip(0.5 - thing.radius * outline(thing.shape, x, y), 0, 1)[..., None]
            picture += share * (np.array(COLOURS[thing.colour]) - picture)
    return pixels.round().astype(np.uint8)


def open_named(name: str) -> Source:
    """Open the set; the part held out is drawn by another seed."""
    held = _part(f"{name} (held out)", scenes(TEST, seed=1))
    return _part(name, scenes(TRAIN, seed=0), held)


def _part(name: str, some: list[Scene], held: Source | None = None) -> Source:
    pictures: Array = np.concatenate([draw(some[k : k + _TOGETHER]) for k in range(0, len(some), _TOGETHER)])
    captions = [scene.caption for scene in some]
    return Source(name, Pictures(), array_reader(pictures, captions=captions), test=held)
