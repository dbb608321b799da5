"""Students as runs: taught, resumed to the same bits, drawn from in their few calls, and refused where they must be."""

import json
import math
import shutil
from dataclasses import replace
from functools import cache

import pytest
import torch

import sfumato
from commands import everything, fails
from sfumato.cli import main
from sfumato.condition import Condition
from sfumato.engine import checkpoint
from sfumato.engine.checkpoint import checkpoints, read_weights
from sfumato.engine.config import read_config
from sfumato.engine.progress import watch
from sfumato.engine.run import Run
from sfumato.engine.session import SETTLED, Session
from sfumato.engine.trainer import Trainer
from sfumato.errors import UserError
from sfumato.teaching import METHODS, Matching, Rivalry
from sfumato.verbs.words import Method
from sfumato.weighting import LogNormal


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "digits"
    return sfumato.train("digits", steps=30, size="tiny", classes=True, out=str(folder))


@pytest.fixture(scope="module")
def taught(teacher):
    """A student by a method, each taught once."""

    def student(method, calls=1):
        out = str(teacher.parent / f"{method}{calls}")
        return sfumato.distill(teacher, calls=calls, method=method, steps=1, batch=8, out=out)

    return cache(student)


def untrained(run, folder, steps=9):
    """What will train a copy of a student from its first step."""
    if not folder.exists():
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "samples"))
        config = (folder / "config.toml").read_text().replace("steps = 1\n", f"steps = {steps}\n")
        (folder / "config.toml").write_text(config)
    copied = Run.open(folder)
    return Trainer(copied, copied.dataset())


@pytest.fixture(scope="module")
def student(teacher):
    out = str(teacher.parent / "student")
    return sfumato.distill(teacher, calls=2, method="consistency", steps=6, batch=16, out=out)


def test_methods_have_the_names_of_the_command_line():
    assert set(Method.__args__) == set(METHODS)


@pytest.mark.parametrize("calls", [1, 2])
def test_the_usual_method_is_said_with_its_reason(calls, teacher, tmp_path, capsys):
    run = sfumato.distill(teacher, calls=calls, steps=1, batch=4, out=str(tmp_path / "s"))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  method"))
    assert line.split()[1] == "matching" == read_config(run / "config.toml").student.method
    assert len(line.split()) > 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("calls", [1, 4])
def test_a_student_draws_in_its_calls(method, calls, teacher, tmp_path):
    run = sfumato.distill(teacher, calls=calls, method=method, steps=3, batch=8, out=str(tmp_path / "s"))
    model = sfumato.load(run)
    states = list(model.trajectory(range(4), model.way()))
    assert states[-1].nfe == calls == len(states) - 1
    assert states[-1].t == 0 and states[-1].x.isfinite().all()
    assert model.denoiser.gives == METHODS[method](calls).gives
    files = sfumato.sample(run, n=3)
    assert len(files) == 4
    assert f"-own-{calls}" in files[0].parent.name
    told = read_config(run / "config.toml")
    assert (told.student.method, told.student.calls, told.student.teacher) == (method, calls, "digits")
    assert told.student.weights == sfumato.load(teacher).fingerprint()


def test_a_student_begins_as_its_teacher(teacher, taught, tmp_path):
    """Before its first step its network answers as the teacher's does, for a map whatever the end of the step."""
    for method in METHODS:
        ours = untrained(taught(method), tmp_path / method).ema.denoiser
        theirs = sfumato.load(teacher).denoiser
        ours.network.precision = theirs.network.precision = "fp32"
        x, labels = torch.randn(3, 1, 8, 8), Condition(torch.tensor([0, 1, 2]))
        assert torch.allclose(ours(x, 0.7, labels).x0, theirs(x, 0.7, labels).x0, atol=1e-5)
        if ours.gives == "map":
            assert torch.allclose(ours(x, 0.7, labels, s=0.1).x0, theirs(x, 0.7, labels).x0, atol=1e-5)


