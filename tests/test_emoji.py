"""Emoji and their names: what is held out is never shown, and what is missing is named."""

from pathlib import Path

import pytest

from sfumato.data import emoji, load, openclipart
from sfumato.errors import UserError


@pytest.fixture(scope="module")
def dataset():
    pytest.importorskip("emoji", reason="the package emoji is not installed")
    if not emoji.FONT.is_file():
        pytest.skip("Debian's fonts-noto-color-emoji is not installed")
    return load("emoji")


def test_what_is_held_out_is_never_shown(dataset):
    shown, held = ({*part.captions} for part in (dataset, dataset.test))
    known = emoji.names()
    of = {told[language]: text for text, told in known.items() for language in emoji.LANGUAGES}
    assert not {of[caption] for caption in held} & {of[caption] for caption in shown}
    assert len(held) > 200 < len(shown) / 10


def test_every_emoji_has_a_picture_in_both_languages(dataset):
    assert dataset.items.shape[1:] == (3, 32, 32)
    assert (dataset.items.flatten(1).min(1).values < 255).all()
    told = emoji.names()["🍕"]
    assert told == {"en": "pizza", "es": "pizza"}
    places = [k for k, caption in enumerate(dataset.captions) if caption == emoji.names()["🐱"]["es"]]
    assert len(places) == emoji.PLACES


def test_a_missing_font_is_named(monkeypatch):
    monkeypatch.setattr(emoji, "FONT", Path("nowhere"))
    with pytest.raises(UserError, match="apt install fonts-noto-color-emoji"):
        load("emoji")


# ── Two of them, and Open Clip Art ────────────────────────────────────────────────────────────────────────────────────


def test_pairs_that_are_held_out_are_never_shown(dataset):
    found = load("emoji-pairs")

    def pairs(part):
        split = [caption.replace(" above ", "\n").replace(" left of ", "\n").split("\n") for caption in part.captions]
        return {frozenset(each) for each in split}

    shown, held = pairs(found), pairs(found.test)
    assert not shown & held and len(held) > 100
    assert {name for pair in held for name in pair} <= {name for pair in shown for name in pair}
    assert len(found.captions) == len(set(found.captions)) and found.items.shape[1:] == (3, 64, 64)
    for caption, how in ((each, how) for each in found.captions[:50] for how in ("left of", "above")):
        if f" {how} " in caption:
            picture = found.items[found.captions.index(caption)].amin(0) < 250
            rows, columns = picture.any(1), picture.any(0)
            assert not (columns[31:33].any() if how == "left of" else rows[31:33].any())  # a gap between them


SVG = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:dc="http://purl.org/dc/elements/1.1/"
xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><metadata><dc:title>{title}</dc:title>
<dc:creator><b>{maker}</b></dc:creator><dc:subject><rdf:Bag>{keywords}</rdf:Bag></dc:subject></metadata></svg>"""


@pytest.mark.parametrize(
    ("title", "maker", "keywords", "wanted"),
    [("Red Apple", "ann", ["apple", "fruit"], "red apple fruit"), ("Ann", "ann", ["tree"], "tree"),
     ("Ann", "ann", [], None), ("", "", ["2"], None)],
)  # fmt: skip
def test_captions_of_drawings(tmp_path, title, maker, keywords, wanted):
    path = tmp_path / "a.svg"
    items = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    path.write_text(SVG.format(title=title, maker=maker, keywords=items))
    assert openclipart.caption_of(path) == wanted
    path.write_text("<svg>")
    assert openclipart.caption_of(path) is None


def test_clip_art_has_captions_and_a_part_that_is_held_out():
    pytest.importorskip("resvg_py", reason="the package resvg-py is not installed")
    if not openclipart.FOLDER.is_dir():
        pytest.skip("Debian's openclipart-svg is not installed")
    found = load("openclipart")
    assert len(found.items) > 800 and len(found.test.items) > 80 and found.items.shape[1:] == (3, 64, 64)
    assert all(found.captions) and (found.items.flatten(1).min(1).values < 250).all()


def test_missing_drawings_are_named(monkeypatch):
    monkeypatch.setattr(openclipart, "FOLDER", Path("nowhere"))
    with pytest.raises(UserError, match="apt install openclipart-svg"):
        load("openclipart")
