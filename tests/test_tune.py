"""A learned way back: it begins as the sampler it starts from, comes nearer to the end of many steps, and is kept."""

import json
import shutil

import numpy as np
import pytest
import torch

import sfumato
from commands import fails
from oracles import Exact, mixture
from sfumato.defaults import SAMPLER
from sfumato.denoise import Given
from sfumato.dist import stream
from sfumato.engine import nearness
from sfumato.engine.tune import FIRST, FURTHER, Table, _loss
from sfumato.errors import UserError
from sfumato.models.base import Way
from sfumato.process import Gaussian
from sfumato.sampler import Tuned, generate, sampler
from sfumato.schedule import VP, Cosine, Flow


@pytest.mark.parametrize("schedule", [Cosine(), VP(), Flow()])
@pytest.mark.parametrize("calls", [2, 3, 6])
def test_a_table_begins_as_the_sampler_it_starts_from(schedule, calls):
    model, x = Exact(mixture(), Gaussian(schedule)), torch.randn(6, 2, generator=stream(0), dtype=torch.float64)
    table = Table(schedule, calls, first=1e13)
    expected = generate(model, sampler(SAMPLER), x, "logsnr", calls)
    torch.testing.assert_close(table(model, x).detach(), expected, rtol=0, atol=1e-9)
    tuned = table.frozen()
    torch.testing.assert_close(generate(model, tuned, x, tuned.stops), table(model, x).detach(), rtol=0, atol=1e-12)


