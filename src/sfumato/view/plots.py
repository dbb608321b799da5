"""Drawing, in one style: every function here returns a picture as RGB pixels and does nothing else.

Tables (strips, panels, frames of animations) are laid out in whole pixels, so that a pixel of the data is a crisp
square. matplotlib is used through its objects alone: no pyplot, no settings shared with the caller.

Points are drawn in a window of the space of states, where data and noise have variance 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy import ndimage

from sfumato.data.picture import BLUE, BLUR, WINDOW, Pixels, cloud, shade
from sfumato.schedule import SCHEDULES, Schedule

__all__ = ["density", "enlarged", "field", "number", "paths", "schedules", "stacked", "table", "when"]

Floats = NDArray[np.floating]

INK, GREY, PALE, ORANGE = "#22303c", "#6b7884", "#b9c2ca", "#d55e00"
"""Blue and orange differ in lightness too, so that no kind of colour blindness confuses them (Okabe and Ito 2008)."""
FAINT = 0.3  # ink of a density that others are drawn over
TITLE, LABEL, SMALL = 23, 16, 14  # sizes of letters, pixels
DPI = 128  # a power of 2, so that pixels / DPI * DPI are the same pixels
MARGIN, GAP = 36, 10
TOP = MARGIN + TITLE + 50  # where the space below the titles begins

_FADE = LinearSegmentedColormap.from_list("noise to data", [PALE, BLUE])


class _Canvas:
    """A white figure measured in pixels from its top left corner."""

    def __init__(self, width: int, height: int, title: str, subtitle: str) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        self._canvas = FigureCanvasAgg(self.figure)
        self.text(MARGIN, MARGIN + TITLE, title, TITLE)
        self.text(MARGIN, MARGIN + TITLE + 28, subtitle, LABEL, GREY)

    def text(self, x: float, y: float, words: str, size: float = LABEL, colour: str = INK, **how: Any) -> None:
        place = x / self.width, 1 - y / self.height
        self.figure.text(*place, words, fontsize=size * 72 / DPI, color=colour, family="DejaVu Sans", **how)

    def image(self, x: int, y: int, pixels: Pixels) -> None:
        self.figure.figimage(pixels, x, self.height - y - len(pixels), origin="upper", zorder=-1)

    def axes(self, x: int, y: int, width: int, height: int) -> Axes:
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box, facecolor="none")

    def plane(self, x: int, y: int, picture: Pixels, window: float) -> Axes:
        """Lay axes of a window over a square picture of its density."""
        self.image(x, y, picture)
        axes = self.axes(x, y, len(picture), len(picture))
        axes.set(xlim=(-window, window), ylim=(-window, window))
        axes.set_axis_off()
        return axes

    def pixels(self) -> Pixels:
        self._canvas.draw()  # type: ignore[no-untyped-call]
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def number(value: float, digits: str) -> str:
    """Write a number with a true minus sign, and infinity as such."""
    return format(value, digits).replace("inf", "∞").replace("-", "−")


def when(schedule: Schedule, t: float) -> str:
    """Say a time and, on a second line, its logsnr."""
    return f"t = {number(t, '.3g')}\n{number(float(schedule.logsnr(t)), '+.1f')}"


def enlarged(picture: Pixels, width: int) -> Pixels:
    """Enlarge a picture (h, w, 3) by the whole factor that brings it next to a width."""
    factor = max(1, round(width / picture.shape[1]))
    return picture.repeat(factor, 0).repeat(factor, 1)


def table(
    title: str,
    subtitle: str,
    rows: Sequence[Sequence[Pixels]],
    heads: Sequence[str],
    sides: Sequence[str] = (),
    least: int = 960,
) -> Pixels:
    """Lay pictures out in rows and columns.

    Args:
        title: first line.
        subtitle: second line.
        rows: of pictures (h, w, 3), all of one size.
        heads: above the columns.
        sides: left of the rows; () for none.
        least: width, so that the titles find their place.
    """
    height, width = rows[0][0].shape[:2]
    left = MARGIN + (48 if sides else 0)
    top = TOP + 20 * (1 + max(head.count("\n") for head in heads))
    tops = [top + k * (height + 2 * GAP) for k in range(len(rows))]
    lefts = [left + k * (width + GAP) for k in range(len(heads))]
    canvas = _Canvas(max(least, lefts[-1] + width + MARGIN), tops[-1] + height + MARGIN, title, subtitle)
    for x, head in zip(lefts, heads, strict=True):
        canvas.text(x + width / 2, top - 8, head, SMALL, GREY, ha="center", va="bottom", linespacing=1.3)
    for y, side in zip(tops, sides, strict=False):
        canvas.text(MARGIN, y + height / 2, side, LABEL, INK, va="center_baseline")
    for y, row in zip(tops, rows, strict=False):
        for x, picture in zip(lefts, row, strict=True):
            canvas.image(x, y, picture)
    return canvas.pixels()


def paths(title: str, subtitle: str, background: Floats, states: Floats) -> Pixels:
    """Draw the ways of particles from noise (pale) to data (dark) over the density of the data.

    Args:
        title: first line.
        subtitle: second line.
        background: (n, 2) data.
        states: (steps + 1, m, 2) the particles from noise to data.
    """
    side, window = 720, 3.0
    canvas = _Canvas(side + 2 * MARGIN, TOP + side + MARGIN, title, subtitle)
    axes = canvas.plane(MARGIN, TOP, cloud(background, side, window, FAINT), window)
    _draw_ways(axes, states, 4, 9)
    return canvas.pixels()


def _draw_ways(axes: Axes, states: Floats, start: float, end: float) -> None:
    """Draw ways (steps + 1, m, 2) that fade from noise to data, with dots of given areas at both ends."""
    segments = np.stack([states[:-1], states[1:]], axis=2)  # (steps, m, 2, 2)
    ages = np.repeat(np.linspace(0, 1, len(segments)), states.shape[1])
    lines = LineCollection(list(segments.reshape(-1, 2, 2)), array=ages, cmap=_FADE, linewidths=0.6, capstyle="round")
    axes.add_collection(lines)
    axes.scatter(states[0, :, 0], states[0, :, 1], s=start, color=PALE, linewidths=0, zorder=3)
    axes.scatter(states[-1, :, 0], states[-1, :, 1], s=end, color=ORANGE, linewidths=0, zorder=4)


def density(
    title: str, subtitle: str, heads: Sequence[str], points: Floats, log_p: Floats, states: Floats, window: float
) -> Pixels:
    """Draw a density beside the data it is of, and the flow that makes it.

    Args:
        title: first line.
        subtitle: second line.
        heads: of the three panels.
        points: (n, 2) data.
        log_p: (n, n) logarithm of the density at the middles of the window's cells, the first axis x, the second y.
        states: (steps + 1, m, 2) lines of the flow from noise to data.
        window: what is within [-window, window]^2 is drawn.
    """
    # A Gaussian's log p is a parabola, which a cubic spline meets exactly.
    fine = np.exp(ndimage.zoom(log_p.T[::-1].astype(float), 5, mode="nearest", grid_mode=True))
    side = len(fine)
    pictures = (cloud(points, side, window), shade(fine), shade(fine, FAINT))
    top = TOP + 22
    canvas = _Canvas(2 * MARGIN + 3 * (side + GAP) - GAP, top + side + MARGIN, title, subtitle)
    for k, (head, picture) in enumerate(zip(heads, pictures, strict=True)):
        x = MARGIN + k * (side + GAP)
        canvas.text(x + side / 2, top - 8, head, SMALL, GREY, ha="center", va="bottom")
        axes = canvas.plane(x, top, picture, window)
    _draw_ways(axes, states, 4, 7)
    return canvas.pixels()


def field(title: str, subtitle: str, panels: Sequence[tuple[str, Floats, Floats, Floats]], side: int = 300) -> Pixels:
    """Draw vector fields over clouds, side by side. An arrow of length v is drawn with v / (1 + v) of its cell.

    Args:
        title: first line.
        subtitle: second line.
        panels: for each its head, the points of its cloud (n, 2), and places (m, 2) and arrows (m, 2).
        side: of a panel, pixels.
    """
    top = TOP + 40
    width = 2 * MARGIN + len(panels) * (side + GAP) - GAP
    canvas = _Canvas(width, top + side + MARGIN, title, subtitle)
    for k, (head, points, places, arrows) in enumerate(panels):
        x = MARGIN + k * (side + GAP)
        canvas.text(x + side / 2, top - 8, head, SMALL, GREY, ha="center", va="bottom", linespacing=1.3)
        cell = 2 * WINDOW / np.sqrt(len(places))
        drawn = 0.95 * cell * arrows / (1 + np.linalg.norm(arrows, axis=1, keepdims=True))
        axes = canvas.plane(x, top, cloud(points, side, WINDOW, FAINT, 2 * BLUR), WINDOW)
        axes.quiver(
            *places.T, *drawn.T, angles="xy", scale_units="xy", scale=1, pivot="middle", color=INK,
            width=0.0035, headwidth=4.5, headlength=5, headaxislength=4.5,
        )  # fmt: skip
    return canvas.pixels()


def schedules(title: str, subtitle: str, own: str, stops: Floats) -> Pixels:
    """Draw alpha, sigma and logsnr of a schedule against t with its stops, and the other schedules behind it.

    Args:
        title: first line.
        subtitle: second line.
        own: name of the schedule that matters.
        stops: (n + 1,) times of a grid.
    """
    width, height, gap, left = 350, 300, 70, MARGIN + 40
    top = TOP + 30
    canvas = _Canvas(left + 3 * width + 2 * gap + MARGIN, top + height + 70, title, subtitle)
    t = np.linspace(0, 1, 501)[1:]
    loudest = max(1.0, float(SCHEDULES[own]().sigma(1.0)))
    panels = {
        "alpha": ("signal  $\\alpha_t$", (0.0, 1.06)),
        "sigma": ("noise  $\\sigma_t$", (0.0, 1.06 * loudest)),
        "logsnr": ("log SNR  $2\\,\\log\\,\\alpha_t/\\sigma_t$", (-11.0, 13.0)),
    }
    for k, (name, (words, limit)) in enumerate(panels.items()):
        x = left + k * (width + gap)
        canvas.text(x, top - 14, words)
        canvas.text(x + width / 2, top + height + 40, "t", LABEL, GREY, ha="center")
        axes = canvas.axes(x, top, width, height)
        _frame(axes, limit)
        curves = {key: np.asarray(getattr(kind(), name)(t)) for key, kind in SCHEDULES.items()}
        for curve in curves.values():
            axes.plot(t, curve, color=PALE, linewidth=0.8)
        axes.plot(t, curves[own], color=BLUE, linewidth=1.6)
        levels = np.asarray(getattr(SCHEDULES[own](), name)(stops))
        axes.scatter(stops, levels, s=11, color=ORANGE, edgecolor="white", linewidth=0.5, zorder=4, clip_on=False)
        _name_curves(axes, t, curves, own, stops)
    return canvas.pixels()


def _frame(axes: Axes, limit: tuple[float, float]) -> None:
    axes.set(xlim=(0, 1), ylim=limit, xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.set_xticklabels(["0", "", "0.5", "", "1"])
    axes.tick_params(colors=GREY, labelsize=SMALL * 72 / DPI, length=3, width=0.6, labelfontfamily="DejaVu Sans")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=PALE, linewidth=0.6)


def _name_curves(axes: Axes, t: Floats, curves: dict[str, Floats], own: str, stops: Floats) -> None:
    """Write each curve's name where there is most room; curves that coincide share one label."""
    low, high = axes.get_ylim()
    heights = {key: ((curve - low) / (high - low)).clip(-1, 2) for key, curve in curves.items()}
    groups = dict.fromkeys(tuple(b for b in curves if np.abs(heights[a] - heights[b]).max() < 0.03) for a in curves)
    taken = [(float(x), float(y), 0.01, 0.01) for x, y in zip(stops, np.interp(stops, t, heights[own]), strict=True)]
    for names in sorted(groups, key=lambda names: own not in names):
        words, mine = ", ".join(names), heights[names[0]]
        half_width, half_height = 0.012 * len(words) + 0.015, 0.035
        others = [np.abs(mine - heights[key]) for key in curves if key not in names]
        room = np.min([*others, mine, 1 - mine, t - half_width, 1 - half_width - t], axis=0)
        for x, y, width, height in taken:
            room = np.where((np.abs(t - x) < half_width + width) & (np.abs(mine - y) < half_height + height), -1, room)
        best = int(room.argmax())
        taken.append((float(t[best]), float(mine[best]), half_width, half_height))
        axes.text(
            t[best], curves[names[0]][best], words, fontsize=SMALL * 72 / DPI, ha="center", va="center",
            color=BLUE if own in names else GREY, family="DejaVu Sans",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip


def stacked(pictures: Sequence[Pixels]) -> Pixels:
    """Put pictures below each other, the narrower ones filled up with white on the right."""
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate([np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures])
