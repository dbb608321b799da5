"""Networks that jump, against exact flow maps: quantile maps on the line, linear maps of Gaussians."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from oracles import SCHEDULES, At, Exact, Quantiles, flow_map, gaussian, line, mixture, tensor
from pupils import mlp, taught, trained
from sfumato.denoise import Denoiser
from sfumato.density import flow_logp, vlb
from sfumato.dist import stream
from sfumato.errors import UserError
from sfumato.nn import MLP, UNet
from sfumato.process import Gaussian
from sfumato.sampler import SAMPLERS, Consistency, FlowMap, generate, sampler, trajectory
from sfumato.schedule import VP, Cosine
from sfumato.score import score
from sfumato.teaching import (
    METHODS,
    AlphaFlow,
    ConsistencyTuning,
    Direct,
    Matching,
    MeanFlow,
    Progressive,
    Task,
    base,
    halved,
    jumps,
)
from sfumato.teaching.base import noisy, still
from sfumato.weighting import LogNormal

# ── The samplers of exact maps ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("inner", [[], [0.5], [0.8, 0.3, 0.1]])
def test_steps_of_an_exact_map_are_exact_however_long(schedule, inner):
    process = Gaussian(SCHEDULES[schedule])
    model = Quantiles(line(), process)
    x = model.process.schedule.at(0.9).sigma * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    got = generate(model, FlowMap(), x, [0.9, *inner, 0.0])
    torch.testing.assert_close(got, model.step(x, 0.9, 0.0), rtol=0, atol=1e-9)


def test_the_map_of_a_gaussian_is_the_quantile_map():
    """Two oracles of one thing: the linear map in closed form, and F_s^-1 F_t."""
    x = torch.randn(20, 1, generator=stream(1), dtype=torch.float64)
    quantiles = Quantiles(gaussian(dim=1), Gaussian(VP()))
    expected = flow_map(gaussian(dim=1), VP(), x, tensor(0.8), tensor(0.2))
    torch.testing.assert_close(quantiles.step(x, 0.8, 0.2), expected, rtol=0, atol=1e-9)


def test_of_a_mean_the_flow_map_is_ddim():
    x = torch.randn(5, 2, generator=stream(2), dtype=torch.float64)
    model = Exact(mixture(), Gaussian(VP()))
    torch.testing.assert_close(
        generate(model, FlowMap(), x, "logsnr", 9), generate(model, sampler("ddim"), x, "logsnr", 9), rtol=0, atol=0
    )


@pytest.mark.parametrize("inner", [[], [0.5], [0.9, 0.7, 0.4]])
@pytest.mark.parametrize("gives", ["end", "map"])
def test_consistency_keeps_every_marginal(gives, inner):
    """At every stop the law is that of q(x_s): compared by the Kolmogorov distance of 4,000 draws."""
    model, n = Quantiles(line(), Gaussian(Cosine()), gives), 4000
    x = torch.randn(n, 1, generator=stream(3), dtype=torch.float64)
    for state in trajectory(model, Consistency(), x, [1.0, *inner, 0.0], rng=stream(4)):
        ranks = model.cdf(state.x, model.process.schedule.at(state.t)).sort().values
        distance = (ranks - torch.arange(1, n + 1) / n).abs().max()
        assert distance < 1.95 / n**0.5  # one in a thousand by chance


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_takes_what_it_says(name):
    if name.startswith("unmask"):
        pytest.skip("tokens have no ends")
    method, x = sampler(name), torch.zeros(2, 1, dtype=torch.float64)
    for gives in ("end", "step"):
        model = Quantiles(line(), Gaussian(VP()), gives)
        if gives in method.takes:
            generate(model, method, x, "logsnr", 30, rng=stream(5))
        else:
            with pytest.raises(UserError, match="needs a model that gives"):
                generate(model, method, x, "logsnr", 30, rng=stream(5))


def test_what_needs_a_mean_refuses_a_student():
    model, x = Quantiles(line(), Gaussian(VP()), "end"), torch.zeros(2, 1, dtype=torch.float64)
    for ask in (lambda: score(model, x, 0.5), lambda: flow_logp(model, x), lambda: vlb(model, x, steps=4)):
        with pytest.raises(UserError, match="was distilled to give where a state's path ends: ask its teacher"):
            ask()


# ── What is taught ────────────────────────────────────────────────────────────────────────────────────────────────────


class Answer(nn.Module):
    """A network whose x_0_hat is an exact model's: for the parameterisation x0 with sigma_data = 1."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, level, cond=None, to=None):
        def time(level):
            return self.model.process.schedule.time(-8 * level.double())

        t = time(level)
        now = self.model.process.schedule.at(t)
        x_t = x * (now.alpha**2 + now.sigma**2).sqrt()[:, None]
        return self.model(x_t, t) if to is None else self.model(x_t, t, time(to))


