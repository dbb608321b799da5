"""Inverse problems: on Gaussian data the posterior is known, and MMPS is it; RePaint nears it; operators are linear."""

import math

import pytest
import torch
import torch.nn.functional as F

from oracles import Exact, Mixture, gaussian, tensor
from sfumato.denoise import take
from sfumato.dist import stream
from sfumato.errors import UserError
from sfumato.guide import Measured
from sfumato.guide.measured import METHODS, conjugate_gradients
from sfumato.guide.operators import Blur, Grey, Known, Projections, Smaller
from sfumato.process import Gaussian
from sfumato.sampler import RePaint, generate, sampler
from sfumato.schedule import VE, VP, Cosine, Flow

DIM, NOISE = 6, 0.3
MEAN, VAR = torch.linspace(-1, 1, DIM, dtype=torch.float64), torch.linspace(0.2, 1.5, DIM, dtype=torch.float64)
A = torch.randn(3, DIM, generator=stream(0), dtype=torch.float64)
Y = tensor([0.7, -1.2, 0.4])
PRIOR = Mixture(tensor([1.0]), MEAN[None], VAR[None])


def measure(x):
    return x @ A.T


def posterior(mean=MEAN, var=VAR, y=Y):
    """Mean (D,) and covariance (D, D) of N(mean, var) given y = A x + N(0, NOISE^2)."""
    covariance = torch.diag(var)
    gain = covariance @ A.T @ torch.linalg.inv(A @ covariance @ A.T + NOISE**2 * torch.eye(3, dtype=torch.float64))
    return mean + gain @ (y - A @ mean), covariance - gain @ A @ covariance


def model(schedule, n, method="mmps", iterations=3):
    base = Exact(PRIOR, Gaussian(schedule), "v")
    return Measured(base, Y.expand(n, -1), measure, NOISE, method, iterations)


# ── Against the posterior of Gaussian data ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("schedule", [VP(), Cosine(), Flow(), VE()])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_mmps_is_the_mean_of_gaussian_data_given_state_and_measurement(schedule, t):
    """The state is one more measurement, of all numbers alone: x_t = alpha x_0 + sigma eps."""
    x_t, now = torch.randn(4, DIM, generator=stream(1), dtype=torch.float64), schedule.at(t)
    var = 1 / (1 / VAR + now.alpha**2 / now.sigma**2)
    for x, found in zip(x_t, model(schedule, 4)(x_t, t).x0, strict=True):
        given_state = var * (MEAN / VAR + now.alpha * x / now.sigma**2)
        torch.testing.assert_close(found, posterior(given_state, var)[0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["heun", "unipc2", "ancestral"])
def test_samples_have_the_mean_and_covariance_of_the_posterior(name):
    n, steps = 6_000, 250 if name == "ancestral" else 25  # it is of order 1: its variance is reached slowly
    start = torch.randn(n, DIM, generator=stream(2), dtype=torch.float64)
    x = generate(model(Cosine(), n), sampler(name), start, "logsnr", steps, stream(3))
    mean, covariance = posterior()
    assert (x.mean(0) - mean).abs().max() < 0.05 * mean.abs().max()
    assert torch.linalg.norm(torch.cov(x.T) - covariance) < 0.05 * torch.linalg.norm(covariance)


def test_repaint_nears_the_posterior_the_more_often_it_goes_over_a_step():
    """Of two clusters a known first coordinate makes one likelier; a single pass hardly hears it."""
    law = Mixture(tensor([0.5, 0.5]), tensor([[-1.0, -1.0], [1.0, 1.0]]), torch.full((2, 2), 0.3, dtype=torch.float64))
    known, start = tensor([0.15, 0.0]).expand(4_000, 2), torch.randn(4_000, 2, generator=stream(5), dtype=torch.float64)
    truth, shares = float(torch.sigmoid(tensor(2 * 0.15 / 0.3))), []
    for repeats in (1, 3, 10, 40):
        way = RePaint(sampler("ancestral"), known, torch.tensor([True, False]), repeats)
        x = generate(Exact(law, Gaussian(Cosine())), way, start, "logsnr", 20, stream(6))
        assert bool((x[:, 0] == 0.15).all())
        shares.append(float((x[:, 1] > 0).double().mean()))
    assert shares == sorted(shares) and shares[0] < 0.6
    assert shares[-1] == pytest.approx(truth, abs=0.04)


@pytest.mark.parametrize("method", METHODS)
def test_every_way_brings_samples_nearer_to_what_was_measured(method):
    start = torch.randn(500, DIM, generator=stream(4), dtype=torch.float64)
    plain = generate(model(Cosine(), 1).model, sampler("heun"), start, "logsnr", 40)
    x = generate(model(Cosine(), 500, method), sampler("heun"), start, "logsnr", 40)
    before, after = ((measure(each) - Y).square().mean() for each in (plain, x))
    assert after < 0.25 * before
    assert (x.mean(0) - posterior()[0]).norm() < 0.5 * (plain.mean(0) - posterior()[0]).norm()


def test_mmps_knows_correlations_that_pigdm_does_not():
    """Two numbers that are nearly the same, one of them measured: the other follows."""
    grid = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None].expand(-1, 2)
    line = Mixture(torch.full((41,), 1 / 41, dtype=torch.float64), grid, torch.full_like(grid, 0.01))
    base, y = Exact(line, Gaussian(Cosine()), "v"), torch.full((200, 1), 1.2, dtype=torch.float64)
    start = torch.randn(200, 2, generator=stream(5), dtype=torch.float64)
    off = {}
    for method in ("mmps", "pigdm"):
        asked = Measured(base, y, lambda x: x[:, :1], 0.05, method, 1, sigma_data=1.2)
        found = generate(asked, sampler("heun"), start, "logsnr", 30)
        off[method] = float((found[:, 1] - 1.2).square().mean().sqrt())
    assert off["mmps"] < 0.2 and off["mmps"] < off["pigdm"]


