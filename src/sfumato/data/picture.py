"""Pictures of many items at once, as RGB arrays: what previews, sheets and strips are made of.

The ink of a cloud of points is

(1)  ink = 1 - exp(-density / DENSITY)

with one DENSITY for all, so the same shade means the same density in every picture.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLUE", "BLUR", "WINDOW", "Pixels", "cloud", "contact_sheet", "shade"]

Pixels = NDArray[np.uint8]
"""A picture, (h, w, 3), RGB 0 to 255."""
Floats = NDArray[np.floating]

CELL = 48  # smallest side of a cell in a sheet: 8x8 digits are enlarged to it
BLUE = "#1f4e79"
"""The colour of densities."""
WINDOW = 3.25
"""Clouds show [-WINDOW, WINDOW]^2: one coordinate of noise in a thousand lies outside."""
BLUR = 0.04
"""Standard deviation of a drawn point: fine enough for the bands of the moons, 0.06."""
DENSITY = 0.1  # noise at its peak, 1 / 2 pi = 0.16, has ink 0.8
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


def cloud(points: Floats, side: int, window: float = WINDOW, strength: float = 1.0, blur: float = BLUR) -> Pixels:
    """Draw points of the plane as their density, each one a small Gaussian; equation (1).

    Args:
        points: (n, 2); y grows upwards.
        side: height and width in pixels.
        window: what is within [-window, window]^2 is drawn.
        strength: a factor of the ink, less than 1 for what others are drawn over.
        blur: standard deviation of a drawn point, in units of the state.

    Returns:
        (side, side, 3).
    """
    from scipy.ndimage import gaussian_filter  # here, since runs of pictures start faster without it

    pixel = 2 * window / side
    bins = np.floor((points * [1, -1] + window) / pixel).astype(np.int64)
    bins = bins[((bins >= 0) & (bins < side)).all(1)]
    counts = np.bincount(bins @ [1, side], minlength=side**2).reshape(side, side)  # ten times faster than histogram2d
    density = gaussian_filter(counts.astype(np.float32), blur / pixel, mode="constant") / (len(points) * pixel**2)
    return shade(density, strength)


def shade(density: Floats, strength: float = 1.0) -> Pixels:
    """Return the colours of a density (h, w), (h, w, 3); equation (1), its ink times ``strength``."""
    ink = (1 - np.exp(-density / DENSITY)) * strength
    blue = np.array([int(BLUE[k : k + 2], 16) for k in (1, 3, 5)])
    return np.asarray((255 + ink[..., None] * (blue - 255.0)).round().astype(np.uint8))
