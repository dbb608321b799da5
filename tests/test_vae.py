"""The VAE against a linear one whose likelihood is known, and its prior against what a density must do."""

import json
import math

import pytest
import torch
from torch import nn

import sfumato
from sfumato.cli import main
from sfumato.condition import Condition
from sfumato.data import load
from sfumato.dist import Normal, stream
from sfumato.engine.examples import chosen
from sfumato.engine.likelihood import CHAIN
from sfumato.engine.run import Run
from sfumato.errors import UserError
from sfumato.models.autoencoder import Flat, Grid, Ladder
from sfumato.models.vae import VAE, GridSpec, LadderSpec, VAESpec
from sfumato.nn import Down, Flow, GridDecoder, GridEncoder, Up

SIGMA_DATA, NOISE = 0.5, 0.3
CODEC = load("moons").codec

pytestmark = pytest.mark.usefixtures("well_measured")


def stirred(dim, classes=0):
    """A flow that is not the identity."""
    torch.manual_seed(1)
    flow = Flow(dim, 16, 6, classes)
    for p in flow.parameters():
        nn.init.normal_(p, std=0.4)
    return flow


@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("classes", [0, 3])
def test_a_flow_is_invertible_and_its_density_is_that_of_the_change_of_variables(dim, classes):
    flow, z = stirred(dim, classes).double(), torch.randn(7, dim, dtype=torch.float64)
    cond = Condition(torch.arange(7) % 3) if classes else None
    noise, log_det = flow(z, cond)
    torch.testing.assert_close(flow.inverse(noise, cond), z)
    assert float((noise - z).detach().abs().max()) > 0.1
    for k in range(7):
        label = None if cond is None else cond[k : k + 1]
        jacobian = torch.autograd.functional.jacobian(lambda v, at=label: flow(v[None], at)[0][0], z[k])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[k])
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(1)
    torch.testing.assert_close(flow.log_prob(z, cond), standard + log_det)


def test_a_fresh_flow_is_standard_normal_and_a_single_number_has_no_halves():
    z = torch.randn(9, 4)
    torch.testing.assert_close(Flow(4).log_prob(z), torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1))
    with pytest.raises(ValueError, match="two numbers or more"):
        Flow(1)


class Posterior(nn.Module):
    """The true q(z|x) of x = W z + noise, all in units of the data's deviation: m and log s. W has orthogonal columns
    of one length, so that it is a diagonal one."""

    def __init__(self, w, noise):
        super().__init__()
        precision = w.square().sum(0) / noise**2 + 1
        self.to = (w / noise**2 / precision).T
        self.log_std = -0.5 * precision.log()

    def forward(self, x, cond=None):
        return torch.cat([x @ self.to.T, self.log_std.expand(len(x), -1)], 1)


class Decoder(nn.Module):
    """z to W z."""

    def __init__(self, w):
        super().__init__()
        self.w = w

    def forward(self, z, cond=None):
        return z @ self.w.T


def linear():
    """A linear VAE with its true posterior, and the law of its data."""
    w = torch.linalg.qr(torch.randn(4, 2, dtype=torch.float64))[0] * 1.3
    model = VAE(Flat(Posterior(w, NOISE), Decoder(w), Flow(2).double()), CODEC, (), 2, 1.0, SIGMA_DATA)
    covariance = SIGMA_DATA**2 * (w @ w.T + NOISE**2 * torch.eye(4, dtype=torch.float64))
    return model, torch.distributions.MultivariateNormal(torch.zeros(4, dtype=torch.float64), covariance)


@pytest.mark.parametrize("draws", [1, 5])
def test_with_the_true_posterior_the_bound_is_the_likelihood_itself(draws):
    torch.manual_seed(0)
    model, law = linear()
    model.noise_std.fill_(NOISE)
    x = law.sample((6,))
    told = model.bound(x, None, torch.Generator().manual_seed(0), draws)
    torch.testing.assert_close(told, law.log_prob(x), rtol=1e-6, atol=1e-6)  # sigma is kept in float32


