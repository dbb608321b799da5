"""Captions beside pictures: where they are found, and what is said where one lacks the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sfumato.data as data
from pictures import GREY, png
from sfumato.errors import UserError


def pictures(folder: Path, *names: str) -> None:
    for k, name in enumerate(names):
        png(folder / name, GREY + k)


def test_text_files_beside_pictures_are_their_captions(tmp_path: Path) -> None:
    pictures(tmp_path, "b/x.png", "a.png", "c.png")
    (tmp_path / "a.txt").write_text(" a grey square\n")
    (tmp_path / "b" / "x.txt").write_text("ein Häuschen", "utf-8")
    dataset = data.load(tmp_path)
    assert dataset.captions == ("a grey square", "ein Häuschen", None)
    assert "captions: 2 of 3 pictures have one" in dataset.notes
    assert data.load(tmp_path, stream=True).captions == dataset.captions


@pytest.mark.parametrize("column", ["text", "caption"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_tables_tell_captions_of_both_parts(tmp_path: Path, kind: str, column: str) -> None:
    pictures(tmp_path, "train/a.png", "train/b.png", "test/c.png")
    rows = {"train": [("b.png", "two, and more"), ("a.png", "one")], "test": [("c.png", "three")]}
    for part, told in rows.items():
        lines = [json.dumps({"file_name": name, column: text}) for name, text in told]
        if kind == "csv":
            lines = [f"file_name,{column}", *(f'{name},"{text}"' for name, text in told)]
        (tmp_path / part / f"metadata.{kind}").write_text("\n".join(lines))
    dataset = data.load(tmp_path)
    assert dataset.test is not None
    assert (dataset.captions, dataset.test.captions) == (("one", "two, and more"), ("three",))


def test_a_folder_without_captions_has_none_and_other_texts_are_no_captions(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    plain = data.load(tmp_path)
    (tmp_path / "README.txt").write_text("what this is")
    assert data.load(tmp_path).captions == () == plain.captions
    assert data.load(tmp_path).fingerprint == plain.fingerprint


def test_captions_are_of_the_fingerprint(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    found = []
    for text in ("one", "two"):
        (tmp_path / "a.txt").write_text(text)
        found += [data.load(tmp_path).fingerprint, data.load(tmp_path, stream=True).fingerprint]
    assert len(set(found)) == 4


def test_a_caption_without_its_picture_is_named(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "lost.txt").write_text("of nothing")
    with pytest.raises(UserError, match=r"lost\.txt: a caption without its picture; remove or mend it"):
        data.load(tmp_path)
    assert data.load(tmp_path, skip_bad=True).captions == ("one",)
    (tmp_path / "lost.txt").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.png", "text": "of nothing"}')
    with pytest.raises(UserError, match=r"metadata\.jsonl: gone\.png: a caption without its picture"):
        data.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [('{"file_name": "a.png"}', "a row has no 'text'"), ('{"text": "one"}', "a row has no 'file_name'"),
     ("{", "cannot be read"), ("[1]", "cannot be read")],
)  # fmt: skip
def test_a_damaged_table_is_named(tmp_path: Path, text: str, why: str) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(UserError, match=rf"metadata\.jsonl: {why}"):
        data.load(tmp_path)


def test_a_file_too_long_is_no_caption(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("word " * 10_000)
    with pytest.raises(UserError, match=r"a\.txt: no caption: over 16384 bytes"):
        data.load(tmp_path)
