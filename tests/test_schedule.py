"""Schedules: derivatives, inverses, limits and the published values."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracles import SCHEDULES, tensor
from sfumato.errors import UserError
from sfumato.schedule import EDM, VE, VP, Cosine, SubVP, Table

INSIDE = torch.linspace(0.0137, 0.9871, 57, dtype=torch.float64)  # off the knots of the table
everywhere = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


@everywhere
def test_starts_at_data_and_loses_signal_steadily(schedule):
    assert schedule.alpha(0.0) == 1
    assert schedule.sigma(0.0) == 0
    logsnr = schedule.logsnr(torch.linspace(0, 1, 2001, dtype=torch.float64))
    assert logsnr[0] == math.inf
    assert (logsnr.diff() < 0).all()


@everywhere
def test_derivatives_equal_automatic_ones(schedule):
    t = INSIDE.clone().requires_grad_()
    for function, derivative in [
        (schedule.alpha, schedule.d_alpha),
        (schedule.var, schedule.d_var),
        (schedule.sigma, schedule.d_sigma),
    ]:
        value = function(t).sum()
        auto = torch.autograd.grad(value, t)[0] if value.requires_grad else torch.zeros_like(t)
        torch.testing.assert_close(derivative(INSIDE), auto, rtol=1e-11, atol=1e-12)


@everywhere
def test_sigma_squared_is_var(schedule):
    torch.testing.assert_close(schedule.sigma(INSIDE) ** 2, schedule.var(INSIDE), rtol=1e-14, atol=0)


@everywhere
def test_diffusion_is_the_fall_of_logsnr(schedule):
    """g^2 = -sigma^2 dl/dt (Kingma et al. 2107.00630)."""
    t = INSIDE.clone().requires_grad_()
    (fall,) = torch.autograd.grad(schedule.logsnr(t).sum(), t)
    torch.testing.assert_close(schedule.g2(INSIDE), -schedule.var(INSIDE) * fall, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@given(t=st.floats(1e-4, 1.0))
def test_time_inverts_logsnr(name, t):
    schedule = SCHEDULES[name]
    again = float(schedule.time(schedule.logsnr(t)))
    assert again == pytest.approx(t, rel=1e-9)


@pytest.mark.parametrize("name", ["vp", "cosine", "table"])
def test_variance_preserving(name):
    schedule = SCHEDULES[name]
    torch.testing.assert_close(schedule.alpha(INSIDE) ** 2 + schedule.var(INSIDE), torch.ones_like(INSIDE))


def test_published_values():
    assert float(VP().alpha(1.0)) == pytest.approx(math.exp(-0.25 * 19.9 - 0.05), rel=1e-14)  # 2011.13456, app. C
    assert float(SubVP().sigma(0.3)) == pytest.approx(1 - float(VP().alpha(0.3)) ** 2, rel=1e-13)
    assert float(VE().sigma(1.0)) == pytest.approx(math.sqrt(50**2 - 0.01**2), rel=1e-14)
    assert float(EDM().sigma(0.25)) == 20
    t, s = 0.4, 0.008  # 2102.09672, eq. 17, at the time the angle is read
    f = [math.cos((u + s) / (1 + s) * math.pi / 2) ** 2 for u in (0.9946 * t, 0.0)]
    assert float(Cosine().alpha(t)) ** 2 == pytest.approx(f[0] / f[1], rel=1e-13)


def test_table_is_the_cumulative_product():
    betas = tensor([0.1, 0.3, 0.02, 0.6])
    table = Table(betas.tolist())
    k = torch.arange(1, 5) / 4
    torch.testing.assert_close(table.alpha(k) ** 2, (1 - betas).cumprod(0), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: VP(0.0, 1.0),
        lambda: VP(2.0, 1.0),
        lambda: Cosine(end=1.0),
        lambda: VE(1.0, 0.5),
        lambda: EDM(0.0),
        lambda: Table([]),
        lambda: Table([0.1, 1.0]),
    ],
)
def test_impossible_schedules_are_refused_when_built(build):
    with pytest.raises(UserError):
        build()
