"""Writing files so that neither a crash nor a reader ever meets half of one."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sfumato.errors import UserError

__all__ = ["exists", "need_empty", "png_bytes", "sweep", "writable", "write_atomic", "write_png"]


def exists(path: Path) -> bool:
    """Return whether a path exists, whatever its text: what cannot be a path does not."""
    try:
        return path.exists()
    except OSError:  # too long for a path
        return False


def need_empty(out: Path | None) -> None:
    """Refuse a folder for results that holds anything already.

    Args:
        out: as it was asked for; None if it was not.

    Raises:
        UserError: it is a file, or a folder that is not empty.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; choose another --out")


def write_atomic(path: Path, content: bytes) -> Path:
    """Write a file so that a reader or a crash sees the old one or the new one, never a part.

    Args:
        path: the file; its folder is made if it is missing.
        content: all of it.

    Returns:
        ``path``.

    Raises:
        UserError: the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_through(temporary, content)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return path


@contextmanager
def writable(path: Path, way_out: str = "choose another folder or free space") -> Iterator[None]:
    """Turn what the system says of a place that cannot be written into one line for the user.

    Args:
        path: what is written meanwhile.
        way_out: what the user can do.

    Raises:
        UserError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); {way_out}") from error


def sweep(folder: Path) -> None:
    """Remove what a process that was killed while it wrote into ``folder`` left behind."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _write_through(path: Path, content: bytes) -> None:
    """Write all of a file, however little the system takes at a time, down to the disk."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    finally:
        os.close(file)


def _sync(folder: Path) -> None:
    """Bring a folder's list of names down to the disk, where the system can open folders."""
    if os.name == "posix":
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def png_bytes(pixels: NDArray[np.uint8], recipe: Mapping[str, Any]) -> bytes:
    """Return a picture as PNG, with the recipe that made it as JSON in the text chunk "sfumato".

    Args:
        pixels: (H, W) or (H, W, 1) grey, (H, W, 3) RGB or (H, W, 4) RGBA, 0 to 255.
        recipe: what is needed to make the picture again; JSON-able.
    """
    text = PngInfo()
    text.add_text("sfumato", json.dumps(dict(recipe)))
    content = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels).save(content, "PNG", pnginfo=text)
    return content.getvalue()


def write_png(path: Path, pixels: NDArray[np.uint8], recipe: Mapping[str, Any]) -> Path:
    """Write a picture as a file; see :func:`png_bytes`.

    Args:
        path: the file; its folder is made if it is missing.
        pixels: of the picture.
        recipe: that made it.

    Returns:
        ``path``.

    Raises:
        UserError: the place cannot be written.
    """
    return write_atomic(path, png_bytes(pixels, recipe))
