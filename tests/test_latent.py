"""Latent diffusion: white latents of a trained autoencoder, pictures in and out, and mistakes in one line."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from commands import fails
from sfumato.data import load
from sfumato.data.latents import LatentsCodec
from sfumato.engine.run import Run
from sfumato.models.edit import edited

pytestmark = pytest.mark.usefixtures("well_measured")


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
    """An autoencoder of digits and a model of its latents, by one command."""
    folder = tmp_path_factory.mktemp("latent")
    return sfumato.train("digits", classes=True, latent=True, steps=200, batch=32, size="tiny", out=str(folder / "run"))


@pytest.fixture(scope="module")
def codec(latent):
    return sfumato.load(latent).codec


def test_one_command_trains_both(latent):
    own = latent.with_name("run-codec")
    assert Run.open(own).config.model.family == "autoencoder"
    assert Run.open(latent).config.model.classes == 10
    assert Run.open(latent).data["codec"]["kind"] == "latents"
    assert not (latent / "codec" / "samples").exists()


def test_latents_are_white_and_fewer(codec):
    data = load("digits")
    z = codec.encode(data.items[:])
    assert z.shape == (len(data.items), *codec.dims) and z[0].numel() < data.items[0].numel() * 4
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(len(z[0])), atol=0.1)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(len(z[0])), atol=0.1)


def test_pictures_come_back(codec):
    """Nearer to what they were than the mean picture is."""
    items = load("digits").test.items[:100]
    back = codec.decode(codec.encode(items)).float()
    assert back.shape == items.shape
    error, mean = (back - items).square().mean(), (items.float() - items.float().mean(0)).square().mean()
    assert error < 0.5 * mean
    assert torch.equal(codec.decode(codec.encode(items[:3])), codec.decode(codec.encode(items))[:3])


def test_the_whole_set_is_encoded_once(codec):
    data = load("digits")
    seen = codec.encoded(data)
    assert isinstance(seen.codec, LatentsCodec) and seen.codec.dims == codec.dims
    torch.testing.assert_close(seen.items[:9], codec.encode(data.items[:9]), rtol=1e-4, atol=1e-4)
    assert torch.equal(seen.labels, data.labels)
    assert codec.encoded(seen) is seen


def test_samples_are_pictures_and_files(latent, codec, tmp_path):
    model = sfumato.load(latent)
    items = model.sample(6, steps=3)
    assert items.shape == (6, 1, 8, 8) and items.dtype == torch.uint8
    assert torch.equal(model.sample(2, steps=3, first=3), items[3:5])
    path, *_ = sfumato.sample(latent, n=2, steps=3, class_="3", out=str(tmp_path / "out"))
    assert json.loads(Image.open(path).text["sfumato"])["codec"] == model.codec.fingerprint
    assert np.asarray(Image.open(path)).shape == (8, 8)


def test_a_run_of_latents_goes_on(latent, tmp_path):
    """Half and half again ends with the bits of the whole."""
    from sfumato.engine.trainer import Trainer

    whole, parts = (
        sfumato.train("digits", codec=str(latent.with_name("run-codec")), steps=4, batch=8, size="tiny",
                      out=str(tmp_path / name))
        for name in ("whole", "parts")
    )  # fmt: skip
    run = Run.open(parts)
    for path in run.checkpoints.iterdir():
        path.unlink()
    trainer = Trainer(run, run.dataset())
    trainer.advance()
    trainer.advance()
    trainer.save()
    sfumato.resume(str(parts))
    ours, theirs = (sfumato.load(folder).state_dict() for folder in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_else_a_run_can_do(latent, tmp_path):
    """Judged, edited and taught from as any other; the autoencoder goes with it."""
    model, items = sfumato.load(latent), load("digits").items[:2]
    assert torch.equal(edited(model, items, model.way(cond=3), 0.0), items)
    assert edited(model, items, model.way(steps=3, cond=3), 0.5).shape == items.shape
    assert sfumato.evaluate(latent, n=200, steps=2).n == 200
    better = sfumato.polish(latent, n=64, steps=2, batch=8, out=str(tmp_path / "better"))
    assert sfumato.load(better).sample(2, steps=2).shape == (2, 1, 8, 8)
    student = sfumato.distill(latent, calls=1, steps=1, batch=8, out=str(tmp_path / "student"))
    assert sfumato.load(student).sample(2).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (["--masks"], "--masks is of pixels"),
        (["--text"], "has no captions"),
        (["--accumulate", "0"], "at least 1"),
        (["--model", "gan"], "--latent is a choice of diffusion models"),
    ],
)
def test_what_cannot_be_is_refused_before_the_autoencoder_is_trained(what, says, tmp_path, capsys):
    fails(capsys, ["train", "digits", "--latent", "--steps", "1", "--out", tmp_path / "a", *what], says)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_refused_before_the_autoencoder_is_trained(latent, tmp_path, capsys):
    used = tmp_path / "run"
    shutil.copytree(latent, used)
    fails(capsys, ["train", "digits", "--latent", "--steps", "1", "--out", used], "exists")
    assert list(tmp_path.iterdir()) == [used]


def test_mistakes_are_one_line(latent, tmp_path, capsys):
    own = latent.with_name("run-codec")
    ask = ["train", "digits", "--steps", "1", "--out", tmp_path / "a"]
    fails(capsys, [*ask, "--codec", tmp_path / "none"], "no such run")
    fails(capsys, [*ask, "--codec", latent], "latents need one of train --model autoencoder")
    fails(capsys, [*ask, "--codec", own, "--likelihood"], "--likelihood is of pixels")
    fails(capsys, [*ask, "--codec", own, "--masks"], "--masks is of pixels")
    fails(capsys, [*ask, "--codec", own, "--model", "gan"], "--codec is a choice of diffusion models")
    fails(capsys, ["train", "moons", "--codec", own, "--out", tmp_path / "b"], "an autoencoder of {'kind': 'image'")
    fails(capsys, ["train", "moons", "--latent", "--steps", "1", "--out", tmp_path / "c"], "these are points")
    fails(capsys, ["likelihood", latent, "-n", "2"], "does not know log p of a picture")
    picture, mask = tmp_path / "a.png", tmp_path / "mask.png"
    for path in (picture, mask):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    fails(capsys, ["edit", latent, "--image", picture, "--mask", mask], "no pixels to keep")
    young = tmp_path / "young"
    sfumato.train("digits", model="autoencoder", steps=2, batch=8, size="tiny", out=str(young))
    for path in (young / "checkpoints").iterdir():
        path.unlink()
    from sfumato.engine.trainer import Trainer

    Trainer(Run.open(young), Run.open(young).dataset()).save()
    fails(capsys, [*ask, "--codec", young], "not trained to its end")
