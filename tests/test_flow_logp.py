"""log p through the probability-flow ODE: against closed forms, with error bars that hold."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from oracles import SCHEDULES, Exact, Mixture, flow_map, gaussian, mixture, tensor
from sfumato.condition import Condition
from sfumato.denoise import Denoiser, Given
from sfumato.density import FlowLogp, flow_logp
from sfumato.dist import stream
from sfumato.errors import UserError
from sfumato.nn import MLP, UNet
from sfumato.ode import solve
from sfumato.process import Gaussian
from sfumato.schedule import EDM, VP, Flow
from sfumato.score import circle

FLOW = Gaussian(Flow())
FINE = {"rtol": 1e-7, "atol": 1e-7}
COARSE = {"rtol": 1e-4, "atol": 1e-4}


def modes(dims, seed=0):
    rng = stream(seed, dims)
    means = torch.randn(3, dims, generator=rng, dtype=torch.float64)
    return Mixture(tensor([0.5, 0.3, 0.2]), means, 0.05 + 0.3 * torch.rand(3, dims, generator=rng, dtype=torch.float64))


def streams(n, *keys):
    return [stream(*keys, k) for k in range(n)]


@dataclass(frozen=True)
class Shaped:
    """An exact model of flat states, for states of any shape."""

    flat: Exact

    @property
    def process(self):
        return self.flat.process

    def __call__(self, x_t, t):
        estimate = self.flat(x_t.flatten(1), t)
        return replace(estimate, x_t=x_t, output=estimate.output.view_as(x_t))


# ── The exact trace ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dims", [2, 16, 64])
@pytest.mark.parametrize("schedule", [Flow(), EDM(1e6)])  # at 1e6 no trace of the data is left in the prior
def test_exact_within_a_millionth_of_a_nat_per_dimension(dims, schedule):
    law = modes(dims)
    x = law.sample(4, stream(1))
    got = flow_logp(Exact(law, Gaussian(schedule)), x, **FINE)
    error = (got.value - law.log_prob(x, 1.0, 0.0)).abs()
    assert error.max() < 1e-6 * dims
    assert (error <= got.solver_error + 2e-7 * dims).all()  # the second term: low is not 0
    assert (got.probe_error == 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_the_prior_does_not_fit_counts(schedule):
    """The model's own law is the prior carried back by the flow, closed form for one Gaussian."""
    law, schedule, low = gaussian(), SCHEDULES[schedule], 1e-4
    x = law.sample(5, stream(1))
    start = schedule.time(-2 * math.log(low))
    alpha = schedule.alpha(start)
    ends = [flow_map(law, schedule, alpha * y, start, tensor(1.0)) for y in (x, x + 1)]
    stretch = (ends[1] - ends[0]).abs().log().sum(1)
    known = Gaussian(schedule).prior(x).log_prob(ends[0]) + stretch
    got = flow_logp(Exact(law, Gaussian(schedule)), x, low=low, **FINE)
    assert (got.value - known).abs().max() < 1e-6 * 3


def test_the_density_is_that_at_the_lowest_noise():
    law = mixture()
    x = law.sample(5, stream(1))
    got = flow_logp(Exact(law, FLOW), x, low=0.3, **FINE)
    assert got.low == 0.3
    assert (got.value - law.log_prob(x, 1.0, 0.3)).abs().max() < 1e-6
    assert (got.value - law.log_prob(x, 1.0, 0.0)).abs().min() > 1e-3


def test_the_solver_error_bounds_the_error():
    """At default tolerances; with ten times the error bar as its least use."""
    law = modes(8)
    x = law.sample(100, stream(1))
    got = flow_logp(Exact(law, FLOW), x)
    error = (got.value - law.log_prob(x, 1.0, 0.0)).abs()
    assert (error <= got.solver_error).double().mean() >= 0.95
    assert got.solver_error.median() < 30 * error.median()


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_images(trace):
    model = Exact(modes(16), FLOW)
    x = model.law.sample(2, stream(1))
    flat, shaped = (
        flow_logp(m, y, trace=trace, probes=3, rng=streams(2, 5))
        for m, y in ((model, x), (Shaped(model), x.view(2, 1, 4, 4)))
    )
    assert (flat.value - shaped.value).abs().max() < 1e-9
    assert (flat.probe_error - shaped.probe_error).abs().max() < 1e-9


