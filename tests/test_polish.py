"""Runs that correct themselves: the step back, its size, resuming, and what is refused."""

import json
import shutil

import pytest
import torch

import sfumato
from commands import everything, fails
from sfumato.data import load as load_data
from sfumato.engine import nearness, neon
from sfumato.engine.checkpoint import read_weights
from sfumato.engine.config import read_config
from sfumato.engine.neon import corrected
from sfumato.engine.run import Run
from sfumato.engine.trainer import Trainer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return sfumato.train("moons", steps=40, batch=64, out=str(tmp_path_factory.mktemp("base") / "moons"))


@pytest.fixture(scope="module")
def polished(base):
    return sfumato.polish(base, n=100, steps=12, out=str(base.parent / "polished"))


def parameters(run):
    return dict(sfumato.load(run).named_parameters())


def test_a_run_moves_away_from_what_its_own_samples_teach(base, polished, capsys):
    """theta* - theta is w times theta - theta_s, of every weight, and w is one of WEIGHTS."""
    again = sfumato.polish(base, n=100, steps=12, out=str(base.parent / "again"))
    told = capsys.readouterr().out
    opened = Run.open(again)
    trainer = Trainer(opened, opened.dataset())
    theirs = read_weights(opened.teacher, opened.config.student.weights)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in sfumato.load(base).state_dict().items())
    assert [line for line in told.splitlines() if line.startswith("weight")]
    ours, other = parameters(polished), parameters(again)
    assert all(torch.equal(ours[name], other[name]) for name in ours)  # the same command, the same bits
    assert trainer.finished


@pytest.mark.parametrize("best", neon.WEIGHTS)
def test_the_weight_that_is_nearest_to_training_data_is_taken(best, base, monkeypatch):
    teacher, average = (sfumato.load(base) for _ in range(2))
    away = {name: 0.01 * torch.randn_like(tensor) for name, tensor in average.named_parameters()}
    for name, parameter in average.named_parameters():
        parameter.data += away[name]
    asked = iter(neon.WEIGHTS)
    monkeypatch.setattr(nearness, "frechet", lambda a, b: abs(next(asked) - best))
    assert corrected(average, teacher, load_data("moons"), lambda line: None) == best
    for name, tensor in teacher.named_parameters():
        torch.testing.assert_close(dict(average.named_parameters())[name], tensor - best * away[name])


def test_its_data_are_the_samples_and_its_measure_the_real_ones(base, polished):
    run = Run.open(polished)
    trainer = Trainer(run, run.dataset())
    drawn = sfumato.load(base).sample(100, seed=0)
    states, _ = trainer.examples(torch.arange(100), torch.Generator())
    torch.testing.assert_close(run.dataset().codec.decode(states), drawn)
    assert len(trainer.dataset.items) == run.data["count"] != 100


def test_one_that_is_interrupted_ends_with_the_same_bits(base, polished, tmp_path):
    shutil.copytree(polished, tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints")

    def trainer():
        run = Run.open(tmp_path / "part")
        return Trainer(run, run.dataset())

    first = trainer()
    for _ in range(5):
        first.advance()
    first.save()
    assert sfumato.resume(str(tmp_path / "part")) == tmp_path / "part"
    ours, theirs = parameters(tmp_path / "part"), parameters(polished)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_is_a_run_like_any_other(polished, capsys):
    config = read_config(polished / "config.toml")
    assert (config.student.method, config.student.teacher, config.model.gives) == ("neon", "moons", "mean")
    assert len(sfumato.sample(polished, n=3)) == 2  # points: a table and a picture
    assert json.loads((polished / "data.json").read_text())["name"] == "moons"
    student = sfumato.distill(polished, steps=2, batch=8, out=str(polished.parent / "pupil"))
    fails(capsys, ["sample", polished, "--ema", "0.05"], "no averages were kept")
    fails(capsys, ["polish", student, "--out", polished.parent / "no"], "ask its teacher")
    assert not (polished.parent / "no").exists()


def test_what_cannot_be_polished_is_said(base, polished, capsys):
    before = everything(polished)
    fails(capsys, ["polish", "runs/none"], "no such run")
    fails(capsys, ["polish", base, "-n", "5"], "64 samples or more")
    fails(capsys, ["polish", base, "--out", polished], "exists")
    fails(capsys, ["polish", base, "--time", "soon", "--out", base.parent / "x"], "'soon' is no time")
    fails(capsys, ["polish", base, "--time", "1m", "--steps", "3", "--out", base.parent / "x"], "not both")
    assert everything(polished) == before
    assert not (base.parent / "x").exists()
