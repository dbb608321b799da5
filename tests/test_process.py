"""The forward process: Chapman-Kolmogorov, Bayes, the chain and the SDE are one law (float64, every schedule)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles import SCHEDULES, tensor
from sfumato.dist import Normal, randn_like, stream
from sfumato.errors import UserError
from sfumato.process import Gaussian
from sfumato.schedule import VP, Schedule, Table

everywhere = pytest.mark.parametrize("name", SCHEDULES)
times = st.lists(st.integers(1, 999), min_size=3, max_size=3, unique=True).map(lambda k: [v / 1000 for v in sorted(k)])
laws = settings(max_examples=40, deadline=None)


def push(law: Normal, kernel: Normal, slope: torch.Tensor) -> Normal:
    """The law of y if x ~ law and y | x ~ kernel, whose mean is slope x."""
    return Normal(slope * law.mean, (slope**2 * law.std**2 + kernel.std**2).sqrt())


def assert_same(p: Normal, q: Normal, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(p.mean, q.mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(p.std.expand_as(p.mean), q.std.expand_as(q.mean), rtol=tolerance, atol=tolerance)


def slope(schedule: Schedule, s: float, t: float) -> torch.Tensor:
    return schedule.alpha(t) / schedule.alpha(s)


X = tensor([[0.3, -1.2], [2.0, 0.0]])


@everywhere
@laws
@given(times)
def test_chapman_kolmogorov(name, grid):
    """q(x_t | x_r) = int q(x_t | x_s) q(x_s | x_r) dx_s for r < s < t."""
    r, s, t = grid
    q = Gaussian(SCHEDULES[name])
    two = push(q.transition(X, r, s), q.transition(X, s, t), slope(q.schedule, s, t))
    assert_same(q.transition(X, r, t), two)


@everywhere
@laws
@given(times)
def test_marginal_is_transition_after_marginal(name, grid):
    s, t, _ = grid
    q = Gaussian(SCHEDULES[name])
    assert_same(q.marginal(X, t), push(q.marginal(X, s), q.transition(X, s, t), slope(q.schedule, s, t)))
    assert_same(q.marginal(X, t), q.transition(X, 0.0, t))


@everywhere
@laws
@given(times, st.integers(0, 2**32))
def test_posterior_is_bayes_rule(name, grid, seed):
    """log q(x_s|x_t,x_0) + log q(x_t|x_0) = log q(x_t|x_s) + log q(x_s|x_0) at any three points."""
    s, t, _ = grid
    q = Gaussian(SCHEDULES[name])
    rng = stream(seed)
    x_0 = randn_like(X, rng)
    x_s = q.marginal(x_0, s).sample(rng)
    x_t = q.transition(x_s, s, t).sample(rng)
    left = q.posterior(x_t, x_0, t, s).log_prob(x_s) + q.marginal(x_0, t).log_prob(x_t)
    right = q.transition(x_s, s, t).log_prob(x_t) + q.marginal(x_0, s).log_prob(x_s)
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@everywhere
@laws
@given(times, st.floats(0, 1))
def test_every_eta_keeps_the_marginals(name, grid, eta):
    """If x_t ~ q(x_t | x_0), then x_s drawn from the DDIM family is ~ q(x_s | x_0)."""
    s, t, _ = grid
    q = Gaussian(SCHEDULES[name])
    at_mean = q.marginal(X, t)
    step = q.posterior(at_mean.mean, X, t, s, eta)
    gain = q.posterior(at_mean.mean + 1, X, t, s, eta).mean - step.mean  # d mean / d x_t
    assert_same(q.marginal(X, s), Normal(step.mean, (gain**2 * at_mean.std**2 + step.std**2).sqrt()), 1e-10)


@everywhere
def test_small_steps_are_the_sde(name):
    """(E[x_{t+h}] - x)/h -> f x and Var/h -> g^2: the error falls like h."""
    q = Gaussian(SCHEDULES[name])
    for t in (0.1234, 0.5, 0.8765):
        sde = q.sde(t)
        errors = []
        for h in (1e-4, 5e-5):
            step = q.transition(X, t, t + h)
            drift = ((step.mean - X) / h - sde.drift(X)).abs().max()
            errors.append(float(drift + ((step.std**2 / h) / sde.g**2 - 1).abs()))
        assert errors[1] < max(0.55 * errors[0], 1e-9)
        assert errors[1] < 5e-3


def test_chain_of_the_default_table_is_ddpm():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)  # 2006.11239, sec. 4
    chain = Gaussian(Table()).chain(1000)
    assert (chain.betas - betas).abs().max() < 1e-12
    assert (chain.alpha_bars - (1 - betas).cumprod(0)).abs().max() < 1e-12


def test_chain_of_vp_tends_to_the_linear_betas():
    """beta_k = beta(k/T)/T + O(T^-2): the SDE of DDPM's chain (2011.13456, app. B)."""
    for steps in (1000, 10_000):
        chain = Gaussian(VP()).chain(steps)
        linear = (0.1 + 19.9 * (chain.times[1:] - 0.5 / steps)) / steps
        assert ((chain.betas - linear).abs() <= linear**2).all()


@everywhere
def test_chain_steps_are_transitions(name):
    q = Gaussian(SCHEDULES[name])
    chain = q.chain(50)
    k = 17
    step = q.transition(X, chain.times[k], chain.times[k + 1])
    torch.testing.assert_close(step.mean, (1 - chain.betas[k]).sqrt() * X, rtol=1e-12, atol=1e-12)
    if name in ("vp", "cosine", "table"):
        torch.testing.assert_close(step.std.double() ** 2, chain.betas[k], rtol=1e-10, atol=0)


@everywhere
def test_prior_is_the_marginal_without_signal(name):
    q = Gaussian(SCHEDULES[name])
    assert_same(q.prior(X), Normal(torch.zeros_like(X), q.marginal(X, 1.0).std))
    assert_same(q.prior(X, 0.7), Normal(torch.zeros_like(X), q.marginal(X, 0.7).std))


def test_times_can_differ_in_a_batch():
    q = Gaussian(VP())
    each = q.transition(X, tensor([0.1, 0.3]), tensor([0.2, 0.9]))
    for i, (s, t) in enumerate([(0.1, 0.2), (0.3, 0.9)]):
        one = q.transition(X[i : i + 1], s, t)
        torch.testing.assert_close(each.mean[i], one.mean[0])
        torch.testing.assert_close(each.std[i], one.std.reshape(1))


def test_coefficients_do_not_follow_a_low_precision():
    """PITFALLS: 1 - alpha_bar in bfloat16 leaves the first steps of DDPM's chain without noise."""
    q = Gaussian(Table())
    law = q.marginal(torch.ones(1, 4, dtype=torch.bfloat16), 1 / 1000)
    assert float(law.std) == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize(("s", "t"), [(0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0.5, 1.1), (0.5, math.nan)])
def test_impossible_times_are_refused(s, t):
    with pytest.raises(UserError):
        Gaussian(VP()).transition(X, s, t)
    with pytest.raises(UserError):
        Gaussian(VP()).posterior(X, X, t, s)


def test_wrong_number_of_times_and_bad_eta_and_steps():
    q = Gaussian(VP())
    with pytest.raises(ValueError, match="batch of 2"):
        q.marginal(X, tensor([0.1, 0.2, 0.3]))
    with pytest.raises(UserError, match="eta"):
        q.posterior(X, X, 0.5, 0.1, eta=1.5)
    with pytest.raises(UserError, match="at least one step"):
        q.chain(0)
