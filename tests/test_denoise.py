"""Parameterisations, weightings and the denoiser, against mixtures whose posterior mean is known."""

import math

import pytest
import torch
from torch import nn

from oracles import SCHEDULES, Exact, gaussian, mixture, tensor
from sfumato.denoise import Denoiser, Given
from sfumato.dist import stream
from sfumato.errors import UserError
from sfumato.process import Gaussian
from sfumato.rows import ROWS, Estimate, row
from sfumato.schedule import VP, Flow, Table
from sfumato.weighting import WEIGHTINGS, LogNormal, Uniform, weight

everywhere = pytest.mark.parametrize("name", SCHEDULES)
T = tensor([0.03, 0.31, 0.77, 0.9])


@everywhere
@pytest.mark.parametrize("source", ROWS)
@pytest.mark.parametrize("target", ROWS)
def test_every_conversion_round_trips(name, source, target):
    schedule = SCHEDULES[name]
    rng = stream(1)
    x0, eps = torch.randn(2, 4, 5, generator=rng, dtype=torch.float64)
    alpha, sigma = schedule.alpha(T)[:, None], schedule.sigma(T)[:, None]
    x_t = alpha * x0 + sigma * eps
    a, b = row(source, schedule, T, 0.6)
    there = Estimate(x_t, T, schedule, a[:, None] * x0 + b[:, None] * eps, a, b)
    a, b = row(target, schedule, T, 0.6)
    again = Estimate(x_t, T, schedule, there.read(target, 0.6), a, b)
    scale = 1 + float(schedule.sigma(T).max())  # VE and EDM: x_0 = x_t - sigma eps loses log10(sigma) digits
    for estimate in (there, again):
        torch.testing.assert_close(estimate.x0, x0, rtol=1e-11, atol=1e-11 * scale)
        torch.testing.assert_close(estimate.eps, eps, rtol=1e-11, atol=1e-11 * scale)


@everywhere
def test_edm_row_is_the_papers_preconditioning(name):
    """2206.00364, table 1, at sigma/alpha: x_0 = c_skip y + c_out F with y = x/alpha."""
    schedule, sd = SCHEDULES[name], 0.6
    r2 = (-schedule.logsnr(T)).exp()
    c_skip, c_out = sd**2 / (r2 + sd**2), (r2 * sd**2 / (r2 + sd**2)).sqrt()
    x_t, out = torch.randn(2, 4, 1, generator=stream(2), dtype=torch.float64)
    a, b = row("edm", schedule, T, sd)
    expected = (c_skip / schedule.alpha(T))[:, None] * x_t + c_out[:, None] * out
    torch.testing.assert_close(Estimate(x_t, T, schedule, out, a, b).x0, expected, rtol=1e-11, atol=1e-11)


@everywhere
@pytest.mark.parametrize("parameterisation", ROWS)
def test_score_is_the_gradient_of_the_log_density(name, parameterisation):
    schedule, law = SCHEDULES[name], mixture()
    x = torch.randn(6, 2, generator=stream(3), dtype=torch.float64).requires_grad_()
    for t in (0.1, 0.5):
        log_p = law.log_prob(x, schedule.alpha(t), schedule.sigma(t)).sum()
        (expected,) = torch.autograd.grad(log_p, x)
        estimate = Exact(law, Gaussian(schedule), parameterisation)(x.detach(), t)
        torch.testing.assert_close(estimate.score, expected, rtol=1e-8, atol=1e-8)


@everywhere
def test_velocity_is_the_probability_flow(name):
    """dx/dt = f x - g^2/2 score (2011.13456, eq. 13)."""
    q, law = Gaussian(SCHEDULES[name]), mixture()
    x = torch.randn(6, 2, generator=stream(4), dtype=torch.float64)
    estimate = Exact(law, q)(x, 0.4)
    sde = q.sde(0.4)
    torch.testing.assert_close(estimate.velocity, sde.drift(x) - sde.g**2 / 2 * estimate.score, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ROWS)
def test_row_weighting_is_the_plain_error_of_that_row(name):
    """w(t) |x_0 error|^2 = |output error|^2 for the output that the row stands for."""
    schedule = VP()
    x_t = torch.zeros(4, 1, dtype=torch.float64)
    a, b = row(name, schedule, T, 0.6)
    one, zero = (Estimate(x_t, T, schedule, x_t + shift, a, b).x0 for shift in (1.0, 0.0))
    w = weight(name, schedule, T, 0.6, torch.ones_like(T))
    torch.testing.assert_close(w * (one - zero)[:, 0] ** 2, torch.ones_like(T), rtol=1e-10, atol=0)


def test_named_weightings():
    schedule = VP()
    snr = schedule.logsnr(T).exp()
    one = torch.ones_like(T)
    torch.testing.assert_close(weight("eps", schedule, T, 1.0, one), snr)  # simple loss, 2006.11239, eq. 14
    torch.testing.assert_close(weight("v", schedule, T, 1.0, one), snr + 1)
    torch.testing.assert_close(weight("min-snr", schedule, T, 1.0, one), snr.clamp(max=5))
    torch.testing.assert_close(weight("p2", schedule, T, 1.0, one), snr / (1 + snr))
    assert weight("elbo", schedule, T, 1.0, 2 * one).sum() * 2 == pytest.approx(
        float(weight("elbo", schedule, T, 1.0, one).sum())
    )


