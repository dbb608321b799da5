"""The bound on -log p(x) against laws whose log p, entropy and mmse are known."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from oracles import SCHEDULES, Exact, Mixture, gaussian, mixture, observed_order, tensor
from sfumato.denoise import Denoiser
from sfumato.density import Density, Discretised, vlb
from sfumato.dist import Normal, stream
from sfumato.errors import UserError
from sfumato.mixing import Guess, Mixing
from sfumato.nn import MLP
from sfumato.process import Gaussian
from sfumato.rows import Estimate
from sfumato.schedule import EDM, VP, Flow

STEPS = [64, 128, 256, 512]


@dataclass(frozen=True)
class ExactLevels:
    """The perfect denoiser of numbers that take finitely many values, independently of each other: ORACLES 8."""

    values: Tensor
    p: Tensor
    process: Gaussian
    knows_var: bool = True

    def __call__(self, x_t, t):
        now = self.process.schedule.at(t)
        alpha, sigma = (tensor(c).reshape(-1, 1, 1) for c in (now.alpha, now.sigma))
        g = (self.p.log() - ((x_t[..., None] - alpha * self.values) / sigma).square() / 2).softmax(-1)
        x0 = (g * self.values).sum(-1)
        var = (g * (self.values - x0[..., None]).square()).sum(-1) if self.knows_var else None
        return Estimate(x_t, now, self.process.schedule, x0, 1.0, 0.0, lambda _: var)

    def sample(self, shape, rng):
        return self.values[torch.multinomial(self.p, math.prod(shape), True, generator=rng)].reshape(shape)

    @property
    def entropy(self):
        return float(-(self.p * self.p.log()).sum())


@dataclass(frozen=True)
class Constant:
    """A model that says 0, whatever it sees."""

    process: Gaussian

    def __call__(self, x_t, t):
        schedule = self.process.schedule
        return Estimate(x_t, schedule.at(t), schedule, torch.zeros_like(x_t), 1.0, 0.0)


def mean_and_error(x):
    return float(x.mean()), float(x.std() / len(x) ** 0.5)


def prior_gap(law, schedule):
    """KL(p_1 || prior) of one Gaussian: what the bound keeps however many steps it has."""
    now = schedule.at(1.0)
    end = Normal(now.alpha * law.means, (now.alpha**2 * law.variances + now.sigma**2).sqrt())
    return float(end.kl(Gaussian(schedule).prior(law.means)))


def excess(law, model, x, **options):
    """Bound - truth of each example; its mean is the gap."""
    return vlb(model, x, rng=stream(5), **options).nats + law.log_prob(x, 1.0, 0.0)


# ── The chain on a Gaussian ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("schedule", ["vp", "cosine", "edm", "flow", "table"])
def test_each_step_costs_the_fall_of_snr_times_the_squared_error(schedule):
    """ORACLES 9, at the very x_t that were drawn."""
    schedule = SCHEDULES[schedule]
    model, x = Exact(mixture(), Gaussian(schedule)), mixture().sample(16, stream(0))
    grid = [1.0, 0.9, 0.5, 0.2, 0.05, 0.01]
    bound = vlb(model, x, grid=grid, rng=stream(1))
    rng, snr = stream(1), schedule.logsnr(tensor(grid)).exp()
    for k, t in enumerate(grid[:-1]):
        x_0 = model(model.process.marginal(x, t).sample(rng), t).x0
        expected = (snr[k + 1] - snr[k]) / 2 * (x - x_0).square().sum(1)
        torch.testing.assert_close(bound.terms[:, k], expected, rtol=1e-11, atol=1e-12)
    assert bound.times[3].tolist() == grid[:-1]
    assert bound.steps == 6  # the decoder's is the last


def test_the_gap_of_small_variance_falls_as_one_over_steps():
    """ORACLES 7: the closed formula, and its slope."""
    law, schedule, dim = gaussian(var=0.5, dim=100), VP(), 100
    model, x = Exact(law, Gaussian(schedule)), law.sample(200, stream(0))
    gaps = []
    for steps in STEPS:
        bound = vlb(model, x, steps=steps, rng=stream(steps))
        snr = schedule.logsnr(torch.cat([bound.times[0], schedule.time(-2 * tensor(0.0013).log())[None]])).exp()
        formula = dim * snr.diff() / 2 * 0.5 / (1 + 0.5 * snr[:-1])
        torch.testing.assert_close(bound.terms.mean(0), formula, rtol=4 * (2 / x.numel()) ** 0.5, atol=0)
        gaps.append(float((bound.nats + law.log_prob(x, 1.0, 0.0)).mean()) - prior_gap(law, schedule))
    assert all(gap > 0 for gap in gaps)
    assert observed_order(STEPS, gaps) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
@pytest.mark.parametrize("schedule", [VP(), VP(beta_max=3.0), Flow(), EDM()], ids=repr)
def test_the_chain_of_optimal_variance_has_no_gap(steps, schedule):
    """ORACLES 2: it is exact on a Gaussian in any number of steps, so only the prior's error is left.

    The short VP leaves half of the signal at t = 1, so there the prior's error is large.
    """
    law = gaussian(dim=20)
    model = Exact(law, Gaussian(schedule))
    gap, error = mean_and_error(excess(law, model, law.sample(2000, stream(0)), steps=steps, variance="optimal"))
    assert gap == pytest.approx(prior_gap(law, schedule), abs=4 * error + 1e-9)
    assert error < 0.2  # 0.01 nats a dimension


def test_a_model_that_does_not_know_its_variance_decodes_like_a_gaussian():
    """A new network says 0, in EDM terms the perfect answer for N(0, sd^2): one step from t = 1 is enough."""
    law, schedule = Mixture(tensor([1.0]), torch.zeros(1, 20).double(), tensor([[0.64] * 20])), VP(beta_max=3.0)
    model = Denoiser(MLP(20), Gaussian(schedule), sigma_data=0.8).double()
    x = law.sample(2000, stream(0))
    bound = vlb(model, x, steps=1, sigma_data=0.8, rng=stream(1))
    assert bound.terms.shape == (2000, 0)
    gap, error = mean_and_error(bound.nats + law.log_prob(x, 1.0, 0.0))
    assert gap == pytest.approx(prior_gap(law, schedule), abs=4 * error)
    assert error < 0.1
    wrong, _ = mean_and_error(vlb(model, x, steps=1, sigma_data=1.6, rng=stream(1)).nats - bound.nats)
    assert wrong > 8 * error


@pytest.mark.parametrize("variance", ["small", "large", "optimal"])
def test_a_named_grid_and_a_named_variance_make_the_sampler_s_chain(variance):
    """The terms are the KL of Bayes' rule to p(x_s | x_t), here written out for one Gaussian."""
    q, x = Gaussian(VP()), gaussian().sample(8, stream(0))
    model = Exact(gaussian(), q)
    bound, rng = vlb(model, x, grid="uniform", steps=5, variance=variance, rng=stream(1)), stream(1)
    for k, (t, s) in enumerate(pairwise([1.0, 0.8, 0.6, 0.4, 0.2])):
        estimate = model(q.marginal(x, t).sample(rng), t)
        true, back = q.posterior(estimate.x_t, x, t, s), q.posterior(estimate.x_t, estimate.x0, t, s)
        now, to = q.schedule.at(t), q.schedule.at(s)
        weight = to.alpha * -math.expm1(now.logsnr - to.logsnr)  # of x_0 in the posterior's mean
        var = {
            "small": true.std**2,
            "large": q.transition(x, s, t).std ** 2,
            "optimal": true.std**2 + weight**2 * 0.5 / (1 + 0.5 * math.exp(now.logsnr)),
        }[variance]
        torch.testing.assert_close(bound.terms[:, k], true.kl(Normal(back.mean, var.sqrt())), rtol=1e-10, atol=1e-12)


