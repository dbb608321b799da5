"""Points in D dimensions: their codec, and CSV files of them.

With the mean m of each dimension and one scale c for all of them (so that angles are kept), both measured on
the training part, a point x becomes the state

    z = (x - m) / c,   c^2 = mean over dimensions of Var[x_d],   so   log |dz/dx| = -D log c.          (1)
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.picture import cloud
from sfumato.data.source import Array, Fault, Item, Look, Source, check_bytes, name_of
from sfumato.errors import UserError
from sfumato.files import write_atomic

__all__ = ["MAX_POINT_DIMS", "Points", "PointsCodec", "codec", "open_path"]

MAX_POINT_DIMS = 64
"""Wider rows are not taken for points."""

_LABEL_COLUMNS = {"label", "class"}

T = TypeVar("T")


@dataclass(frozen=True)
class PointsCodec:
    """Points float32 (N, D) <-> centred states of unit mean variance, equation (1).

    Attributes:
        mean: m, one number per dimension.
        scale: c > 0.
    """

    mean: tuple[float, ...]
    scale: float
    kind: ClassVar[str] = "points"

    def __post_init__(self) -> None:
        if not self.mean or not all(map(math.isfinite, (*self.mean, self.scale))) or self.scale <= 0:
            raise ValueError(f"no such points: {self}")

    @property
    def dims(self) -> tuple[int, ...]:
        """(D,)."""
        return (len(self.mean),)

    @property
    def level_width(self) -> float:
        """0: points vary continuously."""
        return 0.0

    def encode(self, items: Tensor) -> Tensor:
        """(N, D) in the user's units -> float32 states."""
        mean = torch.tensor(self.mean, dtype=torch.float64, device=items.device)
        return ((items.to(torch.float64) - mean) / self.scale).to(torch.float32)

    def decode(self, states: Tensor) -> Tensor:
        """States (N, D) -> float32 in the user's units.

        Raises:
            ValueError: a state is not finite.
        """
        if not torch.isfinite(states).all():
            raise ValueError("states hold NaN or infinity: not points")
        mean = torch.tensor(self.mean, dtype=torch.float64, device=states.device)
        return (states.to(torch.float64) * self.scale + mean).to(torch.float32)

    def save(
        self, items: Tensor, folder: Path, names: Sequence[str], recipes: Sequence[Mapping[str, Any]]
    ) -> list[Path]:
        """Write points.csv: the recipes as JSON in a leading "# " line, a header x0, x1, ..., one row per point.

        Rows have no names. What is the same in all recipes stands once, what differs as a list with one entry per row.

        Raises:
            UserError: the folder cannot be written.
            ValueError: the lengths differ.
        """
        if not len(items) == len(names) == len(recipes):
            raise ValueError(f"{len(items)} points, {len(names)} names, {len(recipes)} recipes")
        keys = dict.fromkeys(key for recipe in recipes for key in recipe)
        columns = {key: [recipe.get(key) for recipe in recipes] for key in keys}
        shared = {key: row[0] if all(value == row[0] for value in row) else row for key, row in columns.items()}
        lines = [f"# {json.dumps(shared)}", ",".join(f"x{d}" for d in range(len(self.mean)))]
        # Nine digits give every 32-bit float back exactly.
        lines += [",".join(f"{value:.9g}" for value in row) for row in items.tolist()]
        return [write_atomic(folder / "points.csv", "\n".join([*lines, ""]).encode())]

    def picture(self, items: Tensor, columns: int | None = None) -> NDArray[np.uint8]:
        """Cloud of the first two coordinates of points, (256, 256, 3); ``columns`` has no meaning."""
        states = self.encode(items).numpy()[:, :2]
        return cloud(np.pad(states, ((0, 0), (0, 2 - states.shape[1]))), 256)

    def log_volume(self) -> float:
        """-D log c: added to log p(state) it gives log p per unit of the user's space."""
        return -len(self.mean) * math.log(self.scale)

    def to_dict(self) -> dict[str, Any]:
        """Kind, mean, scale."""
        return {"kind": self.kind, "mean": list(self.mean), "scale": self.scale}


def codec(record: Mapping[str, Any]) -> PointsCodec:
    """Rebuild the codec from `PointsCodec.to_dict`."""
    return PointsCodec(tuple(float(value) for value in record["mean"]), float(record["scale"]))


