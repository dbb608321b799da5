"""The score view: score, reverse drift and flow of an exact mixture obey calculus and the Fokker-Planck equation."""

import pytest
import torch
from torch import nn

from oracles import SCHEDULES, Exact, Mixture, mixture, tensor
from sfumato.denoise import Denoiser
from sfumato.dist import stream
from sfumato.errors import UserError
from sfumato.process import Gaussian
from sfumato.rows import ROWS
from sfumato.score import ode_drift, reverse_drift, score

LAW = mixture()
LINE = Mixture(tensor([0.4, 0.6]), tensor([[-1.0], [0.8]]), tensor([[0.15], [0.3]]))
TIMES = (0.05, 0.3, 0.7, 0.95)
ALL = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def noisy(schedule, t, n=50, law=LAW):
    """States that occur at time ``t``."""
    x_0 = law.sample(n, stream(0))
    return Gaussian(schedule).marginal(x_0, t).sample(stream(1))


def divergence(field, x):
    """The divergence of a field at each state, (B,)."""
    return torch.func.vmap(lambda y: torch.func.jacrev(lambda z: field(z[None])[0])(y).trace())(x)


@ALL
@pytest.mark.parametrize("parameterisation", ROWS)
def test_score_is_the_gradient_of_log_p(schedule, parameterisation):
    model = Exact(LAW, Gaussian(schedule), parameterisation)
    for t in TIMES:
        x = noisy(schedule, t).requires_grad_()
        log_p = LAW.log_prob(x, schedule.alpha(t), schedule.sigma(t))
        (gradient,) = torch.autograd.grad(log_p.sum(), x)
        torch.testing.assert_close(score(model, x, t), gradient, rtol=1e-6, atol=1e-9)


@ALL
def test_the_divergence_of_the_score_is_the_trace_of_the_hessian(schedule):
    """ORACLES 3: tr Hessian log p = sum_k g_k (|s_k|^2 - tr A_k^-1) - |score|^2."""
    model = Exact(LAW, Gaussian(schedule))
    for t in TIMES:
        x = noisy(schedule, t)
        log_joint, widths, z = LAW._components(x, schedule.alpha(t), schedule.sigma(t))
        g = log_joint.softmax(1)
        trace = (g * ((z / widths).square() - 1 / widths).sum(2)).sum(1) - score(model, x, t).square().sum(1)
        torch.testing.assert_close(divergence(lambda y, t=t: score(model, y, t), x), trace, rtol=1e-6, atol=1e-9)


@ALL
def test_drifts_are_those_of_the_sde(schedule):
    """The velocity, made of the estimate, is f x - g^2 score / 2, made of the SDE; the other half turns time round."""
    model = Exact(LAW, Gaussian(schedule))
    for t in (*TIMES, torch.linspace(0.02, 0.98, 50, dtype=torch.float64)):
        x = noisy(schedule, t)
        f, g2 = (getattr(schedule, name)(t).reshape(-1, 1) for name in ("f", "g2"))
        s = score(model, x, t)
        flow, back = ode_drift(model, x, t), reverse_drift(model, x, t)
        torch.testing.assert_close(flow, f * x - g2 / 2 * s, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(back, f * x - g2 * s, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(flow, model(x, t).velocity)
        assert torch.equal(flow, ode_drift(model, x, schedule.at(t)))


@ALL
@pytest.mark.parametrize("t", [0.2003, 0.6004])  # between two steps of "table", whose rates jump at them
def test_the_laws_obey_their_continuity_and_fokker_planck_equations(schedule, t):
    """dp/dt = -(ode_drift p)' = -(f x p)' + g^2/2 p'' = -(reverse_drift p)' - g^2/2 p'', by central differences."""
    model, h = Exact(LINE, Gaussian(schedule)), 1e-5
    width = float((schedule.alpha(t) ** 2 + schedule.var(t)).sqrt())
    x = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64) * width

    def p(x, t):
        return LINE.log_prob(x[:, None], schedule.alpha(t), schedule.sigma(t)).exp()

    def slope(flux, by=1e-4 * width):
        return (flux(x + by) - flux(x - by)) / (2 * by)

    def current(drift):
        return slope(lambda x: drift(model, x[:, None], t)[:, 0] * p(x, t))

    now = (p(x, t + h) - p(x, t - h)) / (2 * h)
    by = 1e-3 * width
    spreading = schedule.g2(t) / 2 * (p(x + by, t) - 2 * p(x, t) + p(x - by, t)) / by**2
    close = {"rtol": 1e-3, "atol": float(now.abs().max()) * 1e-4}
    torch.testing.assert_close(now, -current(ode_drift), **close)
    torch.testing.assert_close(now, -current(lambda model, x, t: model.process.sde(t).drift(x)) + spreading, **close)
    torch.testing.assert_close(now, -current(reverse_drift) - spreading, **close)


def test_where_no_signal_is_left_the_flow_goes_on_and_the_reverse_sde_is_refused():
    """At the end of Flow, dx/dt = eps - x_0 = x - mean of the data, and the score that of N(0, 1)."""
    model = Exact(LAW, Gaussian(SCHEDULES["flow"]))
    x = torch.randn(20, 2, generator=stream(2), dtype=torch.float64)
    torch.testing.assert_close(ode_drift(model, x, 1.0), x - LAW.weights @ LAW.means)
    torch.testing.assert_close(score(model, x, 1.0), -x)
    for t in (1.0, torch.linspace(0.5, 1, 20)):
        with pytest.raises(UserError, match=r"Flow leaves no signal.*use ode_drift"):
            reverse_drift(model, x, t)


@pytest.mark.parametrize("function", [score, reverse_drift, ode_drift])
@pytest.mark.parametrize("t", [0.0, -0.1, 1.1, float("nan"), torch.tensor([0.5, 0.0])])
def test_times_without_a_score_are_refused(function, t):
    with pytest.raises(UserError, match=r"t lies in \(0, 1\]"):
        function(Exact(LAW, Gaussian(SCHEDULES["vp"])), torch.zeros(2, 2), t)


def test_states_keep_their_type_and_shape():
    class Zero(nn.Module):
        def forward(self, x, level, cond=None):
            return torch.zeros_like(x)

    model = Denoiser(Zero(), Gaussian(SCHEDULES["ve"]), sigma_data=1.0)
    x, t = torch.randn(4, 3, 5, 5, generator=stream(3)), torch.linspace(0.1, 1, 4, dtype=torch.float64)
    for function in (score, reverse_drift, ode_drift):
        assert (out := function(model, x, t)).shape == x.shape and out.dtype == torch.float32
    # An edm network of zeros is the best linear one: its law is N(0, 1 + sigma^2) throughout.
    law = -x / (1 + SCHEDULES["ve"].var(t).float()).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(score(model, x, t), law, rtol=1e-4, atol=1e-6)