def exact(gives):
    """The map of N(0.7, 0.5) as a denoiser whose network is right by construction."""
    law, process = gaussian(dim=1), Gaussian(Cosine())

    class Linear:
        def __init__(self):
            self.process = process

        def __call__(self, x_t, t, s=None):
            s = (
                torch.zeros_like(t)
                if gives == "end"
                else t * (1 - 1e-9)
                if s is None
                else torch.minimum(s, t * (1 - 1e-9))
            )
            now, then = process.schedule.at(t[:, None]), process.schedule.at(s[:, None])
            keep, signal, _ = process.bridge(now, then, eta=0.0)
            return (flow_map(law, process.schedule, x_t, t[:, None], s[:, None]) - keep * x_t) / signal

    denoiser = Denoiser(Answer(Linear()), process, parameterisation="x0", sigma_data=1.0, gives=gives, law=At(0.6))
    return denoiser.double()


def mean_loss_gradient(method, gives, done, n=200_000):
    """The mean over data of d loss / d x_0_hat for the exact map: 0 if what is taught is the map; with its error."""
    student, errors = exact(gives), []

    def remember(estimate, target, eps, w):
        errors.append((estimate.x0 - target).flatten())
        return plain_error(estimate, target, eps, w)

    plain_error, base.squared_error = base.squared_error, remember
    try:
        x_0 = gaussian(dim=1).sample(n, stream(6))
        method.loss(student, student, Task(x_0, None, stream(7), torch.full((n,), 0.6, dtype=torch.float64), done))
    finally:
        base.squared_error = plain_error
    (found,) = errors
    return float(found.mean()), float(found.std() / n**0.5)


@pytest.mark.parametrize("done", [0.0, 0.5, 0.99])
def test_alphaflow_teaches_the_map(done):
    """The mean of x_0_hat - x_0* over data is 0 for the exact map, whatever a."""
    mean, error = mean_loss_gradient(AlphaFlow(still=0.0, power=0.0), "map", done)
    assert abs(mean) < 4 * error


def test_meanflow_teaches_the_map():
    mean, error = mean_loss_gradient(MeanFlow(still=0.0, power=0.0), "map", 0.0)
    assert abs(mean) < 4 * error


def test_consistency_tuning_teaches_the_end_better_and_better():
    """Its bias is of second order in the distance of the two levels, which halves on the way."""
    biases = [abs(mean_loss_gradient(ConsistencyTuning(doublings=8), "end", k / 8)[0]) for k in (3, 4, 5)]
    assert biases[2] < biases[1] < biases[0]


def test_progressive_teaches_two_steps_in_one():
    """Of a teacher whose steps are exact, two in one are exact too: the exact map has no error to learn from."""
    errors, student = [], exact("map")

    class Steps:
        process, parameterisation, sigma_data = student.process, "x0", 1.0

        def __call__(self, x_t, t, cond):
            stops = halved(student.process.schedule, 2, 2)
            after = torch.searchsorted(stops.flip(0), torch.as_tensor(t.t), right=False)
            following = stops[len(stops) - after]
            errors.append(following)
            return student(x_t, t, s=following)

    x_0 = gaussian(dim=1).sample(50, stream(15))
    method = Progressive(calls=2, stages=2)
    losses = method.loss(Twice(student, method), Steps(), Task(x_0, None, stream(16), torch.zeros(50), 0.0))
    assert losses.max() < 1e-10


