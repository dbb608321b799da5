"""Editing: strength 0 is the input and 1 a fresh sample, what a mask keeps is kept, and mistakes are one line."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from commands import fails
from sfumato.errors import UserError
from sfumato.grid import times
from sfumato.guide.operators import Blur, Smaller
from sfumato.models.edit import FILLS, Own, arc, edited, interpolated, remaining
from sfumato.schedule import Cosine

USUAL = {"steps": 6, "method": "unipc2", "grid": "logsnr"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edit")
    return sfumato.train("digits", classes=True, steps=150, batch=32, size="tiny", out=str(folder / "run"))


@pytest.fixture(scope="module")
def model(run):
    return sfumato.load(run)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A run that was trained with masks."""
    folder = tmp_path_factory.mktemp("shown")
    out = str(folder / "run")
    return sfumato.train("digits", classes=True, masks=True, steps=300, batch=32, size="tiny", out=out)


@pytest.fixture(scope="module")
def filling(model, shown):
    """The model that fills what a mask hides in some way."""
    trained = sfumato.load(shown)
    return lambda fill: trained if fill == "trained" else model


@pytest.fixture(scope="module")
def items():
    return sfumato.load("digits").sample(8, seed=3)


@pytest.fixture
def picture(items, tmp_path):
    path = tmp_path / "one.png"
    Image.fromarray((items[0, 0].numpy() * 15.9375).round().astype(np.uint8)).save(path)
    return path


def white(path, box, side=8):
    mask = np.zeros((side, side), np.uint8)
    mask[box] = 255
    Image.fromarray(mask).save(path)
    return path


# ── Strength ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_strength_0_returns_the_input_and_1_a_fresh_sample(model, items):
    way = model.way(seed=5, cond=3, **USUAL)
    assert torch.equal(edited(model, items, way, 0.0), items)
    assert torch.equal(edited(model, items, way, 1.0), model.codec.decode(model.draw(range(8), way)))