@dataclass(frozen=True)
class Points:
    """How points are measured (the `Kind` of all point sources)."""

    name: ClassVar[str] = PointsCodec.kind
    unit: ClassVar[str] = "point"
    dtype: ClassVar[type[np.generic]] = np.float32

    def look(self, item: Item) -> Look:
        """Measure one point."""
        value = np.ascontiguousarray(item.value)
        digest = hashlib.sha256(value.data).digest()
        low, high = float(value.min()), float(value.max())
        return Look(item.name, item.label, item.facts, value.shape, None, low, high, digest)

    def choose(
        self, sizes: Mapping[tuple[int, ...], int], channels: Mapping[str, int], resolution: int | None
    ) -> tuple[tuple[int, ...], list[str]]:
        """(D,); there is nothing to choose."""
        if resolution is not None:
            raise UserError("--resolution is for pictures and these are points; leave it out")
        return next(iter(sizes)), []

    def fit(self, item: Item, dims: tuple[int, ...]) -> Array:
        """The point itself."""
        return item.value.reshape(dims)

    def codec(self, name: str, items: Array) -> PointsCodec:
        """Measure mean and scale of (N, D).

        Raises:
            UserError: all points are the same, so there is no scale.
        """
        wide = items.astype(np.float64)
        scale = math.sqrt(float(wide.var(axis=0).mean()))
        if scale == 0:
            raise UserError(f"{name}: all points are the same; give points that differ")
        return PointsCodec(tuple(wide.mean(axis=0).tolist()), scale)


def open_path(path: Path) -> Source | None:
    """Open a CSV file of numbers; None if `path` is not one.

    Columns are numbers, parted by comma, semicolon or tab. A first row without any number is a header; a column headed
    "label" or "class" holds class names. Lines that begin with # are comments.

    Raises:
        UserError: there are no columns of numbers, or the file is not text.
    """
    if path.suffix.lower() != ".csv" or path.is_dir():
        return None
    check_bytes(str(path), (path.stat().st_size,), 1, "split the file")
    header, width, label = _layout(path)
    dims = width - (label is not None)
    if not 1 <= dims <= MAX_POINT_DIMS:
        raise UserError(f"{path}: {dims} columns of numbers; points have 1 to {MAX_POINT_DIMS}")

    def read(use: Callable[[Item], T]) -> Iterator[T | Fault]:
        for number, cells in _rows(path):
            if number != header:
                item = _point(f"row {number}", cells, width, label)
                yield item if isinstance(item, Fault) else use(item)

    return Source(name_of(path), Points(), read)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of cells with their line numbers from 1; comments and blank lines left out."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            first = next((line for line in stream if line.strip() and not line.startswith("#")), "")
            stream.seek(0)
            # Comments become blank lines, so that line numbers stay true.
            lines = ("\n" if line.startswith("#") else line for line in stream)
            reader = csv.reader(lines, delimiter=max(",;\t", key=first.count))
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, [cell.strip() for cell in cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV text ({error}); save it as UTF-8 CSV") from error


def _layout(path: Path) -> tuple[int | None, int, int | None]:
    """Line number of the header, number of columns, and which column has the labels."""
    first = next(_rows(path), None)
    if first is None:
        raise UserError(f"{path}: no rows in it; give a CSV file of numbers")
    number, cells = first
    if any(_number(cell) is not None for cell in cells):
        return None, len(cells), None
    label = next((at for at, cell in enumerate(cells) if cell.lower() in _LABEL_COLUMNS), None)
    return number, len(cells), label


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _point(name: str, cells: list[str], width: int, label: int | None) -> Item | Fault:
    if len(cells) != width:
        return Fault(name, f"{len(cells)} columns where the first row has {width}")
    numbers = [cell for at, cell in enumerate(cells) if at != label]
    for cell in numbers:
        number = _number(cell)
        if number is None:
            return Fault(name, f"'{cell[:40]}' is not a number")
        if not abs(number) <= float(np.finfo(np.float32).max):
            return Fault(name, f"{cell[:40]} is not a finite 32-bit number")
    if label is not None and not cells[label]:
        return Fault(name, "no label")
    value = np.array([float(cell) for cell in numbers], dtype=np.float32)
    return Item(name, value, None if label is None else cells[label])
