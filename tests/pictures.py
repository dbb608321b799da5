"""Pictures made for the tests of folders."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

import sfumato.data as data

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=2)


def png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bytes(width: int, height: int, depth: int, colour: int, body: bytes, *before: bytes) -> bytes:
    """A PNG made by hand, so that Pillow is not its own oracle."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *before, chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def only(folder: Path, **options: object) -> Tensor:
    """The single picture of a folder, (C, H, W)."""
    loaded = data.load(folder, **options)  # type: ignore[arg-type]
    assert len(loaded.items) == 1
    return loaded.items[0]


def noted(folder: Path, text: str) -> bool:
    notes = data.inspect(folder).notes
    assert tuple(notes) == data.load(folder).notes[: len(notes)]
    return any(text in note for note in notes)
