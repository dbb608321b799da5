"""Samplers against exact laws: declared order against measured, exact chains, determinism, refusals."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad, solve_ivp

from oracles import SCHEDULES, EmpiricalNetwork, Exact, flow_map, gaussian, mixture, observed_order, tensor
from sfumato.denoise import Denoiser
from sfumato.dist import randn_like, stream
from sfumato.errors import UserError
from sfumato.process import Gaussian
from sfumato.sampler import DDIM, SAMPLERS, Adams, Adaptive, Ancestral, encode, generate, sampler, trajectory
from sfumato.sampler.weights import lam
from sfumato.schedule import EDM, VP

NAMES = [
    name
    for name, make in SAMPLERS.items()
    if name not in ("ancestral-learned", "unmask", "unmask-confidence") and "mean" in make().takes
]
"""Those that take any Gaussian model of the mean."""
DETERMINISTIC = [name for name in NAMES if not sampler(name).stochastic]
STEPS = [40, 80, 160, 320, 640]


def falling(schedule, n, high=1.0, low=0.02):
    """Times equally spaced in logsnr between two noise levels sigma/alpha > 0."""
    r = torch.logspace(math.log10(high), math.log10(low), n + 1, dtype=torch.float64)
    return schedule.time(-2 * r.log())


def solve(law, x, high=1.0, low=0.02):
    """The probability-flow ODE dy/dr = eps(y, r) of an exact law, by scipy's DOP853; y = x/alpha."""

    def eps(r, y):
        r = tensor(r)
        y = tensor(y).reshape(x.shape)
        return ((y - law.posterior(y, tensor(1.0), r)[0]) / r).flatten().numpy()

    end = solve_ivp(eps, (high, low), x.flatten().numpy(), method="DOP853", rtol=1e-12, atol=1e-12)
    return tensor(end.y[:, -1]).reshape(x.shape)


@pytest.fixture(scope="module")
def path():
    """ORACLES 5, from r = 1 on, in the thick of it: from higher the error of a cheap first step would hide long."""
    start = mixture().sample(16, stream(0)) + torch.randn(16, 2, generator=stream(0, 1), dtype=torch.float64)
    return start, solve(mixture(), start)


def measured_order(method, schedule, path):
    start, end = path
    model = Exact(mixture(), Gaussian(schedule))
    steps, errors = STEPS if method.order < 5 else [16, 24, 32, 48, 64], []
    for n in steps:
        stops = falling(schedule, n)
        x = generate(model, method, schedule.alpha(stops[0]) * start, stops)
        errors.append(float((x / schedule.alpha(stops[-1]) - end).square().mean().sqrt()))
    return observed_order(steps[1:], errors[1:])


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("schedule", ["edm", "vp", "flow", "table"])
def test_measured_order_is_the_declared_one(name, schedule, path):
    method = Adaptive(rtol=1e9, atol=1e9) if name == "adaptive" else sampler(name)  # one step from stop to stop
    assert measured_order(method, SCHEDULES[schedule], path) == pytest.approx(method.order, abs=0.2)


class Broken(Adams):
    """2M with the weight of its past doubled: the kind of slip that still makes good pictures."""

    def weights(self, nodes, now, then):
        whole = super().weights(nodes, now, then)
        return whole if len(nodes) == 1 else (whole[0] - whole[1], 2 * whole[1])


def test_a_sampler_below_its_declared_order_is_caught(path):
    order = measured_order(Broken(), SCHEDULES["edm"], path)
    assert order < Broken().order - 0.2


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


