"""Parameterisations and the denoiser, against mixtures whose posterior mean is known."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from oracles import SCHEDULES, At, Exact, gaussian, mixture, tensor
from sfumato.condition import Condition
from sfumato.denoise import Denoiser, Given, learned_step
from sfumato.dist import stream
from sfumato.errors import UserError
from sfumato.process import Gaussian
from sfumato.rows import ROWS, Estimate, row
from sfumato.sampler.ancestral import Ancestral
from sfumato.schedule import VP, Flow, Table
from sfumato.weighting import WEIGHTINGS, LogNormal, weight

everywhere = pytest.mark.parametrize("name", SCHEDULES)
T = tensor([0.03, 0.31, 0.77, 0.9])


def column(coefficient):
    """A row's number, or one for each time of T, as (4, 1)."""
    return tensor(coefficient).expand(4)[:, None]


@everywhere
@pytest.mark.parametrize("source", ROWS)
@pytest.mark.parametrize("target", ROWS)
def test_every_conversion_round_trips(name, source, target):
    schedule = SCHEDULES[name]
    now = schedule.at(T)
    rng = stream(1)
    x0, eps = torch.randn(2, 4, 5, generator=rng, dtype=torch.float64)
    alpha, sigma = schedule.alpha(T)[:, None], schedule.sigma(T)[:, None]
    x_t = alpha * x0 + sigma * eps
    a, b = row(source, schedule, T, 0.6)
    there = Estimate(x_t, now, schedule, column(a) * x0 + column(b) * eps, a, b)
    a, b = row(target, schedule, T, 0.6)
    again = Estimate(x_t, now, schedule, there.read(target, 0.6), a, b)
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
    torch.testing.assert_close(Estimate(x_t, schedule.at(T), schedule, out, a, b).x0, expected, rtol=1e-11, atol=1e-11)


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
            Given(model, Condition(torch.arange(1000)))(model.process.marginal(x_0, t).sample(stream(12)), t)
            assert seen["std"] == pytest.approx(1, abs=0.02)
            assert seen["level"].shape == (1000,)
            assert seen["level"].abs().max() <= 2.5
            assert torch.equal(seen["cond"].label, torch.arange(1000))


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


@pytest.mark.parametrize("name", ["cosine", "ve"])
def test_the_measured_mmse_goes_on_beyond_the_levels_it_was_measured_at(name):
    """Decoders read it at logsnr 13.3, where it is a third of what it is at 12."""
    sd, schedule = 0.6, SCHEDULES[name]
    model = Denoiser(GaussianNetwork(), Gaussian(schedule), sigma_data=sd)
    x_0 = sd * torch.randn(500, 400, generator=stream(14))
    model.measure_mmse(x_0, rng=stream(15))
    expected = 1 / (sd**-2 + math.exp(13.3))
    assert float(model(x_0, float(schedule.time(13.3))).x0_var) == pytest.approx(expected, rel=2e-2)


class Says(nn.Module):
    """The perfect EDM network of N(0, sd^2), with one number v for the variance of the step."""

    def __init__(self, v=0.0):
        super().__init__()
        self.v = nn.Parameter(torch.tensor(v, dtype=torch.float64))

    def forward(self, x, level, cond=None):
        return torch.cat([torch.zeros_like(x), self.v.expand(x.shape)], 1)


