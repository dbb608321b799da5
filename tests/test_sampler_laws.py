"""What samplers draw: the exact law of every one on Gaussian data, and draws from a mixture."""

import pytest
import torch

from laws import output_law
from oracles import SCHEDULES, Exact, gaussian, mixture, observed_order
from sfumato.dist import stream
from sfumato.errors import UserError
from sfumato.grid import GRIDS, times
from sfumato.process import Gaussian
from sfumato.rows import ROWS
from sfumato.sampler import Ancestral, PredictorCorrector, generate, langevin, sampler
from sfumato.schedule import VP
from test_sampler import NAMES, falling

STOCHASTIC = [name for name in NAMES if sampler(name).stochastic]
LAW = gaussian(mean=0.7, var=0.5, dim=1)


def deviations(monkeypatch, method, schedule, stops):
    """(error of the mean in standard deviations, relative error of the variance) at every stop."""
    stops = torch.as_tensor(stops, dtype=torch.float64)
    alpha, var = schedule.alpha(stops), schedule.var(stops)
    known = 0.0 if stops[0] == 1 else alpha[0]  # the prior has forgotten the data
    start = float(known * 0.7), float(known**2 * 0.5 + var[0])
    out = []
    for t, (mean, variance) in output_law(monkeypatch, Exact(LAW, Gaussian(schedule)), method, stops, start):
        a, true = schedule.alpha(t), schedule.alpha(t) ** 2 * 0.5 + schedule.var(t)
        out.append((float((mean - a * 0.7) / true.sqrt()), float(variance / true - 1)))
    return out


