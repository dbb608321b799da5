"""Open Clip Art 64x64 with titles and keywords: a larger set of captioned pictures, public domain.

Debian's package openclipart-svg has 8,121 drawings; taken are those of `KINDS`, on white. A caption is the title and
the keywords that it lacks; drawings without any are left out, as are titles that name their author alone. One in ten is
held out, by the name of its file.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from sfumato.data.image import Pictures
from sfumato.data.source import Array, Source, captioned
from sfumato.errors import UserError

__all__ = ["FOLDER", "KINDS", "SIDE", "caption_of", "open_named"]

SIDE = 64
"""Height and width of a picture."""
KINDS = ("animals", "buildings", "food", "people", "plants", "tools", "transportation")
"""Folders whose drawings show a thing."""
FOLDER = Path(os.sep, "usr", "share", "openclipart", "svg")
"""Where Debian's package openclipart-svg puts them."""
MOST_BYTES = 2**20
"""Of one drawing; a longer one is left out."""

_HELD_OUT = 26  # of 256
_WORDS = 12  # of a caption


def open_named(name: str) -> Source:
    """Open the set.

    Raises:
        UserError: the drawings or the package `resvg-py` are missing.
    """
    if not FOLDER.is_dir():
        raise UserError("Open Clip Art is drawn from Debian's files; `apt install openclipart-svg`")
    try:
        import resvg_py
    except ModuleNotFoundError as error:
        raise UserError("drawings are made pixels by `pip install 'sfumato[clipart]'`") from error
    parts: dict[bool, list[tuple[str, Array]]] = {False: [], True: []}
    for path in sorted(file for kind in KINDS for file in (FOLDER / kind).rglob("*.svg")):
        if path.stat().st_size <= MOST_BYTES and (caption := caption_of(path)) is not None:
            held = hashlib.sha256(path.name.encode()).digest()[0] < _HELD_OUT
            if (pixels := _drawn(path, resvg_py)) is not None:
                parts[held].append((caption, pixels))
    held_out = captioned(f"{name} (held out)", Pictures(), parts[True], None)
    return captioned(name, Pictures(), parts[False], held_out)


def caption_of(path: Path) -> str | None:
    """Return what a drawing's metadata say it is, None if they do not.

    Args:
        path: of an SVG file.
    """
    try:
        told = ElementTree.fromstring(path.read_bytes()).find(".//{*}metadata")
    except (OSError, ElementTree.ParseError):
        return None
    if told is None:
        return None
    makers = {item.text.strip().casefold() for who in told.findall(".//{*}creator") for item in who.iter() if item.text}
    title = next((each.text for each in told.findall(".//{*}title") if each.text), "")
    texts = [title, *(each.text or "" for each in told.findall(".//{*}subject//{*}li"))]
    kept = [text for text in map(str.casefold, texts) if text.strip() not in makers]
    words = [word for text in kept for word in re.findall(r"[^\W\d_]{2,}", text)]
    different = list(dict.fromkeys(words))[:_WORDS]
    return " ".join(different) if different else None


def _drawn(path: Path, resvg: Any) -> Array | None:
    """Return a drawing as large as it fits, on white; None for what cannot be drawn, or leaves it white."""
    try:
        png = bytes(resvg.svg_to_bytes(svg_path=str(path), width=4 * SIDE))
        picture = Image.open(io.BytesIO(png)).convert("RGBA")
    except (ValueError, OSError):  # what a renderer cannot read is left out
        return None
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (SIDE, SIDE), "white")
    canvas.alpha_composite(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    found: Array = np.asarray(canvas.convert("RGB"))
    return found if found.min() < 250 else None