def test_direct_distillation_teaches_where_the_teachers_way_leads():
    """Of an exact mean, by ever more steps within: the exact map has less and less error to learn from."""
    student, stops = exact("map"), jumps(Cosine(), 3, 1.0)

    class Jumps:
        def __getattr__(self, name):
            return getattr(student, name)

        def __call__(self, x_t, t, cond):
            following = stops[(stops >= float(t.t[0]) - 1e-9).sum()]
            return student(x_t, t, s=following.expand(len(x_t)))

    x_0 = gaussian(dim=1).sample(50, stream(15))
    errors = []
    for within in (4, 8, 32):
        tasks = (Task(x_0, None, stream(16, k), torch.zeros(50).double(), 0.0) for k in range(6))
        errors.append(max(float(Direct(3, within).loss(Jumps(), student, task).max()) for task in tasks))
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert errors[2] < 1e-5  # what is left lies below the noise at which all ways end


class Drawn(nn.Module):
    """A student whose one step makes m + s z of standard noise z: it draws from N(m, s^2)."""

    def __init__(self, schedule, stop):
        super().__init__()
        self.mean, self.std = (nn.Parameter(tensor(each)) for each in (0.0, 0.2))
        now = schedule.at(stop)
        self.scale = (now.alpha**2 + now.sigma**2).sqrt() / now.sigma

    def forward(self, x, level, cond=None, to=None):
        return self.mean + self.std * x * self.scale


def mean_of(mean, std):
    """The estimate of data of a normal law, exact by construction."""

    class Linear:
        process = Gaussian(Cosine())

        def __call__(self, x_t, t):
            now = self.process.schedule.at(t[:, None])
            gain = now.alpha * std**2 / (now.alpha**2 * std**2 + now.sigma**2)
            return mean + gain * (x_t - now.alpha * mean)

    return Denoiser(Answer(Linear()), Gaussian(Cosine()), parameterisation="x0", sigma_data=1.0).double()


@pytest.mark.parametrize("a", [0.5, 1.0])
def test_matching_ends_where_the_laws_are_one(a):
    """With a critic that is right at every step, and only there."""
    method, law = Matching(a=a), LogNormal(-0.1, 1.2)
    stop = method.stops(Cosine(), 1, 1.0)[0]
    network = Drawn(Cosine(), stop)
    student = Denoiser(network, Gaussian(Cosine()), parameterisation="x0", sigma_data=1.0, gives="end", law=law)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.03)
    for k in range(400):
        optimiser.param_groups[0]["lr"] = 0.03 * min(1, (400 - k) / 200)
        critic = mean_of(network.mean.item(), network.std.item())
        x_0 = torch.zeros(512, 1, dtype=torch.float64)  # data are not looked at
        task = Task(x_0, None, stream(17, k), student.times(512, stream(18, k)), 0.0, {"critic": critic})
        optimiser.zero_grad()
        method.loss(student, mean_of(0.7, 0.5), task).mean().backward()
        optimiser.step()
    assert network.mean.item() == pytest.approx(0.7, abs=0.02)
    assert network.std.item() == pytest.approx(0.5, abs=0.02)


def test_one_pass_of_the_critic_serves_both_losses():
    """The critic learns by its own loss alone, to denoise what the student draws; the student by the match alone."""
    method = Matching()
    student, critic, teacher = mlp("end"), mlp("mean", seed=1), mlp("mean", seed=2)
    x_0, t = torch.zeros(64, 1), student.times(64, stream(20))
    loss = method.loss(student, teacher, Task(x_0, None, stream(19), t, 0.0, {"critic": critic}))
    loss.sum().backward()
    learns = [*student.parameters(), *critic.parameters()]
    got = [parameter.grad.clone() for parameter in learns]
    for parameter in learns:
        parameter.grad = None
    rng = stream(19)
    x, now = method._own_step(student, x_0, None, rng), student.process.schedule.at(t)
    x_t = noisy(x, torch.randn(64, 1, generator=rng.clone_state()), now)
    own = critic.loss(x.detach(), None, rng, t)
    real, fake = teacher(x_t, now).x0, still(critic, x_t, now).x0
    match = ((real - fake) * (real - x - method.a * (real - fake))).mean(1) / (real - x).detach().abs().mean(1)
    torch.testing.assert_close(loss, match + own)
    (match + own).sum().backward()
    for parameter, theirs in zip(learns, got, strict=True):
        torch.testing.assert_close(parameter.grad, theirs)


