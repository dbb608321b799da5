"""Colour emoji as a data set: every one of the font Noto Color Emoji without skin tones, on white.

    python bench/emoji_pictures.py FOLDER [side]        writes FOLDER/train and FOLDER/test as PNG

Debian's package fonts-noto-color-emoji holds the font, PyPI's `emoji` the list. One in ten is held out.
"""

import hashlib
import sys
from pathlib import Path

import emoji
from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
STRIKE = 109  # the one size of its bitmaps, 136x128
TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}


def drawn(text, font, side):
    """The picture of one glyph, as large as it fits; None for a sequence that the font has no glyph for."""
    left, top, right, bottom = font.getbbox(text)
    width, height = right - left, bottom - top
    if not 0 < width <= 140:  # two glyphs beside each other
        return None
    canvas = Image.new("RGB", (max(width, height),) * 2, "white")
    place = ((canvas.width - width) // 2 - left, (canvas.height - height) // 2 - top)
    ImageDraw.Draw(canvas).text(place, text, font=font, embedded_color=True)
    return canvas.resize((side, side), Image.Resampling.LANCZOS)


def main(folder, side=32):
    font = ImageFont.truetype(FONT, STRIKE)
    names = {text: record["en"].strip(":") for text, record in emoji.EMOJI_DATA.items() if record["status"] == 2}
    counts = {"train": 0, "test": 0}
    for text, name in names.items():
        picture = None if TONES & set(text) else drawn(text, font, side)
        if picture is not None:
            part = "test" if hashlib.sha256(name.encode()).digest()[0] < 26 else "train"
            path = Path(folder) / part / f"{name.replace('/', '-')}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            counts[part] += 1
    print(counts)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