@pytest.mark.parametrize("name", STOCHASTIC)
def test_weak_order_is_the_declared_one(name, monkeypatch):
    """The law's error falls as declared, without any sampling noise; and at every stop on the way it is small."""
    method, errors, steps = sampler(name), [], [50, 100, 200]
    for n in steps:
        way = deviations(monkeypatch, method, VP(), falling(VP(), n, high=20.0))
        errors.append(sum(abs(e) for e in way[-1]))
    assert max(abs(mean) for mean, _ in way) < 0.03
    assert max(abs(var) for _, var in way) < 0.15
    if name == "ancestral-optimal":
        assert errors[-1] < 1e-7
    else:
        assert observed_order(steps[-2:], errors[-2:]) == pytest.approx(method.order, abs=0.2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ancestral_with_optimal_variance_is_exact_on_gaussians(schedule, monkeypatch):
    """ORACLES 2: whatever the number of steps, here 10, down to t = 0."""
    schedule = SCHEDULES[schedule]
    stops = times("uniform", 10, schedule)
    stops[0] = min(0.999, float(schedule.time(-6.0)))  # from the true law there: the prior differs from it
    for mean, var in deviations(monkeypatch, Ancestral("optimal"), schedule, stops[stops <= stops[0]]):
        assert abs(mean) < 1e-10
        assert abs(var) < 1e-10


@pytest.mark.parametrize(("variance", "sign"), [("small", -1), ("large", 1)])
def test_fixed_variances_err_on_their_side(variance, sign, monkeypatch):
    """ORACLES 2: with T = 10 steps the posterior's variance draws too little, the forward step's too much."""
    _, error = deviations(monkeypatch, Ancestral(variance), VP(), falling(VP(), 10, high=20.0))[-1]
    assert error * sign > 0.05


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_combination_is_right_or_refused(name, schedule, monkeypatch):
    """40 steps of any sampler on any schedule and grid draw N(0.7, 0.5) nearly, or are refused before the first."""
    method, schedule = sampler(name), SCHEDULES[schedule]
    for grid in GRIDS:
        stops = times(grid, 40, schedule)
        try:
            mean, var = deviations(monkeypatch, method, schedule, stops)[-1]
        except UserError as error:
            assert name in ("euler-maruyama", "restart"), error
            continue
        coarse = grid in ("uniform", "trailing") and float((-schedule.logsnr(stops[-2]) / 2).exp()) > 0.1
        assert abs(mean) < (0.3 if coarse else 0.1), grid
        assert abs(var) < (0.95 if coarse else 0.45), grid


@pytest.mark.parametrize("name", NAMES)
def test_the_parameterisation_makes_no_difference(name):
    """The exact model read in any row gives the same samples, on every schedule on which it can be read."""
    for key, schedule in SCHEDULES.items():
        x = float(schedule.sigma(1.0)) * torch.randn(3, 2, generator=stream(16), dtype=torch.float64)
        stops = times("logsnr", 30, schedule)
        rows = [row for row in ROWS if not (key == "flow" and row in ("eps", "score"))]
        try:
            drawn = [
                generate(Exact(mixture(), Gaussian(schedule), row), sampler(name), x, stops, rng=stream(17))
                for row in rows
            ]
        except UserError as error:
            assert name == "euler-maruyama", error
            continue
        for other in drawn[1:]:
            torch.testing.assert_close(other, drawn[0], rtol=1e-6, atol=1e-6)


def draws(name, n, steps):
    """Errors of mean and covariance in standard errors; in batches that stay in the cache, three times as fast."""
    method, law, parts = sampler(name), mixture(), []
    for batch in range(n // 5_000):
        x = torch.randn(5_000, 2, generator=stream(5, batch), dtype=torch.float64)
        parts.append(generate(Exact(law, Gaussian(VP())), method, x, "logsnr", steps, stream(6, batch)))
    got = torch.cat(parts)
    mean = (law.weights[:, None] * law.means).sum(0)
    spread = law.means - mean
    cov = torch.diag((law.weights[:, None] * law.variances).sum(0)) + (law.weights * spread.T) @ spread
    centred = got - mean
    products = centred[:, :, None] * centred[:, None, :]
    se_mean, se_cov = got.std(0) / n**0.5, products.std(0) / n**0.5
    return (got.mean(0) - mean) / se_mean, (products.mean(0) - cov) / se_cov


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_draw_from_the_mixture(name):
    """Mean and covariance of 5,000 draws within 4 standard errors of the truth."""
    mean, cov = draws(name, 5_000, 80 if sampler(name).order > 1 else 200)
    assert mean.abs().max() < 4
    assert cov.abs().max() < 4


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_draw_from_the_mixture_200k(name):
    """The same with 200,000 draws, from which a bias of half a percent shows."""
    mean, cov = draws(name, 200_000, 200 if sampler(name).order > 1 else 1600)
    assert mean.abs().max() < 4
    assert cov.abs().max() < 4


def test_langevin_from_the_score_alone():
    """N(1, 0.5^2) from its score: the law of 20,000 chains, whose known bias is delta/(2 var - delta)."""

    def score(x):
        return (1 - x) / 0.25

    start = torch.zeros(20_000, 1, dtype=torch.float64)
    *_, x = langevin(score, start, 0.05, 100, stream(18))
    stationary = 0.25 / (1 - 0.05 / (2 * 0.25))
    assert float(x.mean()) == pytest.approx(1, abs=4 * 0.53 / 20_000**0.5)
    assert float(x.var()) == pytest.approx(stationary, abs=4 * stationary * (2 / 20_000) ** 0.5)
    with pytest.raises(UserError, match="delta > 0"):
        next(langevin(score, start, 0.0, 1))


def test_reverse_diffusion_turns_ddpms_chain_round():
    """Song et al. 2011.13456, app. E, for betas: x_s = (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z."""
    table = SCHEDULES["table"]
    model, k = Exact(mixture(), Gaussian(table)), 400
    x = torch.randn(4, 2, generator=stream(21), dtype=torch.float64)
    beta, z = table.betas[k], torch.randn(x.shape, generator=stream(22), dtype=torch.float64)
    got = generate(model, sampler("reverse-diffusion"), x, [(k + 1) / 1000, k / 1000], rng=stream(22))
    score = model(x, (k + 1) / 1000).score
    torch.testing.assert_close(got, (2 - (1 - beta) ** 0.5) * x + beta * score + beta**0.5 * z)


def test_the_corrector_mends_a_bad_law(monkeypatch):
    """A predictor that draws too little noise comes nearer with Langevin steps at each level."""
    stops = falling(VP(), 30, high=20.0)
    _, before = deviations(monkeypatch, Ancestral(), VP(), stops)[-1]
    _, after = deviations(monkeypatch, PredictorCorrector(predictor=Ancestral()), VP(), stops)[-1]
    assert abs(after) < 0.85 * abs(before)


def test_restart_mends_a_bad_start(monkeypatch):
    """Xu et al. 2306.14878, thm. 1: an error made before the restart is contracted by its noise."""
    stops = falling(VP(), 40, high=20.0)

    def survives(name):
        model, x = Exact(LAW, Gaussian(VP())), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn_like", torch.zeros_like)
            low, high = generate(model, sampler(name), x, stops)
        return float(high - low)

    assert survives("restart") < 0.9 * survives("heun")
