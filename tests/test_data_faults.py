"""Folders with damaged files: each is named with its reason, skipped if asked, and nothing else changes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato.data as data
from pictures import COLOUR, GREY, png, png_bytes
from sfumato.data import source as source_module
from sfumato.data.decoding import decode
from sfumato.errors import UserError


def truncated(kind: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path, format=kind)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write


def huge_header(path: Path) -> None:
    path.write_bytes(png_bytes(60000, 60000, 8, 2, b""))


def large_header(path: Path) -> None:
    path.write_bytes(png_bytes(9000, 9000, 8, 2, b""))


def disguised(path: Path) -> None:
    Image.new("L", (4, 4)).save(path, format="GIF")


FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "text": ("bad.png", lambda path: path.write_text("not a picture"), "not a PNG"),
    "empty": ("bad.jpg", lambda path: path.write_bytes(b""), "empty file"),
    "gif": ("bad.png", disguised, "not a PNG"),
    "jpeg": ("bad.jpg", truncated("JPEG"), "truncated"),
    "png": ("bad.png", truncated("PNG"), "truncated"),
    "webp": ("bad.webp", truncated("WEBP"), "not a PNG|could not|decode"),
    "bmp": ("bad.bmp", truncated("BMP"), "truncated"),
    "huge": ("bad.png", huge_header, "megapixels"),
    "large": ("bad.png", large_header, "9000x9000 is over the limit of 64 megapixels"),
    "link": ("bad.png", lambda path: path.symlink_to(path.parent / "nowhere"), "broken link"),
    "pipe": ("bad.png", os.mkfifo, "not a file"),
    "no pixels": ("bad.png", lambda path: path.write_bytes(png_bytes(0, 0, 8, 0, b"")), "."),
}


@pytest.mark.parametrize("case", FAULTS)
def test_bad_files_are_named_listed_and_skippable(tmp_path: Path, case: str) -> None:
    name, write, said = FAULTS[case]
    png(tmp_path / "cat" / "good.png", GREY)
    write(tmp_path / "cat" / name)
    findings = data.inspect(tmp_path)
    assert findings.count == 1 and [file for file, _ in findings.bad] == [f"cat/{name}"]
    with pytest.raises(UserError, match=rf"cat/{name}: .*({said}).*--skip-bad"):
        data.load(tmp_path)
    loaded = data.load(tmp_path, skip_bad=True)
    assert np.array_equal(loaded.items[0, 0].numpy(), GREY)
    assert any("1 bad left out" in note for note in loaded.notes)


def test_decoders_are_fuzzed_without_an_exception(tmp_path: Path) -> None:
    """Flipped bytes anywhere give pixels or a reason, never an exception or a warning."""
    rng = np.random.default_rng(0)
    for suffix in ("png", "jpeg", "webp", "bmp"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(COLOUR).save(path)
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for at in rng.integers(0, len(whole), 4):
                damaged[at] = rng.integers(256)
            path.write_bytes(damaged)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                got = decode(partial(path.open, "rb"))
            assert isinstance(got, str) or got[0].dtype == np.uint8


def test_more_bad_files_are_counted(tmp_path: Path) -> None:
    png(tmp_path / "good.png", GREY)
    for index in range(3):
        (tmp_path / f"bad{index}.png").write_text("x")
    with pytest.raises(UserError, match=r"bad0\.png.*2 more bad"):
        data.load(tmp_path)


def test_nothing_left(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("x")
    assert data.inspect(tmp_path).count == 0 and data.inspect(tmp_path).lines()
    with pytest.raises(UserError, match="nothing readable"):
        data.load(tmp_path, skip_bad=True)


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for ask in (data.inspect, data.load):
        with pytest.raises(UserError, match=f"{tmp_path.name}.*no PNG"):
            ask(tmp_path)


def test_a_class_of_bad_files_only_disappears(tmp_path: Path) -> None:
    png(tmp_path / "cat" / "a.png", GREY)
    png(tmp_path / "zebra" / "a.png", GREY)
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "bad.png").write_text("x")
    loaded = data.load(tmp_path, skip_bad=True)
    assert loaded.classes == ("cat", "zebra") and loaded.labels is not None and loaded.labels.tolist() == [0, 1]


def test_memory_is_bounded_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png(tmp_path / "a.png", GREY)
    monkeypatch.setattr(source_module, "MAX_BYTES", 63)
    with pytest.raises(UserError, match=f"{tmp_path.name}.*--resolution"):
        data.load(tmp_path, stream=False)
    assert data.load(tmp_path, resolution=4).items.shape == (1, 1, 4, 4)


def test_a_folder_that_changes_while_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png(tmp_path / "a.png", GREY)
    doomed = png(tmp_path / "b.png", GREY)
    first = source_module.survey

    def survey_then_delete(*arguments: object) -> object:
        findings = first(*arguments)  # type: ignore[arg-type]
        doomed.unlink()
        return findings

    monkeypatch.setattr(source_module, "survey", survey_then_delete)
    with pytest.raises(UserError, match="changed while it was read"):
        data.load(tmp_path)


def test_reading_changes_nothing_and_repeats_itself(tmp_path: Path) -> None:
    for index in range(70):
        png(tmp_path / f"{index}.png", np.roll(GREY, index))
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.iterdir()}
    first, second = data.load(tmp_path), data.load(tmp_path)
    data.inspect(tmp_path)
    assert first.fingerprint == second.fingerprint and torch.equal(first.items, second.items)
    assert before == {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.iterdir()}
    png(tmp_path / "0.png", GREY.T)
    assert data.load(tmp_path).fingerprint != first.fingerprint
