"""Colour emoji with their names in English and Spanish: a small set of real pictures with captions.

    emoji      32x32
    emoji64    64x64

All emoji of the font Noto Color Emoji but those of another skin tone, on white. Names come from the package `emoji`
(Unicode CLDR's). One in ten is held out, by its name, so that no picture of it is ever shown. Every other one comes
`PLACES` times in each language, a little smaller and beside the middle each time but the first, so that a model learns
less by heart.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sfumato.data.image import Pictures
from sfumato.data.source import Array, Source, captioned
from sfumato.errors import UserError

__all__ = ["LANGUAGES", "SIDES", "glyphs", "names", "open_named"]

SIDES = {"emoji": 32, "emoji64": 64}
"""Height and width of a picture, by the name of the set."""
LANGUAGES = ("en", "es")
"""Of the captions."""
PLACES = 4
"""Pictures of an emoji in each language."""
FONT = Path(os.sep, "usr", "share", "fonts", "truetype", "noto", "NotoColorEmoji.ttf")
"""Where Debian's package fonts-noto-color-emoji puts the font."""

_STRIKE = 109  # the one size of its bitmaps, 136x128
_WIDEST = 140  # pixels of a glyph; two beside each other are wider
_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
_HELD_OUT = 26  # of 256
_SMALLEST, _FURTHEST = 0.75, 1 / 16  # shares of the side: of the emoji, and from the middle


def names() -> dict[str, dict[str, str]]:
    """Return the names of all emoji without another skin tone, {emoji: {"en": ..., "es": ...}}.

    Raises:
        UserError: the package `emoji` is missing.
    """
    try:
        import emoji
    except ModuleNotFoundError as error:
        raise UserError("the names of emoji come with `pip install 'sfumato[emoji]'`") from error
    emoji.config.load_language("es")
    whole = emoji.STATUS["fully_qualified"]
    return {
        text: {language: record[language].strip(":").replace("_", " ") for language in LANGUAGES}
        for text, record in emoji.EMOJI_DATA.items()
        if record["status"] == whole and not _TONES & set(text) and all(each in record for each in LANGUAGES)
    }


def open_named(name: str) -> Source:
    """Open the set.

    Raises:
        UserError: the font or the package `emoji` is missing.
    """
    drawn = glyphs()
    held = [pair for pair in drawn if _held_out(pair[0]["en"])]
    train = [pair for pair in drawn if not _held_out(pair[0]["en"])]
    return _part(name, train, PLACES, SIDES[name], _part(f"{name} (held out)", held, 1, SIDES[name], None))


def glyphs() -> list[tuple[dict[str, str], Image.Image]]:
    """Return the names of each emoji by language, and its picture as large as it is.

    Raises:
        UserError: the font or the package `emoji` is missing.
    """
    if not FONT.is_file():
        raise UserError("emoji are drawn with a font; `apt install fonts-noto-color-emoji`")
    font = ImageFont.truetype(FONT, _STRIKE)
    return [(told, glyph) for text, told in names().items() if (glyph := _glyph(text, font)) is not None]


def _held_out(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] < _HELD_OUT


def _glyph(text: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """Return the picture of an emoji as large as it is; None for what the font has no glyph for."""
    left, top, right, bottom = font.getbbox(text)
    width, height = right - left, bottom - top
    if not 0 < width <= _WIDEST:
        return None
    side = int(max(width, height))
    canvas = Image.new("RGB", (side, side), "white")
    place = ((side - width) // 2 - left, (side - height) // 2 - top)
    ImageDraw.Draw(canvas).text(place, text, font=font, embedded_color=True)
    return canvas if np.asarray(canvas).min() < 255 else None


def _part(
    name: str, drawn: list[tuple[dict[str, str], Image.Image]], places: int, side: int, held: Source | None
) -> Source:
    shown = [(told[language], picture) for told, glyph in drawn for language in LANGUAGES
             for picture in _placed(glyph, places, side, told["en"], language)]  # fmt: skip
    return captioned(name, Pictures(), shown, held)


def _placed(glyph: Image.Image, places: int, whole: int, name: str, language: str) -> Iterator[Array]:
    """Yield an emoji as large as it fits, and then smaller and beside the middle, by chance that its name and the
    language decide.
    """
    rng = np.random.default_rng(list(f"{name} {language}".encode()))
    for k in range(places):
        side = whole if k == 0 else round(whole * rng.uniform(_SMALLEST, 0.95))
        free, most = whole - side, round(whole * _FURTHEST)
        corner = [int(np.clip(free // 2 + rng.integers(-most, most + 1) * (k > 0), 0, free)) for _ in "xy"]
        canvas = Image.new("RGB", (whole, whole), "white")
        canvas.paste(glyph.resize((side, side), Image.Resampling.LANCZOS), (corner[0], corner[1]))
        yield np.asarray(canvas)
