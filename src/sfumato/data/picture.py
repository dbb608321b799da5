"""Pictures of many items at once, as RGB arrays: what previews, sheets and strips are made of."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["contact_sheet", "dots"]

Pixels = NDArray[np.uint8]

CELL = 48  # smallest side of a cell in a sheet: 8x8 digits are enlarged to it
SIDE = 2048  # largest side of a sheet before enlarging is given up


def contact_sheet(items: Pixels, columns: int | None = None) -> Pixels:
    """Lay pictures side by side, row by row, small ones enlarged by a whole factor.

    Args:
        items: (N, C, H, W) with values 0 to 255, C = 1, 3 or 4; alpha is laid over white.
        columns: pictures in a row; by default a square sheet.

    Returns:
        (h, w, 3).
    """
    count, channels, height, width = items.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    factor = max(1, min(-(-CELL // max(height, width)), SIDE // max(rows * height, columns * width)))
    colour: NDArray[np.floating] = items[:, :3].astype(np.float32)
    if channels == 4:
        colour = 255 - (255 - colour) * (items[:, 3:] / 255)
    cells = np.full((rows * columns, height * factor + 2, width * factor + 2, 3), 255, np.uint8)
    large = colour.round().astype(np.uint8).repeat(factor, 2).repeat(factor, 3)
    cells[:count, 1:-1, 1:-1] = np.moveaxis(large, 1, 3)
    sheet = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    return sheet.reshape(rows * cells.shape[1], columns * cells.shape[2], 3)


def dots(points: NDArray[np.floating], side: int = 256) -> Pixels:
    """Draw points of the plane by their density; y grows upwards.

    Args:
        points: (N, D), drawn within [-3, 3] along the first two axes; with D = 1, along the middle line.
        side: height and width.

    Returns:
        (side, side, 3).
    """
    x = points[:, 0]
    y = points[:, 1] if points.shape[1] > 1 else np.zeros_like(x)
    edges = np.linspace(-3, 3, side + 1)
    counts = np.histogram2d(-y, x, bins=(edges, edges))[0]
    # Ink saturates: a lone point is seen, a thousand in one place do not make the rest vanish.
    ink = 1 - np.exp(-counts * min(1.0, 4000 / max(len(points), 1)))
    paper, blue = np.array([255, 255, 255]), np.array([31, 78, 121])
    mixed: Pixels = (paper + ink[..., None] * (blue - paper)).round().astype(np.uint8)
    return mixed
