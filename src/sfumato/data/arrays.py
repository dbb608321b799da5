"""NumPy files: pictures (N, H, W), (N, C, H, W) or (N, H, W, C); points (N, D).

Files are untrusted: nothing is unpickled, and the shape in a header is held against a limit and against the bytes that
are really there before memory is asked for. Values are converted one item at a time, as they are read.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from sfumato.data.image import Pictures
from sfumato.data.points import MAX_POINT_DIMS, Points
from sfumato.data.source import Array, Source, array_reader, check_bytes, in_order, name_of
from sfumato.errors import UserError

__all__ = ["open_path"]

_ITEMS = ("x", "images", "data", "arr_0")
_LABELS = ("y", "labels", "targets", "label")
_DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,  # encrypted archives
    zipfile.BadZipFile,
    zlib.error,
)
_SLACK = 1e-3
"""How far floats may lie outside a range and still be taken for rounding."""


def open_path(path: Path) -> Source | None:
    """Open a .npy or .npz file; None if `path` is neither.

    Raises:
        UserError: the file is damaged, too large, or does not hold pictures or points.
    """
    if path.suffix.lower() not in (".npy", ".npz") or path.is_dir():
        return None
    try:
        if path.suffix.lower() == ".npy":
            values, labels = _npy(path), None
        else:
            values, labels = _npz(path)
    except UserError:
        raise
    except _DAMAGE as error:
        raise UserError(f"{path}: damaged or not a NumPy file ({error}); write it again") from error
    if values.ndim == 0 or len(values) == 0:
        raise UserError(f"{path}: the array is empty; give one with at least one item")
    names = None if labels is None else _label_names(path, labels, len(values))
    kind = Points() if values.ndim == 2 else Pictures()
    rows, convert, notes = _points(path, values) if values.ndim == 2 else _pictures(path, values)
    return Source(
        name_of(path),
        kind,
        array_reader(rows, names, convert),
        classes=in_order(set(names or ())),
        notes=tuple(notes),
    )


def _npy(path: Path) -> Array:
    """Map a .npy file whose header has been checked."""
    with path.open("rb") as stream:
        _check_header(str(path), stream, path.stat().st_size)
    mapped: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def _npz(path: Path) -> tuple[Array, Array | None]:
    """Items and labels of a .npz file."""
    with zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        labels = next((key for key in _LABELS if key in members), None)
        others = [key for key in members if key != labels]
        items = next((key for key in _ITEMS if key in members), others[0] if len(others) == 1 else None)
        if items is None:
            names = ", ".join(members) or "nothing"
            raise UserError(f"{path}: holds {names}; name the array of items 'x' and that of labels 'y'")

        def member(key: str) -> Array:
            info = archive.getinfo(members[key])
            with archive.open(info) as stream:
                _check_header(f"{path}: {key}", stream, info.file_size)
            with archive.open(info) as stream:  # a second time: a compressed member cannot be rewound cheaply
                return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))

        return member(items), None if labels is None else member(labels)


def _check_header(what: str, stream: IO[bytes], size: int) -> None:
    """Refuse a .npy stream of `size` bytes by its header alone."""
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        else:  # version 3 is for tables with named columns, which are not for us
            shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    except Exception as error:  # NumPy parses a header as Python: SyntaxError, TokenError, TypeError ...
        raise ValueError(f"bad header: {error}") from error
    if dtype.hasobject or dtype.kind not in "biufU":
        raise UserError(f"{what}: holds {dtype}, not plain numbers; save it as numbers")
    check_bytes(what, shape, dtype.itemsize, "save fewer or smaller items")
    present, promised = size - stream.tell(), math.prod(shape) * dtype.itemsize
    if present < promised:
        raise UserError(f"{what}: cut off: {promised:,} bytes promised, {present:,} there; write it again")


def _label_names(path: Path, labels: Array, count: int) -> list[str]:
    """Class name of each item."""
    if labels.shape not in ((count,), (count, 1)):
        shape = "x".join(map(str, labels.shape))
        raise UserError(f"{path}: labels have shape {shape} for {count:,} items; give one label per item")
    labels = labels.reshape(count)
    if labels.dtype.kind == "f":
        whole = np.nan_to_num(labels, nan=0.5, posinf=0.5, neginf=0.5)
        if not (whole == np.floor(whole)).all():
            raise UserError(f"{path}: labels are not whole numbers; give class numbers or names")
        labels = labels.astype(np.int64)
    return [str(label) for label in labels.tolist()]


def _extent(path: Path, values: Array) -> tuple[float, float]:
    """Lowest and highest value, a thousand items at a time so that a mapped file stays on disk.

    Raises:
        UserError: some values are NaN or infinite.
    """
    parts = [values[start : start + 1000] for start in range(0, len(values), 1000)]
    broken = sum(int((~np.isfinite(part)).sum()) for part in parts)
    if broken:
        raise UserError(f"{path}: {broken:,} values are NaN or infinite; remove or replace them")
    return min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)


def _points(path: Path, values: Array) -> tuple[Array, Callable[[Array], Array], list[str]]:
    count, dims = values.shape
    if values.dtype.kind != "f" or not 1 <= dims <= MAX_POINT_DIMS:
        raise UserError(
            f"{path}: {values.dtype} of shape {count}x{dims} is neither points (floats, up to {MAX_POINT_DIMS} "
            "columns) nor pictures; give pictures as (N, H, W)"
        )
    low, high = _extent(path, values)
    if max(-low, high) > float(np.finfo(np.float32).max):
        raise UserError(f"{path}: values up to {max(-low, high):.3g} do not fit 32-bit floats; rescale them")
    return values, lambda row: np.asarray(row, dtype=np.float32), []


def _pictures(path: Path, values: Array) -> tuple[Array, Callable[[Array], Array], list[str]]:
    """View as (N, H, W, C), with the conversion of one item to uint8."""
    shape = "x".join(map(str, values.shape))
    notes = []
    if values.ndim == 3:
        values = values[..., None]
    elif values.ndim == 4:
        first, last = values.shape[1], values.shape[3]
        if min(first, last) not in range(1, 5):
            raise UserError(f"{path}: shape {shape} has no axis of 1 to 4 channels; use (N, C, H, W) or (N, H, W, C)")
        if first <= last:
            values = np.moveaxis(values, 1, 3)
        if first == last:
            notes.append(f"shape {shape} read as (N, C, H, W)")
    else:
        raise UserError(f"{path}: shape {shape} is neither pictures (3 or 4 axes) nor points (2 axes)")
    if 0 in values.shape:
        raise UserError(f"{path}: shape {shape} holds no pixels")
    if values.dtype.kind not in "biuf":
        raise UserError(f"{path}: holds {values.dtype}, not numbers")
    convert, note = _to_bytes(path, values)
    return values, convert, notes + note


def _to_bytes(path: Path, values: Array) -> tuple[Callable[[Array], Array], list[str]]:
    """How values of this type and range become uint8, and a note if they have to."""
    if values.dtype == np.uint8:
        return np.asarray, []
    low, high = _extent(path, values)
    scales: Mapping[str, Any] = {
        "0 to 1": ((0, 1), 255.0, 0.0),
        "-1 to 1": ((-1, 1), 127.5, 1.0),
        "0 to 255": ((0, 255), 1.0, 0.0),
    }
    # 0 and 1 as whole numbers are levels of 0..255, except for booleans.
    known = ["0 to 1"] if values.dtype == np.bool_ else list(scales) if values.dtype.kind == "f" else ["0 to 255"]
    for name in known:
        (bottom, top), factor, shift = scales[name]
        if bottom - _SLACK <= low and high <= top + _SLACK:

            def convert(value: Array, factor: float = factor, shift: float = shift) -> Array:
                scaled = (value.astype(np.float64) + shift) * factor
                return np.rint(scaled).clip(0, 255).astype(np.uint8)

            return convert, [f"{values.dtype} values of {name} converted to 8 bits"]
    raise UserError(
        f"{path}: {values.dtype} values from {low:g} to {high:g} are no picture range; "
        "scale them to 0..1, -1..1 or 0..255"
    )
