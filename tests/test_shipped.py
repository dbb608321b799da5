"""Models that come along: small, whole, asked for by name, and runs like any other from then on."""

import pytest

import sfumato
from commands import fails
from sfumato.engine.run import Run
from sfumato.engine.shipped import PLACE, SHIPPED, names
from sfumato.engine.trainer import Trainer


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of a new user's."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_of_them_together_are_small():
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= 8_000_000


@pytest.mark.parametrize("name", names())
def test_each_draws_at_once(name, elsewhere):
    files = sfumato.sample(name, n=10)
    assert files[-1].is_relative_to(PLACE / name)
    assert len(files) == 11
    drawn = sfumato.load(name).sample(10).float()
    assert drawn.flatten(1).std(1).min() > 1  # no picture is empty


def test_bfloat16_is_asked_only_of_machines_that_have_it(elsewhere, monkeypatch):
    """A run says bf16; where that is imitated, many times slower, its models compute in float32."""
    monkeypatch.setattr("sfumato.engine.run.has_bf16", lambda device: False)
    student = Run.open(sfumato.distill("digits", steps=1, batch=8, out="student"))
    for there, precision in ((False, "fp32"), (True, "bf16")):
        monkeypatch.setattr("sfumato.engine.run.has_bf16", lambda device, there=there: there)
        trainer = Trainer(student, student.dataset())
        lesson = trainer.lesson
        denoisers = trainer.model.denoiser, trainer.ema.denoiser, lesson.teacher.denoiser, lesson.beside["critic"]
        assert {each.network.precision for each in denoisers} == {precision}
        assert sfumato.load("digits").denoiser.network.precision == precision


def test_that_bfloat16_is_not_asked_is_said(elsewhere, monkeypatch, capsys):
    monkeypatch.setattr("sfumato.engine.run.has_bf16", lambda device: False)
    sfumato.train("moons", steps=1, batch=8, precision="bf16", out="run")
    assert "computes in fp32: config.toml says bf16" in "".join(capsys.readouterr())
    sfumato.train("moons", steps=1, batch=8, precision="fp32", out="other")
    assert "bf16" not in "".join(capsys.readouterr())


def test_what_is_there_is_not_written_again(elsewhere):
    name = names()[0]
    sfumato.load(name)
    note = PLACE / name / "note.txt"
    note.write_text("mine")
    before = (PLACE / name / "config.toml").stat().st_mtime_ns
    sfumato.load(name)
    assert (note.read_text(), (PLACE / name / "config.toml").stat().st_mtime_ns) == ("mine", before)


def test_newer_weights_take_the_place_of_older_ones(elsewhere):
    name = names()[0]
    expected = sfumato.load(name).fingerprint()
    (PLACE / name / "checkpoints" / "latest").write_text("step-00000001-0123456789abcdef.safetensors")
    assert sfumato.load(name).fingerprint() == expected


def test_a_folder_of_the_users_own_goes_first(elsewhere):
    name = names()[0]
    sfumato.train("moons", steps=2, batch=8, out=name)
    assert Run.open(elsewhere / name).data["name"] == "moons"
    assert len(sfumato.sample(name, n=2)) == 2
    assert not PLACE.exists()


def test_names_of_nothing_are_answered_with_what_there_is(elsewhere, capsys):
    fails(capsys, ["sample", "fashion-mnits"], "no such run", *names())


def test_one_without_its_optimiser_cannot_be_trained_on(elsewhere, capsys):
    fails(capsys, ["resume", names()[0]], "holds no 'model.' weights")
