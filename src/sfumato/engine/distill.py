"""A student of a run: the config and the folder of a run that is taught by another to need few calls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sfumato.denoise import GIVES
from sfumato.engine.asked import Choices
from sfumato.engine.begin import RUNS, train_run
from sfumato.engine.config import Config, Student
from sfumato.engine.distributed import joined
from sfumato.engine.machine import device_of
from sfumato.engine.optimizer import Rule
from sfumato.engine.progress import Watch, watch
from sfumato.engine.run import Run
from sfumato.engine.sequel import Sequel, Usual, create
from sfumato.errors import UserError, choose
from sfumato.models.diffusion import DiffusionSpec, need_diffusion
from sfumato.schedule import SCHEDULES
from sfumato.teaching import METHODS, Method

__all__ = ["Wanted", "config_of", "distill"]

USUAL = Usual(
    time=("10m", "enough to come near a small teacher"),
    lr=(1e-3, "a student begins near its end"),
    batch=(32, "steps help more than examples"),
)


@dataclass(frozen=True, kw_only=True)
class Wanted(Sequel):
    """The arguments of ``sfumato.verbs.distill``, with its defaults; None where the choice is ours."""

    calls: int = 1
    method: str | None = None


def distill(folder: Path, wanted: Wanted, out: Path | None) -> Path:
    """Teach a student; see ``sfumato.verbs.distill``.

    Args:
        folder: of the teacher's run.
        wanted: what was asked for.
        out: folder of the student.
    """
    if wanted.calls < 1:
        raise UserError(f"--calls must be at least 1, got {wanted.calls}: 1, 2 and 4 are usual")
    if wanted.method is not None:
        choose("method", wanted.method, METHODS)
    run = Run.open(folder)
    _refuse(run)
    student = RUNS / f"{folder.name}-{wanted.calls}call" if out is None else out
    with joined(device_of(wanted.device)[0]) as workers:
        show = watch("distill", leads=workers.leads)
        with workers.together():
            if workers.leads:
                _prepare(run, student, wanted, show)
        return train_run(Run.open(student), workers, show)


def _refuse(run: Run) -> None:
    """Raise a UserError if a run cannot teach."""
    model = need_diffusion(run.config.model, f"{run.folder}: distilling")
    if model.gives != "mean":
        teacher = run.config.student.teacher
        raise UserError(f"{run.folder}: is a student of '{teacher}' itself; distil its teacher")
    if model.reads:
        raise UserError(f"{run.folder}: reads classes by a gradient, which a student does not; distil the run below it")
    if model.hint:
        raise UserError(
            f"{run.folder}: follows outlines, which a student does not; distil '{run.config.student.teacher}'"
        )
    if model.variance == "learned":
        raise UserError(f"{run.folder}: was trained with --learn-variance, which a student has no use for")


def _prepare(run: Run, student: Path, wanted: Wanted, show: Watch) -> None:
    """Make the student's folder, with the teacher's weights in it."""
    Run.refuse(student)
    teacher, _ = run.load()
    dataset, choices = run.dataset(), Choices()
    method = choices.take("method", wanted.method, "matching", "the best found after minutes, for one call and for two")
    config = config_of(run.config, method, wanted, choices)
    gives = GIVES[need_diffusion(config.model, "a student").gives]
    show.say(f"{run.folder} teaches {student}: {gives}, from {wanted.calls} calls on")
    for line in choices.lines:
        show.say(line)
    create(student, config, dataset, teacher, Student(method, wanted.calls, run.folder.name))


def config_of(teacher: Config, method: str, wanted: Wanted, choices: Choices) -> Config:
    """Return the student's config: its teacher's in all that is not chosen here.

    Args:
        teacher: the config of its run.
        method: a key of ``sfumato.teaching.METHODS``.
        wanted: what was asked for.
        choices: collects what is chosen.
    """
    way, model = METHODS[method](wanted.calls), need_diffusion(teacher.model, "distilling")
    rule: Rule = "adamw" if model.network == "mlp" else "muon"
    return replace(
        wanted.config(teacher, USUAL, choices),
        model=_model(model, way, wanted.calls, choices),
        optimizer=choices.take("optimizer", None, rule, "as for its teacher's kind of network"),
    )


def _model(teacher: DiffusionSpec, way: Method, calls: int, choices: Choices) -> DiffusionSpec:
    same = way.gives != "map"
    why = "as the teacher" if same else "neighbouring estimates differ by less than bf16 can say"
    mean, std = way.law or (teacher.noise_mean, teacher.noise_std)
    return replace(
        teacher,
        gives=way.gives,
        sampler="consistency" if way.gives == "end" else "flowmap",
        stops=tuple(way.stops(SCHEDULES[teacher.schedule](), calls, teacher.sigma_data).tolist()),
        precision=choices.take("precision", None, teacher.precision if same else "fp32", why),
        law="lognormal",
        noise_mean=mean,
        noise_std=std,
        drop=0.0,
    )