def test_the_loss_at_the_best_noise_is_the_bound_it_claims():
    """On average over many data of the law: -(1) at the noise (2), which is the true one, and -log p of z."""
    torch.manual_seed(0)
    model, law = linear()
    x = law.sample((40_000,))
    loss = model.loss(x, None, torch.Generator().manual_seed(0)).mean().item()
    entropy = 2 / 2 * math.log(2 * math.pi * math.e)  # of z, standard normal, by a prior that is that
    expected = (float(law.entropy()) + entropy) / 4 - math.log(SIGMA_DATA)  # x is told in units of sigma_data
    assert loss == pytest.approx(expected, abs=0.01)
    (found,) = model.measure(x, None, torch.Generator().manual_seed(0))
    assert float(found) == pytest.approx(NOISE, rel=0.01)


def test_more_draws_bound_tighter_where_the_posterior_is_wrong():
    torch.manual_seed(0)
    model, law = linear()
    model.noise_std.fill_(NOISE)
    model.networks.encoder.log_std = model.networks.encoder.log_std + 0.7
    x, rng = law.sample((500,)), torch.Generator().manual_seed(0)
    bounds = [model.bound(x, None, rng, k).mean().item() for k in (1, 8, 64)]
    assert bounds == sorted(bounds) and bounds[-1] < law.log_prob(x).mean().item() + 0.02
    assert law.log_prob(x).mean().item() - bounds[-1] < 0.1


def test_the_second_stage_does_not_touch_the_first():
    torch.manual_seed(0)
    spec = VAESpec(widths=(16,), blocks=1, latent=2)
    model, x = spec.build(CODEC), torch.randn(8, 2)

    def gradients(prior):
        model.networks.prior = prior
        model.zero_grad()
        model.loss(x, None, torch.Generator().manual_seed(0)).sum().backward()
        return [p.grad.clone() for net in (model.networks.encoder, model.networks.decode) for p in net.parameters()]

    for a, b in zip(gradients(Flow(2)), gradients(stirred(2)), strict=True):
        assert torch.equal(a, b)


# ── The ladder ────────────────────────────────────────────────────────────────────────────────────────────────────────

SHAPES = {"points": ((2,), (8, 8, 8)), "pictures": ((1, 9, 11), (4, 8, 8))}


def ladder(dims, widths, classes=0, stir=0.3):
    torch.manual_seed(2)
    networks = Ladder(Up(dims, widths, 1), Down(dims, 2, widths, 1, classes)).double()
    for p in networks.parameters():
        if stir:
            nn.init.normal_(p, std=stir / math.sqrt(max(1, p[0].numel() if p.ndim > 1 else 1)))
    return networks


