"""Outlines and the branch that follows them: a fresh one changes nothing, a trained one is obeyed."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from commands import fails
from sfumato.condition import Condition
from sfumato.data import load
from sfumato.engine.run import Run
from sfumato.hint import HINTS, edges, silhouette
from sfumato.models.edit import edited
from sfumato.nn import UNet


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("control")
    return sfumato.train("digits", steps=150, batch=32, size="tiny", out=str(folder / "base"))


@pytest.fixture(scope="module")
def control(base):
    return sfumato.train("digits", control=str(base), hint="mask", steps=150, batch=32, out=str(base) + "-mask")


# ── Hints ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def squares():
    """Pictures of a bright square on a dark ground, and of the reverse; the square is 6 to 10 of 16."""
    x = torch.full((2, 3, 16, 16), -0.8)
    x[0, :, 6:11, 6:11] = 0.9
    x[1] = 0.8
    x[1, 1, 6:11, 6:11] = -0.9  # in one channel alone
    return x


def test_a_silhouette_is_what_is_not_ground():
    wanted = torch.zeros(16, 16)
    wanted[6:11, 6:11] = 1
    assert all(torch.equal(found[0], wanted) for found in silhouette(squares()))


def test_edges_lie_where_a_picture_changes():
    for found in edges(squares())[:, 0]:
        rows, columns = torch.nonzero(found, as_tuple=True)
        assert {*rows.tolist(), *columns.tolist()} == {*range(5, 12)}
        assert not found[7:10, 7:10].any() and found[5:7, 8].all() and found[10:12, 8].all()


@pytest.mark.parametrize("hint", HINTS.values(), ids=HINTS)
def test_hints_of_nothing_are_nothing(hint):
    assert not hint(torch.full((1, 3, 8, 8), 0.3)).any()
    assert hint(torch.randn(2, 3, 7, 9)).shape == (2, 1, 7, 9)


# ── The branch ────────────────────────────────────────────────────────────────────────────────────────────────────────


def unet(**more):
    torch.manual_seed(0)
    network = UNet(1, widths=(8, 16), blocks=1, attention=(False, True), **more)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def test_a_fresh_branch_changes_nothing_and_one_that_is_not_asked_neither():
    network, x, level = unet(hint=True), torch.randn(2, 1, 9, 8), torch.zeros(2)
    alone = unet()
    alone.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("control.")})
    hint = Condition(hint=torch.ones(2, 1, 9, 8))
    assert torch.equal(network(x, level), alone(x, level))
    assert not torch.allclose(network(x, level, hint), alone(x, level))
    for outlet in network.control.outlets:
        torch.nn.init.zeros_(outlet.weight)
        torch.nn.init.zeros_(outlet.bias)
    torch.testing.assert_close(network(x, level, hint), alone(x, level))
    with pytest.raises(ValueError, match="hint=False"):
        alone(x, level, hint)


def test_a_branch_begins_as_the_way_down():
    """With the weights of the way down and no hint in what enters, it computes what that computes."""
    network, h = unet(hint=True), torch.randn(2, 8, 8, 8)
    network.control.begin(network.down, network.shrink, network.film)
    for layer in (network.control.inlet, *network.control.outlets):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    for outlet in network.control.outlets:
        outlet.weight.data[range(len(outlet.weight)), range(len(outlet.weight))] = 1
    conditioning = torch.randn(2, 32)
    films = iter(network.film(conditioning)[:, :, None, None].split(network.film_sizes, 1))
    fine, coarse = network.control(h, torch.zeros(2, 1, 8, 8), conditioning, None)
    theirs = network.down[0](h, films, None)
    torch.testing.assert_close(fine, theirs)
    torch.testing.assert_close(coarse, network.down[1](network.shrink[0](theirs), films, None))


# ── Runs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def overlap(drawn, wanted):
    """Intersection over union of two masks."""
    return float((drawn * wanted).sum() / (drawn + wanted).clamp(max=1).sum())


def test_outlines_are_followed_and_the_other_run_stays(base, control):
    model, data = sfumato.load(control), load("digits").test
    found, free = [], []
    for k in range(16):
        wanted = silhouette(model.codec.encode(data.items[k : k + 1]))
        for hint, overlaps in ((data.items[k : k + 1], found), (None, free)):
            drawn = silhouette(model.codec.encode(model.sample(4, steps=6, hint=hint)))
            overlaps += [overlap(each, wanted[0]) for each in drawn]
    assert np.mean(found) > np.mean(free) + 0.15
    assert torch.equal(model.sample(4, steps=3), sfumato.load(base).sample(4, steps=3))
    assert "an outline that is followed" in model.abilities


def test_a_run_that_follows_is_still_edited(control):
    model, items = sfumato.load(control), load("digits").items[:2]
    assert edited(model, items, model.way(steps=3), 0.5).shape == items.shape


def test_samples_say_what_they_follow(control, tmp_path):
    picture = tmp_path / "seven.png"
    item = load("digits").items[7, 0]
    Image.fromarray((item.numpy() * 15.9375).round().astype(np.uint8)).save(picture)
    first, *_ = sfumato.sample(control, n=1, steps=2, hint=str(picture))
    assert "-like-seven-" in first.parent.name
    assert len(json.loads(Image.open(first).text["sfumato"])["hint"]) == 16
    assert Run.open(control).config.model.hint == "mask"


def test_mistakes_are_one_line(base, control, tmp_path, capsys):
    picture = tmp_path / "a.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    fails(capsys, ["sample", base, "--hint", picture], "follows no outline")
    fails(capsys, ["sample", control, "--hint", tmp_path / "none.png"], "none.png: No such file")
    ask = ["train", "digits", "--out", tmp_path / "a"]
    fails(capsys, [*ask, "--control", base, "--lora", base], "not both")
    fails(capsys, [*ask, "--hint", "edges"], "--hint goes with --control")
    fails(capsys, [*ask, "--control", base, "--rank", "3"], "--rank goes with --lora")
    fails(capsys, [*ask, "--lora", base, "--hint", "edges"], "--hint goes with --control")
    fails(capsys, [*ask, "--control", control], "follows outlines already")
    fails(capsys, [*ask, "--lora", control], "follows outlines already")
    points = sfumato.train("moons", steps=1, batch=8, out=str(tmp_path / "points"))
    fails(capsys, ["train", "moons", "--control", points, "--out", tmp_path / "b"], "has no U-Net")
    fails(capsys, ["distill", control, "--out", tmp_path / "c"], "a student does not")