def test_conjugate_gradients_solve_each_example_alone():
    root = torch.randn(3, 5, 5, generator=stream(6), dtype=torch.float64)
    matrices = root @ root.transpose(1, 2) + 0.1 * torch.eye(5, dtype=torch.float64)
    b = torch.randn(3, 5, generator=stream(7), dtype=torch.float64)
    b[2] = 0
    x = conjugate_gradients(lambda v: (matrices @ v[..., None])[..., 0], b, 12)
    torch.testing.assert_close(x, torch.linalg.solve(matrices, b), rtol=1e-7, atol=1e-7)


def test_rows_of_a_batch_may_be_taken():
    asked, rows = model(VP(), 4), torch.tensor([0, 2])
    x = torch.randn(4, DIM, generator=stream(8), dtype=torch.float64)
    torch.testing.assert_close(take(asked, rows)(x[rows], 0.4).x0, asked(x, 0.4).x0[rows])


def test_where_there_is_no_signal_the_model_stands_alone():
    x = torch.randn(4, DIM, generator=stream(8), dtype=torch.float64)
    assert torch.equal(model(Flow(), 4)(x, 1.0).x0, model(Flow(), 4).model(x, 1.0).x0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"method": "magic"}, "unknown way to answer an inverse problem 'magic'"),
        ({"noise": 0.0}, "must be above 0"),
        ({"iterations": 0}, "1 iteration or more"),
    ],
)
def test_impossible_problems_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        Measured(Exact(gaussian(), Gaussian(VP())), Y[None], measure, **words)


def test_a_measurement_of_another_shape_is_refused():
    asked = Measured(Exact(PRIOR, Gaussian(VP())), Y[None, :2], measure)
    with pytest.raises(UserError, match=r"has the shape \(1, 2\)"):
        asked(torch.zeros(1, DIM, dtype=torch.float64), 0.5)


# ── Operators ─────────────────────────────────────────────────────────────────────────────────────────────────────────

PICTURES = torch.randn(2, 3, 8, 8, generator=stream(9), dtype=torch.float64)


@pytest.mark.parametrize("operator", [Smaller(), Blur(), Grey(), Projections(), Known(torch.eye(8))])
def test_operators_are_linear(operator):
    other = PICTURES.flip(2)
    torch.testing.assert_close(operator(2 * PICTURES - other), 2 * operator(PICTURES) - operator(other))


def test_operators_do_what_they_say():
    assert torch.equal(Known(torch.eye(8))(PICTURES)[:, :, 0, 1:], torch.zeros(2, 3, 7, dtype=torch.float64))
    torch.testing.assert_close(Smaller(4)(PICTURES)[0, 0, 0, 0], PICTURES[0, 0, :4, :4].mean())
    torch.testing.assert_close(Grey()(PICTURES)[1, 0, 2, 3], PICTURES[1, :, 2, 3].mean())
    point = F.pad(torch.ones(1, 1, 1, 1, dtype=torch.float64), (12, 12, 12, 12))
    spread = Blur(1.5)(point)[0, 0]
    at = torch.arange(25, dtype=torch.float64) - 12
    torch.testing.assert_close((spread.sum(0) * at**2).sum().sqrt(), tensor(1.5), rtol=0.02, atol=0)
    torch.testing.assert_close(Blur()(torch.ones_like(PICTURES)), torch.ones_like(PICTURES))
    seen = Projections(0.5, seed=1)(PICTURES)
    assert seen.shape == (2, 96) and not torch.equal(seen, Projections(0.5, seed=2)(PICTURES))
    assert math.isclose(float(Projections()(PICTURES).square().mean()), 1, rel_tol=0.4)


def test_a_factor_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="not divisible"):
        Smaller(3)(PICTURES)