def test_the_flow_in_one_dimension_keeps_quantiles():
    """F_t(x_t) is the same all the way, F the cumulative law (ORACLES 4)."""
    law = Mixture(tensor([0.5, 0.3, 0.2]), tensor([[1.0], [-1.0], [0.1]]), tensor([[0.1], [0.02], [0.3]]))
    x = torch.linspace(-1.6, 1.9, 9, dtype=torch.float64)[:, None]

    def share(x, angle):  # of the law on the circle: means cos m, variances cos^2 S + sin^2
        std = (math.cos(angle) ** 2 * law.variances[:, 0] + math.sin(angle) ** 2).sqrt()
        return (law.weights * torch.special.ndtr((x - math.cos(angle) * law.means[:, 0]) / std)).sum(1)

    v = circle(Exact(law, Gaussian(VP())), x.shape[1:])
    for end in (0.1, 0.7, 1.5):
        got = solve(v, x, 0.01, end, rtol=1e-9, atol=1e-9)
        assert (share(got.y, end) - share(x, 0.01)).abs().max() < 1e-7


# ── Probes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_the_interval_covers_the_truth(noise):
    """1,000 cases, half of each noise. Student's factor fails here: z^T J z is skewed where one direction rules J."""
    covered = []
    for dims, probes in ((2, 8), (3, 6), (5, 6), (8, 8), (16, 6)):
        law = modes(dims)
        x = law.sample(100, stream(2))
        got = flow_logp(Exact(law, FLOW), x, trace="hutchinson", probes=probes, noise=noise, rng=stream(3), **COARSE)
        low, high = got.interval()
        truth = law.log_prob(x, 1.0, 0.0)
        covered.append((low <= truth) & (truth <= high))
    assert torch.cat(covered).double().mean() >= 0.93


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_the_probe_error_is_the_size_of_the_error(noise):
    """Over many examples, the squared errors average to the squared standard errors; so the probes are unbiased."""
    law = modes(6)
    x = law.sample(400, stream(3))
    got = flow_logp(Exact(law, FLOW), x, trace="hutchinson", probes=16, noise=noise, rng=stream(4), **COARSE)
    error = got.value - law.log_prob(x, 1.0, 0.0)
    assert (error.square().mean() / got.probe_error.square().mean()).sqrt() == pytest.approx(1, abs=0.15)
    assert abs(error.mean()) < 4 * error.std() / 20
    assert got.probe_error.mean() > 0.05


def test_a_single_probe_knows_no_error():
    law = modes(3)
    got = flow_logp(Exact(law, FLOW), law.sample(2, stream(1)), trace="hutchinson", rng=stream(0))
    assert (got.probe_error == math.inf).all()
    low, high = got.interval()
    assert (low == -math.inf).all()
    assert (high == math.inf).all()


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_an_example_does_not_depend_on_its_neighbours(trace):
    law = modes(4)
    x = law.sample(3, stream(1))
    x[1] = 6.0  # far out: more steps
    together = flow_logp(Exact(law, FLOW), x, trace=trace, probes=3, rng=streams(3, 7), **COARSE)
    for k in range(3):
        alone = flow_logp(Exact(law, FLOW), x[k : k + 1], trace=trace, probes=3, rng=[stream(7, k)], **COARSE)
        for name, rel in (("value", 1e-9), ("probe_error", 1e-9), ("solver_error", 1e-5)):  # the last: differences
            assert getattr(together, name)[k] == pytest.approx(getattr(alone, name).item(), rel=rel, abs=1e-12)
    assert together.calls[1] != together.calls[0]


def test_wider_at_a_higher_level():
    got = FlowLogp(tensor([0.0]), tensor([1.0]), tensor([0.5]), torch.tensor([9]), 6, 1e-4)
    widths = [float(high - low) for low, high in map(got.interval, (0.5, 0.9, 0.95, 0.99))]
    assert widths == sorted(widths)
    assert replace(got, probes=10_000).interval()[1].item() == pytest.approx(1.96 + 0.5, abs=0.1)  # of a normal
    assert replace(got, probes=0, probe_error=tensor([0.0])).interval()[1].item() == 0.5


def test_bits_per_dim():
    """Uniform on 256 levels, 8 bits, whose states are in [-1, 1]: log p(state) + log_volume = -d log 256."""
    log_volume = 3 * math.log(2 / 255)
    got = FlowLogp(tensor([-3 * math.log(256) - log_volume]), tensor([0.0]), tensor([0.0]), torch.tensor([9]), 0, 1e-4)
    assert got.bits_per_dim(log_volume, 3).item() == pytest.approx(8)


