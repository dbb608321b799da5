"""NumPy files: every layout and range against the same pixels; damaged, lying and hostile files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sfumato.data as data
from sfumato.data import source as source_module
from sfumato.errors import UserError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 6, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
GREY[0, 0, :2] = COLOUR[0, 0, 0, :2] = (0, 255)  # the whole range is there
FIRST = np.moveaxis(COLOUR, 3, 1)


def saved(folder: Path, array: np.ndarray, **more: Any) -> Path:
    """A .npy file, or with labels and the like a .npz file."""
    path = folder / ("set.npz" if more else "set.npy")
    if more:
        np.savez(path, array, **more)
    else:
        np.save(path, array)
    return path


def refused(path: Path, said: str, **options: Any) -> None:
    with pytest.raises(UserError, match=rf"{path.name}.*({said})"):
        data.load(path, **options)


def header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("array", "items"),
    [
        (GREY, GREY[:, None]),
        (GREY[:, None], GREY[:, None]),
        (GREY[..., None], GREY[:, None]),
        (FIRST, FIRST),
        (COLOUR, FIRST),
        (np.asfortranarray(COLOUR), FIRST),
        (COLOUR[:, :3, :, :], FIRST[:, :, :3]),  # 3 rows, 3 channels: read as (N, C, H, W), see below
    ],
    ids=["NHW", "N1HW", "NHW1", "NCHW", "NHWC", "fortran", "tie"],
)
def test_layouts(tmp_path: Path, array: np.ndarray, items: np.ndarray) -> None:
    loaded = data.load(saved(tmp_path, array))
    if array.ndim == 4 and array.shape[1] == array.shape[3]:
        items = array
        assert any("read as (N, C, H, W)" in note for note in loaded.notes)
    assert np.array_equal(loaded.items.numpy(), items)
    assert loaded.labels is None and loaded.test is None


@pytest.mark.parametrize(
    ("make", "note"),
    [
        (lambda v: v.astype(np.int64), "int64 values of 0 to 255"),
        (lambda v: v.astype(np.float32), "float32 values of 0 to 255"),
        (lambda v: v / 255, "float64 values of 0 to 1"),
        (lambda v: (v / 255).astype(np.float32), "float32 values of 0 to 1"),
        (lambda v: (v / 127.5 - 1).astype(np.float32), "float32 values of -1 to 1"),
        (lambda v: (v / 127.5 - 1) * 1.0005, "float64 values of -1 to 1"),  # overshoot of rounding is forgiven
    ],
)
def test_ranges(tmp_path: Path, make: Any, note: str) -> None:
    loaded = data.load(saved(tmp_path, make(GREY)))
    assert np.array_equal(loaded.items[:, 0].numpy(), GREY)
    assert f"{note} converted to 8 bits" in loaded.notes


def test_booleans_are_black_and_white(tmp_path: Path) -> None:
    loaded = data.load(saved(tmp_path, GREY > 100))
    assert np.array_equal(loaded.items[:, 0].numpy(), np.where(GREY > 100, 255, 0))


@pytest.mark.parametrize("bad", [GREY * 2.0, GREY.astype(np.int16) - 1, GREY.astype(np.uint16) * 257, GREY - 30.0])
def test_other_ranges_are_refused(tmp_path: Path, bad: np.ndarray) -> None:
    refused(saved(tmp_path, bad), "no picture range")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted(tmp_path: Path, value: float) -> None:
    array = GREY / 255
    array[1, 2, 3] = array[4, 0, 0] = value
    refused(saved(tmp_path, array), "2 values are NaN or infinite")
    with pytest.raises(UserError, match="2 values"):
        data.inspect(tmp_path / "set.npy")


@pytest.mark.parametrize(
    "shape", [(), (5,), (0, 8, 8), (5, 0, 8), (0, 2), (5, 9, 9, 9), (2, 3, 4, 5, 6)], ids=lambda shape: str(shape)
)
def test_shapes_that_mean_nothing_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    refused(saved(tmp_path, np.zeros(shape, np.float32)), "empty|no pixels|neither|no axis")


def test_points(tmp_path: Path) -> None:
    points = RNG.normal(3, 2, (200, 5))
    loaded = data.load(saved(tmp_path, points))
    assert np.array_equal(loaded.items.numpy(), points.astype(np.float32))
    states = loaded.codec.encode(loaded.items).double()
    assert states.mean(dim=0).abs().max() < 1e-6
    assert float(states.var(dim=0, correction=0).mean()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "bad", [np.zeros((9, 2), np.int64), np.zeros((9, 65)), np.zeros((9, 0)), np.full((9, 2), 1e39)]
)
def test_what_is_not_points_is_refused(tmp_path: Path, bad: np.ndarray) -> None:
    refused(saved(tmp_path, bad), "neither points|do not fit")


def test_points_have_no_resolution_and_need_a_spread(tmp_path: Path) -> None:
    path = saved(tmp_path, np.ones((9, 2)))
    with pytest.raises(UserError, match="--resolution is for pictures"):
        data.load(path, resolution=8)
    with pytest.raises(UserError, match=r"set\.npy: all points are the same"):
        data.load(path)


@pytest.mark.parametrize("items", ["x", "images", "data", "arr_0", "anything"])
@pytest.mark.parametrize("labels", ["y", "labels", "targets", "label"])
def test_names_in_npz(tmp_path: Path, items: str, labels: str) -> None:
    np.savez_compressed(tmp_path / "set.npz", **{items: GREY, labels: np.array([10, 9, 9, 10, 2])})
    loaded = data.load(tmp_path / "set.npz")
    assert np.array_equal(loaded.items[:, 0].numpy(), GREY)
    assert loaded.classes == ("2", "9", "10") and loaded.labels is not None
    assert loaded.labels.tolist() == [2, 1, 1, 2, 0]


def test_labels_may_be_words_or_whole_floats(tmp_path: Path) -> None:
    assert data.load(saved(tmp_path, GREY, y=np.array(list("abbac")))).classes == ("a", "b", "c")
    assert data.load(saved(tmp_path, GREY, y=np.array([[1.0], [0], [0], [2], [1]]))).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(4), "shape 4 for 5 items"),
        (np.zeros((5, 3)), "shape 5x3 for 5 items"),
        (np.array([0.5] * 5), "not whole"),
        (np.array([np.nan] * 5), "not whole"),
        (np.array([object()] * 5), "object"),
    ],
)
def test_bad_labels(tmp_path: Path, labels: np.ndarray, said: str) -> None:
    refused(saved(tmp_path, GREY, y=labels), said)


def test_npz_without_a_clear_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", first=GREY, second=GREY)
    refused(tmp_path / "set.npz", "holds first, second; name the array of items 'x'")
    with zipfile.ZipFile(tmp_path / "none.npz", "w"):
        pass
    refused(tmp_path / "none.npz", "holds nothing")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    array = np.empty(2, dtype=object)
    array[:] = [GREY, GREY]
    refused(saved(tmp_path, array), "object")
    refused(saved(tmp_path, array, note=np.zeros(1), y=np.zeros(2)), "object")


@pytest.mark.parametrize("array", [np.zeros((2, 3), complex), np.zeros(2, [("a", int)]), np.zeros(2, "M8[s]")])
def test_other_types_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    refused(saved(tmp_path, array), "not plain numbers")


@pytest.mark.parametrize("name", ["set.npy", "set.npz"])
@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_cut_off_files(tmp_path: Path, name: str, keep: int) -> None:
    path = tmp_path / name
    np.save(path, GREY) if name == "set.npy" else np.savez(path, GREY)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "damaged|cut off")
    with pytest.raises(UserError, match=name):
        data.inspect(path)


def test_a_header_may_not_promise_more_than_is_there(tmp_path: Path) -> None:
    path = tmp_path / "set.npy"
    path.write_bytes(header((1000, 28, 28)) + bytes(100))
    refused(path, "cut off: 784,000 bytes promised, 100 there")
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("x.npy", header((1000, 28, 28)) + bytes(100))
    refused(tmp_path / "set.npz", "cut off: 784,000 bytes promised, 100 there")


@pytest.mark.parametrize("shape", [(10**6, 10**6, 10**6), (2**63, 2**63), (-1, 4, 4)])
def test_sizes_are_bounded_by_the_header(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "set.npy"
    path.write_bytes(header(shape) + bytes(16))
    refused(path, "over the limit|damaged")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "set.npz", np.zeros((100, 64, 64), np.uint8))
    monkeypatch.setattr(source_module, "MAX_BYTES", 100 * 64 * 64 - 1)
    refused(tmp_path / "set.npz", "over the limit")


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez_compressed(path, RNG.integers(0, 256, (50, 16, 16), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    refused(path, "damaged")


def test_flipped_bytes_give_a_user_error_or_data(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", GREY)
    np.savez_compressed(tmp_path / "set.npz", x=GREY, y=np.arange(5))
    rng = np.random.default_rng(1)
    for path in list(tmp_path.iterdir()):
        whole = path.read_bytes()
        for _ in range(100):
            damaged = bytearray(whole)
            for at in rng.integers(0, 150, 3):
                damaged[at] = rng.integers(256)
            path.unlink()
            path.write_bytes(damaged)
            try:
                data.load(path)
            except UserError as error:
                assert str(path) in str(error) or path.name in str(error)


def test_large_pictures_are_fitted_like_files(tmp_path: Path) -> None:
    path = saved(tmp_path, np.full((2, 128, 96), 77, np.uint8))
    loaded = data.load(path)
    assert loaded.items.shape == (2, 1, 64, 48) and (loaded.items == 77).all()
    assert data.inspect(path).dims == (1, 64, 48)
    assert data.load(path, resolution=128).items.shape == (2, 1, 128, 96)
