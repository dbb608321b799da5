"""Laws of noise levels and weightings: densities that integrate to 1, and minima where theory puts them."""

import math

import pytest
import torch
from torch import nn

from oracles import SCHEDULES, At, tensor
from sfumato.denoise import Denoiser
from sfumato.dist import stream
from sfumato.errors import UserError
from sfumato.process import Gaussian
from sfumato.rows import ROWS, Estimate, row
from sfumato.schedule import VP, Cosine
from sfumato.weighting import WEIGHTINGS, Likelihood, LogNormal, Uncertainty, Uniform, weight

T = tensor([0.03, 0.31, 0.77, 0.9])
LAWS = [Uniform(), LogNormal(), LogNormal(0.3, 2.0), Likelihood()]


@pytest.mark.parametrize("name", ROWS)
def test_row_weighting_is_the_plain_error_of_that_row(name):
    """w(t) |x_0 error|^2 = |output error|^2 for the output that the row stands for."""
    schedule = VP()
    x_t = torch.zeros(4, 1, dtype=torch.float64)
    a, b = row(name, schedule, T, 0.6)
    one, zero = (Estimate(x_t, schedule.at(T), schedule, x_t + shift, a, b).x0 for shift in (1.0, 0.0))
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


@pytest.mark.parametrize("law", LAWS, ids=["uniform", "lognormal", "wide", "likelihood"])
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