@pytest.mark.parametrize("method", ["matching", "consistency", "direct", "progressive", "alphaflow"])
def test_a_student_that_is_interrupted_ends_with_the_same_bits(method, taught, tmp_path):
    """Stopped within the second of three stages: what teaches then is in the checkpoint."""

    def trainer(name):
        return untrained(taught(method), tmp_path / name)

    whole, part = trainer("whole"), trainer("part")
    for _ in range(9):
        whole.advance()
    for _ in range(5):
        part.advance()
    part.save()
    again = trainer("part")
    assert again.step == 5
    for _ in range(4):
        again.advance()
    for ours, theirs in zip(again.ema.parameters(), whole.ema.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert again.lesson.stage == whole.lesson.stage == METHODS[method](1).stages - 1


@pytest.fixture
def quick_to_turn(monkeypatch):
    monkeypatch.setattr(Rivalry, "lead", 1)


def test_a_rivalry_that_is_interrupted_ends_with_the_same_bits(taught, tmp_path, quick_to_turn):
    """Before it begins, and in the midst of it: heads, law and turn are in the checkpoint, momentum is not."""

    def trainer(name, steps=0):
        made = untrained(taught("matching", 2), tmp_path / name, 15)
        for _ in range(steps):
            made.advance()
        return made

    whole = trainer("whole", 15)
    assert whole.lesson.begun == math.ceil(15 * (1 - whole.lesson.method.share))
    assert isinstance(whole.lesson.method, Rivalry)
    for stop in (4, 13):
        trainer(f"part{stop}", stop).save()
        again = trainer(f"part{stop}", 15 - stop)
        for ours, theirs in zip(again.ema.parameters(), whole.ema.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_a_rivalry_begins_with_the_average_and_averages_anew(taught, tmp_path, quick_to_turn):
    """In its first step only the heads learn: student and average are then what matching had come to, in the mean."""
    trainer = untrained(taught("matching", 2), tmp_path / "anew", 10)
    while not trainer.lesson.begun:
        matched = [parameter.clone() for parameter in trainer.ema.parameters()]
        trainer.advance()
    for model in (trainer.model, trainer.ema, trainer.second):
        for ours, theirs in zip(model.parameters(), matched, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    trainer.keep_averages()
    assert [path.name for path in trainer.run.averages.glob("average-*")] == ["average-00000001.safetensors"]


def test_samples_of_a_student_differ_as_much_as_the_data(taught, tmp_path, quick_to_turn, monkeypatch):
    """After a rivalry the gain is in the checkpoint, of every average; what follows the last step is done before it."""
    trainer = untrained(taught("matching", 2), tmp_path / "gained", 10)
    monkeypatch.setattr(type(trainer), "finish", lambda *_: 1 / 0)
    trainer.config = replace(trainer.config, save_every=1e-9)
    with pytest.raises(ZeroDivisionError):
        Session(trainer, watch("distill")).run()
    again = untrained(taught("matching", 2), tmp_path / "gained", 10)
    assert 0 < again.step < 10 and not again.finished
    monkeypatch.undo()
    Session(again, watch("distill")).run()
    model, _ = again.run.load()
    gain = float(model.denoiser.gain)
    assert gain != 1
    assert float(again.run.load(ema=0.1)[0].denoiser.gain) == gain
    found = checkpoint.load(again.run.checkpoints)
    older = {name: tensor for name, tensor in found.tensors.items() if not name.endswith("gain")}
    checkpoint.save(again.run.checkpoints, again.step + 1, older, found.notes)
    assert float(again.run.load()[0].denoiser.gain) == 1  # a student of before that was measured


def test_what_goes_back_from_a_rivalry_is_matched_again(taught, tmp_path, quick_to_turn):
    """Law, optimiser and what learns are those of the method that taught at the checkpoint."""
    trainer = untrained(taught("matching", 2), tmp_path / "back", 10)
    for _ in range(2):
        trainer.advance()
    trainer.save()
    law, learning = trainer.model.denoiser.law, len(trainer.parameters)
    for _ in range(5):
        trainer.advance()
    assert trainer.model.denoiser.law == LogNormal(*Rivalry.law) != law
    assert not trainer.optimizer.muon.weights
    assert list(trainer.learning.paces().values()) == [Rivalry.pace, Rivalry.pace_beside]
    trainer.go_back()
    assert trainer.model.denoiser.law == law
    assert trainer.optimizer.muon.weights
    assert len(trainer.parameters) == learning
    assert isinstance(trainer.lesson.method, Matching)


def test_another_method_is_said_where_it_begins(teacher, tmp_path, capsys):
    sfumato.distill(teacher, calls=2, steps=10, batch=4, out=str(tmp_path / "s"))
    assert capsys.readouterr().out.count("step 4: from here on by rivalry") == 1


@pytest.mark.parametrize(("near", "begins"), [(3, 5), (9, 9)])
def test_a_student_of_one_call_has_a_rival_once_it_is_near(near, begins, teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sfumato.teaching.matching.NEAR", near)
    run = sfumato.distill(teacher, calls=1, steps=10, batch=4, out=str(tmp_path / "s"))
    said = capsys.readouterr().out
    assert f"step {begins + 1}: from here on by rivalry" in said
    assert "contrast: all that the student says times" in said
    assert checkpoint.load(run / "checkpoints").notes["horizon"] == str(Rivalry.ema)


def test_a_student_of_one_call_is_matched_to_the_end_if_it_never_comes_near(teacher, tmp_path, capsys):
    run = sfumato.distill(teacher, calls=1, steps=10, batch=4, out=str(tmp_path / "s"))
    said = capsys.readouterr().out
    assert not [word for word in ("by rivalry", "contrast") if word in said]
    assert checkpoint.load(run / "checkpoints").notes["horizon"] == str(read_config(run / "config.toml").ema)


def test_another_average_of_a_rivalry_is_made_of_its_own(taught, tmp_path, quick_to_turn, monkeypatch):
    """What is kept has the horizon of the method that ended the training, not that of the config."""
    kept = []
    monkeypatch.setattr("sfumato.engine.run.reconstructed", lambda _, own, wanted: kept.append((own, wanted)) or {})
    trainer = untrained(taught("matching", 2), tmp_path / "again", 10)
    for done, own in ((2, trainer.config.ema), (9, Rivalry.ema)):
        while trainer.step < done:
            trainer.advance()
        trainer.save()
        trainer.run.load(0.2)
        trainer.run.load(own)
        assert kept.pop() == (own, 0.2)
        assert not kept


def test_a_timed_student_fixes_its_steps_early(teacher, tmp_path):
    """Its loss depends on how far it is: the number of steps must not change once it matters, and is saved at once."""
    run = sfumato.distill(teacher, method="consistency", time="3s", batch=4, out=str(tmp_path / "timed"))
    saves = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if '"save"' in line]
    assert SETTLED in [save["step"] for save in saves]
    notes = checkpoint.load(run / "checkpoints").notes
    assert int(notes["step"]) == int(notes["total"]) > SETTLED


def test_what_is_left_of_the_time_is_planned_for_however_late_another_method_begins(taught, tmp_path):
    trainer = untrained(taught("matching"), tmp_path / "late")
    trainer.config = replace(trainer.config, steps=0, seconds=100.0)
    session = Session(trainer, watch("distill"))
    trainer.lesson._begin(80)
    trainer.seconds, trainer.total = 80.0, 100
    for step, planned in ((85, 85 + 40), (80 + Rivalry.lead + SETTLED + 1, 100)):
        trainer.step = step
        assert session._plan(0.5) == planned


def test_a_time_too_short_for_the_last_method_is_said(teacher, tmp_path, capsys):
    sfumato.distill(teacher, calls=1, time="1s", batch=4, out=str(tmp_path / "one"))
    assert "too few for rivalry" in capsys.readouterr().out
    sfumato.distill(teacher, calls=2, time="1s", batch=4, out=str(tmp_path / "two"))
    assert "too few" not in capsys.readouterr().out


def test_a_timed_student_fixes_its_steps_again_where_another_method_begins(teacher, tmp_path, quick_to_turn):
    """Its steps take another time: their number is planned anew, and saved as soon as their pace is known."""
    run = sfumato.distill(teacher, calls=2, time="20s", batch=4, out=str(tmp_path / "timed"))
    saves = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if '"save"' in line]
    notes = checkpoint.load(run / "checkpoints").notes
    again = int(notes["begun"]) + Rivalry.lead + SETTLED
    assert {SETTLED, again} <= {save["step"] for save in saves}
    assert int(notes["step"]) == int(notes["total"]) > again


def test_a_finished_student_is_finished(student, capsys):
    before = everything(student / "checkpoints")
    assert main(["resume", str(student)]) == 0
    assert "finished before" in capsys.readouterr().out
    assert everything(student / "checkpoints") == before


def test_what_a_student_is_asked_for(student, capsys):
    """evaluate and show understand it; likelihood, tuning and samplers that need the mean refuse it and say why."""
    assert sfumato.evaluate(student, n=70).steps == 2
    assert sfumato.show(student)
    assert sfumato.report(student).path.exists()
    fails(capsys, ["likelihood", student, "-n", "2"], "distilled to give where a state's path ends", "ask its teacher")
    fails(capsys, ["tune-sampler", student], "distilled to give where a state's path ends", "ask its teacher")
    fails(capsys, ["sample", student, "--sampler", "heun"], "needs a model that gives the mean", "sfumato samplers")
    assert len(sfumato.sample(student, n=2, steps=3, out=str(student / "three"))) == 3


def test_points_have_students_too(tmp_path):
    teacher = sfumato.train("moons", steps=20, size="tiny", out=str(tmp_path / "moons"))
    for method in ("consistency", "meanflow"):
        run = sfumato.distill(teacher, method=method, steps=3, out=str(tmp_path / method))
        assert len(sfumato.load(run).sample(5)) == 5
    assert sfumato.show(run)[-1].exists()


def test_what_cannot_be_distilled_is_one_line(teacher, student, capsys, tmp_path):
    before = everything(teacher)
    fails(capsys, ["distill", student], "is a student of 'digits' itself; distil its teacher")
    fails(capsys, ["distill", teacher, "--calls", "0"], "--calls must be at least 1, got 0")
    fails(capsys, ["distill", teacher, "--method", "magic"], "magic", "consistency")
    fails(capsys, ["distill", teacher, "--time", "5m", "--steps", "3"], "either --time or --steps")
    fails(capsys, ["distill", teacher, "--steps", "0"], "--steps must be at least 1")
    fails(capsys, ["distill", teacher, "--time", "soon"], "'soon' is no time")
    fails(capsys, ["distill", teacher, "--out", student], "exists")
    fails(capsys, ["distill", "runs/none"], "no such run")
    assert everything(teacher) == before
    learned = sfumato.train("digits", steps=1, size="tiny", learn_variance=True, out=str(tmp_path / "learned"))
    fails(capsys, ["distill", learned], "--learn-variance")


def test_a_run_without_an_average_cannot_teach(teacher, capsys, tmp_path):
    run = tmp_path / "bare"
    shutil.copytree(teacher, run)
    found = checkpoint.load(run / "checkpoints")
    for path in checkpoints(run / "checkpoints"):
        path.unlink()
    bare = {name: tensor for name, tensor in found.tensors.items() if not name.startswith("ema.")}
    checkpoint.save(run / "checkpoints", 30, bare, found.notes)
    fails(capsys, ["distill", run, "--out", tmp_path / "student"], "holds no 'ema.' weights")
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_damaged_weights_of_the_teacher_are_named(damage, teacher, student, tmp_path):
    run = tmp_path / "s"
    shutil.copytree(student, run)
    path, weights = run / "teacher.safetensors", read_config(run / "config.toml").student.weights
    assert read_weights(path, weights).keys() == sfumato.load(teacher).state_dict().keys()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="restore it from a backup"):
        read_weights(path, "0" * 16 if damage == "other" else weights)
