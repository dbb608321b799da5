"""The most and the least likely examples: what a model takes for plain, and what surprises it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfumato.data.codec import Codec
from sfumato.data.picture import Pixels
from sfumato.engine.likelihood import Likelihood, Measured
from sfumato.files import write_png
from sfumato.view import plots

__all__ = ["extremes"]

SHOWN, CELL = 8, 100  # pictures in a row, and about their side in pixels
SHARE = 4  # of points, the most and the least likely fourth are drawn


def extremes(result: Likelihood) -> Path:
    """Draw the extreme examples of all data of a result into extremes.png beside its other files.

    Raises:
        UserError: the place cannot be written.
    """
    draw = _clouds if result.codec.kind == "points" else _pictures
    drawn = [draw(part, result.codec, part.best[0].argsort(kind="stable")) for part in result.parts]
    return write_png(result.folder / "extremes.png", plots.stacked(drawn), result.recipe)


def _pictures(part: Measured, codec: Codec, order: NDArray[np.intp]) -> Pixels:
    """Draw pictures, ``order`` from the most to the least likely, each under its bits/dim."""
    told, (bits, by) = part.examples, part.best

    def row(kind: str, chosen: NDArray[np.intp], words: str) -> Pixels:
        cells = [plots.enlarged(codec.picture(told.items[k : k + 1], 1), CELL) for k in chosen.tolist()]
        title = f"{told.name}: the {kind} likely of {len(order):,} examples"
        return plots.table(title, words, [cells], [plots.number(bits[k], ".3f") for k in chosen])

    return plots.stacked(
        [
            row("most", order[:SHOWN], f"Above each its bits/dim by {by}: fewer bits, more likely; the first most"),
            row("least", order[::-1][:SHOWN], f"Above each its bits/dim by {by}; the first the least likely of all"),
        ]
    )


def _clouds(part: Measured, codec: Codec, order: NDArray[np.intp]) -> Pixels:
    """Draw points, ``order`` from the most to the least likely, as clouds of the ends and of all."""
    told, (bits, by) = part.examples, part.best
    some = max(1, len(order) // SHARE)
    clouds = {"all": order, f"the {some:,} most likely": order[:some], f"the {some:,} least likely": order[-some:]}
    heads = [f"{words}\n{plots.number(bits[chosen].mean(), '.3f')} bits/dim" for words, chosen in clouds.items()]
    cells = [codec.picture(told.items[chosen]) for chosen in clouds.values()]
    return plots.table(f"{told.name}: {len(order):,} points", f"Mean bits/dim by {by} above", [cells], heads)