# ── Mixtures, and continuous time ─────────────────────────────────────────────────────────────────────────────────────


def test_on_a_mixture_the_bound_lies_above_the_truth_and_its_gap_falls_as_one_over_steps():
    law, model = mixture(), Exact(mixture(), Gaussian(VP()))
    x = law.sample(4000, stream(0))
    gaps = [mean_and_error(excess(law, model, x, steps=steps)) for steps in STEPS]
    assert all(gap > 4 * error for gap, error in gaps)
    assert observed_order(STEPS, [gap for gap, _ in gaps]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("schedule", ["vp", "flow", "subvp", "ve"])
def test_continuous_time_has_no_gap(schedule):
    """ORACLES 6, I-MMSE: no noise level is left out, or this would be below the truth."""
    law, model = mixture(), Exact(mixture(), Gaussian(SCHEDULES[schedule]))
    x = law.sample(20_000, stream(0))
    gap, error = mean_and_error(excess(law, model, x, steps=None, calls=48, sigma_data=0.7))
    assert gap == pytest.approx(0, abs=4 * error + 5e-4)  # 5e-4: VP's signal left at t = 1, and the decoder
    assert error < 0.02


def test_continuous_time_is_the_integral_of_the_mmse():
    law = Mixture(tensor([0.4, 0.6]), tensor([[1.0], [-0.6]]), tensor([[0.01], [0.09]]))
    schedule, x = VP(), law.sample(20_000, stream(0))
    bound = vlb(Exact(law, Gaussian(schedule)), x, steps=None, calls=16, decoder=Density(0.05), rng=stream(1))
    logsnr = torch.linspace(float(schedule.logsnr(1.0)), -2 * math.log(0.05), 301, dtype=torch.float64)
    y = torch.linspace(-9, 9, 8001, dtype=torch.float64)[:, None]  # x_t in units of its spread
    mmse = []
    for level in logsnr:
        alpha, sigma = level.sigmoid().sqrt(), (-level).sigmoid().sqrt()
        density = law.log_prob(y, alpha, sigma).exp()
        mmse.append(torch.trapezoid(density * law.posterior(y, alpha, sigma)[1][:, 0], y[:, 0]))
    integral = float(torch.trapezoid(logsnr.exp() * torch.stack(mmse), logsnr)) / 2
    mean, error = mean_and_error(bound.diffusion)
    assert mean == pytest.approx(integral, abs=4 * error)
    assert error < 0.02 * integral
    assert bound.steps is None


def test_draws_are_unbiased_better_than_uniform_ones_and_know_their_error():
    """For one fixed x, many times: against the whole chain, whose terms give the variance of uniform draws too."""
    model, n = Exact(mixture(), Gaussian(VP())), 4000
    x = torch.tensor([[1.1, 0.3]], dtype=torch.float64).expand(n, 2)
    options = {"grid": "uniform", "steps": 60, "sigma_data": 0.9}
    whole = vlb(model, x, rng=stream(0), **options)
    mean, error = mean_and_error(whole.diffusion)
    for calls in (1, 6):
        drawn = vlb(model, x, calls=calls, rng=stream(1), **options)
        estimate, its = mean_and_error(drawn.diffusion)
        assert estimate == pytest.approx(mean, abs=4 * math.hypot(error, its))
        uniform = (59 * float(whole.terms.square().mean(0).sum()) - mean**2) / calls
        assert float(drawn.diffusion.var()) < 0.5 * uniform
    for bound in (whole, drawn):  # 6 draws are a wide chi^2, so only the mean square is near
        assert float(bound.error.square().mean()) == pytest.approx(float(bound.nats.var()), rel=0.25)
    assert vlb(model, x, calls=1, rng=stream(1), **options).error.isnan().all()


@pytest.mark.parametrize("noise", [1.0, 0.01])
def test_draws_by_the_very_size_of_the_terms_have_no_error(noise):
    """A model that always says 0 errs by |x|^2, so (4) with sigma_data -> 0 is its terms' size: each draw is exact."""
    schedule, x = VP(beta_max=3.0), mixture().sample(8, stream(0))
    model, decoder = Constant(Gaussian(schedule)), Density(noise)
    expected = (noise**-2 - float(schedule.logsnr(1.0).exp())) / 2 * x.square().sum(1)
    for options in ({"steps": 9}, {"steps": 9, "calls": 3}, {"steps": None, "calls": 3}):
        bound = vlb(model, x, decoder=decoder, sigma_data=1e-5, rng=stream(1), **options)
        torch.testing.assert_close(bound.diffusion, expected, rtol=1e-5, atol=0)


def test_an_example_does_not_depend_on_its_neighbours():
    model, x = Exact(mixture(), Gaussian(VP())), mixture().sample(3, stream(0))
    for options in ({"steps": 20}, {"steps": 20, "calls": 3}, {"steps": None, "calls": 3}):
        whole = vlb(model, x, rng=[stream(i) for i in range(3)], **options).nats
        alone = vlb(model, x[1:2], rng=[stream(1)], **options).nats
        torch.testing.assert_close(whole[1:2], alone, rtol=1e-12, atol=0)


# ── Finitely many levels ──────────────────────────────────────────────────────────────────────────────────────────────

MEANS = [-40.0, -1.3, -1.0, -0.0021, 0.4, 0.999, 3.0]
STDS = [0.0, 1e-4, 0.0013, 0.05, 1.0, 30.0]


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("std", STDS)
def test_the_probabilities_of_all_levels_sum_to_one(mean, std):
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None]
    log_p = Discretised().log_prob(levels, tensor(mean), tensor(std))
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert float(log_p.logsumexp(0)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("mean", MEANS)
def test_the_probabilities_are_differences_of_the_normal_cdf(mean):
    std, levels = 0.05, torch.linspace(-1, 1, 256, dtype=torch.float64)
    log_p = Discretised().log_prob(levels[:, None], tensor(mean), tensor(std)).numpy()
    below, above = ((levels.numpy() + side / 255 - mean) / std for side in (-1, 1))
    below[0], above[-1] = -math.inf, math.inf
    # The tail that is small: a difference of numbers near 1 would be zero there.
    p = [norm.cdf(b) - norm.cdf(a) if a + b < 0 else norm.sf(a) - norm.sf(b) for a, b in zip(below, above, strict=True)]
    seen = [(log_p[k], math.log(p[k])) for k in range(256) if p[k] > 1e-280]
    assert len(seen) >= (100 if abs(mean) < 3 else 1)
    assert [a for a, _ in seen] == pytest.approx([b for _, b in seen], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("mean", [-1000.5, 1000.5])
def test_far_in_the_tail_log_probabilities_follow_the_density(mean):
    """At 1,000 standard deviations, where Phi itself underflows: log p ~ log phi(nearer edge) - log z."""
    log_p = float(Discretised(3).log_prob(tensor([[0.0]]), tensor([[mean]]), tensor([[1.0]])))
    assert log_p == pytest.approx(-(1000.0**2) / 2 - math.log(1000.0) - math.log(2 * math.pi) / 2, rel=1e-9)


def test_a_coin_costs_one_bit():
    """ORACLES 4 and 6: D = b tanh(alpha b x / sigma^2), and half the integral of its mmse is ln 2."""
    coin = ExactLevels(tensor([-1.0, 1.0]), tensor([0.5, 0.5]), Gaussian(VP()))
    x_t, now = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None], VP().at(0.3)
    torch.testing.assert_close(coin(x_t, now).x0, (now.alpha * x_t / now.sigma**2).tanh())
    x = coin.sample((500, 40), stream(0))
    bound = vlb(coin, x, steps=None, calls=20, decoder=Discretised(2), rng=stream(1))
    bits, error = mean_and_error(bound.bits_per_dim())
    assert bits == pytest.approx(1, abs=4 * error + 1e-4)
    assert error < 0.01


@pytest.mark.parametrize("knows_var", [True, False])
def test_grey_levels_cost_their_entropy(knows_var):
    """From above, as steps grow."""
    p = tensor([0.3, 0.02, 0.1, 0.08, 0.2, 0.05, 0.05, 0.2])
    grey = ExactLevels(torch.linspace(-1, 1, 8, dtype=torch.float64), p, Gaussian(Flow()), knows_var)
    x, options = grey.sample((200, 40), stream(0)), {"decoder": Discretised(8), "rng": stream(1)}
    surprise = -p.log()[((x + 1) * 3.5).round().long()].sum(1)  # of the very data: less noise than the entropy
    bounds = [vlb(grey, x, steps=steps, **options) for steps in (10, 40, 160)]
    bounds.append(vlb(grey, x, steps=None, calls=40, sigma_data=0.6, **options))
    gaps = [mean_and_error((bound.nats - surprise) / bound.dims) for bound in bounds]
    assert all(gap > 2 * later for (gap, _), (later, _) in pairwise(gaps[:-1]))
    assert all(gap > -4 * error for gap, error in gaps)
    gap, error = gaps[-1]
    assert gap == pytest.approx(0, abs=4 * error + 0.004)
    assert error < 0.01 * grey.entropy
    assert 0 < float(bounds[-1].reconstruction.mean()) / 40 < 0.01  # what leaves a bin of six deviations


def test_the_bound_knows_whether_a_volume_belongs_to_it():
    """score_sde_pytorch #51: the offset is the codec's, and a probability has none."""
    x = torch.linspace(-1, 1, 256, dtype=torch.float64).reshape(32, 8)
    model = Exact(gaussian(dim=8), Gaussian(VP()))
    volume = 8 * math.log(2 / 255)
    density = vlb(model, x, steps=3)
    mass = vlb(model, x, steps=3, decoder=Discretised())
    assert (density.decoder, density.mass, mass.decoder, mass.mass) == ("density", False, "discretised", True)
    torch.testing.assert_close(density.bits_per_dim(volume), (density.nats - volume) / (8 * math.log(2)))
    torch.testing.assert_close(mass.bits_per_dim(volume), mass.nats / (8 * math.log(2)))
    # Where a bin is narrow its probability is density times volume, but for its curvature of step^2/24.
    inner, mean, std = x[10:20], tensor(0.1), tensor(0.4)
    volumes = Discretised().log_prob(inner, mean, std) - Density().log_prob(inner, mean, std)
    torch.testing.assert_close(volumes, torch.full((10,), volume).double(), rtol=0, atol=1e-3)


# ── Tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ExactToken:
    """Bayes' rule for one token of law ``p``."""

    p: Tensor
    process: Mixing

    def __call__(self, x_t, t):
        now = self.process.schedule.at(t)
        values = torch.arange(len(self.p)).expand(*x_t.shape, -1)
        columns = [self.process.marginal(values[..., k], now).log_p for k in range(len(self.p))]
        log_q = torch.stack([c.gather(-1, x_t[..., None])[..., 0] for c in columns], -1)
        return Guess(x_t, now, self.p.log() + log_q)


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
@pytest.mark.parametrize("options", [{"steps": 1}, {"steps": 6}, {"steps": 6, "calls": 2}])
def test_tokens_cost_their_entropy(kind, options):
    """A chain of one token with the true p(x_0 | x_t) is exact in any number of steps."""
    p = tensor([0.5, 0.2, 0.3])
    model = ExactToken(p, getattr(Mixing, kind)(3, Flow()))
    x = torch.multinomial(p, 4000, True, generator=stream(0))[:, None]
    bound = vlb(model, x, rng=stream(1), **options)
    gap, error = mean_and_error(bound.nats + p.log()[x[:, 0]])
    assert gap == pytest.approx(0, abs=4 * error + 1e-12)
    assert error < 0.03
    assert (bound.decoder, bound.mass) == ("chain", True)


# ── Networks, and what can't be meant ─────────────────────────────────────────────────────────────────────────────────


def test_float32_loses_nothing_in_a_thousand_steps():
    """Against (2) in float64 at the same noise: the KL of two nearly equal laws does not drown in rounding."""
    x, schedule = mixture().sample(256, stream(0)).float(), VP()
    model = Exact(mixture(), Gaussian(schedule))
    bound, rng = vlb(model, x, steps=1000, rng=stream(1)), stream(1)
    snr = schedule.logsnr(torch.cat([bound.times[0], schedule.time(-2 * tensor(0.0013).log())[None]])).exp()
    expected = torch.zeros_like(bound.nats)
    for k, t in enumerate(schedule.instants(bound.times[0])):
        x_t = model.process.marginal(x, t).sample(rng)
        expected += (snr[k + 1] - snr[k]) / 2 * (x.double() - model(x_t.double(), t).x0).square().sum(1)
    assert (bound.nats.dtype, bound.terms.dtype) == (torch.float64, torch.float64)
    assert float(bound.diffusion.mean()) == pytest.approx(float(expected.mean()), rel=1e-4)
    torch.testing.assert_close(bound.diffusion, expected, rtol=2e-3, atol=0)


GOOD = torch.zeros(4, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("x", "options", "told"),
    [
        (GOOD.log() * 0, {}, "finite"),
        (GOOD + torch.inf, {}, "finite"),
        (GOOD.long(), {}, "floating"),
        (GOOD[0], {}, r"\(B, ...\)"),
        (GOOD[:0], {}, r"\(B, ...\)"),
        (GOOD[:, :1], {}, "shape"),
        (GOOD + 1.2, {"decoder": Discretised()}, r"outside \[-1, 1\]"),
        (GOOD + 0.001, {"decoder": Discretised()}, "between the 256 levels"),
        (GOOD, {"steps": 0}, "steps must be at least 1"),
        (GOOD, {"calls": 0}, "calls must be at least 1"),
        (GOOD, {"steps": None}, "takes calls"),
        (GOOD, {"steps": None, "calls": 2, "grid": "uniform"}, "no grid"),
        (GOOD, {"grid": "logsn"}, "did you mean 'logsnr'"),
        (GOOD, {"variance": "smal"}, "did you mean 'small'"),
        (GOOD, {"grid": [0.5, 0.1]}, "starts at t = 1"),
        (GOOD, {"grid": [1.0, 0.1, 0.5]}, "falls strictly"),
        (GOOD, {"sigma_data": 0.0}, "sigma_data"),
    ],
)
def test_what_cannot_be_meant_is_refused(x, options, told):
    with pytest.raises(UserError, match=told):
        vlb(Exact(mixture(), Gaussian(VP())), x, **{"steps": 3} | options)


def test_models_that_cannot_answer_are_named():
    denoiser = Denoiser(MLP(2), Gaussian(VP())).double()
    with pytest.raises(UserError, match="measure_mmse"):
        vlb(denoiser, GOOD, steps=3, variance="optimal")
    with torch.no_grad():
        next(denoiser.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="not a number at t = 1:"):
        vlb(denoiser, GOOD, steps=3)
    token = ExactToken(tensor([0.5, 0.5]), Mixing.uniform(2, Flow()))
    with pytest.raises(UserError, match="leave out the decoder"):
        vlb(token, GOOD.long(), decoder=Discretised(2))
    with pytest.raises(UserError, match="continuous time"):
        vlb(token, GOOD.long(), steps=None, calls=3)
    with pytest.raises(UserError, match="whole numbers"):
        vlb(token, GOOD, steps=3)


@pytest.mark.parametrize("make", [lambda: Discretised(1), lambda: Discretised(8, 1.0, -1.0), lambda: Density(0.0)])
def test_decoders_that_cannot_be_are_refused(make):
    with pytest.raises(UserError):
        make()
