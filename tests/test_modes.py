"""Modes found: constructed samples whose answers are known, and the mixture itself."""

import math

import numpy as np
import pytest

from sfumato.data import load
from sfumato.data.toys import CENTRES, SPREAD
from sfumato.errors import UserError
from sfumato.metrics.modes import RADIUS, modes_of_labels, modes_of_points, sliced_wasserstein

GRID = CENTRES["grid25"]
BEYOND = math.exp(-(RADIUS**2) / 2)  # of a Gaussian in the plane


def test_the_mixture_itself_is_found_whole():
    for name, centres in CENTRES.items():
        points = load(name).test.items[:].double().numpy()
        found = modes_of_points(points, centres, SPREAD)
        assert (found.found, found.of) == (len(centres), len(centres))
        assert found.on == pytest.approx(1 - BEYOND, abs=4 * math.sqrt(BEYOND / len(points)))
        assert found.kl < len(centres) / len(points)  # its expectation is (bins - 1) / (2 n)


def test_a_collapsed_sample_has_one_mode_and_the_divergence_of_a_point():
    found = modes_of_points(np.repeat(GRID[3:4], 100, axis=0), GRID, SPREAD)
    assert (found.found, found.on) == (1, 1.0)
    assert found.kl == pytest.approx(math.log(25 / (1 - BEYOND)))


def test_samples_in_no_mode_are_seen_as_such():
    found = modes_of_points(GRID + 1.0, GRID, SPREAD)
    assert (found.found, found.on) == (0, 0.0)
    assert found.kl == pytest.approx(RADIUS**2 / 2)  # log(1 / BEYOND)


def test_a_point_is_of_a_mode_within_three_deviations():
    centre = np.zeros((1, 2))
    inside, outside = (np.array([[0.0, RADIUS * 0.5 + step]]) for step in (-1e-9, 1e-9))
    assert modes_of_points(inside, centre, 0.5).found == 1
    assert modes_of_points(outside, centre, 0.5).found == 0


def test_modes_by_label_are_counted_and_held_against_equal_shares():
    labels = np.array([0] * 75 + [1] * 25)
    found = modes_of_labels(labels, 4)
    assert (found.found, found.of, found.on) == (2, 4, 1.0)
    assert found.kl == pytest.approx(0.75 * math.log(3) + 0.25 * math.log(1))


def test_sliced_wasserstein_of_moved_points_is_the_way_by_the_root_of_the_dimension():
    points = np.random.default_rng(0).standard_normal((500, 2))
    assert sliced_wasserstein(points, points[::-1]) == 0
    moved = sliced_wasserstein(points, points + np.array([3.0, 4.0]), directions=4_000)
    assert moved == pytest.approx(5 / math.sqrt(2), rel=0.02)


def test_nothing_to_measure_is_refused():
    with pytest.raises(UserError, match="there are none"):
        modes_of_points(np.zeros((0, 2)), GRID, SPREAD)
    with pytest.raises(UserError, match="there are none"):
        modes_of_labels(np.zeros(0, np.int64), 3)
    with pytest.raises(UserError, match="as many"):
        sliced_wasserstein(np.zeros((3, 2)), np.zeros((4, 2)))
