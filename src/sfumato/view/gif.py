"""Animations: a few dozen pictures in one small file that plays everywhere."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.files import write_atomic

__all__ = ["write_gif"]

LIMIT = 1_000_000  # bytes
PACE, REST, HOLD = 60, 600, 2000  # milliseconds: of a frame, of the first, of the last


def write_gif(path: Path, frames: Sequence[NDArray[np.uint8]], recipe: Mapping[str, Any]) -> Path:
    """Write an animation that repeats for ever, with the recipe that made it as JSON in the comment.

    All frames share one palette; it is made smaller until the file is below a megabyte or has 8 colours.

    Args:
        path: the file; its folder is made if it is missing.
        frames: at least two RGB pictures (h, w, 3) of one size.
        recipe: what is needed to make the animation again; JSON-able.

    Returns:
        ``path``.

    Raises:
        UserError: the place cannot be written.
    """
    every = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 6)]))
    for colours in (128, 64, 32, 16, 8):
        palette = every.quantize(colours, Image.Quantize.MEDIANCUT)
        first, *others = [_indexed(frame, palette) for frame in frames]
        content = io.BytesIO()
        first.save(
            content, "GIF", save_all=True, append_images=others, loop=0, optimize=False,
            duration=[REST, *[PACE] * (len(others) - 1), HOLD], comment=json.dumps(dict(recipe)).encode(),
        )  # fmt: skip
        if content.tell() < LIMIT:
            break
    return write_atomic(path, content.getvalue())


def _indexed(frame: NDArray[np.uint8], palette: Image.Image) -> Image.Image:
    """Return a frame in the colours of a palette, in which white is white and not the mean of the near-whites."""
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    white = colours.sum(1).argmax()
    colours[white] = 255
    indices = np.array(Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE))
    indices[(frame == 255).all(2)] = white
    picture = Image.fromarray(indices)
    picture.putpalette(colours.flatten().tolist())
    return picture
