"""Folders of pictures: known pixels through every format, and the rules for size and channels."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato.data as data
from pictures import COLOUR, GREY, chunk, noted, only, png, png_bytes


def test_names_that_are_not_utf8_can_be_printed(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    png(tmp_path / odd / f"{odd}.png", GREY)
    png(tmp_path / odd / "copy.png", GREY)
    assert data.load(tmp_path).classes == (r"caf\udce9",)
    "\n".join(data.inspect(tmp_path).lines()).encode()


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".webp"])
def test_lossless_formats_come_through_exactly(tmp_path: Path, suffix: str) -> None:
    lossless = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(COLOUR).save(tmp_path / f"a{suffix}", **lossless)
    assert np.array_equal(only(tmp_path).numpy(), np.moveaxis(COLOUR, 2, 0))


def test_jpeg_is_read(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), (200, 40, 90), np.uint8)).save(tmp_path / "a.JPeG", quality=95)
    assert (only(tmp_path).float() - torch.tensor([200.0, 40, 90])[:, None, None]).abs().max() < 6


def test_sixteen_bit_grey_is_scaled_by_257(tmp_path: Path) -> None:
    values = [0, 128, 129, 257, 32896, 65535]  # 128/257 rounds down, 129/257 rounds up
    body = b"\0" + struct.pack(">6H", *values)
    (tmp_path / "a.png").write_bytes(png_bytes(6, 1, 16, 0, body))
    assert only(tmp_path).flatten().tolist() == [0, 0, 1, 1, 128, 255]
    assert noted(tmp_path, "1 picture scaled from 16-bit to 8-bit")


def test_sixteen_bit_colour_is_noted(tmp_path: Path) -> None:
    body = b"\0" + struct.pack(">6H", 0, 257 * 7, 65535, 257 * 200, 0, 257)
    (tmp_path / "a.png").write_bytes(png_bytes(2, 1, 16, 2, body))
    assert only(tmp_path)[:, 0].T.tolist() == [[0, 7, 255], [200, 0, 1]]
    assert noted(tmp_path, "1 picture scaled from 16-bit to 8-bit")


def test_palette(tmp_path: Path) -> None:
    palette = chunk(b"PLTE", bytes([10, 20, 30, 250, 0, 5]))
    (tmp_path / "a.png").write_bytes(png_bytes(2, 1, 8, 3, b"\0\1\0", palette))
    assert only(tmp_path)[:, 0].T.tolist() == [[250, 0, 5], [10, 20, 30]]
    assert noted(tmp_path, "1 picture converted from a palette")


def test_palette_with_transparency_keeps_alpha_if_all_have_it(tmp_path: Path) -> None:
    palette, alpha = chunk(b"PLTE", bytes([10, 20, 30, 250, 0, 5])), chunk(b"tRNS", bytes([0, 255]))
    (tmp_path / "a.png").write_bytes(png_bytes(2, 1, 8, 3, b"\0\1\0", palette, alpha))
    assert only(tmp_path)[:, 0].T.tolist() == [[250, 0, 5, 255], [10, 20, 30, 0]]
    assert noted(tmp_path, "4 channels")
    # One picture without alpha, and the transparent part is laid over white instead.
    png(tmp_path / "b.png", COLOUR[:1, :2])
    loaded = data.load(tmp_path)
    assert loaded.items[0, :, 0].T.tolist() == [[250, 0, 5], [255, 255, 255]]
    assert noted(tmp_path, "1 with transparent parts laid over white")


def test_transparent_colour_of_rgb_png(tmp_path: Path) -> None:
    key = chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))
    (tmp_path / "a.png").write_bytes(png_bytes(2, 1, 8, 2, bytes([0, 1, 2, 3, 9, 9, 8]), key))
    assert only(tmp_path)[:, 0].T.tolist() == [[1, 2, 3, 0], [9, 9, 8, 255]]


def test_half_transparent_is_mixed_with_white(tmp_path: Path) -> None:
    pixels = np.zeros((1, 2, 4), np.uint8)
    pixels[0, 0], pixels[0, 1] = (100, 0, 255, 51), (1, 2, 3, 255)  # alpha = 1/5
    png(tmp_path / "a.png", pixels)
    png(tmp_path / "b.png", COLOUR[:1, :2])
    assert data.load(tmp_path).items[0, :, 0].T.tolist() == [[224, 204, 255], [1, 2, 3]]


def test_opaque_alpha_does_not_count(tmp_path: Path) -> None:
    png(tmp_path / "a.png", np.dstack([COLOUR, np.full_like(GREY, 255)]))
    assert np.array_equal(only(tmp_path).numpy(), np.moveaxis(COLOUR, 2, 0))


def test_grey_with_alpha_becomes_four_channels(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_bytes(2, 1, 8, 4, bytes([0, 70, 9, 80, 255])))
    assert only(tmp_path)[:, 0].T.tolist() == [[70, 70, 70, 9], [80, 80, 80, 255]]
    assert dict(data.inspect(tmp_path).channels) == {"grey+alpha": 1}


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert (only(tmp_path).float() - torch.tensor([255.0, 0, 0])[:, None, None]).abs().max() < 6
    assert noted(tmp_path, "1 picture converted from CMYK")


def test_one_bit(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_bytes(8, 1, 1, 0, bytes([0, 0b10100001])))
    assert only(tmp_path).flatten().tolist() == [255, 0, 255, 0, 0, 0, 0, 255]
    assert noted(tmp_path, "1 picture converted from 1-bit")


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, [[1, 2, 3], [4, 5, 6]]),
        (2, [[3, 2, 1], [6, 5, 4]]),
        (3, [[6, 5, 4], [3, 2, 1]]),
        (4, [[4, 5, 6], [1, 2, 3]]),
        (5, [[1, 4], [2, 5], [3, 6]]),
        (6, [[4, 1], [5, 2], [6, 3]]),
        (7, [[6, 3], [5, 2], [4, 1]]),
        (8, [[3, 6], [2, 5], [1, 4]]),
    ],
)
def test_exif_orientation(tmp_path: Path, orientation: int, upright: list[list[int]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert only(tmp_path)[0].tolist() == upright
    assert noted(tmp_path, "1 picture turned by EXIF orientation") == (orientation != 1)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert only(tmp_path)[:, 0, 0].tolist() == [255, 0, 0]
    assert noted(tmp_path, "1 picture animated: first frame used")


# --- rules --------------------------------------------------------------------------------------------------------


def test_grey_in_content_is_one_channel(tmp_path: Path) -> None:
    png(tmp_path / "a.png", np.dstack([GREY] * 3))
    png(tmp_path / "b.png", GREY.T)
    loaded = data.load(tmp_path)
    assert np.array_equal(loaded.items[:, 0].numpy(), np.stack([GREY, GREY.T]))
    assert noted(tmp_path, "1 picture stored as colour, grey in content")


def test_one_colour_picture_makes_all_colour(tmp_path: Path) -> None:
    png(tmp_path / "a.png", GREY)
    png(tmp_path / "b.png", COLOUR)
    loaded = data.load(tmp_path)
    assert np.array_equal(loaded.items.numpy(), np.stack([np.stack([GREY] * 3), np.moveaxis(COLOUR, 2, 0)]))
    assert dict(data.inspect(tmp_path).channels) == {"grey": 1, "colour": 1}


def test_classes_are_the_first_subfolders(tmp_path: Path) -> None:
    for index, name in enumerate(["cat/a.png", "cat/deep/er/b.png", "10/c.png", "dog/d.png"]):
        png(tmp_path / name, GREY + np.uint8(index))
    loaded = data.load(tmp_path)
    assert loaded.classes == ("10", "cat", "dog") and loaded.labels is not None
    assert [loaded.classes[label] for label in loaded.labels] == ["10", "cat", "cat", "dog"]
    assert dict(data.inspect(tmp_path).classes) == {"10": 1, "cat": 2, "dog": 1}


def test_pictures_in_the_root_mean_no_classes(tmp_path: Path) -> None:
    png(tmp_path / "a.png", GREY)
    png(tmp_path / "cat" / "b.png", GREY)
    loaded = data.load(tmp_path)
    assert len(loaded.items) == 2 and loaded.labels is None and loaded.classes == ()
    assert noted(tmp_path, "not taken as classes")


def test_other_files_are_ignored_and_counted(tmp_path: Path) -> None:
    png(tmp_path / "a.png", GREY)
    for name in ("._a.png", ".hidden/b.png", "readme.txt", "x.gif", "y.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no picture")
    assert len(data.load(tmp_path).items) == 1
    assert noted(tmp_path, "hidden files or folders ignored: 2")
    assert noted(tmp_path, "other files ignored: 3 (.gif 2, .txt 1)")


def test_link_loops_end(tmp_path: Path) -> None:
    png(tmp_path / "cat" / "a.png", GREY)
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "cat" / "self").symlink_to(tmp_path / "cat" / "self")
    (tmp_path / "alias").symlink_to(tmp_path / "cat")
    loaded = data.load(tmp_path)
    assert len(loaded.items) == 1 and loaded.classes == ("cat",)


def test_a_link_to_pictures_elsewhere_is_followed(tmp_path: Path) -> None:
    png(tmp_path / "else" / "a.png", GREY)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "else")
    assert data.load(tmp_path / "set").classes == ("cat",)


def test_equal_pixels_are_duplicates_whatever_the_file(tmp_path: Path) -> None:
    png(tmp_path / "a.png", GREY)
    Image.fromarray(GREY).save(tmp_path / "b.bmp")
    png(tmp_path / "c.png", GREY.T)
    assert [list(group) for group in data.inspect(tmp_path).duplicates] == [["a.png", "b.bmp"]]
    assert any("1 of 3 are exact copies" in note for note in data.load(tmp_path).notes)


@pytest.mark.parametrize(
    ("shapes", "resolution", "becomes"),
    [
        ([(64, 48)] * 2, None, (64, 48)),  # alike and small: as they are
        ([(8, 8)], None, (8, 8)),
        ([(8, 8)], 16, (16, 16)),
        ([(120, 90)], None, (64, 48)),
        ([(120, 90)], 120, (120, 90)),
        ([(120, 90)], 40, (40, 30)),
        ([(30, 40), (40, 30)], None, (40, 40)),  # the median of 3:4 and 4:3 is a square
        ([(30, 40), (40, 30)], 16, (16, 16)),
        ([(100, 200), (101, 202), (300, 300)], 50, (25, 50)),
        ([(1, 300)], None, (1, 64)),
    ],
)
def test_size_rule(
    tmp_path: Path, shapes: list[tuple[int, int]], resolution: int | None, becomes: tuple[int, int]
) -> None:
    for index, shape in enumerate(shapes):
        png(tmp_path / f"{index}.png", np.full(shape, 40 + index, np.uint8))
    loaded = data.load(tmp_path, resolution=resolution)
    assert loaded.codec.dims == (1, *becomes)
    # A constant picture stays the same constant under any weights that sum to one.
    assert all((item == 40 + index).all() for index, item in enumerate(loaded.items))
    assert any("fitted to" in note for note in loaded.notes) == (shapes[0] != becomes)


def test_shrinking_is_antialiased_and_cropping_is_central(tmp_path: Path) -> None:
    """A checkerboard of single pixels shrinks to its mean, and bright outer quarters are cropped off."""
    board = (np.indices((128, 256)).sum(axis=0) % 2 * 100).astype(np.uint8)
    board[:, :48] = board[:, -48:] = 255
    png(tmp_path / "wide.png", board)
    for index in range(2):
        png(tmp_path / f"square{index}.png", np.full((128, 128), index, np.uint8))
    loaded = data.load(tmp_path, resolution=32)
    assert loaded.codec.dims == (1, 32, 32)
    wide = loaded.items[-1].float()
    assert (wide - 50).abs().max() <= 1


def test_transparent_colour_does_not_bleed_when_resized(tmp_path: Path) -> None:
    pixels = np.zeros((128, 128, 4), np.uint8)
    pixels[:, :, 0], pixels[:, 1::2] = 200, (0, 255, 0, 0)  # invisible green columns
    pixels[:, ::2, 3] = 255
    png(tmp_path / "a.png", pixels)
    inner = only(tmp_path)[:, 8:-8, 8:-8]
    assert inner[1].max() == 0 and inner[0].min() >= 198


def test_overshoot_stays_below_the_number_of_levels() -> None:
    loaded = data.load("digits", resolution=32)
    assert loaded.items.shape == (1437, 1, 32, 32) and loaded.items.max() == 16