@pytest.mark.parametrize(("dims", "widths"), SHAPES.values(), ids=SHAPES)
def test_a_fresh_ladder_knows_as_much_with_data_as_without(dims, widths):
    x = torch.randn(4, *dims, dtype=torch.float64)
    found = ladder(dims, widths, stir=0.0).infer(x, None, torch.Generator().manual_seed(0))
    assert found.made.shape == x.shape
    assert torch.equal(found.kl, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(found.ratio, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize(("dims", "widths"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("classes", [0, 3])
def test_drawing_is_inference_by_the_prior(dims, widths, classes):
    """With m' = 0 and s' = 1 both walk down by the same law, so the same noise makes the same data."""
    networks = ladder(dims, widths, classes)
    for rung in networks.down.posterior:
        nn.init.zeros_(rung.weight)
        nn.init.zeros_(rung.bias)
    cond = Condition(torch.arange(5) % 3) if classes else None
    found = networks.infer(torch.randn(5, *dims, dtype=torch.float64), cond, torch.Generator().manual_seed(7))
    rng = torch.Generator().manual_seed(7)
    noise = [torch.randn(5, *shape, generator=rng, dtype=torch.float64) for shape in networks.down.shapes]
    made = networks.generate(torch.cat([each.flatten(1) for each in noise], 1), cond)
    torch.testing.assert_close(made, found.made)


class Blind(nn.Linear):
    """A layer that hears no labels."""

    def forward(self, x, cond=None):
        return super().forward(x)


def grid(dims=(1, 8, 8), widths=(4, 6)):
    torch.manual_seed(3)
    decoder = GridDecoder(dims, 3, widths, 1)
    networks = Grid(GridEncoder(dims, 6, widths, 1), decoder, (3, *decoder.sides)).double()
    for p in networks.parameters():
        nn.init.normal_(p, std=0.3)
    return networks


@pytest.mark.parametrize("kind", ["flat", "ladder", "grid"])
@torch.no_grad()
def test_what_is_encoded_is_decoded_from_the_mean_of_the_posterior(kind):
    flat = Flat(Blind(2, 6), Blind(3, 2), stirred(3)).double()
    networks = {"flat": flat, "ladder": ladder((2,), (8, 8, 8)), "grid": grid()}[kind]
    x = torch.randn(4, *((1, 8, 8) if kind == "grid" else (2,)), dtype=torch.float64)
    networks.measure(x, None)
    made = networks.generate(networks.encode(x, None), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Normal, "sample", lambda self, rng=None: self.mean)
        expected = networks.infer(x, None).made
    torch.testing.assert_close(made, expected)


@torch.no_grad()
def test_latents_of_a_grid_are_white_over_the_data_that_were_measured():
    networks, x = grid(), torch.randn(50, 1, 8, 8, dtype=torch.float64) + 0.5
    assert networks.shape == (3, 4, 4)
    raw = networks.encode(x, None).view(-1, 3, 16)
    networks.measure(x, None)
    white = networks.encode(x, None).view(-1, 3, 16)
    assert abs(raw.mean((0, 2))).max() > 0.01
    torch.testing.assert_close(white.mean((0, 2)), torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(white.var((0, 2), correction=0), torch.ones(3, dtype=torch.float64))


def test_a_critic_moves_the_autoencoder_by_its_weight_and_itself_by_its_own_loss():
    codec, x = load("digits").codec, torch.randn(6, 1, 8, 8)

    def gradients(adversary):
        torch.manual_seed(0)
        model = GridSpec((4, 6), 1, adversary=adversary).build(codec)
        model.loss(x, None, torch.Generator().manual_seed(0)).sum().backward()
        assert model.momentum == (adversary == 0)
        of_critic = [] if model.critic is None else [p.grad for p in model.critic.parameters()]
        return torch.cat([p.grad.flatten() for p in model.networks.parameters()]), of_critic

    alone, (one, of_critic), (two, again) = gradients(0.0)[0], gradients(1.0), gradients(2.0)
    torch.testing.assert_close(two - alone, 2 * (one - alone), rtol=1e-3, atol=1e-5)
    assert (one - alone).abs().max() > 1e-4
    for a, b in zip(of_critic, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["flat", "ladder", "grid"])
@torch.no_grad()
def test_the_divergence_is_the_mean_of_the_ratio_that_the_bound_weighs(kind):
    """KL(q || p) = E_q log q/p: at every level for itself, and so for all."""
    flat = Flat(Blind(2, 6), Blind(3, 2), Flow(3)).double()
    networks = {"flat": flat, "ladder": ladder((2,), (8, 8, 8)), "grid": grid()}[kind]
    shape = (2_000, 1, 8, 8) if kind == "grid" else (60_000, 2)
    x = torch.full(shape, 0.7, dtype=torch.float64)
    found = networks.infer(x, None, torch.Generator().manual_seed(0))
    error = 4 * float((found.ratio + found.kl).std()) / math.sqrt(len(x))
    assert float(found.kl.mean()) > 0.01
    assert float(-found.ratio.mean()) == pytest.approx(float(found.kl.mean()), abs=error)


@pytest.mark.parametrize("kind", ["vae", "ladder"])
def test_latents_are_used_where_all_directions_have_the_same_variance(kind, tmp_path):
    """Their first bit costs what it gains, so that without `FREE` both learn a single point and never leave it."""
    run = sfumato.train("grid25", model=kind, steps=400, batch=128, size="tiny", out=str(tmp_path / "run"))
    model, x = sfumato.load(run), load("grid25").test
    found = model.networks.infer(x.codec.encode(x.items[:500]) / model.sigma_data, None, stream(0))
    assert float(found.kl.detach().mean()) > 1.0 and float(model.noise_std) < 0.8


def test_a_ladder_is_trained_and_drawn_from(tmp_path, capsys):
    folder = tmp_path / "moons"
    assert main(["train", "moons", "--model", "ladder", "--classes", "--steps", "60", "--out", str(folder)]) == 0
    assert main(["sample", str(folder), "-n", "4"]) == 0
    run = Run.open(folder)
    assert isinstance(run.config.model, LadderSpec) and len(run.config.model.widths) == 3
    model, _ = run.load()
    data = run.dataset()
    states, labels = data.test.codec.encode(data.test.items[:200]), data.test.labels[:200]
    bounds = [
        model.bound(states, Condition(labels), torch.Generator().manual_seed(0), k).mean().item() for k in (1, 64)
    ]
    assert bounds[0] < bounds[1]
    assert main(["likelihood", str(folder), "-n", "20"]) == 0
    assert "bound (draws of the latents: 64)" in capsys.readouterr().out


def test_a_run_is_trained_drawn_from_and_bounds_what_it_has_seen(tmp_path, capsys):
    folder = tmp_path / "moons"
    assert main(["train", "moons", "--model", "vae", "--classes", "--steps", "400", "--out", str(folder)]) == 0
    assert main(["sample", str(folder), "-n", "4"]) == 0
    assert main(["evaluate", str(folder), "-n", "200"]) == 0
    run = Run.open(folder)
    model, _ = run.load()
    data = run.dataset()
    states, labels = data.test.codec.encode(data.test.items[:500]), data.test.labels[:500]
    told = model.bound(states, Condition(labels), torch.Generator().manual_seed(0)).mean()
    wrong = model.bound(states, Condition(1 - labels), torch.Generator().manual_seed(0)).mean()
    normal = torch.distributions.Normal(states.mean(0), states.std(0)).log_prob(states).sum(1).mean()
    assert told > normal > wrong  # than a Gaussian of the same mean and spread; than the other class's
    assert main(["likelihood", str(folder), "ring8", "-n", "50"]) == 2  # whose classes are others
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["likelihood", str(folder), "-n", "50"]) == 0
    out = capsys.readouterr().out
    assert "bound (draws of the latents: 64)" in out and "flow" not in out
    summary = json.loads((folder / "likelihood" / "moons" / "summary.json").read_text())
    some = chosen(data, model, 50, 0)
    x, rng = data.codec.encode(some.items), some.streams(0, CHAIN, 0)
    nats = -model.bound(x, some.cond, rng).mean().item() - data.codec.log_volume()
    assert summary["parts"][0]["bits_per_dim"]["density"]["value"] == pytest.approx(nats / (2 * math.log(2)), abs=1e-6)
    assert (folder / "likelihood" / "moons" / "extremes.png").exists()


def test_an_autoencoder_with_a_grid_is_trained_and_brings_held_out_pictures_back(tmp_path, capsys):
    folder = tmp_path / "digits"
    assert main(["train", "digits", "--model", "autoencoder", "--steps", "150", "--out", str(folder)]) == 0
    assert main(["sample", str(folder), "-n", "4"]) == 0
    model, _ = Run.open(folder).load()
    data = load("digits").test
    states = data.codec.encode(data.items)
    latents = model.encode(states)
    assert latents.shape == (len(states), 4 * 2 * 2)
    spread = latents.view(-1, 4, 4).var((0, 2))
    assert spread.min() > 0.7 and spread.max() < 1.4  # measured on training pictures
    with torch.no_grad():
        error = (model.generate(latents, None) - states).square().mean()
    assert error < 0.5 * states.var()
    for words in (
        ["train", "moons", "--model", "autoencoder"],
        ["train", "digits", "--model", "autoencoder", "--classes"],
    ):
        assert main([*words, "--out", str(tmp_path / "none")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="beta must be above 0"):
        VAESpec(widths=(8,), blocks=1, beta=0.0).build(CODEC)
    with pytest.raises(UserError, match="at least two"):
        VAESpec(widths=(8,), blocks=1, latent=1).build(CODEC)
    model = VAESpec(widths=(8,), blocks=1, latent=2).build(CODEC)
    with pytest.raises(UserError, match="not measured"):
        model.bound(torch.zeros(1, 2))
    model.noise_std.fill_(1.0)
    with pytest.raises(UserError, match="at least one draw"):
        model.bound(torch.zeros(1, 2), draws=0)