# ── Networks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def network(kind, **options):
    """A network with weights that are not zero anywhere."""
    torch.manual_seed(0)
    net = (
        MLP(1, width=16, **options)
        if kind == "mlp"
        else UNet(1, widths=(8, 8), blocks=1, attention=(False, True), **options)
    )
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return net


def test_the_density_of_any_network_integrates_to_one():
    model = Denoiser(network("mlp").double(), Gaussian(VP()), parameterisation="edm").eval()
    x = torch.linspace(-6, 6, 601, dtype=torch.float64)[:, None]
    got = flow_logp(model, x, low=0.2)
    assert not got.value.requires_grad
    mass = torch.trapezoid(got.value.exp(), x[:, 0])
    assert mass.item() == pytest.approx(1, abs=1e-3)
    assert (got.value - gaussian(0.0, 1.0, 1).log_prob(x, 1.0, 0.0)).abs().max() > 0.1  # not just the prior


def test_probes_through_the_unet_agree_with_the_exact_trace():
    model = Denoiser(network("unet"), Gaussian(VP()), parameterisation="v").eval()
    x = torch.randn(2, 1, 4, 4, generator=stream(1))
    exact = flow_logp(model, x, **COARSE)
    probed = flow_logp(model, x, trace="hutchinson", probes=8, rng=stream(2), **COARSE)
    assert exact.value.dtype == torch.float32
    assert ((probed.value - exact.value).abs() < 4 * probed.probe_error + probed.solver_error).all()
    assert (probed.probe_error > 0).all()
    assert (probed.probe_error < 3).all()


class Labelled(nn.Module):
    """The perfect x_0 network of N(label, 1/4), for sigma_data = 1; see EmpiricalNetwork of oracles.py."""

    def forward(self, x, level, cond=None):
        r2 = (8 * level)[:, None].exp()
        y = x * (1 + r2).sqrt()
        return (cond.label[:, None] * r2 + y / 4) / (1 / 4 + r2)


def test_labels_stay_with_their_examples():
    """Also when some have arrived and left the batch."""
    model = Denoiser(Labelled(), FLOW, parameterisation="x0", sigma_data=1.0).eval()
    labels = torch.tensor([0, 3, -2, 1])
    x = tensor([[0.1, 0.4], [3.0, 2.5], [5.0, 1.0], [1.0, 3.0]])
    got = flow_logp(Given(model, Condition(labels)), x, **FINE)
    known = torch.distributions.Normal(labels[:, None].double(), 0.5).log_prob(x).sum(1)
    assert len(got.calls.unique()) > 1
    assert ((got.value - known).abs() <= got.solver_error + 1e-6).all()
    assert got.solver_error.max() < 1e-3


def test_the_gradient_is_the_score():
    law = mixture()
    x = law.sample(4, stream(1)).requires_grad_()
    (got,) = torch.autograd.grad(flow_logp(Exact(law, FLOW), x, **FINE).value.sum(), x)
    (known,) = torch.autograd.grad(law.log_prob(x, 1.0, 0.0).sum(), x)
    assert (got - known).abs().max() < 1e-4


# ── Wrong inputs ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("x", "options", "text"),
    [
        (tensor([[0.0, 1.0], [0.0, math.nan]]), {}, "not finite in 1 of 2 examples, first in number 1"),
        (tensor([[math.inf, 1.0]]), {}, "not finite"),
        (tensor([0.0, 1.0]), {}, "batch of floats"),
        (torch.zeros(0, 2), {}, "batch of floats"),
        (torch.zeros(2, 2, dtype=torch.int64), {}, "batch of floats"),
        (torch.zeros(2, 1), {}, r"the model makes \(2,\) of states of shape \(1,\)"),
        (None, {"trace": "hutchinson", "probes": 0}, "at least one probe, got 0"),
        (None, {"trace": "hutchison"}, "did you mean 'hutchinson'"),
        (None, {"trace": "hutchinson", "noise": "gausian"}, "did you mean 'gaussian'"),
        (None, {"rtol": 0.0}, "above 0"),
        (None, {"atol": -1e-5}, "above 0"),
        (None, {"low": 0.0}, "low lies between"),
        (None, {"low": 200.0}, "low lies between"),
    ],
)
def test_wrong_inputs(x, options, text):
    model = Exact(mixture(), Gaussian(VP()))
    with pytest.raises(UserError, match=text):
        flow_logp(model, torch.zeros(2, 2).double() if x is None else x, **options)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_wrong_levels(level):
    with pytest.raises(UserError, match="between 0 and 1"):
        FlowLogp(*[tensor([0.0])] * 4, 2, 1e-4).interval(level)