def test_learning_comes_nearer_to_the_exact_end():
    """Of an exact mixture, by gradient through the way: the error of unseen noise falls to less than half."""
    model, table = Exact(mixture(), Gaussian(Cosine())), Table(Cosine(), 5, first=20.0)
    noise = torch.randn(256, 2, generator=stream(1), dtype=torch.float64)
    ends = generate(model, sampler(SAMPLER), noise, "logsnr", 400)

    def error(rows):
        return (table(model, noise[rows]) - ends[rows]).square().mean(1).sqrt().mean()

    before = float(error(slice(128, 256)).detach())
    optimiser = torch.optim.Adam(table.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        error(slice(0, 128)).backward()
        optimiser.step()
    assert float(error(slice(128, 256)).detach()) < 0.5 * before
    assert all(a > b for a, b in zip(table.frozen().stops, table.frozen().stops[1:], strict=False))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune") / "moons"
    return sfumato.train("moons", steps=300, size="tiny", out=str(folder))


def test_what_was_tuned_is_used_for_its_calls_alone(run, capsys):
    result = sfumato.tune_sampler(run, calls=4, paths=64, rounds=40)
    assert result.after < result.before
    model = sfumato.load(run)
    assert model.way(steps=4) == Way(0, 4, "tuned", "tuned")
    assert model.way() == Way(0, 12, "unipc2", "logsnr")
    assert model.way(steps=4, method="ddim") == Way(0, 4, "ddim", "logsnr")
    usual, tuned = model.sample(50, steps=4, method="unipc2", grid="logsnr"), model.sample(50, steps=4)
    many = model.sample(50, steps=200)
    assert (tuned - many).square().mean() < (usual - many).square().mean()
    with pytest.raises(UserError, match="was tuned for 4 steps, not for 6: sfumato tune-sampler"):
        model.sample(2, steps=6, method="tuned")
    files = sfumato.sample(run, n=3, steps=4)
    assert "tuned-tuned-4" in str(files[0])


@torch.no_grad()
def test_the_loss_counts_what_the_network_makes_of_an_end(run):
    """Nothing where the ends are the table's own; elsewhere more than the distance of the values alone."""
    model = sfumato.load(run)
    table = Table(model.denoiser.process.schedule, 4, FIRST * model.denoiser.sigma_data)
    noise, index = torch.randn(16, 2, generator=stream(3)), torch.arange(16)
    ends = table(Given(model.denoiser, None), noise)
    assert float(_loss(table, model, index, noise, ends)) < 1e-5
    assert float(_loss(table, model, index, noise, ends + 0.3)) > 0.3 + 0.01


def told(folder, best, monkeypatch):
    """What is tuned if samples of w = ``best`` are said to be nearest to training examples."""
    asked = iter((0.0, *FURTHER))
    monkeypatch.setattr(nearness, "frechet", lambda *_: abs(next(asked) - best))
    result = sfumato.tune_sampler(folder, calls=5, paths=64, rounds=20)
    assert result.further == best
    return result, sfumato.load(folder).tuned


def test_it_goes_as_far_as_brings_samples_nearest_to_training_data(run, tmp_path, monkeypatch):
    """Equation (2), in the numbers themselves; and nothing is kept if the usual way is nearest."""
    folder = shutil.copytree(run, tmp_path / "moons")
    result, tuned = told(folder, 0.0, monkeypatch)
    assert 5 not in tuned
    assert "no better than the way used so far" in result.lines()[-1]
    model = sfumato.load(folder)
    schedule = model.denoiser.process.schedule
    at_first = Table(schedule, 5, FIRST * model.denoiser.sigma_data).frozen()
    learned, further = (told(folder, w, monkeypatch)[1][5] for w in (1.0, 1.3))
    for name in ("stops", "heard"):
        a, b, c = (schedule.logsnr(torch.tensor(getattr(each, name)[1:5])) for each in (at_first, learned, further))
        torch.testing.assert_close(c - a, 1.3 * (b - a), rtol=1e-4, atol=1e-4)
    for a, b, c in zip(at_first.weights, learned.weights, further.weights, strict=True):
        a, b, c = (torch.tensor([*row, 0.0, 0.0][:3]) for row in (a, b, c))
        torch.testing.assert_close(c - a, 1.3 * (b - a), rtol=1e-4, atol=1e-5)


def test_without_its_data_a_run_is_tuned_as_far_as_was_learned(tmp_path, capsys):
    data = tmp_path / "points.csv"
    np.savetxt(data, np.random.default_rng(0).normal(size=(200, 2)), delimiter=",")
    run = sfumato.train(str(data), steps=40, size="tiny", out=str(tmp_path / "run"))
    data.unlink()
    result = sfumato.tune_sampler(run, calls=3, paths=32, rounds=20)
    assert result.further == 1.0
    assert "taken as learned" in capsys.readouterr().out


def test_unseen_paths_keep_their_classes(tmp_path):
    """What is told of unseen noise is what samples of these classes show: the number of paths is no multiple of 10."""
    run = sfumato.train("digits", steps=40, size="tiny", classes=True, out=str(tmp_path / "digits"))
    result = sfumato.tune_sampler(run, calls=4, paths=33, rounds=1)
    model = sfumato.load(run)
    usual, many = (torch.cat([*model.states(40, steps=n, method="unipc2", grid="logsnr")]) for n in (4, 48))
    shown = float((usual - many).square().flatten(1).mean(1).sqrt().mean())
    assert result.before == pytest.approx(shown, rel=0.5)


def test_it_is_kept_with_others_of_the_same_weights(run):
    for calls in (4, 3):
        sfumato.tune_sampler(run, calls=calls, paths=64, rounds=40)
    told = json.loads((run / "samplers.json").read_text())
    assert {"3", "4"} <= told["tuned"].keys()
    assert told["weights"] == sfumato.load(run).fingerprint() == told["tuned"]["3"]["recipe"]["weights"]
    (run / "samplers.json").write_text(json.dumps(told | {"weights": "0" * 16}))
    assert sfumato.load(run).tuned == {}
    (run / "samplers.json").write_text("{")
    with pytest.raises(UserError, match=r"samplers.json: damaged .* remove it, and tune again"):
        sfumato.load(run)
    (run / "samplers.json").unlink()


def test_what_cannot_be_tuned_is_one_line(run, capsys):
    fails(capsys, ["tune-sampler", run, "--calls", "1"], "at least 2", "sfumato distill")
    fails(capsys, ["tune-sampler", run, "--calls", "0"], "at least 2")
    fails(capsys, ["tune-sampler", run, "--paths", "3"], "at least 32")
    fails(capsys, ["tune-sampler", run, "--rounds", "0"], "one of --rounds")
    fails(capsys, ["tune-sampler", "runs/none"], "no such run")


@pytest.mark.parametrize(
    "change",
    [{"heard": []}, {"heard": [0.0, 0.5]}, {"keep": [1.0]}, {"weights": [[1.0, 2.0], [1.0]]}, {"stops": [1.0, 0.0]},
     {"keep": [1.0, float("nan")]}, {"weights": 5}, {"stops": ["a", 0.5, 0.0]}],
)  # fmt: skip
def test_a_damaged_table_is_refused(change):
    whole = {"stops": [1.0, 0.5, 0.0], "heard": [1.0, 0.5], "keep": [0.5, 0.0], "weights": [[0.5], [1.0, 0.0]]}
    assert Tuned.from_dict(whole).to_dict() == Tuned.from_dict(Tuned.from_dict(whole).to_dict()).to_dict()
    with pytest.raises(UserError, match="tuned sampler"):
        Tuned.from_dict(whole | change)


def test_a_tuned_sampler_goes_its_own_way_only():
    tuned = Table(Cosine(), 3, first=20.0).frozen()
    with pytest.raises(UserError, match="its own 3 steps: leave --grid out"):
        generate(Exact(mixture(), Gaussian(Cosine())), tuned, torch.zeros(1, 2, dtype=torch.float64), "logsnr", 3)
