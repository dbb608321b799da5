"""A run that learns on top of another: its config and its folder; adaptation.py tells how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from sfumato.data import Dataset
from sfumato.data import load as load_data
from sfumato.data.image import ImageCodec
from sfumato.engine.adaptation import CONTROL, LORA
from sfumato.engine.asked import Asked, Choices
from sfumato.engine.begin import RUNS, train_run
from sfumato.engine.config import Student
from sfumato.engine.distributed import joined
from sfumato.engine.machine import device_of
from sfumato.engine.progress import Watch, watch
from sfumato.engine.run import Run
from sfumato.engine.sequel import Sequel, Usual, create
from sfumato.errors import UserError, choose, nearest
from sfumato.hint import HINTS
from sfumato.models.base import GenerativeModel
from sfumato.models.diffusion import need_diffusion

__all__ = ["HINT", "RANK", "adapt"]

RANK = 8
"""Of the change of each weight, unless another is asked for."""
USUAL = {
    LORA: Usual(time=("2m", "enough for a style"), lr=(3e-3, "of what is 0 at first")),
    CONTROL: Usual(time=("5m", "enough to follow outlines"), lr=(1e-3, "of a branch that begins as the run")),
}
"""By the method."""
HINT = "edges"
"""What is followed, unless another hint is asked for."""


class Upon(NamedTuple):
    """What is learned on top of a run.

    Attributes:
        folder: of the run.
        method: a key of ``sfumato.engine.adaptation.ADAPTATIONS``.
        rank: of the change of each weight, of "lora".
        hint: what is followed, of "control".
    """

    folder: Path
    method: str
    rank: int = 0
    hint: str = ""


def adapt(asked: Mapping[str, Any], lora: str | None, rank: int | None, control: str | None, hint: str | None) -> Path:
    """Learn on top of a run; see ``sfumato.verbs.train``.

    Args:
        asked: the other arguments of the verb.
        lora: folder of a run whose weights change by low rank.
        rank: of that change.
        control: folder of a run that gets a branch.
        hint: what that follows.
    """
    choices = Choices()
    upon, wanted = _upon(lora, rank, control, hint, choices), _wanted(asked)
    run = Run.open(upon.folder)
    model = need_diffusion(run.config.model, f"{upon.folder}: --{upon.method}")
    if model.gives != "mean":
        raise UserError(f"{upon.folder}: is a student of '{run.config.student.teacher}'; adapt its teacher")
    if model.hint or (upon.hint and model.network != "unet"):
        why = "follows outlines already" if model.hint else "has no U-Net, beside which a branch stands"
        raise UserError(f"{upon.folder}: {why}; give another run to --{upon.method}")
    named = f"{run.folder.name}-{upon.hint or Path(asked['data']).stem}"
    adapted = RUNS / named if asked["out"] is None else Path(asked["out"])
    with joined(device_of(wanted.device)[0]) as workers:
        show = watch(leads=workers.leads)
        with workers.together():
            if workers.leads:
                _prepare(asked["data"], run, upon, adapted, wanted, choices, show)
        return train_run(Run.open(adapted), workers, show)


def _upon(lora: str | None, rank: int | None, control: str | None, hint: str | None, choices: Choices) -> Upon:
    """Return what is asked for, if it is one thing."""
    if (lora is None) == (control is None):
        lone = "--rank goes with --lora, and --hint with --control: give the run too"
        raise UserError("give either --lora or --control, not both" if lora else lone)
    if lora is not None:
        if hint is not None:
            raise UserError("--hint is what --control follows: leave it out, or give that instead of --lora")
        rank = choices.take("rank", rank, RANK, "of the change of each weight")
        if rank < 1:
            raise UserError(f"--rank must be at least 1, got {rank}")
        return Upon(Path(lora), LORA, rank=rank)
    if rank is not None:
        raise UserError("--rank is of the change that --lora learns: leave it out, or give that instead of --control")
    told = choices.take("hint", hint, HINT, "what a drawing tells, and a picture of anything")
    choose("hint", told, HINTS)
    return Upon(Path(str(control)), CONTROL, hint=told)


def _wanted(asked: Mapping[str, Any]) -> Sequel:
    """Return what may be asked, and refuse all else that was."""
    ours = {field.name: asked[field.name] for field in fields(Sequel) if field.name in asked}
    for field in fields(Asked):
        if field.name not in (*ours, "data", "out") and asked[field.name] != field.default:
            word = field.name.replace("_", "-")
            raise UserError(f"--{word} stays as the run below has it: leave it out")
    return Sequel(**ours)


def _prepare(data: str, run: Run, upon: Upon, adapted: Path, wanted: Sequel, choices: Choices, show: Watch) -> None:
    """Make the folder of the new run, with the weights of the other in it."""
    Run.refuse(adapted)
    model, _ = run.load()
    dataset, side = _loaded(data, model)
    config = replace(
        wanted.config(run.config, USUAL[upon.method], choices),
        model=replace(need_diffusion(run.config.model, "adapting"), hint=upon.hint),
        data=data,
        resolution=side or 0,
        optimizer="adamw",
        mirror=False,
        skip_bad=False,
        stream=dataset.streamed,
    )
    show.say(f"{dataset.name}: {len(dataset.items):,} examples on top of {run.folder} -> {adapted}")
    for line in (*(f"  note       {note}" for note in dataset.notes), *choices.lines):
        show.say(line)
    words = [] if model.vocabulary is None else model.vocabulary.strange(" ".join(filter(None, dataset.captions)))
    if words:
        show.say(f"  note       not in the captions of {run.folder.name}, and not heard: {', '.join(words)}")
    create(adapted, config, dataset, model, Student(upon.method, 0, run.folder.name, rank=upon.rank))


def _loaded(data: str, model: GenerativeModel) -> tuple[Dataset, int | None]:
    """Load data of a model's shape, and return them with the longest side that they had to be brought to, if any."""
    own = getattr(model.codec, "pixel", model.codec)
    dataset, dims, side = load_data(data), own.dims, None
    if dataset.codec.dims != dims and isinstance(dataset.codec, ImageCodec) and isinstance(own, ImageCodec):
        side = max(dims[1:])
        dataset = load_data(data, resolution=side)
    if dataset.codec.dims != dims:
        theirs, ours = ("x".join(map(str, each)) for each in (dataset.codec.dims, dims))
        raise UserError(f"{data}: {theirs} values an example, and the run knows {ours}; give data of its shape")
    strange = sorted({*dataset.classes} - {*model.classes}) if model.classes else []
    if strange:
        raise UserError(f"{data}: the run knows no class '{strange[0]}'{nearest(strange[0], model.classes)}")
    return dataset, side
