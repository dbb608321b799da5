"""Grids: a list of times is taken as it is, as numbers or as text, and what is no grid is refused."""

import math

import pytest
import torch

from oracles import SCHEDULES
from sfumato.errors import UserError
from sfumato.grid import GRIDS, R_MIN, karras, logsnr, times, trailing
from sfumato.schedule import VP

LIST = [1, 0.8, 0.5, 0.2, 0.05, 0]


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("n", [1, 2, 12, 100])
def test_named_grids_fall_from_noise_to_data(name, schedule, n):
    stops = times(name, n, schedule)
    assert stops.dtype == torch.float64 and stops.shape == (n + 1,)
    assert stops[0] == 1 and stops[-1] == 0 and bool((stops.diff() < 0).all())
    assert torch.equal(stops, times(stops, 0, schedule))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_noise_levels_are_spaced_as_declared(schedule):
    """Stops after the first: log r, and r^(1/7), fall in equal steps to R_MIN."""
    for grid, warp in ((logsnr, torch.log), (karras, lambda r: r ** (1 / 7))):
        r = (-schedule.logsnr(grid(20, schedule)[1:-1]) / 2).exp()
        steps = warp(r).diff()
        torch.testing.assert_close(steps, steps.mean().expand(18), rtol=1e-6, atol=0)
        assert math.isclose(float(r[-1]), R_MIN, rel_tol=1e-6)


def test_trailing_starts_from_the_end_of_the_chain():
    assert trailing(3, VP(), steps=10).mul(10).tolist() == [10, 7, 3, 0]
    with pytest.raises(UserError, match="at most 1000"):
        times("trailing", 1001, VP())


@pytest.mark.parametrize(
    "grid",
    [LIST, tuple(LIST), torch.tensor(LIST, dtype=torch.float64), "1,0.8,0.5,0.2,0.05,0", "1, .8, 5e-1,0.2,0.05, 0"],
)
def test_a_list_is_taken_as_it_is(grid):
    assert times(grid, 3, VP()).tolist() == LIST


def test_a_list_may_start_below_noise_and_end_above_data():
    assert times("0.9,0.1", 12, VP()).tolist() == [0.9, 0.1]


@pytest.mark.parametrize(
    "grid",
    [[0, 1], [1, 0.5, 0.5, 0], [1, 0.2, 0.5, 0], [1.1, 0], [1, -0.1], [1], [], [[1, 0]],
     [1, math.nan, 0], [math.nan, 0], [1, math.nan], [math.inf, 0], [1, -math.inf],
     "0,1", "1,0.5,0.5,0", "1.1,0", "1,-0.1", "1,nan,0", "nan,0", "1,nan", "inf,0"],
)  # fmt: skip
def test_what_does_not_fall_within_0_and_1_is_refused(grid):
    with pytest.raises(UserError, match=r"falls strictly within \[0, 1\]") as caught:
        times(grid, 12, VP())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["1,half,0", "1,,0", ",", "1,0,", "uniform,0", "1;0.5,0"])
def test_text_that_is_no_list_of_numbers_is_refused(text):
    with pytest.raises(UserError, match="numbers parted by commas") as caught:
        times(text, 12, VP())
    assert f"'{text}'" in str(caught.value)


@pytest.mark.parametrize("n", [0, -3])
@pytest.mark.parametrize("name", GRIDS)
def test_a_way_needs_steps(name, n):
    with pytest.raises(UserError, match="at least 1"):
        times(name, n, VP())


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'karras'"):
        times("karas", 12, VP())
    with pytest.raises(UserError, match="known: karras, logsnr, trailing, uniform"):
        times("0.5", 12, VP())
