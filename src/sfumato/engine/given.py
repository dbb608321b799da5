"""Pictures that a user gives, as a run knows them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sfumato.data.codec import Codec
from sfumato.data.decoding import decode
from sfumato.data.image import ImageCodec, Pictures
from sfumato.data.source import Array, Item
from sfumato.errors import UserError

__all__ = ["digest", "fitted", "pictures", "pixels"]


def pixels(path: Path) -> Array:
    """Return the pixels of a file, (H, W, channels).

    Raises:
        UserError: it is no picture that can be read.
    """
    found = decode(lambda: path.open("rb"))
    if isinstance(found, str):
        raise UserError(f"{path}: {found}")
    return found[0]


def pictures(codec: Codec) -> ImageCodec:
    """Return the codec of a run's pictures, of latents too.

    Raises:
        UserError: it is a run of points.
    """
    found = getattr(codec, "pixel", None)
    if not isinstance(found, ImageCodec):
        raise UserError("a run of points, and pictures alone can be edited or followed")
    return found


def fitted(path: Path, found: Array, codec: ImageCodec) -> Tensor:
    """Bring a picture to the shape and levels of a codec, (1, C, H, W).

    Args:
        path: its file.
        found: its pixels.
        codec: of the run.
    """
    brought = torch.tensor(Pictures().fit(Item(path.name, found), codec.dims))[None]
    return codec.decode(replace(codec, levels=256).encode(brought))


def digest(path: Path) -> str:
    """Return 16 hexadecimal digits that name what a file holds."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
