"""Charts: lines are where their axes say, no peak is lost, and what is not known is not drawn."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.view.chart import HEIGHT, LEFT, RIGHT, WIDTH, Line, Mark, chart, short


def lines_of(svg: str, style: str = "line") -> list[list[tuple[float, float]]]:
    """The pieces of the paths of a chart, in pixels."""
    texts = re.findall(rf'class="{style} [^"]*" d="([^"]*)"', svg)
    pieces = [piece for text in texts for piece in text.removesuffix("h0").split("M")[1:]]
    return [[tuple(map(float, point.split())) for point in piece.split("L")] for piece in pieces]


def labels(svg: str, axis: str) -> dict[str, float]:
    """Where an axis has its numbers, in pixels."""
    found = re.findall(rf'<text x="([\d.]+)" y="([\d.]+)" class="{axis}">([^<]*)<', svg)
    return {words: float(x if axis == "x" else y) for x, y, words in found}


def test_a_straight_line_is_straight_and_where_the_axes_say() -> None:
    x = np.arange(0.0, 1001.0)
    for look in ("both", "mean", "values"):
        svg = chart([Line(x, 1000 + 2 * x, "a", look=look)], [], "")
        (points,) = lines_of(svg)
        places = np.array(points)
        slope = np.polyfit(*places.T, 1)
        off = np.abs(np.polyval(slope, places[:, 0]) - places[:, 1]).max()
        assert off < (0.4 if look == "values" else 1.5)  # a mean is flat at its ends
        along, up = labels(svg, "x"), labels(svg, "y")
        assert {"0", "500", "1k"} <= along.keys() and {"1k", "2k", "3k"} <= up.keys()
        for y in (1000, 2000, 3000):
            at = along["0"] + (along["1k"] - along["0"]) * (y - 1000) / 2000
            assert np.polyval(slope, at) == pytest.approx(up[short(y)] - 4, abs=1)


def test_a_wide_range_is_drawn_in_decades() -> None:
    x = np.arange(1.0, 200.0)
    svg = chart([Line(x, 10 ** (x / 50), "a", look="values")], [], "")
    (points,) = lines_of(svg)
    assert np.abs(np.diff(np.array(points)[:, 1], 2)).max() < 0.21  # an exponential is a straight line
    up = labels(svg, "y")
    assert up["10"] - up["100"] == pytest.approx(up["100"] - up["1k"], abs=0.11)
    assert "0" in labels(chart([Line(x, 10 ** (x / 50) - 6, "a")], [], ""), "y")  # no logarithm of what is below 0


def test_the_running_mean_weighs_and_passes_over_what_is_not_known() -> None:
    x = np.arange(2000.0)
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 9, 2000).astype(float)
    y = np.where(weights > 4, 1.0, 3.0)
    y[weights == 0] = np.nan
    mean = np.nansum(y * weights) / weights.sum()
    ends = Line(np.array([0.0, 1999.0]), np.array([1.0, 3.0]), "b", look="values")
    mean_line, end_line = lines_of(chart([Line(x, y, "a", weights, "mean"), ends], [], ""))
    low, high = end_line[0][1], end_line[-1][1]
    drawn = 1 + 2 * (np.array(mean_line)[20:-20, 1] - low) / (high - low)
    assert drawn.mean() == pytest.approx(mean, abs=0.02) and np.abs(drawn - mean).max() < 0.25


def test_a_hole_breaks_the_line_and_a_single_point_is_a_dot() -> None:
    x = np.array([*range(100), *range(200, 300)], float)
    assert [len(piece) for piece in lines_of(chart([Line(x, x, "a")], [], ""))] == [100, 100]
    for value in (0.0, -3.0, 5.0, 1e-300, 1e300):
        svg = chart([Line(np.array([7.0]), np.array([value]), "a")], [], "")
        ((point,),) = lines_of(svg)
        assert LEFT < point[0] < WIDTH - RIGHT and 0 < point[1] < HEIGHT
        assert len(labels(svg, "y")) >= 2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 2**53), st.floats()), min_size=1, max_size=8),
    st.sampled_from(["both", "mean", "values"]),
    st.booleans(),
)
def test_all_that_is_drawn_lies_within(points: list[tuple[int, float]], look: str, zero: bool) -> None:
    x, y = np.array(sorted(dict(points).items()), float).T
    y = np.abs(y) if zero else y
    svg = chart([Line(x, y, "a", look=look)], [Mark(float(at), "skip") for at in x], "", zero)
    assert bool(svg) == bool(np.isfinite(y).any())
    for path in re.findall(r' d="([^"]*)"', svg):
        for a, b in re.findall(r"[ML]([^ ]*) ([^VHhML]*)", path):
            assert LEFT - 0.1 <= float(a) <= WIDTH - RIGHT + 0.1 and 0 <= float(b) <= HEIGHT
    for axis in ("x", "y"):
        assert all(0 <= at <= max(WIDTH, HEIGHT) for at in labels(svg, axis).values())


def test_nothing_known_is_no_chart() -> None:
    nothing = np.array([])
    assert chart([Line(nothing, nothing, "a")], [Mark(0.0, "skip")], "") == ""
    assert chart([Line(np.arange(3.0), np.full(3, np.nan), "a")], [], "") == ""


def test_marks_stand_where_things_happened_and_are_never_too_many() -> None:
    x = np.arange(0.0, 101.0)
    marks = [Mark(50.0, "resume"), Mark(50.001, "resume"), Mark(50.0, "skip"), Mark(1e9, "skip")]
    svg = chart([Line(x, x, "a")], marks, "")
    middle = round((LEFT + WIDTH - RIGHT) / 2)
    for style in ("resume", "skip"):
        (path,) = re.findall(rf'class="mark {style}" d="([^"]*)"', svg)
        assert re.findall(r"M([\d.]+)", path) == [str(middle)]
    many = chart([Line(x, x, "a")], [Mark(k / 1000, "skip") for k in range(100_000)], "")
    assert len(many) < 12_000


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (1, "1"), (1500, "1.5k"), (2e6, "2M"), (-1500, "-1.5k"), (0.25, "0.25"), (2.5e-4, "2.5e-4"),
     (1e300, "1e300"), (-1e-300, "-1e-300"), (40_000, "40k"), (3e9, "3G")],
)  # fmt: skip
def test_short_numbers(value: float, words: str) -> None:
    assert short(value) == words
