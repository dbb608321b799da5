"""Samplers against exact laws: declared order against measured, exact chains, determinism, refusals."""

from itertools import pairwise

import pytest
import torch
from scipy.integrate import solve_ivp

from oracles import SCHEDULES, Exact, flow_map, gaussian, mixture, observed_order, tensor
from sfumato.dist import Normal, randn_like, stream
from sfumato.errors import UserError
from sfumato.grid import GRIDS, times
from sfumato.process import Gaussian
from sfumato.sampler import DDIM, SAMPLERS, Ancestral, generate, sampler, trajectory
from sfumato.schedule import EDM, VP

DETERMINISTIC = [name for name in SAMPLERS if not sampler(name).stochastic]
STEPS = [40, 80, 160, 320, 640]


def falling(schedule, n, high=20.0, low=0.02):
    """Times equally spaced in logsnr between two noise levels sigma/alpha > 0."""
    r = torch.logspace(torch.tensor(high).log10(), torch.tensor(low).log10(), n + 1, dtype=torch.float64)
    return schedule.time(-2 * r.log())


def solve(law, x, high=20.0, low=0.02):
    """The probability-flow ODE dy/dr = eps(y, r) of an exact law, by scipy's DOP853; y = x/alpha."""

    def eps(r, y):
        r = tensor(r)
        y = tensor(y).reshape(x.shape)
        return ((y - law.posterior(y, tensor(1.0), r)[0]) / r).flatten().numpy()

    end = solve_ivp(eps, (high, low), x.flatten().numpy(), method="DOP853", rtol=1e-12, atol=1e-12)
    return tensor(end.y[:, -1]).reshape(x.shape)


@pytest.fixture(scope="module")
def path():
    start = 20 * torch.randn(16, 2, generator=stream(0), dtype=torch.float64)
    return start, solve(mixture(), start)


def measured_order(method, schedule, path):
    start, end = path
    model = Exact(mixture(), Gaussian(schedule))
    errors = []
    for n in STEPS:
        stops = falling(schedule, n)
        x = generate(model, method, schedule.alpha(stops[0]) * start, stops)
        errors.append(float((x / schedule.alpha(stops[-1]) - end).square().mean().sqrt()))
    return observed_order(STEPS[1:], errors[1:])


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("schedule", ["edm", "vp", "flow", "table"])
def test_measured_order_is_the_declared_one(name, schedule, path):
    method = sampler(name)
    assert measured_order(method, SCHEDULES[schedule], path) == pytest.approx(method.order, abs=0.15)


class Broken(type(sampler("dpm++2m"))):
    """2M with h/h_prev where h/(2 h_prev) belongs: the kind of slip that still makes good pictures."""

    def step(self, model, x, t, s, memory, rng):
        if memory is not None:
            before, past = memory
            now = model.process.schedule.logsnr(t)
            memory = (before, now - (now - past) / 2)
        return super().step(model, x, t, s, memory, rng)


def test_a_sampler_below_its_declared_order_is_caught(path):
    order = measured_order(Broken(), SCHEDULES["edm"], path)
    assert order < Broken.order - 0.15


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gaussian_flow_map(name, schedule):
    """The ODE of a Gaussian has a closed solution (ORACLES 1): 200 steps come near it, from t = 1 down to data."""
    schedule, law = SCHEDULES[schedule], gaussian()
    x = float(schedule.sigma(1.0)) * torch.randn(8, 3, generator=stream(1), dtype=torch.float64)
    stops = falling(schedule, 200, high=min(80.0, float((-schedule.logsnr(1.0) / 2).exp())))
    stops = torch.cat([tensor([1.0]), stops[1:], tensor([0.0])])
    got = generate(Exact(law, Gaussian(schedule)), sampler(name), x, stops)
    expected = flow_map(law, schedule, x, tensor(1.0), tensor(0.0))
    tolerance = 0.05 if sampler(name).order == 1 else 2e-3
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def test_ddim_is_euler_in_sigma(path):
    """DDIM = Euler's method for dy/dr = eps (2010.02502, eq. 14), to rounding."""
    start, _ = path
    model = Exact(mixture(), Gaussian(EDM()))
    stops = falling(EDM(), 30)
    y = start
    for t, s in pairwise(stops):
        y = y + (EDM().sigma(s) - EDM().sigma(t)) * model(y, t).eps
    torch.testing.assert_close(generate(model, DDIM(), start, stops), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_do_not_depend_on_the_schedule(name):
    """One ODE in y = x/alpha: VP, VE, flow and the others are the same path on the same noise levels."""
    start = 20 * torch.randn(5, 2, generator=stream(2), dtype=torch.float64)
    ends = []
    for schedule in SCHEDULES.values():
        stops = falling(schedule, 25)
        x = generate(Exact(mixture(), Gaussian(schedule)), sampler(name), schedule.alpha(stops[0]) * start, stops)
        ends.append(x / schedule.alpha(stops[-1]))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-8, atol=1e-8)


