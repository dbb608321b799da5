"""What is not finite never reaches the weights: such steps are skipped, counted, named; too many end a run."""

import dataclasses
import json
import math

import pytest
import torch

from sfumato.data import load as load_data
from sfumato.engine import checkpoint
from sfumato.engine.config import Config
from sfumato.engine.progress import Silent
from sfumato.engine.run import Run
from sfumato.engine.session import Session
from sfumato.engine.trainer import PATIENCE, RETURNS, Trainer
from sfumato.errors import UserError
from sfumato.models.diffusion import DiffusionSpec

SPEC = DiffusionSpec(network="mlp", widths=(16,), blocks=1, sigma_data=1.0)
CONFIG = Config(data="moons", model=SPEC, batch=16, steps=200, save_every=0.02)
CAUSES = {"data": "example", "loss": "the loss", "gradient": "the gradient"}


@pytest.fixture(scope="module")
def moons():
    return load_data("moons")


def begin(folder, moons, **changes):
    return Trainer(Run.create(folder, dataclasses.replace(CONFIG, **changes), moons), moons)


def poison(trainer, kind, when):
    """Make data, loss or gradient NaN in the steps for which ``when`` says so."""
    if kind == "data":
        examples = trainer.examples

        def bad(*asked):
            states, cond = examples(*asked)
            # when the batch is looked at again to name the example, the step has been counted
            if when(trainer.step) or bad.again == trainer.step:
                states[3, 1] = math.inf
                bad.again = trainer.step + 1
            return states, cond

        bad.again = -1
        trainer.examples = bad
    elif kind == "loss":
        trainer.objective.register_forward_hook(lambda m, i, loss: loss * math.nan if when(trainer.step) else None)
    else:
        weight = trainer.parameters[1]
        weight.register_hook(lambda gradient: gradient * math.inf if when(trainer.step) else None)


def finite(tensors):
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def events(run, what):
    records = [json.loads(line) for line in run.log.read_text().splitlines()]
    return [record for record in records if record.get("event") == what]


@pytest.mark.parametrize("kind", CAUSES)
def test_a_hundred_poisoned_steps_leave_no_trace(tmp_path, moons, kind):
    """Every second step: the weights are those of a run that does nothing there, and the log names each."""
    trainer, plain = begin(tmp_path / "poisoned", moons), begin(tmp_path / "plain", moons)
    saved = []
    save = trainer.save
    trainer.save = lambda: saved.append(save()) or saved[-1]
    poison(trainer, kind, lambda step: step % 2 == 1)
    assert Session(trainer, Silent()).run()
    for step in range(CONFIG.steps):
        if step % 2 == 0:
            plain.advance()
        else:
            plain.step += 1
            plain.averages.update(plain.step)
    assert trainer.model.fingerprint() == plain.model.fingerprint()
    assert all(torch.equal(a, b) for a, b in zip(trainer.ema.parameters(), plain.ema.parameters(), strict=True))
    assert trainer.skipped == 100
    skips = events(trainer.run, "skip")
    assert [skip["at"] for skip in skips] == list(range(2, 201, 2))
    assert all(CAUSES[kind] in skip["cause"] for skip in skips)
    if kind == "data":
        assert all(skip["cause"].split()[1] == str(int(trainer.order(skip["at"] - 1)[3])) for skip in skips)
    assert len(saved) > 3
    for path in checkpoint.checkpoints(trainer.run.checkpoints):
        assert path in saved
    found = checkpoint.load(trainer.run.checkpoints)
    assert finite(tensor for name, tensor in found.tensors.items() if not name.endswith("mmse"))
    assert found.notes["skipped"] == "100"


def test_too_many_in_a_row_go_back_to_a_lower_learning_rate(tmp_path, moons):
    """Steps fail above half of the learning rate: one return, and the run ends well, its rates halved since."""
    trainer = begin(tmp_path / "run", moons, steps=600, lr=1e-2, save_every=1e9)
    limit = trainer.config.lr * 0.6
    poison(trainer, "gradient", lambda step: trainer.rate(step + 1) > limit)
    assert Session(trainer, Silent()).run()
    assert trainer.returns == 1
    assert trainer.rate(401) == pytest.approx(trainer.config.lr / 2)
    (back,) = events(trainer.run, "rollback")
    assert back["step"] == 0  # the first checkpoint, before any step
    assert back["lr"] == trainer.config.lr / 2
    first = next(k for k in range(600) if trainer.rate(k + 1) * 2 > limit)
    assert back["failed"] == first + PATIENCE
    assert trainer.skipped == PATIENCE
    numbers = [json.loads(line)["step"] for line in trainer.run.log.read_text().splitlines() if '"loss"' in line]
    assert numbers == sorted(set(numbers))  # what was undone is no longer in the log
    assert Trainer(trainer.run, moons).returns == 1


def test_a_run_that_goes_on_failing_stops_with_the_cause(tmp_path, moons):
    trainer = begin(tmp_path / "run", moons)
    poison(trainer, "loss", lambda step: step >= 50)
    with pytest.raises(UserError, match=f"the loss is not finite, after {RETURNS} returns .* lower --lr"):
        Session(trainer, Silent()).run()
    assert len(events(trainer.run, "rollback")) == RETURNS
    assert "the loss is not finite" in events(trainer.run, "stop")[0]["cause"]
    again = Trainer(trainer.run, moons)
    assert again.step <= 50
    assert finite([*again.model.parameters(), *again.ema.parameters()])


def test_weights_that_are_not_finite_are_never_saved(tmp_path, moons):
    trainer = begin(tmp_path / "run", moons, save_every=1e9)
    trainer.save()
    for _ in range(5):
        trainer.advance()
    with torch.no_grad():
        trainer.parameters[0].fill_(math.nan)
    session = Session(trainer, Silent())
    session._save()
    assert trainer.step == 0
    assert trainer.returns == 1
    assert finite(trainer.parameters)


def test_a_kill_among_skipped_steps_changes_nothing(tmp_path, moons):
    """Five skipped, saved and read again, five more: the run goes back as it would have without the kill."""
    ends = []
    for name, killed in (("straight", False), ("killed", True)):
        trainer = begin(tmp_path / name, moons, save_every=1e9)
        session = Session(trainer, Silent())
        trainer.save()
        first = trainer
        for step in range(40):
            if step == 20:
                (first if not killed else trainer).save()
            if step == 25 and killed:
                trainer.save()
                trainer = Trainer(trainer.run, moons)
                session = Session(trainer, Silent())
            if step >= 20:
                trainer.parameters[0].register_hook(lambda gradient: gradient * math.nan)
            trainer.advance()
            session._judge()
            if trainer.returns:
                break
        ends.append((step, trainer.returns, trainer.skipped))
    assert ends[0] == ends[1] == (20 + PATIENCE - 1, 1, PATIENCE)