@pytest.mark.parametrize("method", ["unipc2", "ancestral"])
def test_the_distance_to_the_input_grows_with_the_strength(model, items, method):
    way = model.way(steps=20, method=method, grid="logsnr")
    many = items.repeat(4, 1, 1, 1)
    far = [float((edited(model, many, way, u).float() - many).square().mean()) for u in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert far[:4] == sorted(far[:4]) and far[-1] > 4 * far[1]
    assert all(after > 0.98 * before for before, after in pairwise(far))  # from 0.8 on hardly anything is left


def test_a_strength_between_two_stops_begins_between_them():
    stops = times("logsnr", 10, Cosine())
    assert torch.equal(remaining(stops, 1.0), stops)
    assert torch.equal(remaining(stops, 0.5), stops[5:])
    between = remaining(stops, 0.55)
    assert len(between) == 7 and torch.equal(between[1:], stops[5:]) and stops[5] < between[0] < stops[4]


# ── The noise of the input ────────────────────────────────────────────────────────────────────────────────────────────


def far(a, b):
    """Root mean square difference of items of 17 levels, in [-1, 1]."""
    return float(((a.float() - b.float()) / 8).square().mean().sqrt())


def test_own_noise_leads_to_the_input_again(model, items):
    """50 calls each way of a sampler of order 2: what is asked for is what was there."""
    way = model.way(steps=25, method="heun", grid="logsnr", cond=3)
    assert far(edited(model, items, way, 1.0, own=Own(3)), items) < 0.02  # a few of 512 values a level off
    assert far(edited(model, items, way, 1.0, own=Own(8)), items) > 0.1  # asked for another class, it differs


def test_own_noise_keeps_more_than_fresh_noise(model, items):
    way = model.way(steps=25, method="heun", grid="logsnr", cond=3)
    fresh = far(edited(model, items, way, 1.0), items)
    assert far(edited(model, items, way, 1.0, own=Own()), items) < 0.7 * fresh


def test_a_way_between_two_begins_and_ends_at_them(model, items):
    way = model.way(steps=25, method="heun", grid="logsnr", cond=-1)
    found = interpolated(model, items[:2], 7, way)
    assert far(found[:1], items[:1]) < 0.02 and far(found[-1:], items[1:2]) < 0.02
    parts = [far(a[None], b[None]) for a, b in pairwise(found)]
    assert max(parts) < 0.8 * far(items[:1], items[1:2])  # nowhere does it jump from one to the other
    assert far(interpolated(model, items[[0, 0]], 3, way), items[[0, 0, 0]]) < 0.02


def test_an_arc_keeps_the_length_and_turns_evenly():
    rng = torch.Generator().manual_seed(0)
    for _ in range(100):  # by the cosine, a quarter of these had no angle
        a = torch.randn(1, 8, 8, generator=rng)
        torch.testing.assert_close(arc(a, a, 3), a.expand(3, 1, 8, 8))
    b = torch.tensor([0.0, 3.0])
    angles = torch.tensor([0, 0.25, 0.5, 0.75, 1]) * torch.pi / 2
    torch.testing.assert_close(arc(b.flip(0), b, 5), 3 * torch.stack([angles.cos(), angles.sin()], 1))


def test_impossible_ways_are_refused(model, items):
    with pytest.raises(UserError, match="at least its 2 ends"):
        interpolated(model, items[:2], 1, model.way(method="heun"))
    with pytest.raises(UserError, match="a stochastic sampler has no way forth"):
        interpolated(model, items[:2], 3, model.way(method="ancestral"))
    with pytest.raises(UserError, match="no noise of its own"):
        edited(model, items, model.way(), 1.0, torch.zeros(8, 8, dtype=torch.bool), own=Own())


# ── Masks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_what_is_known_is_kept_bit_for_bit_and_the_rest_is_made(filling, items, strength, fill):
    model, mask = filling(fill), torch.ones(8, 8, dtype=torch.bool)
    mask[:, 4:] = False
    found = edited(model, items, model.way(steps=12, method="ancestral"), strength, mask, fill=fill)
    assert torch.equal(found[..., :4], items[..., :4])
    assert not torch.equal(found[..., 4:], items[..., 4:])
    each = torch.stack([mask, mask.T, ~mask, *5 * [mask]])[:, None]
    found = edited(model, items, model.way(steps=12, method="ancestral"), strength, each, fill=fill)
    assert torch.equal(found[each], items[each]) and not torch.equal(found[1, :, 4:], items[1, :, 4:])
    everything = torch.ones(8, 8, dtype=torch.bool)
    assert torch.equal(edited(model, items, model.way(), 1.0, everything), items)


@pytest.mark.parametrize("fill", ["trained", "mmps", "repaint"])
def test_what_is_made_fits_what_is_known(filling, fill):
    """The seam of an inpainted picture is as smooth as that of a real one, and smoother than that of two halves."""
    model, mask = filling(fill), torch.ones(8, 8, dtype=torch.bool)
    mask[4:] = False
    many = sfumato.load("digits").sample(64, seed=9)
    found = edited(model, many, model.way(steps=12, method="ancestral"), 1.0, mask, fill=fill)

    def seam(x):
        return float((x[:, :, 3].float() - x[:, :, 4].float()).square().mean())

    halves = torch.cat([many[:, :, :4], many.roll(7, 0)[:, :, 4:]], 2)
    assert seam(found) < 0.5 * (seam(many) + seam(halves))


def test_what_lies_under_a_mask_is_forgotten_at_strength_1_and_less_of_it_below(filling, items):
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[4:] = False
    other = torch.where(mask, items, items.roll(1, 0))
    for fill in ("trained", "mmps", "repaint"):
        model = filling(fill)
        way = model.way(steps=6, method="ancestral", cond=3)
        assert torch.equal(*(edited(model, each, way, 1.0, mask, fill=fill) for each in (items, other)))
        half, whole = (edited(model, items, way, u, mask, fill=fill) for u in (0.3, 1.0))
        assert far(half, items) < far(whole, items)


def test_impossible_edits_are_refused(model, items):
    with pytest.raises(UserError, match="trained without --masks"):
        edited(model, items, model.way(), 1.0, torch.zeros(8, 8, dtype=torch.bool), fill="trained")
    with pytest.raises(UserError, match=r"in \[0, 1\]"):
        edited(model, items, model.way(), 1.2)
    with pytest.raises(UserError, match="unknown way to fill a mask 'magic'"):
        edited(model, items, model.way(), 0.5, torch.ones(8, 8, dtype=torch.bool), fill="magic")
    with pytest.raises(UserError, match="a mask of 4x4 does not fit pictures of 8x8"):
        edited(model, items, model.way(), 0.5, torch.ones(4, 4, dtype=torch.bool))


# ── The command ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_picture_is_edited_and_says_how(run, picture):
    files = sfumato.edit(run, image=str(picture), n=3, strength=0.4, class_="7", guidance=2.0)
    assert len(files) == 4 and files[0].parent.name.startswith("edit-one-0.4-")
    told = json.loads(Image.open(files[1]).text["sfumato"])
    assert told["strength"] == 0.4 and told["index"] == 1 and told["asked for"] == "7" and len(told["image"]) == 16
    again = sfumato.edit(run, image=str(picture), n=1, strength=0.4, class_="7", guidance=2.0, out=str(picture) + "-2")
    assert again[0].read_bytes() != files[1].read_bytes()
    assert np.array_equal(np.asarray(Image.open(again[0])), np.asarray(Image.open(files[0])))


def test_black_parts_of_a_mask_keep_the_files_pixels(run, picture, tmp_path):
    mask = white(tmp_path / "mask.png", np.s_[:, 5:])
    files = sfumato.edit(run, image=str(picture), mask=str(mask), n=2, steps=4)
    given = np.asarray(Image.open(picture))
    for path in files[:-1]:
        assert np.array_equal(np.asarray(Image.open(path))[:, :5], given[:, :5])


def test_a_run_trained_with_masks_fills_them_itself(shown, picture, tmp_path):
    mask = str(white(tmp_path / "mask.png", np.s_[:, 5:]))
    *_, sheet = sfumato.edit(shown, image=str(picture), mask=mask, n=1)
    told = json.loads(Image.open(sheet).text["sfumato"])
    assert told["fill"] == "trained" and told["method"] == sfumato.load(shown).way().method
    *_, sheet = sfumato.edit(shown, image=str(picture), mask=mask, n=1, fill="pigdm")
    told = json.loads(Image.open(sheet).text["sfumato"])
    assert (told["fill"], told["method"], told["steps"]) == ("pigdm", "ancestral", 24)


@pytest.mark.parametrize(("damage", "side"), [("small", 4), ("blurred", 8)])
def test_a_damaged_picture_is_mended(run, items, tmp_path, damage, side):
    """Damaged again, the answers look as what was given: nearer than other digits do."""
    codec, operator = sfumato.load(run).codec, {"small": Smaller(2), "blurred": Blur(1.0)}[damage]
    seen = operator(codec.encode(items))
    path = tmp_path / "left.png"
    Image.fromarray(((seen[0, 0].clamp(-1, 1) + 1) * 127.5).round().numpy().astype(np.uint8)).save(path)
    assert seen.shape[-1] == side
    how = {"damage": damage, "factor": 2, "radius": 1.0, "n": 3, "class_": "none"}
    *answers, sheet = sfumato.restore(run, image=str(path), **how)
    assert len(answers) == 3 and answers[0].parent.name.startswith(f"mended-left-{damage}-mmps-")
    assert json.loads(Image.open(sheet).text["sfumato"])["damage"]["kind"] == damage
    made = torch.stack([torch.from_numpy(np.array(Image.open(each)))[None] / 127.5 - 1 for each in answers])
    again = operator(made)
    own, other = ((again - each).square().mean() for each in (seen[:1], seen[1:].mean(0, keepdim=True)))
    assert own < 0.5 * other


def test_a_picture_of_its_own_noise_says_what_it_was(run, picture):
    files = sfumato.edit(run, image=str(picture), noise="own", was="3", class_="8", guidance=2.0)
    assert len(files) == 2 and "-own-" in files[0].parent.name
    told = json.loads(Image.open(files[0]).text["sfumato"])
    assert told["noise"] == "own" and told["was"] == "3" and told["asked for"] == "8" and told["method"] == "heun"


def test_pictures_on_the_way_between_two(run, picture, items, tmp_path):
    other = tmp_path / "two.png"
    Image.fromarray((items[1, 0].numpy() * 15.9375).round().astype(np.uint8)).save(other)
    files = sfumato.interpolate(run, image=str(picture), to=str(other), n=3)
    assert len(files) == 4 and files[0].parent.name.startswith("between-one-two-")
    assert len(json.loads(Image.open(files[1]).text["sfumato"])["images"]) == 2


def test_mistakes_are_one_line(run, picture, tmp_path, capsys):
    ask = ["edit", run, "--image", picture]
    fails(capsys, ["edit", run, "--image", tmp_path / "none.png"], "none.png: No such file")
    fails(capsys, [*ask, "--strength", "2"], "strength is a share of the way back")
    fails(capsys, [*ask, "-n", "0"], "at least one answer")
    fails(capsys, [*ask, "--noise", "own", "-n", "2"], "own noise leads to one answer")
    fails(capsys, [*ask, "--noise", "own", "--sampler", "ancestral"], "no way forth")
    fails(capsys, [*ask, "--was", "3"], "add --noise own")
    fails(capsys, ["interpolate", run, "--image", picture, "--to", tmp_path / "none.png"], "none.png: No such file")
    fails(capsys, ["interpolate", run, "--image", picture, "--to", picture, "-n", "1"], "at least its 2 ends")
    fails(capsys, [*ask, "--mask", white(tmp_path / "big.png", np.s_[:3], 16)], "a mask of 16x16 for a picture of 8x8")
    mask = white(tmp_path / "mask.png", np.s_[:3])
    fails(capsys, [*ask, "--mask", mask, "--fill", "trained"], "trained without --masks")
    fails(capsys, ["train", "moons", "--masks", "--out", tmp_path / "dots"], "these data are points")
    fails(capsys, ["train", "digits", "--masks", "--model", "vae"], "--masks is a choice of diffusion models")
    fails(capsys, [*ask, "--class", "fish"], "no class 'fish'")
    fails(capsys, [*ask, "--out", tmp_path], "choose another --out")
    mend = ["restore", run, "--image", picture]
    fails(capsys, [*mend, "--factor", "3"], "must be 2 or more and divide 8 and 8")
    fails(capsys, [*mend, "--damage", "grey"], "from a run of coloured ones")
    fails(capsys, [*mend, "--damage", "blurred", "--radius", "0"], "a radius above 0")
    fails(capsys, [*mend, "--factor", "2", "--noise", "0"], "must be above 0")
    fails(capsys, [*mend, "-n", "0"], "at least one answer")
    text = tmp_path / "text.png"
    text.write_text("no picture")
    fails(capsys, ["edit", run, "--image", text], "not a PNG, JPEG, WebP or BMP picture")
    points = sfumato.train("moons", steps=1, batch=8, out=str(tmp_path / "points"))
    fails(capsys, ["edit", points, "--image", picture], "a run of points")
    student = sfumato.distill(run, calls=1, steps=1, batch=8, out=str(tmp_path / "student"))
    fails(capsys, ["edit", student, "--image", picture], "ask its teacher")
    gan = sfumato.train("digits", model="gan", steps=1, batch=8, out=str(tmp_path / "gan"))
    fails(capsys, ["edit", gan, "--image", picture], "a gan")
