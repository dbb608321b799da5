"""Streams: whatever the container, and in whatever order it is read, the items are those of the folder in memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato.data as data
from pictures import COLOUR, GREY, png
from sfumato.data import glance
from sfumato.data import source as source_module
from sfumato.data.codec import evenly
from sfumato.data.store import Names
from sfumato.data.stream import Stream
from sfumato.errors import UserError
from shards import NAMES, parquet, tar

COUNT = len(NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two classes and several sizes, formats and modes."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index, name in enumerate(NAMES):
        shape = (20 + index % 5, 16, 3) if index % 3 else (20, 16 + index % 4)
        path = root / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def memory(folder: Path) -> data.Dataset:
    return data.load(folder, stream=False)


@pytest.fixture
def streamed(folder: Path) -> data.Dataset:
    return data.load(folder, stream=True)


MAKE: dict[str, Callable[[Path, Path], Path]] = {"folder": lambda root, _: root, "tar": tar, "parquet": parquet}


@pytest.mark.parametrize("resolution", [None, 12])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", MAKE)
def test_every_container_gives_the_same(
    kind: str, stream: bool, resolution: int | None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "parquet":
        pytest.importorskip("datasets")
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    expected = data.load(folder, resolution=resolution, stream=False)
    found = data.load(MAKE[kind](folder, tmp_path), resolution=resolution, stream=stream)
    assert found.streamed == stream and found.items.shape == expected.items.shape
    assert torch.equal(found.items[:], expected.items[:])
    assert found.labels is not None and expected.labels is not None and torch.equal(found.labels, expected.labels)
    assert (found.classes, found.codec) == (expected.classes, expected.codec) == (("cat", "dog"), expected.codec)
    assert found.items[:].float().std() > 1  # noise, not zeros


@pytest.mark.parametrize(
    "index",
    [
        torch.arange(COUNT),
        torch.randperm(COUNT, generator=torch.Generator().manual_seed(0)),
        torch.tensor([3, 3, -1, 0]),
        torch.tensor([], dtype=torch.long),
        torch.arange(COUNT) % 2 == 0,
        slice(5, None, 3),
        slice(None, 4),
        7,
    ],
)
def test_any_index_reads_as_a_tensor_does(index: object, memory: data.Dataset, streamed: data.Dataset) -> None:
    assert torch.equal(streamed.items[index], memory.items[index])
    assert len(streamed.items) == COUNT


def test_what_is_not_there_is_no_index(streamed: data.Dataset) -> None:
    with pytest.raises(IndexError):
        streamed.items[torch.tensor([COUNT])]
    with pytest.raises(IndexError):
        streamed.items.prefetch(torch.tensor([COUNT]))


def test_prefetched_items_are_the_same_and_read_once(
    folder: Path, memory: data.Dataset, streamed: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when another batch is asked for than was announced, and when many threads ask at once."""
    rows = list[int]()
    read = Stream._item

    def counted(self: Stream, row: int) -> object:
        rows.append(row)
        return read(self, row)

    monkeypatch.setattr(Stream, "_item", counted)
    items = streamed.items
    assert isinstance(items, Stream)
    batches = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1)).split(7)
    items.prefetch(batches[0])
    for now, then in zip(batches, [*batches[1:], batches[0]], strict=True):
        items.prefetch(then) if now is batches[2] else None  # announced and then not asked for: nothing is lost
        assert torch.equal(items[now], memory.items[now])
        items.prefetch(then)
    assert torch.equal(items[batches[0]], memory.items[batches[0]])
    known = len(rows)
    items.prefetch(batches[0])
    items[batches[0]]
    assert len(rows) == known + len(batches[0])
    items[batches[0]]
    assert len(rows) == known + 2 * len(batches[0])  # nothing is kept
    got: dict[int, torch.Tensor] = {}
    threads = [
        threading.Thread(target=lambda k=k: got.update({k: items[batches[k % 3]]}))
        for k in range(6)  # type: ignore[misc]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[k], memory.items[batches[k % 3]]) for k in range(6))


# --- when a set is streamed ---------------------------------------------------------------------------------------


def test_what_is_too_large_for_memory_is_streamed(
    folder: Path, memory: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = memory.items[:].numel()
    assert not data.load(folder).streamed
    monkeypatch.setattr(glance, "_available", lambda: 4 * size)
    assert not data.load(folder).streamed
    monkeypatch.setattr(glance, "_available", lambda: 4 * size - 4)
    found = data.load(folder)
    assert found.streamed and "decoded is more than" in found.notes[0]
    assert not data.load(folder, stream=False).streamed
    monkeypatch.undo()
    monkeypatch.setattr(source_module, "MAX_BYTES", size - 1)
    assert data.load(folder).streamed


def test_what_cannot_be_streamed_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--stream"):
        data.load("digits", stream=True)
    assert not data.load("digits").streamed


def test_findings_of_a_stream(folder: Path) -> None:
    full, glanced = data.inspect(folder), data.inspect(folder, stream=True)
    same = ("name", "count", "sizes", "channels", "range", "classes", "bad", "duplicates", "dims")
    assert [getattr(glanced, key) for key in same] == [getattr(full, key) for key in same]
    assert any(f"{COUNT} evenly spread decoded" in note for note in glanced.notes)


def test_turned_pictures_have_their_size_from_the_header(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for index in range(3):
        Image.fromarray(np.full((30, 40), 9 * index, np.uint8)).save(tmp_path / f"{index}.jpg", exif=exif)
    assert dict(data.inspect(tmp_path, stream=True).sizes) == dict(data.inspect(tmp_path).sizes) == {"40x30": 3}
    assert data.load(tmp_path, stream=True).items.shape == (3, 1, 40, 30)


def test_channels_come_from_the_sample_and_sizes_from_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(9):
        png(tmp_path / f"{index}.png", np.full((8, 8), 20 * index, np.uint8))
    png(tmp_path / "9.png", np.dstack([GREY] * 3)[:, :4] + np.uint8([0, 1, 2]))
    monkeypatch.setattr(glance, "SAMPLE", 5)  # 0, 2, 4, 6, 8
    found = data.inspect(tmp_path, stream=True)
    assert dict(found.channels) == {"grey": 5} and dict(found.sizes) == {"8x8": 9, "8x4": 1}
    assert found.range == (0, 160)
    assert data.load(tmp_path, stream=True).items.shape == (10, 1, 8, 8)


def test_fingerprint_tells_names_sizes_labels_and_content(tmp_path: Path) -> None:
    def fingerprint(**options: int) -> str:
        return data.load(tmp_path, stream=True, **options).fingerprint  # type: ignore[arg-type]

    for index in range(4):
        png(tmp_path / "ab"[index % 2] / f"{index}.png", GREY + np.uint8(index))
    seen = [fingerprint(), fingerprint(resolution=4)]
    assert fingerprint() == seen[0]
    (tmp_path / "a" / "0.png").rename(tmp_path / "b" / "0.png")
    seen.append(fingerprint())
    (tmp_path / "b" / "0.png").rename(tmp_path / "b" / "5.png")
    seen.append(fingerprint())
    Image.fromarray(GREY.T).save(tmp_path / "b" / "5.png")
    seen.append(fingerprint())
    with (tmp_path / "b" / "5.png").open("ab") as file:
        file.write(b"more")
    seen.append(fingerprint())
    assert len(set(seen)) == len(seen) == 6


def test_a_sample_is_evenly_spread(memory: data.Dataset, streamed: data.Dataset) -> None:
    assert evenly(10, 5).tolist() == [0, 2, 4, 6, 8] and evenly(3, 7).tolist() == [0, 1, 2]
    assert evenly(0, 3).tolist() == []
    for n in (1, 7, COUNT, 10_000):
        assert torch.equal(streamed.sample(n), memory.items[evenly(COUNT, n)])
        assert torch.equal(memory.sample(n), memory.items[evenly(COUNT, n)])
    held = streamed.in_memory()
    assert not held.streamed and torch.equal(held.items[:], memory.items[:]) and memory.in_memory() is memory


# --- bad files ----------------------------------------------------------------------------------------------------


def test_bad_files_are_found_by_header_or_left_out(tmp_path: Path) -> None:
    png(tmp_path / "a.png", GREY)
    png(tmp_path / "c.png", GREY.T)
    (tmp_path / "b.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"b\.png: not a PNG.*--skip-bad"):
        data.load(tmp_path, stream=True)
    found = data.load(tmp_path, stream=True, skip_bad=True)
    assert found.items[:][:, 0].tolist() == [GREY.tolist(), GREY.T.tolist()]
    assert any("1 bad left out" in note for note in found.notes)


@pytest.mark.parametrize("prefetched", [True, False])
def test_the_next_good_one_of_its_class_stands_in_for_a_bad_one(tmp_path: Path, prefetched: bool) -> None:
    for index in range(12):
        png(tmp_path / "ab"[index % 2] / f"{index:02}.png", np.full((8, 8), index, np.uint8))
    found = data.load(tmp_path, stream=True)
    for name in ("a/02", "a/04", "b/11"):
        (tmp_path / f"{name}.png").write_bytes((tmp_path / f"{name}.png").read_bytes()[:45])
    assert isinstance(found.items, Stream)
    for _ in range(2):
        if prefetched:
            found.items.prefetch(slice(None))
        assert found.items[:][:, 0, 0, 0].tolist() == [0, 6, 6, 6, 8, 10, 1, 3, 5, 7, 9, 1]
        assert found.items[torch.tensor([2])].unique().tolist() == [6]
    assert sorted(fault.name for fault in found.items.faults) == ["a/02.png", "a/04.png", "b/11.png"]
    assert "truncated" in found.items.faults[0].reason or "damaged" in found.items.faults[0].reason


def test_too_many_bad_ones_stop_the_run(tmp_path: Path) -> None:
    for index in range(14):
        png(tmp_path / f"{index:02}.png", GREY)
    found = data.load(tmp_path, stream=True)
    for index in range(11):
        (tmp_path / f"{index:02}.png").unlink()
        if index == 9:
            assert torch.equal(found.items[:][:, 0], torch.from_numpy(GREY).expand(14, 8, 8))
    with pytest.raises(UserError, match=r"11 of 14 pictures turned out to be bad.*\.png"):
        found.items[:]
    for file in tmp_path.iterdir():
        file.unlink()
    png(tmp_path / "a.png", GREY)
    found = data.load(tmp_path, stream=True)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png is bad, and so is all"):
        found.items[0]


# --- folders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_train_and_test_are_parts_and_no_classes(tmp_path: Path, stream: bool) -> None:
    for index, name in enumerate(["train/cat/a", "train/dog/b", "test/dog/c", "valid/cat/d"]):
        png(tmp_path / f"{name}.png", GREY + np.uint8(index))
    found = data.load(tmp_path, stream=stream)
    assert found.test is not None and found.classes == found.test.classes == ("cat", "dog")
    assert found.items[:][:, 0].tolist() == [GREY.tolist(), (GREY + 1).tolist()]
    assert found.test.items[:][:, 0].tolist() == [(GREY + 2).tolist()]
    assert found.labels is not None and found.labels.tolist() == [0, 1]
    assert found.test.labels is not None and found.test.labels.tolist() == [1]
    assert any("train/ and test/ are" in note for note in found.notes)
    assert any("left out: valid/ (1)" in note for note in found.notes)
    # Beside other classes they are classes.
    png(tmp_path / "bus" / "e.png", GREY)
    assert data.load(tmp_path, stream=stream).classes == ("bus", "test", "train", "valid")


@pytest.mark.parametrize("stream", [True, False])
def test_parts_without_classes(tmp_path: Path, stream: bool) -> None:
    png(tmp_path / "train" / "a.png", GREY)
    png(tmp_path / "val" / "b.png", GREY.T)
    found = data.load(tmp_path, stream=stream)
    assert found.labels is None and found.test is not None and found.test.items[0][0].tolist() == GREY.T.tolist()
    # Classes in training only: the held-out part has no labels then.
    (tmp_path / "train" / "cat").mkdir()
    (tmp_path / "train" / "a.png").rename(tmp_path / "train" / "cat" / "a.png")
    found = data.load(tmp_path, stream=stream)
    assert found.test is not None and (found.classes, found.test.classes, found.test.labels) == (("cat",), (), None)
    # A class that is held out only has never been trained.
    (tmp_path / "val" / "dog").mkdir()
    (tmp_path / "val" / "b.png").rename(tmp_path / "val" / "dog" / "b.png")
    with pytest.raises(UserError, match="'dog' has no training example"):
        data.load(tmp_path, stream=stream)


def test_files_are_in_the_order_of_the_parts_of_their_names(tmp_path: Path) -> None:
    names = [
        "b.png",
        "a/x.png",
        "a.png",
        "a-b/y.png",
        "a/deep/z.png",
        "a.d/q.png",
        "a/deep.png",
        os.fsdecode(b"\xe9.png"),
        "é.png",
    ]
    for index, name in enumerate(names):
        png(tmp_path / name, GREY + np.uint8(index))
    order = [names.index(path.relative_to(tmp_path).as_posix()) for path in sorted(tmp_path.rglob("*.png"))]
    assert (data.load(tmp_path, stream=True).items[:][:, 0, 0, 0]).tolist() == order


def test_names_are_kept_small() -> None:
    names = Names(b"%07d.png" % index for index in range(70_000))
    assert len(names) == 70_000 and names[69_999] == b"0069999.png" and names[0] == b"0000000.png"
    assert list(names)[65_535:65_538] == [b"0065535.png", b"0065536.png", b"0065537.png"]
    assert len(names.text) + names._ends.nbytes == 70_000 * 19 + 8
    assert list(Names([])) == []


def test_no_file_stays_open(streamed: data.Dataset) -> None:
    streamed.items[:]
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        streamed.items[:]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_colour_in_a_grey_stream_is_made_grey(tmp_path: Path) -> None:
    png(tmp_path / "a.png", COLOUR)
    found = data.load(tmp_path, stream=True)
    png(tmp_path / "a.png", GREY)
    assert torch.equal(found.items[0], torch.from_numpy(GREY).expand(3, 8, 8))