@pytest.mark.parametrize("t", [0.0012, 0.004, 0.05, 0.5])
def test_the_learned_variance_becomes_the_optimal_one(t):
    """The KL of (6) is least where the step has the variance of p(x_s | x_t), which Bao et al.'s theorem gives."""
    sd, q = 0.6, Gaussian(VP())
    s = max(t - 0.001, t / 2)
    model = Denoiser(Says(), q, sigma_data=sd, law=At(t), variance="learned")
    x_0 = sd * torch.randn(2000, 100, generator=stream(16), dtype=torch.float64)
    solver = torch.optim.LBFGS(model.parameters(), max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = 1e6 * model.loss(x_0, rng=stream(17)).mean()
        loss.backward()
        return loss

    solver.step(closure)
    estimate = model.requires_grad_(False)(x_0[:2], t)
    left = sd**2 * q.schedule.var(t) / (q.schedule.alpha(t) ** 2 * sd**2 + q.schedule.var(t))
    optimal = Ancestral("optimal").law(model, replace(estimate, variance=lambda _: left), t, s)
    small, large = (Ancestral(name).law(model, estimate, t, s).std for name in ("small", "large"))
    learned = learned_step(q, estimate, t, s)
    assert float(small) < float(learned.std.mean()) < float(large)
    # the error's share of the variance, known to sqrt(2 / 200,000) = 0.0032, half of that in the deviation; 4 of these
    share = 1 - float((small / optimal.std).square().mean())
    torch.testing.assert_close(learned.std, optimal.std.expand(2, 100), rtol=4 * 0.0016 * share, atol=0)
    torch.testing.assert_close(learned.mean, optimal.mean)
    torch.testing.assert_close(Ancestral("learned").law(model, estimate, t, s).std, learned.std)


def test_the_variance_does_not_pull_at_the_mean():
    """The mean is detached (2102.09672, sec. 3.1): the output's gradient is that of the plain loss."""

    def slope(variance):
        network = Says(0.3)
        network.mean = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
        network.forward = lambda x, level, cond=None: torch.cat(
            [network.mean.expand(x.shape)] + [network.v.expand(x.shape)] * (variance == "learned"), 1
        )
        model = Denoiser(network, Gaussian(VP()), sigma_data=0.6, variance=variance)
        model.loss(torch.ones(8, 3, dtype=torch.float64), rng=stream(18)).sum().backward()
        return network.mean.grad, network.v.grad

    (plain, none), (hybrid, some) = slope("fixed"), slope("learned")
    assert none is None
    assert abs(float(some)) > 0
    torch.testing.assert_close(hybrid, plain)


def test_a_learned_step_to_the_data_has_no_noise():
    model = Denoiser(Says(30.0), Gaussian(VP()), sigma_data=0.6, variance="learned")
    step = learned_step(model.process, model(torch.ones(2, 3), 0.1), 0.1, 0.0)
    assert bool((step.std == 0).all())


def test_learned_variance_without_the_channels_is_refused():
    model = Denoiser(GaussianNetwork(), Gaussian(VP()), variance="learned")
    with pytest.raises(UserError, match="6 channels of output"):
        model(torch.ones(2, 3), 0.5)
    fixed = Denoiser(GaussianNetwork(), Gaussian(VP()))
    with pytest.raises(UserError, match="not trained to predict its variance"):
        learned_step(fixed.process, fixed(torch.ones(2, 3), 0.5), 0.5, 0.4)
    with pytest.raises(UserError, match="did you mean 'learned'"):
        Denoiser(GaussianNetwork(), Gaussian(VP()), variance="learnt")


@pytest.mark.parametrize("k", [1, 5, 400, 999])
def test_learned_range_is_that_of_diffusers(k):
    """DDPMScheduler's step k of the chain of 1,000, from (k + 1)/1000 to k/1000, with the same noise."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    x_t, eps = torch.randn(2, 4, 3, 5, 5, generator=stream(19), dtype=torch.float64)
    v = 2 * torch.rand(4, 3, 5, 5, generator=stream(20), dtype=torch.float64) - 1
    theirs = scheduler.step(torch.cat([eps, v], 1), k, x_t, generator=torch.Generator().manual_seed(0)).prev_sample
    q = Gaussian(Table())
    t, s = (k + 1) / 1000, k / 1000
    now = q.schedule.at(t)
    estimate = Estimate(x_t, now, q.schedule, eps, 0.0, 1.0, fraction=(v + 1) / 2)
    ours = learned_step(q, estimate, t, s).sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
