"""Two emoji in one picture 64x64, and how they lie: "pizza left of cat face".

Of `THINGS` emoji all pairs are drawn, side by side or above each other, a little beside their places. One pair in ten
is held out, by its names, so that a model can be asked for two things that it never saw together.
"""

from __future__ import annotations

import hashlib
from itertools import permutations

import numpy as np
from PIL import Image

from sfumato.data.emoji import glyphs
from sfumato.data.image import Pictures
from sfumato.data.source import Array, Source, captioned

__all__ = ["RELATIONS", "SIDE", "THINGS", "open_named"]

SIDE = 64
"""Height and width of a picture."""
THINGS = 60
"""Different emoji."""
RELATIONS = {"left of": ((2, 18), (34, 18)), "above": ((18, 2), (18, 34))}
"""How the first lies to the second, and the corners (x, y) of both."""

_EACH, _FURTHEST = 28, 1  # pixels of an emoji, and beside its place
_HELD_OUT = 26  # of 256


def open_named(name: str) -> Source:
    """Open the set.

    Raises:
        UserError: the font or the package `emoji` is missing.
    """
    known = sorted(glyphs(), key=lambda pair: hashlib.sha256(pair[0]["en"].encode()).digest())[:THINGS]
    small = {told["en"]: glyph.resize((_EACH, _EACH), Image.Resampling.LANCZOS) for told, glyph in known}
    parts: dict[bool, list[tuple[str, Array]]] = {False: [], True: []}
    for first, second in permutations(small, 2):
        pair = "\n".join(sorted((first, second)))
        held = hashlib.sha256(pair.encode()).digest()[0] < _HELD_OUT
        parts[held] += [(f"{first} {how} {second}", _drawn(small, first, how, second)) for how in RELATIONS]
    held_out = captioned(f"{name} (held out)", Pictures(), parts[True], None)
    return captioned(name, Pictures(), parts[False], held_out)


def _drawn(small: dict[str, Image.Image], first: str, how: str, second: str) -> Array:
    rng = np.random.default_rng(list(f"{first} {how} {second}".encode()))
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    for name, corner in zip((first, second), RELATIONS[how], strict=True):
        x, y = (int(k + rng.integers(-_FURTHEST, _FURTHEST + 1)) for k in corner)
        canvas.paste(small[name], (x, y))
    return np.asarray(canvas)