@dataclass
class Twice:
    """The exact map for the steps of the student's first grid."""

    student: Denoiser
    method: Progressive

    def __getattr__(self, name):
        return getattr(self.student, name)

    def __call__(self, x_t, t, cond):
        stops = halved(self.student.process.schedule, 2, 2)[::2]
        after = torch.searchsorted(stops.flip(0), torch.as_tensor(t.t), right=False)
        return self.student(x_t, t, s=stops[len(stops) - after])


@pytest.fixture(scope="module")
def teacher():
    return trained()


TOP = float(Cosine().time(-2 * torch.tensor(80.0).double().log()))
"""Where students begin: the noise above is taken for it."""


def far(model, method, stops):
    """RMS distance of the samples to those of the exact map, from the same noise."""
    x = torch.randn(2000, 1, generator=stream(13))
    exact_end = Quantiles(line(), Gaussian(Cosine())).step(x.double(), 1.0, 0.0)
    with torch.no_grad():
        end = generate(model, method, x * float(Cosine().at(stops[0]).sigma), stops)
    return float((end - exact_end).square().mean().sqrt())


ON_A_LINE = {
    "matching": (Matching(), 0.3),  # of laws: on a line a map that never falls and has the right law is the right map
    "consistency": (ConsistencyTuning(doublings=5, power=0.0), 0.3),
    "direct": (METHODS["direct"](1), 0.3),
    "progressive": (Progressive(calls=1, stages=3), 0.3),
    "alphaflow": (AlphaFlow(power=0.0), 0.3),  # of one value the median is not the mean
    "meanflow": (MeanFlow(power=0.0), 0.6),
}
"""Each method for one-dimensional data, and what share of the teacher's distance a student keeps at most."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("matching", "consistency", "direct") else pytest.mark.slow)
        for name in METHODS
    ],
)
def test_a_student_learns_the_quantile_map(name, teacher):
    """One call of the student is much nearer to the exact map than one call of the teacher (the mean of the data)."""
    method, share = ON_A_LINE[name]
    student = taught(method, teacher, 900)
    before = far(teacher, FlowMap(), [TOP, 0.0])
    after = far(student, usual(method), method.stops(Cosine(), 1, student.sigma_data))
    assert before > 0.8
    assert after < share * before
    if method.gives == "map":  # steps of any length, and at no length still the mean of the data
        assert far(student, FlowMap(), [TOP, 0.7, 0.4, 0.0]) < after
        x, truth = torch.randn(500, 1, generator=stream(14)), Exact(line(), Gaussian(Cosine()))
        for t in (0.6, 0.9):
            assert (student(x, t).x0 - truth(x.double(), t).x0).square().mean().sqrt() < 0.2


def usual(method):
    return Consistency() if method.gives == "end" else FlowMap()


# ── The network that hears where a step ends ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "make", [lambda ends: MLP(2, ends=ends), lambda ends: UNet(1, widths=(8, 16), attention=(False, True), ends=ends)]
)
def test_a_step_without_length_is_heard_as_none(make):
    network = make(True)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    x = torch.randn(3, *((2,) if isinstance(network, MLP) else (1, 8, 8)))
    level = torch.tensor([0.1, -0.5, 1.0])
    plain = make(False)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if ".end." not in k})
    with torch.no_grad():
        torch.testing.assert_close(network(x, level, to=level), plain(x, level))
        assert not torch.allclose(network(x, level, to=level - 1), plain(x, level))
    with pytest.raises(ValueError, match="level of their end"):
        network(x, level)
    with pytest.raises(ValueError, match="level of their end"):
        plain(x, level, to=level)