def test_steps_on_gaussians_are_known_factors():
    """ORACLES 1: Euler and Heun multiply a deviation of variance l by a known factor in each step, to rounding."""
    var = 0.5
    model = Exact(gaussian(mean=0.0, var=var, dim=1), Gaussian(EDM()))
    stops = falling(EDM(), 20, high=20.0)
    euler, heun = 1.0, 1.0
    for now, then in pairwise(EDM().sigma(stops).tolist()):
        h, k0, k1 = then - now, now / (var + now**2), then / (var + then**2)
        euler *= 1 + h * k0
        heun *= 1 + h / 2 * (k0 + k1 * (1 + h * k0))
    x = tensor([[3.0], [-1.0]])
    torch.testing.assert_close(generate(model, sampler("euler"), x, stops), euler * x, rtol=1e-12, atol=0)
    torch.testing.assert_close(generate(model, sampler("heun"), x, stops), heun * x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_an_empirical_law_is_drawn_point_by_point(name):
    """ORACLES 8: the perfect model of five points leads every sampler to one of them."""
    points = torch.randn(5, 2, generator=stream(19), dtype=torch.float64)
    model = Denoiser(EmpiricalNetwork(points), Gaussian(VP()), sigma_data=1.0).double()
    x = torch.randn(20, 2, generator=stream(20), dtype=torch.float64)
    end = generate(model, sampler(name), x, "logsnr", 100)
    assert torch.cdist(end, points).min(1).values.max() < 1e-2


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


def test_network_calls_are_counted():
    model = Exact(mixture(), Gaussian(VP()))
    x = torch.zeros(1, 2, dtype=torch.float64)
    assert [s.nfe for s in trajectory(model, sampler("dpm++2m"), x, "logsnr", 5)] == [0, 1, 2, 3, 4, 5]
    assert [s.nfe for s in trajectory(model, sampler("heun"), x, "logsnr", 5)] == [0, 2, 4, 6, 8, 9]


@pytest.mark.parametrize("name", NAMES)
def test_declared_calls_are_made(name):
    """Every step but the first and the last, which may be cheaper."""
    method, model = sampler(name), Exact(mixture(), Gaussian(VP()))
    states = list(trajectory(model, method, torch.zeros(3, 2, dtype=torch.float64), "logsnr", 40, stream(1)))
    made = {b.nfe - a.nfe for a, b in pairwise(states[1:-1])}
    if name == "adaptive":
        assert min(made) == 1 + method.calls + 1  # the state's own estimate, and the slope to start with
    else:
        assert made == ({0, method.calls} if name == "restart" else {method.calls})


def test_the_last_step_lands_on_the_estimate():
    """PITFALLS (diffusers #5689): no noise is left, and the network is asked at the last stop above 0."""
    model = Exact(mixture(), Gaussian(VP()))
    x = torch.randn(4, 2, generator=stream(10), dtype=torch.float64)
    for name in NAMES:
        if sampler(name).stochastic and name not in ("ancestral", "reverse-diffusion", "dpm++2m-sde", "langevin"):
            continue  # churned: the estimate is made at a noisier state; optimal: draws x_0 itself
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
    with pytest.raises(UserError, match=r"did you mean 'dpm\+\+"):
        sampler("dpm++mm")
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
    with pytest.raises(UserError, match="variance 'huge'"):
        Ancestral("huge")
    with pytest.raises(UserError, match="after step 0"):
        generate(model, DDIM(), x * float("nan"), "karras")


def test_optimal_variance_needs_a_measured_one():
    model = Denoiser(torch.nn.Identity(), Gaussian(VP()))
    model.network.forward = lambda x, level, cond=None: x
    with pytest.raises(UserError, match="measure_mmse"):
        generate(model, Ancestral("optimal"), randn_like(torch.zeros(2, 2), stream(0)), "logsnr", 3, stream(1))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_encode_is_the_way_forth(name, path):
    """From data to noise and back, with an error of the sampler's order (ORACLES 9)."""
    _, data = path
    method, model, errors = sampler(name), Exact(mixture(), Gaussian(VP())), []
    steps = [20, 40, 80, 160]
    for n in steps:
        stops = falling(VP(), n)
        x = VP().alpha(stops[-1]) * data
        back = generate(model, method, encode(model, method, x, stops), stops)
        errors.append(float((back - x).square().mean().sqrt()))
    if name == "adaptive":  # its error is set by its tolerance
        assert max(errors) < 1e-3
    else:
        assert observed_order(steps[1:], errors[1:]) > method.order - 0.25  # errors may cancel: then it is higher


def test_encode_finds_the_noise(path):
    """The noise that a sample was drawn from, by ten thousand small steps; the last one, to t = 0, is undone too."""
    model = Exact(gaussian(), Gaussian(VP()))
    x = torch.randn(4, 3, generator=stream(13), dtype=torch.float64)
    data = generate(model, DDIM(), x, "logsnr", 2000)
    torch.testing.assert_close(encode(model, DDIM(), data, "logsnr", 2000), x, rtol=0, atol=0.01)
    with pytest.raises(UserError, match="no way forth"):
        encode(model, Ancestral(), x)


@pytest.mark.parametrize("name", ["ddim", "heun", "unipc2"])
def test_corrections_leave_about_the_square_of_the_error_of_the_way_forth(name):
    model, method = Exact(mixture(), Gaussian(VP())), sampler(name)
    data = mixture().sample(64, stream(16))

    def missed(corrections):
        noise = encode(model, method, data, "logsnr", 40, corrections)
        return float((generate(model, method, noise, "logsnr", 40) - data).abs().mean())

    first, second, third = map(missed, range(3))
    assert second < 0.3 * first and third < 0.3 * second


def test_start_errors_stay_where_they_are_declared(path):
    """PITFALLS: a 3rd-order formula after an Euler step is a 2nd-order method; one corrected step mends it."""
    schedule = SCHEDULES["edm"]
    assert measured_order(Adams(3), schedule, path) == pytest.approx(2, abs=0.2)
    assert measured_order(Adams(3, 1), schedule, path) == pytest.approx(3, abs=0.2)


def test_multistep_weights_are_moments():
    """The weights integrate every polynomial of their degree exactly: against scipy's quadrature."""
    now, then = EDM().at(0.01), EDM().at(0.004)
    lams = [lam(now), lam(now) - 0.3, lam(now) - 0.8]
    for method in (Adams(3), Adams(3, tau=0.6), Adams(3, of="eps"), Adams(3, of="eps", along="linear")):
        got = method.weights(lams, now, then)
        places = [method._along(node) for node in lams]
        for power in range(3):

            def slope(u, method=method, power=power):
                """d x_s of equations (1) and (2) in lambda."""
                value = method._along(u) ** power
                if method.of == "eps":
                    return -then.alpha * math.exp(-u) * value
                m = 1 + method.tau**2
                return m * then.alpha * math.exp(-m * (lam(then) - u)) * value

            expected = quad(slope, lam(now), lam(then), epsabs=1e-14)[0]
            assert sum(w * p**power for w, p in zip(got, places, strict=True)) == pytest.approx(expected, abs=1e-12)


def test_an_example_does_not_depend_on_its_neighbours():
    """PITFALLS: adaptive solvers and Langevin correctors that take one norm over the batch."""
    model = Exact(mixture(), Gaussian(VP()))
    x = torch.randn(5, 2, generator=stream(14), dtype=torch.float64) * tensor([1, 1, 3, 1, 9])[:, None]
    for name in NAMES:
        draw = {i: generate(model, sampler(name), x[i : i + 1], "logsnr", 40, [stream(15, i)]) for i in (1, 3)}
        together = generate(model, sampler(name), x, "logsnr", 40, [stream(15, i) for i in range(5)])
        for i, alone in draw.items():
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-10, atol=1e-10)
