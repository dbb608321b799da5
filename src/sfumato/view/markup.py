"""Pieces of HTML. Names of folders, classes and files are anybody's text: :func:`safe` is the one door for them."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sfumato.data.picture import Pixels

__all__ = ["COVER", "document", "embedded", "figure", "key", "number", "safe", "table"]

LONGEST = 300  # letters of a text from outside
CRISP = 256  # pictures up to so many pixels are shown enlarged, their pixels as squares
COVER = '<meta name="generator" content="sfumato'
"""By which a page of ours is known."""


def safe(value: Any) -> str:
    """Return a text as HTML that shows it and does nothing: escaped, cut, what cannot be printed replaced."""
    words = str(value)
    words = words if len(words) <= LONGEST else words[:LONGEST] + "…"
    return html.escape("".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in words))


def number(value: float | None) -> str:
    """Write a number with six digits; a dash for one that is not known."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.6g}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], style: str = "") -> str:
    """Lay out a table that scrolls by itself where it is too wide.

    Args:
        heads: HTML of the columns.
        rows: HTML of the cells; what begins with "<td" is a cell already.
        style: class of the table.
    """
    head = "".join(f'<th scope="col">{words}</th>' for words in heads)
    body = ["".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row) for row in rows]
    lines = "\n".join(f"<tr>{cells}</tr>" for cells in body)
    return (
        f'<div class="table" tabindex="0"><table class="{style}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )


def figure(content: str, caption: str, more: str = "") -> str:
    """Put a caption over some content.

    Args:
        content: HTML.
        caption: HTML.
        more: HTML in small letters behind it.
    """
    small = f" <small>{more}</small>" if more else ""
    return f"<figure><figcaption>{caption}{small}</figcaption>{content}</figure>"


def key(entries: Mapping[str, str]) -> str:
    """Return what the strokes of a chart mean.

    Args:
        entries: HTML of the meaning of each style.
    """
    if not entries:
        return ""
    items = (
        f'<li><svg viewBox="0 0 24 14" aria-hidden="true"><path class="{style}" d="M1 7H23"/></svg>{words}</li>'
        for style, words in entries.items()
    )
    return f'<ul class="key">{"".join(items)}</ul>\n'


def embedded(pixels: Pixels, alt: str, most: int) -> str:
    """Return a picture as ``<img>`` with its bytes inside.

    Args:
        pixels: (h, w) or (h, w, c).
        alt: what it shows, as HTML.
        most: bytes of its file; a picture that takes more is made smaller until it fits.
    """
    picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels)
    while True:
        content = io.BytesIO()
        picture.save(content, "PNG", optimize=True)
        if content.tell() <= most or max(picture.size) <= 64:
            break
        picture = picture.resize([max(1, round(0.7 * side)) for side in picture.size], Image.Resampling.LANCZOS)
    crisp = ' class="crisp"' if max(picture.size) <= CRISP else ""
    width, height = picture.size
    source = base64.b64encode(content.getvalue()).decode()
    return f'<img{crisp} width="{width}" height="{height}" alt="{alt}" src="data:image/png;base64,{source}">'


def document(title: str, version: str, body: str) -> str:
    """Return a whole page that fetches nothing and runs nothing.

    Args:
        title: HTML of its name.
        version: of sfumato.
        body: its HTML.
    """
    style = Path(__file__).with_name("page.css").read_text("utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
{COVER} {version}">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