@pytest.mark.parametrize("law", [Uniform(), LogNormal(), LogNormal(0.3, 2.0)], ids=["uniform", "lognormal", "wide"])
@pytest.mark.parametrize("name", ["vp", "cosine", "flow"])
def test_laws_draw_from_their_density(law, name):
    """The share of draws below each time is the integral of the density; strata make it exact to 1/n."""
    schedule = SCHEDULES[name]
    drawn = law.times(20_000, schedule, 0.6, stream(5)).sort().values
    fine = torch.linspace(1e-4, 0.999, 200_001, dtype=torch.float64)
    mass = torch.cumulative_trapezoid(law.density(fine, schedule, 0.6), fine)
    below = (drawn[:, None] < fine[1::2000]).double().mean(0)
    before = (drawn < fine[0]).double().mean()
    assert (below - before - mass[::2000]).abs().max() < 2e-3


class GaussianNetwork(nn.Module):
    """The perfect EDM network for data N(0, sd^2): its output is 0, whatever the noise."""

    def forward(self, x, level, cond=None):
        return torch.zeros_like(x)


@pytest.mark.parametrize("weighting", [*WEIGHTINGS, *ROWS])
def test_loss_is_the_weighted_minimum_error_on_gaussian_data(weighting):
    """For N(0, sd^2) the error of the perfect estimate is sd^2 sigma^2 / (alpha^2 sd^2 + sigma^2) at every t."""
    sd, schedule = 0.6, VP()
    model = Denoiser(GaussianNetwork(), Gaussian(schedule), weighting=weighting, sigma_data=sd, law=LogNormal())
    rng = stream(6)
    x_0 = sd * torch.randn(4000, 50, generator=rng, dtype=torch.float64)
    got = model.loss(x_0, rng=stream(7))
    t = model.law.times(4000, schedule, sd, stream(7))
    mmse = sd**2 * schedule.var(t) / (schedule.alpha(t) ** 2 * sd**2 + schedule.var(t))
    expected = weight(weighting, schedule, t, sd, model.law.density(t, schedule, sd)) * mmse
    ratio = got / expected  # chi-squared with 50 degrees of freedom over 50: mean 1, deviation 0.2
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * 0.2 / math.sqrt(4000))


def test_measured_mmse_is_the_gaussian_one():
    sd, schedule = 0.6, VP()
    model = Denoiser(GaussianNetwork(), Gaussian(schedule), sigma_data=sd)
    x_0 = sd * torch.randn(500, 400, generator=stream(8))
    assert model(x_0, 0.5).x0_var is None
    model.measure_mmse(x_0, rng=stream(9))
    for t in (0.1, 0.33, 0.8):
        expected = sd**2 * schedule.var(t) / (schedule.alpha(t) ** 2 * sd**2 + schedule.var(t))
        assert float(model(x_0, t).x0_var) == pytest.approx(float(expected), rel=2e-2)


def test_reverse_is_the_posterior_at_the_estimate():
    model = Denoiser(GaussianNetwork(), Gaussian(VP()), sigma_data=1.0)
    x_t = torch.randn(3, 4, generator=stream(10), dtype=torch.float64)
    law = model.reverse(x_t, 0.6, 0.2)
    expected = model.process.posterior(x_t, VP().alpha(0.6) * x_t, 0.6, 0.2)  # E[x_0 | x_t] of N(0, 1)
    torch.testing.assert_close(law.mean, expected.mean)
    torch.testing.assert_close(law.std, expected.std)


def test_network_sees_unit_variance_and_bounded_level():
    seen = {}

    class Spy(nn.Module):
        def forward(self, x, level, cond=None):
            seen.update(std=float(x.std()), level=level, cond=cond)
            return x

    for schedule in SCHEDULES.values():
        model = Denoiser(Spy(), Gaussian(schedule), sigma_data=0.6)
        x_0 = 0.6 * torch.randn(1000, 20, generator=stream(11))
        for t in (0.2, 1.0):
            Given(model, torch.arange(1000))(model.process.marginal(x_0, t).sample(stream(12)), t)
            assert seen["std"] == pytest.approx(1, abs=0.02)
            assert seen["level"].shape == (1000,)
            assert seen["level"].abs().max() <= 2.5
            assert torch.equal(seen["cond"], torch.arange(1000))


def test_bad_denoisers_are_refused_when_built():
    q = Gaussian(VP())
    with pytest.raises(UserError, match="did you mean 'eps'"):
        Denoiser(GaussianNetwork(), q, parameterisation="epss")
    with pytest.raises(UserError, match="did you mean 'min-snr'"):
        Denoiser(GaussianNetwork(), q, weighting="minsnr")
    with pytest.raises(UserError, match="sigma_data"):
        Denoiser(GaussianNetwork(), q, sigma_data=0.0)
    for name in ("eps", "score"):  # PITFALLS: zero terminal SNR with eps gives Inf silently (diffusers #3851)
        with pytest.raises(UserError, match="no signal"):
            Denoiser(GaussianNetwork(), Gaussian(Flow()), parameterisation=name)
    with pytest.raises(UserError, match="std > 0"):
        LogNormal(0.0, 0.0)


@pytest.mark.parametrize("name", ["x0", "v", "flow", "edm"])
def test_flow_can_be_read_where_no_signal_is_left(name):
    estimate = Denoiser(GaussianNetwork(), Gaussian(Flow()), parameterisation=name)(torch.ones(2, 3), 1.0)
    assert estimate.x0.isfinite().all()


def test_gaussian_oracle_is_the_linear_formula():
    """ORACLES 1: D = m + a S / A (x - a m)."""
    law, schedule = gaussian(), Table()
    x = torch.randn(3, 3, generator=stream(13), dtype=torch.float64)
    a, s = schedule.alpha(0.4), schedule.sigma(0.4)
    expected = 0.7 + a * 0.5 / (a**2 * 0.5 + s**2) * (x - a * 0.7)
    torch.testing.assert_close(Exact(law, Gaussian(schedule))(x, 0.4).x0, expected)
