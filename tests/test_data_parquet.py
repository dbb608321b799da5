"""Parquet: which columns are taken, what labels may be, and that nothing is fetched, followed or believed."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sfumato.data as data
from pictures import GREY, png
from sfumato.errors import UserError


def test_without_the_library_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "datasets", None)
    for path in (tmp_path, tmp_path / "a.parquet"):
        with pytest.raises(UserError, match=r"sfumato\[stream\]"):
            data.load(path)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write columns as parquet; pictures are given by their level. The network is cut."""
    pytest.importorskip("datasets")
    import pyarrow as pa
    import pyarrow.parquet as pq

    def refuse(*_: object) -> None:
        raise AssertionError("something is fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def file(name: str = "set/a.parquet", rows_in_group: int = 2, **columns: Any) -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        table = pa.table(
            {key: column if isinstance(column, pa.Array) else pa.array(column) for key, column in columns.items()}
        )
        pq.write_table(table, tmp_path / name, row_group_size=rows_in_group)
        return tmp_path / name

    return file


def pictures(folder: Path, *levels: int) -> list[bytes]:
    return [png(folder / "p.png", np.full((8, 8), level, np.uint8)).read_bytes() for level in levels]


def levels(loaded: data.Dataset) -> list[int]:
    return loaded.items[:][:, 0, 0, 0].tolist()


@pytest.mark.parametrize("stream", [True, False])
def test_plain_bytes_and_texts(write: Any, tmp_path: Path, stream: bool) -> None:
    path = write(id=[1, 2, 3], blob=[b"", b"", b""], png=pictures(tmp_path, 4, 5, 6), y=["b", "a", "b"])
    loaded = data.load(path, stream=stream)
    assert levels(loaded) == [4, 5, 6] and loaded.classes == ("a", "b")
    assert loaded.labels is not None and loaded.labels.tolist() == [1, 0, 1]
    assert any("columns 'png' and 'y'" in note and str(tmp_path / "cache") in note for note in loaded.notes)


def test_numbers_are_classes_in_their_order(write: Any, tmp_path: Path) -> None:
    loaded = data.load(write(image=pictures(tmp_path, 1, 2, 3), label=[10, 9, 10]), stream=True)
    assert loaded.classes == ("9", "10") and loaded.labels is not None and loaded.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("stream", [True, False])
def test_a_column_of_captions(write: Any, tmp_path: Path, stream: bool) -> None:
    path = write(image=pictures(tmp_path, 1, 2, 3), label=[1, 0, 1], caption=[" a red ring ", None, "a square"])
    loaded = data.load(path, stream=stream)
    assert loaded.captions == ("a red ring", None, "a square")
    assert any("'image' and 'label' and 'caption'" in note for note in loaded.notes)
    assert data.load(write("more/b.parquet", image=pictures(tmp_path, 1), text=[7])).captions == ()


def test_no_labels(write: Any, tmp_path: Path) -> None:
    loaded = data.load(write(image=pictures(tmp_path, 1, 2), size=[3, 4]), stream=True)
    assert loaded.labels is None and loaded.classes == () and levels(loaded) == [1, 2]


@pytest.mark.parametrize("stream", [True, False])
def test_rows_without_picture_or_label_are_bad(write: Any, tmp_path: Path, stream: bool) -> None:
    """A path in a row is not followed."""
    one, two, three = pictures(tmp_path, 1, 2, 3)
    elsewhere = png(tmp_path / "elsewhere.png", GREY)
    rows = [{"bytes": one, "path": None}, {"bytes": None, "path": str(elsewhere)}, None]
    rows += [{"bytes": two, "path": None}, {"bytes": three, "path": "x"}]
    path = write(image=rows, label=["a", "a", "a", None, "a"])
    bad = dict(data.inspect(path, stream=stream).bad)
    assert bad == {"row 1": "no bytes in this row", "row 2": "no bytes in this row", "row 3": "no label"}
    assert levels(data.load(path, stream=stream, skip_bad=True)) == [1, 3]


def test_missing_class_labels(write: Any, tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({"picture": Image(), "fine": ClassLabel(names=["x", "y"])})
    rows = [
        {"picture": {"bytes": got, "path": None}, "fine": label}
        for got, label in zip(pictures(tmp_path, 1, 2, 3), (1, -1, 0), strict=True)
    ]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "b.parquet")
    loaded = data.load(tmp_path / "b.parquet", stream=True, skip_bad=True)
    assert loaded.classes == ("x", "y") and loaded.labels is not None and loaded.labels.tolist() == [1, 0]
    assert levels(loaded) == [1, 3]


def test_a_file_that_was_changed_is_read_again(write: Any, tmp_path: Path) -> None:
    path = write(image=pictures(tmp_path, 1, 2))
    assert levels(data.load(path, stream=True)) == [1, 2]
    write(image=pictures(tmp_path, 3, 4))
    assert levels(data.load(path, stream=True)) == [3, 4]


def test_parts_and_odd_names(write: Any, tmp_path: Path) -> None:
    write("odd [1]*/.cache/data/train-0.parquet", image=pictures(tmp_path, 1, 2), label=[0, 1])
    write("odd [1]*/.cache/data/test-0.parquet", image=pictures(tmp_path, 3), label=[1])
    loaded = data.load(tmp_path / "odd [1]*" / ".cache", stream=True)
    assert loaded.test is not None and (levels(loaded), levels(loaded.test)) == ([1, 2], [3])
    assert loaded.test.labels is not None and loaded.test.labels.tolist() == [1]


def test_what_cannot_be_read_is_told_in_one_line(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, words: str) -> None:
        with pytest.raises(UserError, match=words) as caught:
            data.load(path)
        assert "\n" not in str(caught.value)

    good = write(image=pictures(tmp_path, 1, 2))
    whole = good.read_bytes()
    for damaged in (b"", b"PAR1", whole[:-4], whole[: len(whole) // 2], b"?" * len(whole)):
        good.write_bytes(damaged)
        refused(good, r"a\.parquet: not a parquet file, or damaged")
    good.write_bytes(whole[:4] + b"?" * 80 + whole[84:])
    refused(good, r"a\.parquet: cannot be read as parquet")
    refused(write(number=[1.0, 2.0]), r"no column of pictures among number")
    write(image=pictures(tmp_path, 1), label=[1])
    write("set/b.parquet", image=pictures(tmp_path, 1))
    refused(good.parent, r"b\.parquet: no column 'label'")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    refused(good, "HF_DATASETS_CACHE")
