"""The adaptive solver: against scipy and closed forms, its order, its error control, and no word between neighbours."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from oracles import observed_order, tensor
from sfumato.errors import UserError
from sfumato.ode import solve


def pendulum(u, y, rows):
    return torch.stack([y[:, 1], -y[:, 0].sin() - 0.1 * y[:, 1] + u.cos()], 1)


def bell(u, y, rows):
    """y = 1 / (1 + u^2), if y(0) = 1."""
    return -2 * u[:, None] * y.square()


def logistic(u, y, rows):
    return y * (1 - y)


def stiff(u, y, rows):
    """y0 falls to cos(u) at rate y1."""
    return torch.stack([y[:, 1] * (u.cos() - y[:, 0]), torch.zeros_like(u)], 1)


@pytest.mark.parametrize("ends", [(0.0, 6.0), (4.0, -3.0)])
def test_it_agrees_with_scipy(ends):
    y = tensor([[1.0, 0.0], [3.0, -1.0]])
    got = solve(pendulum, y, *ends, rtol=1e-10, atol=1e-10)
    for start, end in zip(y, got.y, strict=True):

        def scipys(u, y):
            return pendulum(tensor([u]), tensor(y)[None], None)[0].numpy()

        known = solve_ivp(scipys, ends, start.numpy(), method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
        assert np.abs(end.numpy() - known).max() < 1e-8


def test_every_example_has_its_own_ends():
    start, end = tensor([0.0, 0.5, 2.0, 1.0]), tensor([3.0, 0.1, 2.0, -1.0])
    got = solve(bell, 1 / (1 + start[:, None] ** 2), start, end, rtol=1e-9, atol=1e-9)
    assert (got.y[:, 0] - 1 / (1 + end**2)).abs().max() < 1e-8
    assert got.calls[2] == 2  # it was there already


def test_the_order_is_five():
    """At a huge tolerance the whole way is one step, and n of them are the fixed-step method."""
    steps, errors = [8, 16, 32, 64], []
    for n in steps:
        y = tensor([[0.1]])
        for k in range(n):
            step = solve(logistic, y, 2 * k / n, 2 * (k + 1) / n, rtol=1e30, atol=1e30)
            y = step.y
            assert step.calls.item() == 2 + 6
        errors.append(abs(y.item() - 1 / (1 + 9 * math.exp(-2))))
    assert observed_order(steps, errors) == pytest.approx(5, abs=0.2)


def test_the_tolerance_decides_the_error_and_the_estimate_follows_it():
    y = tensor([[1.0, 0.0]])
    known = solve(pendulum, y, 0.0, 6.0, rtol=1e-12, atol=1e-12).y
    errors, told, calls = [], [], []
    for tolerance in (1e-4, 1e-6, 1e-8):
        got = solve(pendulum, y, 0.0, 6.0, rtol=tolerance, atol=tolerance)
        errors.append(float((got.y - known).abs().max()))
        told.append(got.error.item())
        calls.append(got.calls.item())
        assert errors[-1] < 20 * tolerance
        assert told[-1] > errors[-1] / 3
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert told[0] > 10 * told[1] > 100 * told[2]
    assert calls[0] < calls[1] < calls[2]


def test_an_example_does_not_depend_on_its_neighbours():
    y = tensor([[2.0, 1.0], [2.0, 300.0], [2.0, 5.0]])  # the second takes many more steps
    together = solve(stiff, y, 0.0, 3.0)
    for k in range(3):
        alone = solve(stiff, y[k : k + 1], 0.0, 3.0)
        assert (together.y[k] - alone.y[0]).abs().max() < 1e-12
        assert together.error[k] == pytest.approx(alone.error.item(), rel=1e-9)
        assert together.calls[k] == alone.calls[0]
    assert together.calls[1] > 5 * together.calls[0]


def test_who_has_arrived_is_asked_no_more():
    asked = []

    def f(u, y, rows):
        asked.append(rows.tolist())
        assert len(u) == len(y) == len(rows)
        return stiff(u, y, rows)

    got = solve(f, tensor([[2.0, 1.0], [2.0, 300.0]]), 0.0, 3.0)
    assert asked[0] == [0, 1]
    assert asked[-1] == [1]
    assert len(asked) == got.calls.max()
    assert sum(map(len, asked)) == got.calls.sum()


def test_float32_states_stay_float32():
    got = solve(lambda u, y, rows: -y, torch.ones(2, 3), 0.0, 1.0, rtol=1e-6, atol=1e-6)
    assert got.y.dtype == torch.float32
    assert (got.y - torch.tensor(-1.0).exp()).abs().max() < 1e-6


def test_the_errors_are_measured_as_asked():
    weigh = solve(bell, tensor([[1.0]]), 0.0, 2.0, measure=lambda u, y, slope, e: 3 * e[:, 0].abs())
    plain = solve(bell, tensor([[1.0]]), 0.0, 2.0)
    assert weigh.error.item() == pytest.approx(3 * plain.error.item())


def test_it_can_be_differentiated():
    y = tensor([[0.3, 0.1], [1.5, 2.0]]).requires_grad_()
    got = solve(logistic, y, 0.0, 1.5, rtol=1e-9, atol=1e-9).y
    (gradient,) = torch.autograd.grad(got.sum(), y)
    known = tensor(1.5).exp() / (1 + y * (tensor(1.5).exp() - 1)) ** 2
    assert (gradient - known).abs().max() < 1e-6


def test_a_first_step_may_be_given():
    got = solve(bell, tensor([[1.0]]), 0.0, 1.0, rtol=1e30, atol=1e30, first=1.0)
    assert got.calls.item() == 1 + 6


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"rtol": 0.0}, "above 0 and finite"),
        ({"atol": -1.0}, "above 0 and finite"),
        ({"rtol": float("nan")}, "above 0 and finite"),
        ({"first": 0.0}, "above 0 and finite"),
        ({"most": 3, "rtol": 1e-9, "atol": 1e-9}, "more than 3 steps"),
    ],
)
def test_wrong_arguments(arguments, text):
    with pytest.raises(UserError, match=text):
        solve(pendulum, tensor([[1.0, 0.0]]), 0.0, 6.0, **arguments)


@pytest.mark.parametrize("f", [lambda u, y, rows: y / (u[:, None] - 1), lambda u, y, rows: y * torch.nan])
def test_a_slope_that_is_not_finite_is_named(f):
    with pytest.raises(UserError, match="too small at u ="):
        solve(f, tensor([[1.0]]), 0.0, 1.0)
