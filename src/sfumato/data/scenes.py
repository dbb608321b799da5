"""What a picture of drawn shapes shows, read from its pixels: the answer to whether a sentence was obeyed.

    a thing    = connected pixels that are not ground (8 neighbours), at least `LEAST` of them
    its colour = the nearest of `COLOURS` to the median of its pixels that have no ground beside them
    its shape  = of all shapes the one that, drawn at its centre and of its height, is nearest to its pixels
    its size   = the nearer of `SIZES` to half its height

The reader knows nothing of sentences; `obeyed` compares what was read with what a scene asks for.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sfumato.data.shapes import COLOURS, PLACES, RELATIONS, SHAPES, SIDE, SIZES, Scene, Thing, outline

__all__ = ["ASPECTS", "obeyed", "read"]

ASPECTS = ("count", "colour", "shape", "size", "position")
"""What may be asked of a scene."""
LEAST = 6
"""Pixels of a thing; fewer are a speck."""
INK = 0.35
"""Distance from white, of 1 for black, from which a pixel is no ground."""
_VALUES = np.array(list(COLOURS.values()), float)
_GRID = np.moveaxis(np.mgrid[:SIDE, :SIDE][::-1] + 0.5, 0, -1)  # (x, y) of every pixel


def read(pixels: NDArray[np.uint8]) -> list[Thing]:
    """Return the things in a picture (32, 32, 3), from left to right."""
    ink = (255.0 - pixels).max(-1) / 255
    marks, count = ndimage.label(ink > INK, np.ones((3, 3)))
    found = [_thing(pixels, ink, marks == k) for k in range(1, count + 1) if (marks == k).sum() >= LEAST]
    return sorted(found, key=lambda thing: thing.x)


def _thing(pixels: NDArray[np.uint8], ink: NDArray[np.float64], here: NDArray[np.bool_]) -> Thing:
    inside = ndimage.binary_erosion(here)
    colour = np.median(pixels[inside if inside.sum() > 3 else here], 0)
    name = list(COLOURS)[int(np.square(_VALUES - colour).sum(1).argmin())]
    near = ndimage.binary_dilation(here)
    full = (255.0 - min(COLOURS[name])) / 255
    share = np.where(near, np.clip(ink / full, 0, 1), 0.0)
    rows, columns = np.flatnonzero(here.any(1)), np.flatnonzero(here.any(0))
    x, y = (columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2
    # half of the last pixel on each side is a part that the ink covers
    half = (share.max(1).sum() + share.max(0).sum()) / 4
    errors = [np.square(share - _drawn(shape, x, y, half)).sum() for shape in SHAPES]
    return Thing(SHAPES[int(np.argmin(errors))], name, float(x), float(y), float(half))


def _drawn(shape: str, x: float, y: float, half: float) -> NDArray[np.float64]:
    """Return how much of each pixel a shape covers whose half height and width are ``half``."""
    radius = half / (0.9 if shape in ("square", "triangle") else 1.0)
    middle = y - 0.05 * radius if shape == "triangle" else y
    at = (_GRID - (x, middle)) / radius
    return np.clip(0.5 - radius * outline(shape, at[..., 0], at[..., 1]), 0, 1)


def obeyed(scene: Scene, found: list[Thing]) -> Mapping[str, bool]:
    """Return which aspects of a scene a picture has, those alone that its caption tells.

    Args:
        scene: that was asked for.
        found: things in the picture, as :func:`read` gives them.
    """
    asked = sorted((thing.colour, thing.shape) for thing in scene.things)
    told = {
        "count": len(found) == len(scene.things),
        "colour": sorted(thing.colour for thing in found) == [colour for colour, _ in asked],
        "shape": sorted(thing.shape for thing in found) == sorted(shape for _, shape in asked),
    }
    if scene.size is not None:
        told["size"] = bool(found) and all(_size(thing) == scene.size for thing in found)
    if scene.place is not None:
        told["position"] = len(found) == 1 and _place(found[0]) == scene.place
    if scene.relation is not None:
        told["position"] = _lies(scene, found)
    pairs = sorted((thing.colour, thing.shape) for thing in found) == asked
    return told | {"all": pairs and all(told.values())}


def _size(thing: Thing) -> str:
    return min(SIZES, key=lambda name: abs(SIZES[name] - thing.radius))


def _place(thing: Thing) -> str:
    return min(PLACES, key=lambda name: np.hypot(PLACES[name][0] - thing.x, PLACES[name][1] - thing.y))


def _lies(scene: Scene, found: list[Thing]) -> bool:
    """Return whether the first of two things lies to the second as asked; each is found by its colour."""
    colours = [thing.colour for thing in scene.things]
    if sorted(thing.colour for thing in found) != sorted(colours) or len(found) != 2:
        return False
    first, second = sorted(found, key=lambda thing: colours.index(thing.colour))
    step = np.array([second.x - first.x, second.y - first.y])
    along = np.array(RELATIONS[scene.relation or ""])
    return bool(step @ along > abs(step @ along[::-1]))
