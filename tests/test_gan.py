"""The GAN's loss and gradients against what its equations say, and its runs against what a run must do."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sfumato.cli import main
from sfumato.condition import Condition
from sfumato.data import load
from sfumato.data.points import Points
from sfumato.dist import randn_like
from sfumato.engine.asked import Asked, Choices
from sfumato.engine.choices import configure
from sfumato.engine.config import read_config
from sfumato.engine.run import Run
from sfumato.errors import UserError
from sfumato.models.gan import GAMES, GAN, GANSpec
from sfumato.nn import Critic, Decoder, Encoder, Generator

SHAPES = {"points": ((2,), (16,)), "pictures": ((1, 9, 11), (4, 8)), "colour": ((3, 8, 8), (4, 8, 8))}


class Linear(nn.Module):
    """A player of one matrix, whose loss can be written down."""

    def __init__(self, before, after):
        super().__init__()
        self.layer = nn.Linear(before, after, bias=False)

    def forward(self, x, cond=None):
        return self.layer(x)


def game_of(game, gamma):
    torch.manual_seed(0)
    return GAN(Linear(3, 2), Linear(2, 1), Points(), (), GAMES[game], gamma, 0.5, 3)


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_loss_and_gradients_are_those_of_the_two_players(game, gamma):
    model, x_0 = game_of(game, gamma), torch.randn(5, 2)
    seed = torch.Generator().manual_seed(3)
    model.loss(x_0, None, seed).sum().backward()
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))
    critic, generator = model.critic.layer.weight, model.generator.layer.weight
    x, y = x_0 / 0.5, z @ generator.T
    f = F.softplus
    c_x, c_y = x @ critic[0], (y @ critic[0])
    own = {"relativistic": (f(c_y - c_x), f(c_x - c_y)), "non-saturating": (f(-c_x) + f(c_y), f(-c_y))}[game]
    penalty = gamma / 2 * 2 * 5 * critic.square().sum()  # the gradient of a linear critic is its weights, everywhere
    (of_critic,) = torch.autograd.grad(own[0].sum() + penalty, critic, retain_graph=True)
    (of_generator,) = torch.autograd.grad(own[1].sum(), generator)
    torch.testing.assert_close(critic.grad, of_critic)
    torch.testing.assert_close(generator.grad, of_generator)


def test_a_penalty_of_every_second_example_is_the_same_where_the_gradient_is_everywhere_the_same():
    x_0, found = torch.randn(6, 2), []
    for every in (1, 2):
        model = game_of("relativistic", 0.7)
        model.every = every
        model.loss(x_0, None, torch.Generator().manual_seed(3)).sum().backward()
        found.append(model.critic.layer.weight.grad)
    torch.testing.assert_close(*found)


def test_the_loss_is_the_sum_of_what_both_lose():
    model, x_0 = game_of("relativistic", 0.3), torch.randn(4, 2)
    loss = model.loss(x_0, None, torch.Generator().manual_seed(1))
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    c = model.critic
    gap = c(2 * x_0)[:, 0] - c(model.generator(z))[:, 0]
    expected = F.softplus(-gap) + F.softplus(gap) + 0.3 * c.layer.weight.square().sum()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("dims", "widths"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("classes", [0, 3])
def test_networks_make_data_of_vectors_and_vectors_of_data(dims, widths, classes):
    cond = Condition(torch.arange(4) % 3) if classes else None
    made = Decoder(dims, 6, widths, 2, classes)(torch.randn(4, 6), cond)
    assert made.shape == (4, *dims)
    assert Encoder(dims, 5, widths, 2, classes)(made, cond).shape == (4, 5)


@pytest.mark.parametrize("network", [Decoder, Encoder])
def test_labels_where_there_are_none_or_missing_are_refused(network):
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match="classes=0"):
        network((3,), 3, (8,), 1)(x, cond_of(2))
    with pytest.raises(ValueError, match="cond is missing"):
        network((3,), 3, (8,), 1, classes=2)(x)


def test_what_is_said_of_an_example_does_not_depend_on_its_neighbours():
    torch.manual_seed(0)
    critic, x = Encoder((1, 8, 8), 1, (8, 8), 2), torch.randn(6, 1, 8, 8)
    for p in critic.parameters():  # so that no branch is zero
        nn.init.normal_(p, std=0.2)
    torch.testing.assert_close(critic(x)[:2], critic(x[:2]), rtol=1e-5, atol=1e-6)


def test_fresh_networks_keep_unit_scale():
    torch.manual_seed(0)
    for dims, widths in (((2,), (256,)), ((1, 28, 28), (32, 64, 96))):
        made = Decoder(dims, 64, widths, 2)(torch.randn(64, 64))
        assert 0.3 < made.std().item() < 3
        assert 0.1 < Encoder(dims, 16, widths, 2)(torch.randn(64, *dims)).std().item() < 3


@pytest.mark.parametrize("dims", [(1, 8, 8), (3, 9, 11)])
@pytest.mark.parametrize("classes", [0, 3])
def test_the_networks_of_dcgan_fit_pictures_of_any_size(dims, classes):
    cond = Condition(torch.arange(4) % 3) if classes else None
    made = Generator(dims, 5, (4, 8), classes)(torch.randn(4, 5), cond)
    assert made.shape == (4, *dims) and made.abs().max() <= 1
    assert Critic(dims, (4, 8), classes)(made, cond).shape == (4, 1)
    for network in (Generator(dims, 5, (4, 8), classes), Critic(dims, (4, 8), classes)):
        with pytest.raises(ValueError, match="cond"):
            network(torch.randn(2, 5) if isinstance(network, Generator) else made[:2], None if classes else cond_of(2))


def cond_of(n):
    return Condition(torch.zeros(n, dtype=torch.long))


def test_players_who_hear_a_batch_as_one_get_the_gradient_of_the_whole_batch():
    torch.manual_seed(0)
    model = GANSpec((4, 8), 1, 5, network="dcgan", game="non-saturating", gamma=0.0, sigma_data=1.0).build(
        load("digits").codec
    )
    model, x_0 = model.double(), torch.randn(6, 1, 8, 8).double()
    model.loss(x_0, None, torch.Generator().manual_seed(3)).sum().backward()
    z = randn_like(x_0.new_empty(6, 5), torch.Generator().manual_seed(3))
    own, other = list(model.generator.parameters()), list(model.critic.parameters())
    made = model.generator(z)
    expected = torch.autograd.grad(F.softplus(-model.critic(made)).sum(), own, retain_graph=True)
    against = F.softplus(-model.critic(x_0)).sum() + F.softplus(model.critic(made.detach())).sum()
    torch.testing.assert_close([p.grad for p in own], list(expected))
    torch.testing.assert_close([p.grad for p in other], list(torch.autograd.grad(against, other)))


# ── Runs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gan") / "ring"
    words = ["train", "ring8", "--model", "gan", "--classes", "--steps", "60", "--batch", "32", "--out", str(folder)]
    assert main(words) == 0
    return folder


def test_a_run_is_trained_drawn_from_and_told_of(trained, capsys):
    run = Run.open(trained)
    assert isinstance(run.config.model, GANSpec) and run.config.model.classes == 8
    assert 'family = "gan"' in (trained / "config.toml").read_text()
    assert main(["sample", str(trained), "-n", "9", "--class", "3"]) == 0
    assert list((trained / "samples").glob("step60-seed0-generator-3/*.csv"))
    assert main(["evaluate", str(trained), "-n", "100"]) == 0
    assert main(["report", str(trained)]) == 0
    page = (trained / "report.html").read_text()
    assert "relativistic" in page and "Loss by noise level" not in page
    assert "1 steps" in capsys.readouterr().out  # of evaluate: one call


def test_samples_are_functions_of_weights_seed_and_index(trained):
    model, _ = Run.open(trained).load()
    many = torch.cat(list(model.states(model.batch + 5, seed=4)))
    again = torch.cat(list(model.states(3, seed=4, first=model.batch + 2)))
    assert torch.equal(many[model.batch + 2 :], again)
    assert not torch.equal(many, torch.cat(list(model.states(model.batch + 5, seed=5))))


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path):
    words = ["train", "ring8", "--model", "gan", "--batch", "32", "--save-every", "1e9", "--out"]
    assert main([*words, str(tmp_path / "straight"), "--steps", "40"]) == 0
    assert main([*words, str(tmp_path / "halved"), "--steps", "40"]) == 0
    run = Run.open(tmp_path / "halved")
    for path in sorted(run.checkpoints.glob("*"))[1:]:  # back to the first
        path.unlink()
    assert main(["resume", str(run.folder)]) == 0
    prints = [Run.open(tmp_path / name).load()[0].fingerprint() for name in ("straight", "halved")]
    assert prints[0] == prints[1]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["likelihood", "RUN"], "log p needs a diffusion model or a vae, and this is a gan"),
        (["distill", "RUN"], "distilling needs a diffusion model, and this is a gan"),
        (["tune-sampler", "RUN"], "tuning a sampler needs a diffusion model, and this is a gan"),
        (["polish", "RUN"], "correcting a run needs a diffusion model, and this is a gan"),
        (["show", "RUN"], "showing the way to noise and back needs a diffusion model, and this is a gan"),
        (["sample", "RUN", "--steps", "5"], "a gan draws in one call: leave --steps, --sampler and --grid out"),
        (["train", "ring8", "--model", "gan", "--schedule", "vp"], "--schedule is a choice of diffusion models"),
        (["train", "ring8", "--model", "dcgan"], "the networks of DCGAN are for pictures"),
        (["train", "ring8", "--model", "gan", "--likelihood"], "--likelihood is a choice of diffusion models"),
        (["train", "ring8", "--model", "gan", "--compile"], "--compile is a choice of diffusion models"),
    ],
)
def test_what_a_gan_cannot_do_is_refused_in_one_line(words, reason, trained, tmp_path, capsys):
    words = [str(trained) if word == "RUN" else word for word in words]
    if words[0] == "train":
        words += ["--out", str(tmp_path / "none")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_a_config_of_another_family_is_refused(trained, tmp_path):
    text = (trained / "config.toml").read_text()
    path = tmp_path / "config.toml"
    path.write_text(text.replace('family = "gan"', 'family = "gam"'))
    with pytest.raises(UserError, match=r"unknown family 'gam'.*gan"):
        read_config(path)
    path.write_text(text.replace('family = "gan"\n', ""))  # then it is one of a diffusion model
    with pytest.raises(UserError, match="unknown key"):
        read_config(path)


def test_impossible_networks_are_refused():
    data = load("ring8")
    spec = configure(data, Asked("ring8", model="gan", steps=1, batch=8), Choices()).model
    for (key, value), reason in {
        ("gamma", -1.0): "gamma",
        ("every", 0): "at least 1",
        ("game", "fair"): "fair",
    }.items():
        with pytest.raises(UserError, match=reason):
            dataclasses.replace(spec, **{key: value}).build(data.codec)
    with pytest.raises(UserError, match="hears each example alone"):
        GANSpec((4,), 1, network="dcgan").build(load("digits").codec)


@pytest.mark.parametrize("name", ["plain-gan", "dcgan"])
def test_what_a_tutorial_gives_is_a_run_too(name, tmp_path):
    assert main(["train", "digits", "--model", name, "--classes", "--steps", "3", "--out", str(tmp_path / "r")]) == 0
    model, _ = Run.open(tmp_path / "r").load()
    assert model.gamma == 0 and model.game is GAMES["non-saturating"]
    many = torch.cat(list(model.states(model.batch + 5, seed=4)))
    assert torch.equal(many[model.batch + 2 :], torch.cat(list(model.states(3, seed=4, first=model.batch + 2))))