def gaussian_chain(method, schedule, stops, law):
    """Push N(m, S) at the first time through a stochastic sampler's steps, exactly: they are linear in x."""
    model = Exact(law, Gaussian(schedule))
    mean, var = law.means[0], law.variances[0]
    t = stops[0]
    state = Normal(schedule.alpha(t) * mean, (schedule.alpha(t) ** 2 * var + schedule.var(t)).sqrt())
    for t, s in pairwise(stops):
        at_mean = method.law(model, model(state.mean[None], t), t, s)
        aside = method.law(model, model(state.mean[None] + 1, t), t, s)
        gain = (aside.mean - at_mean.mean)[0]
        state = Normal(at_mean.mean[0], (gain**2 * state.std**2 + at_mean.std**2).sqrt().reshape(-1))
    return state


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ancestral_with_optimal_variance_is_exact_on_gaussians(schedule):
    """ORACLES 2: whatever the number of steps, here 10, down to t = 0."""
    schedule, law = SCHEDULES[schedule], gaussian()
    state = gaussian_chain(Ancestral("optimal"), schedule, times("uniform", 10, schedule), law)
    torch.testing.assert_close(state.mean, law.means[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(state.std**2, law.variances[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("variance", "sign"), [("small", -1), ("large", 1)])
def test_fixed_variances_err_on_their_side_and_at_first_order(variance, sign):
    """Too little and too much noise; the error of the law's variance falls like 1/T (weak order 1)."""
    law, errors = gaussian(), []
    for steps in (250, 500, 1000, 2000):
        state = gaussian_chain(Ancestral(variance), VP(), falling(VP(), steps), law)
        a, s = VP().alpha(falling(VP(), steps)[-1]), VP().sigma(falling(VP(), steps)[-1])
        errors.append(float((state.std**2 - a**2 * law.variances[0] - s**2).mean()))
    assert all(error * sign > 0 for error in errors)
    assert observed_order([250, 500, 1000, 2000], [abs(e) for e in errors]) == pytest.approx(1, abs=0.15)


def test_ancestral_small_is_ddim_with_eta_one():
    x = torch.randn(4, 2, generator=stream(3), dtype=torch.float64)
    model = Exact(mixture(), Gaussian(VP()))
    ends = [generate(model, m, x, "uniform", 20, stream(4)) for m in (Ancestral(), DDIM(1.0))]
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("name", ["ancestral-optimal", "ancestral", "ancestral-large"])
def test_stochastic_samplers_draw_from_the_mixture(name):
    """Mean and covariance of 20,000 draws after 300 steps, within 5 standard errors and the known bias."""
    law, schedule = mixture(), VP()
    x = torch.randn(20_000, 2, generator=stream(5), dtype=torch.float64)
    got = generate(Exact(law, Gaussian(schedule)), sampler(name), x, "karras", 300, stream(6))
    true = law.sample(2_000_000, stream(7))
    assert ((got.mean(0) - true.mean(0)).abs() < 5 * true.std(0) / 20_000**0.5).all()
    assert (got.T.cov() - true.T.cov()).abs().max() < 0.03


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_combination_lands_near_the_data(name, grid, schedule):
    """30 steps of anything put the samples of three far modes within reach of a mode."""
    schedule = SCHEDULES[schedule]
    model = Exact(mixture(), Gaussian(schedule))
    x = model.process.prior(torch.zeros(64, 2, dtype=torch.float64)).sample(stream(8))
    states = list(trajectory(model, sampler(name), x, grid, 30, stream(9)))
    assert [s.k for s in states] == list(range(31))
    assert states[-1].t == 0
    distance = (states[-1].x[:, None] - mixture().means).norm(dim=-1).min(1).values
    assert distance.max() < 2.5  # modes are within 0.45 of standard deviation


def test_network_calls_are_counted():
    model = Exact(mixture(), Gaussian(VP()))
    x = torch.zeros(1, 2, dtype=torch.float64)
    assert [s.nfe for s in trajectory(model, sampler("dpm++2m"), x, "logsnr", 5)] == [0, 1, 2, 3, 4, 5]
    assert [s.nfe for s in trajectory(model, sampler("heun"), x, "logsnr", 5)] == [0, 2, 4, 6, 8, 9]


def test_the_last_step_lands_on_the_estimate():
    """PITFALLS (diffusers #5689): no noise is left, and the network is asked at the last stop above 0."""
    model = Exact(mixture(), Gaussian(VP()))
    x = torch.randn(4, 2, generator=stream(10), dtype=torch.float64)
    for name in ("ddim", "heun", "dpm++2m", "ancestral"):
        *_, before, last = trajectory(model, sampler(name), x, "karras", 8, stream(11))
        torch.testing.assert_close(last.x, model(before.x, before.t).x0, rtol=1e-12, atol=1e-12)


def test_a_samples_noise_is_its_own():
    """Sample i of a batch of 5 is the sample drawn alone with the same generator."""
    model = Exact(mixture(), Gaussian(VP()))

    def draw(indices):
        x = torch.zeros(len(indices), 2, dtype=torch.float64)
        rng = [stream(12, i) for i in indices]
        return generate(model, Ancestral(), model.process.prior(x).sample(rng), "logsnr", 10, rng)

    torch.testing.assert_close(draw(range(5))[3:4], draw([3]), rtol=1e-12, atol=1e-12)


def test_bad_requests_are_refused():
    model = Exact(mixture(), Gaussian(VP()))
    x = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(UserError, match=r"did you mean 'dpm\+\+2m'"):
        sampler("dpm2m")
    with pytest.raises(UserError, match="did you mean 'karras'"):
        generate(model, DDIM(), x, "karas")
    with pytest.raises(UserError, match="at least 1"):
        generate(model, DDIM(), x, "karras", 0)
    with pytest.raises(UserError, match="at most 1000"):
        generate(model, DDIM(), x, "trailing", 1001)
    for bad in ([0.5], [0.2, 0.5], [0.5, 0.5], [1.2, 0.0], [1.0, -0.1]):
        with pytest.raises(UserError, match="falls strictly"):
            generate(model, DDIM(), x, bad)
    with pytest.raises(UserError, match="eta"):
        DDIM(1.5)
    with pytest.raises(UserError, match="small, large or optimal"):
        Ancestral("huge")
    with pytest.raises(UserError, match="after step 0"):
        generate(model, DDIM(), x * float("nan"), "karras")


def test_optimal_variance_needs_a_measured_one():
    from sfumato.denoise import Denoiser

    model = Denoiser(torch.nn.Identity(), Gaussian(VP()))
    model.network.forward = lambda x, level, cond=None: x
    with pytest.raises(UserError, match="measure_mmse"):
        generate(model, Ancestral("optimal"), randn_like(torch.zeros(2, 2), stream(0)), "logsnr", 3, stream(1))
