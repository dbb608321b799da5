"""A folder of PNG, JPEG, WebP or BMP files; the subfolders directly below it are the classes.

Files are untrusted: only these four decoders are tried, the size in the header is bounded before a pixel is
decoded, and whatever a decoder raises becomes a `Fault` of that file.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from sfumato.data.image import Pictures
from sfumato.data.source import Array, Fault, Item, Source, name_of
from sfumato.errors import UserError

__all__ = ["MAX_PIXELS", "decode", "open_path"]

MAX_PIXELS = 64_000_000
"""A picture with more pixels is refused by its header."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_ORIENTATION = 0x0112
_THREADS = min(4, os.cpu_count() or 1)

T = TypeVar("T")


def open_path(path: Path) -> Source | None:
    """Open a folder of pictures; None if `path` is not a folder.

    Raises:
        UserError: there is no picture file in it, or it cannot be read.
    """
    if not path.is_dir():
        return None
    listing = _walk(path)
    if not listing.files:
        raise UserError(f"{path}: no PNG, JPEG, WebP or BMP files in this folder; give a folder that has some")
    relative = [file.relative_to(path) for file in listing.files]
    subfolders = {part.parts[0] for part in relative if len(part.parts) > 1}
    flat = any(len(part.parts) == 1 for part in relative)
    notes = _ignored(listing)
    if flat and subfolders:
        notes.append("pictures lie in the folder itself, so its subfolders are not taken as classes")

    def load(part: Path) -> Item | Fault:
        decoded = decode(path / part)
        if isinstance(decoded, str):
            return Fault(_shown(part.as_posix()), decoded)
        return Item(_shown(part.as_posix()), decoded[0], None if flat else _shown(part.parts[0]), decoded[1])

    def read(use: Callable[[Item], T]) -> Iterator[T | Fault]:
        def work(part: Path) -> T | Fault:
            got = load(part)
            return got if isinstance(got, Fault) else use(got)

        yield from listing.faults
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(relative), 64):
                # Pillow warns of odd EXIF, large pictures and the like; what matters of it comes back as a Fault.
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    done = list(pool.map(work, relative[start : start + 64]))
                yield from done

    return Source(name_of(path), Pictures(), read, notes=tuple(notes))


@dataclass(frozen=True)
class _Listing:
    files: list[Path]
    faults: list[Fault]
    hidden: int
    others: Counter[str]


def _walk(root: Path) -> _Listing:
    """List picture files below `root`, links followed, no folder entered twice."""
    found = _Listing([], [], 0, Counter())
    hidden, seen, waiting = 0, set[str](), [root]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:  # a link back to a folder above, or a second link to the same one
            continue
        seen.add(real)
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            if folder == root:
                raise UserError(f"{root}: cannot be read ({error.strerror}); check its permissions") from error
            found.faults.append(Fault(_shown(folder.relative_to(root).as_posix()), error.strerror or str(error)))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                hidden += 1
            elif entry.is_dir():
                waiting.append(entry)
            elif entry.suffix.lower() in _SUFFIXES:
                found.files.append(entry)
            else:
                found.others[entry.suffix.lower() or "no suffix"] += 1
        # Real folders come off the stack first, so that a link to one of them is the copy that is passed over.
        waiting.sort(key=lambda entry: not entry.is_symlink())
    return _Listing(sorted(found.files), found.faults, hidden, found.others)


def _shown(name: str) -> str:
    """A file name as text that can be printed: bytes that are not UTF-8 are written out."""
    return name.encode("utf-8", "backslashreplace").decode()


def _ignored(listing: _Listing) -> list[str]:
    notes = []
    if listing.hidden:
        notes.append(f"hidden files or folders ignored: {listing.hidden:,}")
    if listing.others:
        kinds = ", ".join(f"{suffix} {n:,}" for suffix, n in listing.others.most_common(5))
        notes.append(f"other files ignored: {listing.others.total():,} ({kinds})")
    return notes


def decode(path: Path) -> tuple[Array, tuple[str, ...]] | str:
    """Decode one picture file.

    Returns:
        Pixels uint8 (H, W, C), C as in `Item`, with the facts to note; or the reason why it cannot be read.
    """
    try:
        if not path.is_file():
            return "not a file (a broken link?)"
        if path.stat().st_size == 0:
            return "empty file"
        with path.open("rb") as stream, Image.open(stream, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return _too_large(f"{image.width}x{image.height}")
            facts = _facts(image)
            image.load()
            orientation = image.getexif().get(_ORIENTATION, 1)
            turned = ImageOps.exif_transpose(image)
            if orientation in range(2, 9):
                facts.append("turned by EXIF orientation")
            return _pixels(turned), tuple(facts)
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
