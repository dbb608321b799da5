"""What a run was worth on its way, and after a spike of its learning rate."""

from types import SimpleNamespace

import pytest
import torch

import sfumato
from sfumato.data import load
from sfumato.engine import clock
from sfumato.engine import course as courses
from sfumato.engine.course import REST, SHARE, SPIKE, course, recovery
from sfumato.engine.evaluate import Real
from sfumato.engine.run import Run
from sfumato.engine.trainer import Trainer

N = 512


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run.open(sfumato.train("moons", model="vae", steps=120, out=str(tmp_path_factory.mktemp("c") / "vae")))


@pytest.fixture(scope="module")
def real():
    data = load("moons")
    return Real.of(data, data.test)[0]


def test_the_way_ends_at_what_the_run_is_worth(run, real):
    stops = course(run, real, N, "cpu")
    assert len(stops) == 8 and [stop.seconds for stop in stops] == sorted(stop.seconds for stop in stops)
    model, notes = run.load()
    distance, recall = courses._worth(model, real, N)
    assert stops[-1].distance == pytest.approx(distance, rel=0.02)  # averages are kept in half precision
    assert stops[-1].recall == pytest.approx(recall, abs=0.02)
    assert stops[-1].seconds == pytest.approx(float(notes["seconds"]), abs=0.5)
    assert stops[0].distance > 2 * stops[-1].distance


def test_of_a_run_that_kept_no_averages_nothing_is_told(real, tmp_path):
    found = Run.open(sfumato.train("moons", model="vae", steps=2, out=str(tmp_path / "vae")))
    for path in found.averages.iterdir():
        path.unlink()
    assert course(found, real, N, "cpu") == ()


def test_a_spike_is_ten_times_the_rate_and_then_it_falls_to_nothing(run, real):
    trainer = courses._Spiked(run, real.train)
    shock, rest = trainer._steps(SHARE), trainer._steps(REST)
    rates = [trainer.rate(trainer.total + k) / run.config.lr for k in range(1, shock + rest + 2)]
    assert rates[:shock] == [SPIKE] * shock
    assert rates[shock] == 1 and rates[-1] == 0
    assert rates[shock:] == sorted(rates[shock:], reverse=True)


def test_recovery_leaves_the_run_as_it_is_and_begins_with_its_worth(run, real):
    before = run.load()[0].fingerprint()
    told = recovery(run, real, N)
    assert run.load()[0].fingerprint() == before
    assert told.before == courses._worth(run.load()[0], real, N)[0]
    assert told.after is not None and told.hit is not None


def test_weights_that_are_lost_are_told_as_such(run, real, monkeypatch):
    def broken(self):
        self.step += 1
        with torch.no_grad():
            next(self.model.parameters()).fill_(torch.nan)

    monkeypatch.setattr(courses._Spiked, "advance", broken)
    told = recovery(run, real, N)
    assert told.hit is told.after is None


def test_a_run_of_a_given_time_keeps_its_averages_evenly(tmp_path, monkeypatch):
    """By a clock on which every step takes the same time, whatever else the machine does."""
    gone = []

    def advance(trainer, real=Trainer.advance):
        gone.append(0.02)
        return real(trainer)

    monkeypatch.setattr(Trainer, "advance", advance)
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: sum(gone)))
    found = Run.open(sfumato.train("moons", model="vae", time="3s", out=str(tmp_path / "vae")))
    steps = sorted(int(path.stem.rpartition("-")[2]) for path in found.averages.iterdir())
    assert 8 <= len(steps) <= 9  # the last may come twice: as the time ends, and as the steps do
    assert steps[0] < 0.4 * steps[-1]
