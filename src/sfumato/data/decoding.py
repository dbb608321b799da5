"""One encoded picture to pixels, or the reason why it cannot be read.

Pictures are untrusted: only four decoders are tried, the size in the header is bounded before a pixel is decoded, and
whatever a decoder raises becomes a reason in words.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from sfumato.data.source import Array

__all__ = ["MAX_PIXELS", "SUFFIXES", "decode", "header", "hush"]

MAX_PIXELS = 64_000_000
"""A picture with more pixels is refused by its header."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
"""What the names of pictures end in."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_ORIENTATION = 0x0112

T = TypeVar("T")


def decode(opened: Callable[[], BinaryIO]) -> tuple[Array, tuple[str, ...]] | str:
    """Decode one picture.

    Args:
        opened: opens it; an OSError is a reason.

    Returns:
        Pixels uint8 (H, W, C), C as in `Item`, with the facts to note; or the reason why it cannot be read.
    """

    def all_of(image: ImageFile.ImageFile) -> tuple[Array, tuple[str, ...]]:
        facts = _facts(image)
        image.load()
        orientation = image.getexif().get(_ORIENTATION, 1)
        turned = ImageOps.exif_transpose(image)
        if orientation in range(2, 9):
            facts.append("turned by EXIF orientation")
        return _pixels(turned), tuple(facts)

    return _guarded(opened, all_of)


def header(opened: Callable[[], BinaryIO]) -> tuple[tuple[int, int], tuple[str, ...]] | str:
    """Read the header of one picture only; its pixels may still turn out to be damaged.

    Args:
        opened: opens it; an OSError is a reason.

    Returns:
        Height and width as `decode` will give them, with the facts that a header tells; or the reason.
    """

    def head_of(image: ImageFile.ImageFile) -> tuple[tuple[int, int], tuple[str, ...]]:
        # To look for EXIF behind the pixels of a PNG, Pillow would decode them; hardly any PNG has it there.
        early = image.format != "PNG" or "exif" in image.info
        turned = early and image.getexif().get(_ORIENTATION, 1) in range(5, 9)
        width, height = reversed(image.size) if turned else image.size
        return (height, width), tuple(_facts(image))

    return _guarded(opened, head_of)


def hush() -> None:
    """Ignore Pillow's warnings (odd EXIF, large pictures) from now on: what matters of them comes back as a reason.

    For decoding in threads, where Python's `warnings.catch_warnings` does not hold.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _guarded(opened: Callable[[], BinaryIO], use: Callable[[ImageFile.ImageFile], T]) -> T | str:
    """What `use` makes of an opened picture that is not too large, or the reason why that fails."""
    try:
        with opened() as stream, Image.open(stream, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return _too_large(f"{image.width}x{image.height}")
            return use(image)
    except Image.DecompressionBombError:
        return _too_large("its header gives a size that")
    except UnidentifiedImageError:
        return "not a PNG, JPEG, WebP or BMP picture"
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # decoders of damaged files raise anything: struct.error, SyntaxError, IndexError ...
        return f"damaged ({type(error).__name__}: {error})"


def _too_large(size: str) -> str:
    return f"{size} is over the limit of {MAX_PIXELS // 10**6} megapixels"


def _facts(image: ImageFile.ImageFile) -> list[str]:
    """What will be lost or changed when this (not yet loaded) picture becomes 8-bit grey or RGB."""
    # Pillow opens 16-bit colour as 8-bit; only the raw mode in the tile tells.
    deep = image.mode.startswith("I") or any(";16" in str(tile[3]) for tile in image.tile)
    animated = getattr(image, "is_animated", False) and image.format != "MPO"
    said = {
        "scaled from 16-bit to 8-bit": deep,
        "animated: first frame used": animated,
        "converted from a palette": image.mode in ("P", "PA"),
        "converted from CMYK": image.mode == "CMYK",
        "converted from 1-bit": image.mode == "1",
    }
    return [fact for fact, true in said.items() if true]


def _pixels(image: Image.Image) -> Array:
    """Any Pillow mode -> uint8 (H, W, 1|2|3|4)."""
    if image.mode.startswith("I"):  # 16-bit grey: 65535 = 255 * 257, + 128 rounds to nearest
        wide = np.asarray(image).astype(np.int64)
        return ((wide + 128) // 257).clip(0, 255).astype(np.uint8)[..., None]
    grey = image.mode in ("1", "L", "LA")
    target = ("LA" if grey else "RGBA") if image.has_transparency_data else ("L" if grey else "RGB")
    pixels = np.array(image if image.mode == target else image.convert(target))
    return pixels[..., None] if pixels.ndim == 2 else pixels
