"""IDX files and the sets known by name."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato.data as data
from sfumato.data import named
from sfumato.data import source as source_module
from sfumato.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 4, 5), dtype=np.uint8)
LABELS = np.array([3, 10, 2, 2, 3, 10, 10], np.uint8)


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(folder: Path, packed: bool, part: str = "train", count: int = 7) -> Path:
    """The images file of a pair."""
    for name, array in (("images-idx3", PIXELS[:count]), ("labels-idx1", LABELS[:count])):
        path = folder / f"{part}-{name}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return folder / f"{part}-images-idx3-ubyte{'.gz' if packed else ''}"


@pytest.mark.parametrize("packed", [False, True])
def test_folder_and_single_file(tmp_path: Path, packed: bool) -> None:
    images = write(tmp_path, packed)
    write(tmp_path, packed, "t10k", count=3)
    folder, single = data.load(tmp_path), data.load(images)
    for loaded in (folder, single):
        assert np.array_equal(loaded.items[:, 0].numpy(), PIXELS)
        assert loaded.classes == ("2", "3", "10") and loaded.labels is not None
        assert [int(loaded.classes[label]) for label in loaded.labels] == LABELS.tolist()
    assert folder.test is not None and folder.test.labels is not None and single.test is None
    assert np.array_equal(folder.test.items[:, 0].numpy(), PIXELS[:3])
    assert folder.test.labels.tolist() == [1, 2, 0] and folder.test.classes == folder.classes
    assert "held-out: 3 of 10" in data.inspect(tmp_path).notes


def test_labels_may_be_packed_differently_or_missing(tmp_path: Path) -> None:
    images = write(tmp_path, packed=False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels.read_bytes()))
    labels.unlink()
    assert data.load(images).classes == ("2", "3", "10")
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    loaded = data.load(images)
    assert loaded.labels is None and any("no labels" in note for note in loaded.notes)


def test_a_held_out_class_needs_training_examples(tmp_path: Path) -> None:
    write(tmp_path, packed=False, count=1)
    write(tmp_path, packed=False, part="t10k", count=2)
    with pytest.raises(UserError, match="class '10' has no training example"):
        data.load(tmp_path)


Damage = Callable[[bytes], bytes]

DAMAGE: dict[str, tuple[Damage, str]] = {
    "empty": (lambda raw: b"", "not an IDX file"),
    "magic": (lambda raw: b"\1" + raw[1:], "not an IDX file"),
    "html": (lambda raw: b"<html>", "not an IDX file"),
    "type": (lambda raw: raw[:2] + b"\x0d" + raw[3:], "type 13"),
    "axes": (lambda raw: raw[:3] + b"\1" + raw[4:], "with 1 axes"),
    "header": (lambda raw: raw[:9], "cut off in its header"),
    "short": (lambda raw: raw[:-1], "140 bytes promised by the header, 139 there"),
    "long": (lambda raw: raw + b"\0", "140 bytes promised by the header, more there"),
    "count": (lambda raw: raw[:4] + struct.pack(">I", 8) + raw[8:], "160 bytes promised"),
    "lie": (lambda raw: raw[:4] + b"\xff" * 12 + raw[16:], "over the limit"),
    "large lie": (lambda raw: raw[:4] + struct.pack(">3I", 1000, 2000, 2000) + raw[16:], "140 there"),
    "none": (lambda raw: raw[:4] + struct.pack(">3I", 0, 4, 5), "holds no pictures"),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_images(tmp_path: Path, case: str, packed: bool) -> None:
    damage, said = DAMAGE[case]
    images = write(tmp_path, packed)
    raw = damage(idx(PIXELS))
    images.write_bytes(gzip.compress(raw) if packed else raw)
    for ask in (data.load, data.inspect):
        for source in (images, tmp_path):
            with pytest.raises(UserError, match=rf"{images.name}.*{said}"):
                ask(source)


def test_damaged_gzip(tmp_path: Path) -> None:
    images = write(tmp_path, packed=True)
    whole = images.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (whole[:-20], whole[:40], bytes(flipped), b"\x1f\x8b" + b"x" * 40):
        images.write_bytes(content)
        with pytest.raises(UserError, match=images.name):
            data.load(images)


def test_labels_must_match(tmp_path: Path) -> None:
    images, labels = write(tmp_path, packed=False), tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(LABELS[:-1]))
    with pytest.raises(UserError, match=f"{labels.name}.*6 labels for 7 pictures"):
        data.load(images)
    labels.write_bytes(idx(PIXELS))
    with pytest.raises(UserError, match=f"{labels.name}.*3 axes"):
        data.load(images)


def test_a_large_lie_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write(tmp_path, packed=True)
    monkeypatch.setattr(source_module, "MAX_BYTES", 139)
    with pytest.raises(UserError, match=f"{images.name}.*over the limit"):
        data.load(images)


def test_digits() -> None:
    loaded = data.load("digits")
    held = loaded.test
    assert held is not None and held.labels is not None and loaded.labels is not None
    assert loaded.items.shape == (1437, 1, 8, 8) and held.items.shape == (360, 1, 8, 8)
    assert loaded.items.dtype == torch.uint8 and int(loaded.items.max()) == 16
    assert loaded.codec.to_dict() == {"kind": "image", "channels": 1, "height": 8, "width": 8, "levels": 17}
    assert loaded.classes == tuple("0123456789")
    # Stratified: every class has its fifth held out, to the nearest picture.
    train, test = torch.bincount(loaded.labels), torch.bincount(held.labels)
    assert ((test - (train + test) / 5).abs() < 1).all()
    # No picture is lost: the two parts together are scikit-learn's set.
    from sklearn.datasets import load_digits

    whole = load_digits().images.astype(np.uint8).reshape(-1, 64)
    parts = torch.cat([loaded.items, held.items]).numpy().reshape(-1, 64)
    assert sorted(map(bytes, whole)) == sorted(map(bytes, parts))
    assert data.load("digits").fingerprint == loaded.fingerprint != held.fingerprint
    findings = data.inspect("digits")
    assert findings.count == 1437 and findings.range == (0, 16) and "held-out: 360 of 1797" in findings.notes


def test_stacked_digits_are_three_digits_of_their_own_part() -> None:
    loaded, digits = data.load("stacked-digits"), data.load("digits")
    assert loaded.items.shape == (40_000, 3, 8, 8) and loaded.classes[:2] == ("000", "001")
    assert loaded.test is not None and loaded.test.items.shape == (10_000, 3, 8, 8) and digits.test is not None
    for stacked, single in ((loaded, digits), (loaded.test, digits.test)):
        assert stacked.labels is not None and single.labels is not None
        known = {bytes(x): int(label) for x, label in zip(single.items.numpy(), single.labels, strict=True)}
        for items, label in zip(stacked.items[:500].numpy(), stacked.labels[:500].tolist(), strict=True):
            assert [known[bytes(channel)] for channel in items] == [int(place) for place in f"{label:03d}"]
        assert len(stacked.labels.unique()) == 1000
    assert data.load("stacked-digits").fingerprint == loaded.fingerprint


def test_fashion_mnist() -> None:
    try:
        loaded = data.load("fashion-mnist")
    except UserError as error:
        assert "apt install dataset-fashion-mnist" in str(error)
        pytest.skip("needs Debian's dataset-fashion-mnist")
    assert loaded.items.shape == (60000, 1, 28, 28) and loaded.labels is not None
    assert loaded.classes == named.FASHION_CLASSES
    assert torch.bincount(loaded.labels).tolist() == [6000] * 10
    assert float(loaded.items.float().mean()) == pytest.approx(72.94, abs=0.005)
    assert loaded.test is not None and len(loaded.test.items) == 10000
    # The first picture is the known ankle boot.
    assert loaded.classes[loaded.labels[0]] == "Ankle boot"


def test_fashion_mnist_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "_FASHION_FOLDER", tmp_path / "nowhere")
    for ask in (data.load, data.inspect):
        with pytest.raises(UserError, match=r"fashion-mnist is not installed.*apt install dataset-fashion-mnist"):
            ask("fashion-mnist")


def test_fashion_labels_out_of_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, packed=True)
    monkeypatch.setattr(named, "_FASHION_FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"train-labels.*label 10 is not one of 0 to 9"):
        data.load("fashion-mnist")
