"""IDX files, the format of MNIST and its relatives: an images file, a labels file beside it, plain or gzipped.

Layout (big-endian): two zero bytes, one byte for the type (8 = unsigned byte), one for the number of axes, a 32-bit
length per axis, then the values.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from sfumato.data.image import Pictures
from sfumato.data.source import Source, array_reader, check_bytes, in_order, name_of
from sfumato.errors import UserError

__all__ = ["open_folder", "open_path", "read_idx"]

_IMAGES = re.compile(r"images?.*idx3-ubyte(\.gz)?$", re.IGNORECASE)
_UBYTE = 8
_CHUNK = 2**20


def open_path(path: Path) -> Source | None:
    """Open one images file, or a folder that has train-images*-idx3-ubyte[.gz]; None if `path` is neither.

    Raises:
        UserError: a file is damaged, or images and labels do not belong together.
    """
    if path.is_dir():
        return open_folder(path)
    if not _IMAGES.search(path.name):
        return None
    return _pair(path, name_of(path))


def open_folder(path: Path, classes: Sequence[str] = ()) -> Source | None:
    """Open a folder of four (or fewer) files; None if it has no train-images file.

    Args:
        path: the folder.
        classes: names of the classes 0, 1, ...; by default their numbers.
    """
    parts = {part: _find(path, part) for part in ("train", "t10k", "test")}
    if parts["train"] is None:
        return None
    held = parts["t10k"] or parts["test"]
    test = _pair(held, f"{name_of(path)} (held out)", classes) if held else None
    return _pair(parts["train"], name_of(path), classes, test)


def _find(folder: Path, part: str) -> Path | None:
    found = [file for file in folder.glob(f"{part}-images*") if _IMAGES.search(file.name)]
    return min(found, default=None)


def _pair(images: Path, name: str, classes: Sequence[str] = (), test: Source | None = None) -> Source:
    """The source made of an images file and the labels file that goes with it by name."""
    pixels = read_idx(images, axes=3)
    if 0 in pixels.shape:
        raise UserError(f"{images}: holds no pictures (shape {'x'.join(map(str, pixels.shape))})")
    beside = re.sub("idx3", "idx1", re.sub("image", "label", images.name))
    stem = beside.removesuffix(".gz")
    labels_file = images.with_name(stem)
    if not labels_file.exists():
        labels_file = images.with_name(f"{stem}.gz")
    if not labels_file.exists():
        notes = (f"no labels: {stem} is not beside {images.name}",)
        return Source(name, Pictures(), array_reader(pixels[..., None]), notes=notes, test=test)
    numbers = read_idx(labels_file, axes=1)
    if len(numbers) != len(pixels):
        raise UserError(f"{labels_file}: {len(numbers):,} labels for {len(pixels):,} pictures; get the matching file")
    if classes and numbers.max() >= len(classes):
        raise UserError(f"{labels_file}: label {numbers.max()} is not one of 0 to {len(classes) - 1}")
    labels = [classes[number] if classes else str(number) for number in numbers.tolist()]
    order = tuple(classes) or in_order(set(labels))
    return Source(name, Pictures(), array_reader(pixels[..., None], labels), classes=order, test=test)


def read_idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, plain or gzipped.

    Args:
        path: the file.
        axes: how many axes it must have (3 for images, 1 for labels).

    Raises:
        UserError: wrong magic, type or number of axes; more or fewer bytes than the header says; damaged gzip.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if packed:
                with gzip.open(raw) as stream:
                    return _parse(path, stream, axes)
            return _parse(path, raw, axes)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); get the file again") from error


def _parse(path: Path, stream: IO[bytes] | gzip.GzipFile, axes: int) -> NDArray[np.uint8]:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0":
        raise UserError(f"{path}: not an IDX file (it starts with {head.hex(' ') or 'nothing'}); get the file again")
    if head[2] != _UBYTE or head[3] != axes:
        raise UserError(
            f"{path}: IDX type {head[2]} with {head[3]} axes, where type {_UBYTE} (bytes) with {axes} is needed"
        )
    lengths = stream.read(4 * axes)
    shape = tuple(int(n) for n in np.frombuffer(lengths[: len(lengths) // 4 * 4], dtype=">u4"))
    if len(shape) != axes:
        raise UserError(f"{path}: cut off in its header; get the file again")
    check_bytes(str(path), shape, 1, "is the header damaged?")
    promised = math.prod(shape)
    # Grown by what is there, never by what is promised; one byte more than promised is enough to know.
    content = bytearray()
    while len(content) <= promised and (chunk := stream.read(min(_CHUNK, promised + 1 - len(content)))):
        content += chunk
    if len(content) != promised:
        there = f"{len(content):,}" if len(content) < promised else "more"
        raise UserError(f"{path}: {promised:,} bytes promised by the header, {there} there; get the file again")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
