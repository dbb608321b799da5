"""What `sfumato plan` says is what happens."""

import json
from time import perf_counter
from types import SimpleNamespace

import pytest
import torch

import sfumato
import sfumato.data
from sfumato.cli import main
from sfumato.engine import measure
from sfumato.engine.asked import Asked
from sfumato.engine.plan import Plan, _length, _words
from sfumato.engine.recipes import OCTAVES
from sfumato.errors import UserError
from sfumato.models.diffusion import DiffusionSpec


@pytest.fixture(scope="module")
def planned():
    begun = perf_counter()
    plan = sfumato.plan("digits", steps=1000, batch=16, size="tiny")
    return plan, perf_counter() - begun


def test_a_plan_counts_what_the_network_has():
    """Weights, and two operations for each weight of a linear layer, which an MLP's example meets once."""
    plan = sfumato.plan("moons", steps=3)
    network = DiffusionSpec("mlp", (128,), 3, octaves=OCTAVES).build(sfumato.data.load("moons").codec).denoiser.network
    assert plan.parameters == sum(p.numel() for p in network.parameters())
    linear = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
    assert plan.flops == 2 * sum(layer.weight.numel() for layer in linear)


def test_time_is_the_sum_of_its_parts(planned):
    """Steps, previews and saves as the session does them, and what comes before and after."""
    plan, took = planned
    busy = 1000 * plan.step * (1 + plan.save / 30)
    previews = 1 + (busy - 10) // max(10, busy / 8) if busy > 10 else 0
    rest = plan.start + plan.preview + plan.save + plan.end
    assert plan.seconds == pytest.approx(busy + previews * plan.preview + rest, rel=0.02)
    assert 0 < plan.start < took


def test_a_timed_run_ends_in_time():
    class Config:
        seconds, steps, save_every = 100.0, 0, 30.0

    assert _length(Config, 0.1, 0.0, 0.0) == (1000, 100.0)
    steps, seconds = _length(Config, 0.1, 1.0, 3.0)
    assert steps == pytest.approx((100 - 8) * 30 / 33 / 0.1, abs=1)
    assert seconds == 100.0


def test_words_say_what_was_asked_for():
    asked = Asked("digits", steps=5, classes=True, learn_variance=True, save_every=2.5)
    assert _words(asked) == ["digits", "--steps", "5", "--classes", "--learn-variance", "--save-every", "2.5"]


def test_nothing_is_kept_but_the_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "moons", "--steps", "7", "--out", "plan.json"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    record = json.loads((tmp_path / "plan.json").read_text())
    plan = Plan(**record)
    assert plan.steps == 7
    said = capsys.readouterr().out
    assert f"{plan.parameters:,}" in said
    assert "nothing was kept" in said


@pytest.mark.parametrize("workers", [0, 1000])
def test_workers_without_room_are_refused(workers):
    with pytest.raises(UserError, match=f"--workers {workers}: they are really started"):
        sfumato.plan("moons", steps=1, workers=workers)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's compiler itself imports it
def test_compiled_steps_say_what_they_cost_and_compute_the_same(tmp_path, capsys):
    words = ["digits", "--steps", "4", "--batch", "8", "--size", "tiny", "--precision", "fp32"]
    for name, more in (("eager", []), ("compiled", ["--compile"])):
        assert main(["train", *words, *more, "--out", str(tmp_path / name)]) == 0
    assert "torch.compile: the first step took" in capsys.readouterr().out
    eager, compiled = (sfumato.load(tmp_path / name).state_dict() for name in ("eager", "compiled"))
    assert eager.keys() == compiled.keys()
    assert all(torch.allclose(eager[key], compiled[key], atol=1e-3) for key in eager)


@pytest.mark.slow
def test_workers_are_really_started():
    plan = sfumato.plan("digits", steps=10, batch=16, size="tiny", workers=2)
    assert plan.workers == 2
    assert plan.batch == 16
    with pytest.raises(UserError, match="no data set or path 'nothing'"):
        sfumato.plan("nothing", workers=2)


def test_a_disturbance_does_not_choose_the_batch(monkeypatch):
    """Steps take time in proportion to the batch, so a larger one gains nothing; for a while all are thrice as slow."""
    now = [0.0]

    class Disturbed:
        order = SimpleNamespace(batch=32)

        def advance(self):
            now[0] += self.order.batch / 1_000 * (3 if 0.3 < now[0] < 0.9 else 1)
            return 0.0

    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    one, two = measure._times(Disturbed(), (32, 64), 0.2)
    assert min(two) == pytest.approx(2 * min(one))
