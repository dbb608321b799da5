"""Toy sets against the shapes they are said to have, and CSV files with known rows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato.data as data
from sfumato.errors import UserError

TOYS = ("moons", "ring8", "grid25", "spirals", "checkerboard")


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_the_same_every_time_and_split(name: str) -> None:
    before = data.load(name).fingerprint  # of a dataset that nobody holds, so the next is another
    first = data.load(name)
    assert first.fingerprint == before
    assert first.items.shape == (20_000, 2) and first.items.dtype == torch.float32
    held = first.test
    assert held is not None and held.items.shape == (5_000, 2) and held.codec is first.codec
    both = torch.cat([first.items, held.items])
    assert len(torch.unique(both, dim=0)) == len(both)
    # Train and test follow one law: means agree within five standard errors.
    error = (first.items.mean(dim=0) - held.items.mean(dim=0)).abs() / first.items.std(dim=0)
    assert error.max() < 5 * math.sqrt(1 / 20_000 + 1 / 5_000)
    assert data.inspect(name).kind == "points"
    if first.labels is not None:
        assert int(first.labels.max()) + 1 == len(first.classes)


def test_points_is_another_name_for_moons() -> None:
    assert data.load("points").fingerprint == data.load("moons").fingerprint
    assert data.load("points").name == "moons"


def test_a_named_set_is_not_read_again_while_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held = data.load("moons")
    assert data.load("moons") is held and data.load("ring8") is not held
    monkeypatch.setattr(data, "_open", lambda _: pytest.fail("it was read"))
    assert data.load("moons") is held
    del held
    with pytest.raises(pytest.fail.Exception):
        data.load("moons")


@pytest.mark.parametrize("name", ["ring8", "grid25"])
def test_modes(name: str) -> None:
    loaded = data.load(name)
    assert loaded.labels is not None
    for mode in range(len(loaded.classes)):
        points = loaded.items[loaded.labels == mode].double()
        if name == "ring8":
            centre = 2 * torch.tensor([math.cos(mode * math.pi / 4), math.sin(mode * math.pi / 4)])
        else:
            centre = torch.tensor([2.0 * (mode % 5) - 4, 2.0 * (mode // 5) - 4])
        assert (points.mean(dim=0) - centre).abs().max() < 5 * 0.1 / math.sqrt(len(points))
        assert float(points.std()) > 0
        assert (points.std(dim=0) / 0.1 - 1).abs().max() < 5 / math.sqrt(2 * len(points))


def test_moons_and_spirals_lie_on_their_curves() -> None:
    loaded = data.load("moons")
    x, y = loaded.items.double().T
    upper = loaded.labels == 0
    radius = torch.where(upper, torch.hypot(x, y), torch.hypot(x - 1, y - 0.5))
    assert (radius - 1).abs().max() < 5.5 * 0.05
    assert y[upper].min() > -0.3 and y[~upper].max() < 0.8

    loaded = data.load("spirals")
    assert loaded.labels is not None
    points = loaded.items.double() * torch.where(loaded.labels == 0, 1, -1)[:, None]
    angle = torch.linspace(0, 3 * math.pi, 3000, dtype=torch.float64)
    arm = (angle / math.pi)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    assert torch.cdist(points[::20], arm).min(dim=1).values.max() < 5.5 * 0.05


def test_checkerboard_fills_dark_squares_evenly() -> None:
    loaded = data.load("checkerboard")
    assert loaded.labels is None and loaded.classes == ()
    column, row = ((loaded.items + 4) / 2).floor().long().T
    assert ((column + row) % 2 == 0).all()
    counts = torch.bincount(4 * row + column, minlength=16)
    assert (counts > 0).sum() == 8
    expected = 20_000 / 8
    assert (counts[counts > 0] - expected).abs().max() < 5 * math.sqrt(expected)


def csv(folder: Path, text: str | bytes) -> Path:
    path = folder / "set.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("text", "items", "classes", "labels"),
    [
        ("1,2\n3,4.5\n", [[1, 2], [3, 4.5]], (), None),
        ("\ufeff1,2\n3,4.5\n", [[1, 2], [3, 4.5]], (), None),
        ("x,y\n1,2\n3,4.5\n", [[1, 2], [3, 4.5]], (), None),
        ("\ufeffx;y\r\n1;2\r\n\r\n3;4.5\r\n", [[1, 2], [3, 4.5]], (), None),
        ("# made by hand, today\nx\ty\n1\t2\n3\t4.5", [[1, 2], [3, 4.5]], (), None),
        ("x,Class,y\n1,b,2\n3,a,4.5\n", [[1, 2], [3, 4.5]], ("a", "b"), [1, 0]),
        ("x,label\n1,inf\n2,nan\n3,10\n4,9", [[1], [2], [3], [4]], ("10", "9", "inf", "nan"), [2, 3, 0, 1]),
        ("label,x\n10,1\n9,2\n10,3\n", [[1], [2], [3]], ("9", "10"), [1, 0, 1]),
        (' x , label\n"1", "a b"\n-2e3 ,c\n', [[1], [-2000]], None, None),
    ],
)
def test_csv(
    tmp_path: Path, text: str, items: list[list[float]], classes: tuple[str, ...] | None, labels: list[int] | None
) -> None:
    loaded = data.load(csv(tmp_path, text))
    assert loaded.items.tolist() == items
    if classes is not None:
        assert loaded.classes == classes
        assert (None if loaded.labels is None else loaded.labels.tolist()) == labels


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("nan,1,a", "nan is not a finite"),
        ("1,-inf,a", "-inf is not a finite"),
        ("1e39,1,a", "1e39 is not a finite"),
        ("1,two,a", "'two' is not a number"),
        ("1,,a", "'' is not a number"),
        ("1,2", "2 columns where the first row has 3"),
        ("1,2,a,4", "4 columns where the first row has 3"),
        ("1,2,", "no label"),
    ],
)
def test_bad_rows_are_named_listed_and_skippable(tmp_path: Path, row: str, said: str) -> None:
    path = csv(tmp_path, f"# note\nx,y,label\n1,2,a\n{row}\n3,4,b\n")
    assert data.inspect(path).count == 2
    assert [name for name, _ in data.inspect(path).bad] == ["row 4"]
    with pytest.raises(UserError, match=rf"set\.csv: row 4: {said}.*--skip-bad"):
        data.load(path)
    assert data.load(path, skip_bad=True).items.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no rows"),
        ("# only a comment\n\n", "no rows"),
        ("x,y\n", "nothing readable"),
        ("label\na\n", "0 columns of numbers"),
        (",".join("1" * 65), "65 columns of numbers"),
        (b"\xff\xfe\x00\x01", "cannot be read as CSV"),
        (b"x,y\n1,2\n\xe9,3\n", "cannot be read as CSV"),
        ('x,y\n1,"' + "2" * 200_000 + '"\n', "cannot be read as CSV"),
    ],
)
def test_bad_csv_files(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(UserError, match=rf"set\.csv: .*{said}"):
        data.load(csv(tmp_path, content))


def test_binary_in_csv_is_a_bad_row(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set\.csv: "):
        data.load(csv(tmp_path, b"x,y\n1,2\n3,\0\n"))


def test_equal_rows_are_duplicates(tmp_path: Path) -> None:
    findings = data.inspect(csv(tmp_path, "1,2\n3,4\n1.0,2.0\n"))
    assert [list(group) for group in findings.duplicates] == [["row 1", "row 3"]]
    assert findings.range == (1, 4) and dict(findings.sizes) == {"2": 3}


def test_scale_is_common_to_all_dimensions(tmp_path: Path) -> None:
    items = np.random.default_rng(0).normal([5, -3], [1, 10], (500, 2))
    loaded = data.load(csv(tmp_path, "\n".join(f"{x},{y}" for x, y in items)))
    states = loaded.codec.encode(loaded.items).double()
    deviation = states.std(dim=0, correction=0)
    assert float(deviation[1] / deviation[0]) == pytest.approx(items[:, 1].std() / items[:, 0].std(), rel=1e-4)
    assert float((deviation**2).mean()) == pytest.approx(1, abs=1e-5)
