"""Codecs: exact round trips, log volume against a numerical Jacobian, files read back; the registry."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato.data as data
from sfumato.data.codec import Codec, Findings
from sfumato.data.image import ImageCodec
from sfumato.data.points import PointsCodec
from sfumato.errors import UserError
from sfumato.files import write_atomic

CODECS = [ImageCodec(1, 2, 2), ImageCodec(3, 1, 2, levels=17), PointsCodec((1.0, -2.0, 0.5), 0.3)]


def by_kind(codec: Codec) -> str:
    return f"{codec.kind}-{len(codec.dims)}"


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_every_level_comes_back_exactly(levels: int) -> None:
    values = torch.arange(levels, dtype=torch.uint8)[None, None, None]
    codec = ImageCodec(1, 1, levels, levels)
    states = codec.encode(values)
    assert states.dtype == torch.float32
    assert states.min() == -1 and states.max() == 1
    assert torch.equal(codec.decode(states), values)
    # Anything nearer to a level than half a step belongs to it; what lies outside the range is clipped.
    step = 2 / (levels - 1)
    assert torch.equal(codec.decode(states + 0.49 * step), values)
    assert torch.equal(codec.decode(states - 0.49 * step), values)


def test_points_come_back_and_keep_angles() -> None:
    items = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 7 + 100
    codec = PointsCodec((100.0, 99.0, 101.0), 7.0)
    states = codec.encode(items)
    torch.testing.assert_close(codec.decode(states), items, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.pdist(states) * 7, torch.pdist(items), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("codec", CODECS, ids=by_kind)
def test_log_volume_is_the_log_determinant_of_encode(codec: Codec) -> None:
    shape = codec.dims
    numel = math.prod(shape)
    item = torch.full((1, *shape), 3.0)
    step = 2.0
    columns = []
    for index in range(numel):
        moved = item.clone()
        moved.view(-1)[index] += step
        columns.append(((codec.encode(moved) - codec.encode(item)) / step).double().flatten())
    jacobian = torch.stack(columns, dim=1)
    assert codec.log_volume() == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), abs=1e-4)


def test_uniform_pictures_cost_eight_bits_per_dimension() -> None:
    """A density of 1/2 on [-1, 1] is uniform over the 255 steps between levels: log2(255) bits for each value."""
    codec = ImageCodec(3, 4, 4)
    log_p = math.prod(codec.dims) * math.log(0.5) + codec.log_volume()
    assert -log_p / (math.prod(codec.dims) * math.log(2)) == pytest.approx(math.log2(255))


@pytest.mark.parametrize("codec", CODECS, ids=by_kind)
def test_record_rebuilds_the_codec_through_json(codec: Codec) -> None:
    assert data.codec_from(json.loads(json.dumps(codec.to_dict()))) == codec


@pytest.mark.parametrize("codec", CODECS, ids=by_kind)
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_decode_refuses_states_that_are_not_finite(codec: Codec, wrong: float) -> None:
    states = torch.zeros(2, *codec.dims)
    states.view(-1)[-1] = wrong
    with pytest.raises(ValueError, match="NaN"):
        codec.decode(states)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"kind": "imagee"}, "did you mean 'image'"),
        ({}, "unknown kind"),
        ({"kind": "image", "channels": 1, "height": 8}, "damaged record"),
        ({"kind": "image", "channels": 5, "height": 8, "width": 8, "levels": 256}, "damaged record"),
        ({"kind": "image", "channels": 1, "height": 8, "width": 8, "levels": 1}, "damaged record"),
        ({"kind": "points", "mean": "ab", "scale": 1.0}, "damaged record"),
        ({"kind": "points", "mean": [0.0], "scale": 0.0}, "damaged record"),
        ({"kind": "points", "mean": [float("nan")], "scale": 1.0}, "damaged record"),
    ],
)
def test_damaged_records_are_refused(record: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        data.codec_from(record)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_png_holds_the_pixels_and_the_recipe(tmp_path: Path, channels: int, mode: str) -> None:
    codec = ImageCodec(channels, 5, 7)
    items = torch.randint(0, 256, (2, channels, 5, 7), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    recipes = [{"seed": 1, "index": 0, "prompt": "un niño"}, {"seed": 1, "index": 1}]
    paths = codec.save(items, tmp_path / "new", ["0000", "0001"], recipes)
    assert [path.name for path in paths] == ["0000.png", "0001.png"]
    for path, item, recipe in zip(paths, items, recipes, strict=True):
        with Image.open(path) as image:
            assert image.mode == mode
            assert json.loads(image.text["sfumato"]) == recipe
            pixels = np.asarray(image).reshape(5, 7, channels)
        assert np.array_equal(np.moveaxis(pixels, 2, 0), item.numpy())
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["0000.png", "0001.png"]


def test_few_levels_are_spread_over_the_png(tmp_path: Path) -> None:
    (path,) = ImageCodec(1, 1, 3, 17).save(torch.tensor([[[[0, 8, 16]]]], dtype=torch.uint8), tmp_path, ["a"], [{}])
    with Image.open(path) as image:
        assert list(image.tobytes()) == [0, 128, 255]


@pytest.mark.parametrize("names", [["a", "a"], ["a", "../b"], ["a"]])
def test_names_that_would_lose_a_picture_are_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ValueError):
        ImageCodec(1, 1, 1).save(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), tmp_path, names, [{}] * len(names))


def test_saved_points_can_be_loaded_again(tmp_path: Path) -> None:
    items = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))
    names, recipes = [f"{i:04}" for i in range(40)], [{"seed": 3, "index": i} for i in range(40)]
    (path,) = PointsCodec((0.0, 0.0, 0.0), 2.0).save(items, tmp_path, names, recipes)
    first = path.read_text().splitlines()[0]
    assert json.loads(first.removeprefix("# ")) == {"seed": 3, "index": list(range(40))}
    assert torch.equal(data.load(path).items, items)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomic(tmp_path / "a.txt", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.txt.*No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_is_a_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        ImageCodec(1, 1, 1).save(torch.zeros(1, 1, 1, 1), tmp_path / "file", ["a"], [{}])


def test_report_cuts_long_lists() -> None:
    findings = Findings(
        name="set",
        kind="image",
        count=2,
        sizes={"8x8": 2},
        channels={"grey": 2},
        range=(0, 255),
        classes={str(i): 1 for i in range(30)},
        bad=[(f"{i}.png", "empty file") for i in range(30)],
        duplicates=[["a.png", "b.png"]],
        notes=["a note"],
        dims=(1, 8, 8),
    )
    lines = findings.lines()
    assert lines[0] == "set: 2 images"
    assert "    0.png: empty file" in lines and "    and 10 more" in lines
    assert "    a.png = b.png" in lines and "  note: a note" in lines
    assert any("and 18 more" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digit", "did you mean 'digits'"),
        ("zzz", "known: .*fashion-mnist"),
        ("a\0b", "no data set"),
        ("x" * 9999, "no"),
    ],
)
def test_unknown_sources_name_the_nearest(name: str, said: str) -> None:
    for ask in (data.inspect, data.load):
        with pytest.raises(UserError, match=said):
            ask(name)


def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes\.txt.*not data"):
        data.inspect(tmp_path / "notes.txt")


@pytest.mark.parametrize("resolution", [-1, 0, 3, 1025])
def test_resolution_is_bounded(resolution: int) -> None:
    with pytest.raises(UserError, match=f"{resolution} is not between 4 and 1024"):
        data.load("digits", resolution=resolution)


def test_import_is_light() -> None:
    code = "import sys, sfumato.data; print([m for m in ('torch', 'numpy', 'PIL', 'sklearn') if m in sys.modules])"
    path = os.pathsep.join(sys.path)
    got = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert got.stdout.decode().strip() == "[]", got.stderr.decode()


def test_records_are_found_in_the_package() -> None:
    assert data.Findings is Findings
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = data.Nothing