@pytest.mark.parametrize("sd", [0.3, 1.5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_likelihood_law_looks_at_every_level(name, sd):
    """Its density integrates to 1, and no unit of logsnr up to the decoders' noise is left out (RECIPES, section 3)."""
    schedule, law = SCHEDULES[name], Likelihood()
    end = max(float(schedule.logsnr(1.0)), -40.0)
    t = schedule.time(torch.linspace(law.clean, end, 200_001, dtype=torch.float64)).clamp(max=1.0)
    assert float(torch.trapezoid(law.density(t, schedule, sd), t)) == pytest.approx(1, abs=1e-5)
    drawn = schedule.logsnr(law.times(100_000, schedule, sd, stream(1)))
    bands = torch.histc(drawn, 20, min=max(end, -10.0), max=law.clean) / 100_000
    assert float(bands.min()) > 0.9 * law.floor / 20
    assert float(drawn.max()) <= law.clean
    assert float(law.density(schedule.time(law.clean + 0.1), schedule, sd)) == 0


class Constant(nn.Module):
    """A network that always says the same; 0 is perfect for the EDM row on data N(0, sd^2)."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value = value

    def forward(self, x, level, cond=None):
        return torch.full_like(x, self.value)


@pytest.mark.parametrize("name", ["cosine", "vp", "flow"])
def test_the_likelihood_law_estimates_the_bound_with_little_variance(name):
    """For N(0, sd^2) the diffusion term is 1/2 int snr mmse dl = 1/2 [softplus(l + 2 log sd)], per dimension."""
    schedule, sd, law = SCHEDULES[name], 0.6, Likelihood()
    model = Denoiser(Constant(), Gaussian(schedule), weighting="elbo", sigma_data=sd, law=law)
    x_0 = sd * torch.randn(4000, 50, generator=stream(2), dtype=torch.float64)
    got = model.loss(x_0, rng=stream(3))
    ends = tensor([float(schedule.logsnr(1.0)), law.clean]) + 2 * math.log(sd)
    expected = float(torch.nn.functional.softplus(ends).diff()) / 2
    assert float(got.mean()) == pytest.approx(expected, rel=0.01)
    assert float(got.std()) < 0.35 * expected  # of which 0.2 is the noise of 50 dimensions
    model.law = LogNormal()
    assert float(model.loss(x_0, rng=stream(3)).std()) > expected


@pytest.mark.parametrize("weighting", [*WEIGHTINGS, *ROWS, "learned"])
@pytest.mark.parametrize("parameterisation", ROWS)
def test_every_loss_is_least_at_the_mean_of_the_target(parameterisation, weighting):
    """w (sigma/D)^2 E|a x_0 + b eps - c|^2 is a parabola in c: its vertex is a mean(x_0), its bend the weight."""
    schedule, sd, t, mean = VP(), 0.6, 0.1, 0.7
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    snr = (alpha / sigma) ** 2
    assert snr > 5  # so that min-snr bites
    model = Denoiser(
        Constant(),
        Gaussian(schedule),
        parameterisation=parameterisation,
        weighting=weighting,
        sigma_data=sd,
        law=At(t),
    )
    x_0 = mean + sd * torch.randn(2000, 50, generator=stream(4), dtype=torch.float64)
    losses = []
    for model.network.value in (-1.0, 0.0, 1.0):
        losses.append(model.loss(x_0, rng=stream(5)).mean().item())
    bend, tilt = (losses[0] + losses[2]) / 2 - losses[1], (losses[2] - losses[0]) / 2
    a, b = map(float, row(parameterisation, schedule, t, sd))
    noise = math.hypot(a * sd, b) / math.sqrt(x_0.numel())
    assert -tilt / (2 * bend) == pytest.approx(a * mean, abs=5 * noise)
    own = {"x0": 1.0, "eps": snr, "score": snr / sigma**2, "v": snr + 1, "edm": snr + 1 / sd**2}
    own["flow"] = float(weight("flow", schedule, tensor([t]), sd, tensor([1.0])))
    fall = float(schedule.g2(t) / schedule.var(t))
    elbo = snr * fall / 2
    sigmoid = elbo / (1 + snr * math.exp(-2))
    table = own | {"elbo": elbo, "sigmoid": sigmoid, "min-snr": 5.0, "p2": snr / (1 + snr)}
    expected = 1.0 if weighting == "learned" else table[weighting] / own[parameterisation]
    assert bend == pytest.approx(expected, rel=1e-9)


def test_min_snr_of_v_is_the_weight_that_took_five_mends():
    """PITFALLS: min(snr, 5) / (snr + 1) on the error of v (diffusers #5096, #5238, #5654, #6307)."""
    snr = VP().logsnr(T).exp()
    one = torch.ones_like(T)
    ratio = weight("min-snr", VP(), T, 1.0, one) / weight("v", VP(), T, 1.0, one)
    torch.testing.assert_close(ratio, snr.clamp(max=5) / (snr + 1))


def test_learned_uncertainty_becomes_the_error_of_each_level():
    """A network for sd = 1 on data of deviation 0.3 errs by (0.09 r^2 + 1) / (1 + r^2), in the EDM row's measure."""
    model = Denoiser(Constant(), Gaussian(Cosine()), weighting="learned", sigma_data=1.0, law=Uniform())
    x_0 = 0.3 * torch.randn(4000, 50, generator=stream(6), dtype=torch.float64)
    model.double()
    solver = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = model.loss(x_0, rng=stream(7)).mean()
        loss.backward()
        return loss

    solver.step(closure)
    logsnr = torch.linspace(-6, 6, 13, dtype=torch.float64)
    r2 = (-logsnr).exp()
    with torch.no_grad():
        u = model.uncertainty(logsnr)
        loss = model.loss(x_0, rng=stream(7))
        t = model.law.times(4000, Cosine(), 1.0, stream(7))
        assert float((loss - model.uncertainty(Cosine().logsnr(t))).mean()) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(u, ((0.09 * r2 + 1) / (1 + r2)).log(), rtol=0, atol=0.08)


def test_uncertainty_is_linear_between_its_numbers_and_constant_outside():
    u = Uncertainty(low=-1.0, high=1.0, count=3)
    with torch.no_grad():
        u.knots.copy_(torch.tensor([1.0, 3.0, 2.0]) / Uncertainty.GAIN)
    got = u(tensor([-math.inf, -1.0, -0.5, 0.0, 0.25, 1.0, 9.0]))
    torch.testing.assert_close(got, torch.tensor([1.0, 1.0, 2.0, 3.0, 2.75, 2.0, 2.0]))


@pytest.mark.parametrize("wrong", [{"floor": 0.0}, {"floor": 1.0}, {"noisy": 14.0}])
def test_impossible_laws_are_refused(wrong):
    with pytest.raises(UserError, match="Likelihood needs"):
        Likelihood(**wrong)
