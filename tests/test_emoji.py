"""Emoji and their names: what is held out is never shown, and what is missing is named."""

from pathlib import Path

import pytest

from sfumato.data import emoji, load
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
