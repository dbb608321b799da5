"""A run that learns on top of another: its config and its folder; adaptation.py tells how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from sfumato.data import Dataset
from sfumato.data import load as load_data
from sfumato.data.image import ImageCodec
from sfumato.engine.adaptation import CONTROL, LORA, READER
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
from sfumato.models.diffusion import DiffusionSpec, need_diffusion

__all__ = ["HINT", "RANK", "Upon", "adapt"]

RANK = 8
"""Of the change of each weight, unless another is asked for."""
USUAL = {
    LORA: Usual(time=("2m", "enough for a style"), lr=(3e-3, "of what is 0 at first")),
    CONTROL: Usual(time=("5m", "enough to follow outlines"), lr=(1e-3, "of a branch that begins as the run")),
    READER: Usual(time=("2m", "enough for a few classes"), lr=(1e-3, "the usual one of Adam")),
}
"""By the method."""
HINT = "edges"
"""What is followed, unless another hint is asked for."""


class Upon(NamedTuple):
    """What is learned on top of a run, one of three.

    Attributes:
        lora: folder of a run whose weights change by low rank.
        rank: of that change.
        control: folder of a run that gets a branch.
        hint: what that follows.
        reader: folder of a run that gets a reader.
    """

    lora: str | None
    rank: int | None
    control: str | None
    hint: str | None
    reader: str | None

    @property
    def method(self) -> str:
        """A key of ``sfumato.engine.adaptation.ADAPTATIONS``.

        Raises:
            UserError: not one of three is asked for, or something of another.
        """
        given = [name for name in (LORA, CONTROL, READER) if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"give either --{given[0]} or --{given[1]}, not both")
        (found,) = given or [""]
        for word, owner in (("rank", LORA), ("hint", CONTROL)):
            if getattr(self, word) is not None and found != owner:
                raise UserError(f"--{word} goes with --{owner}: give a run to that, or leave it out")
        return found

    @property
    def folder(self) -> Path:
        """Of the run below."""
        return Path(getattr(self, self.method))


def adapt(asked: Mapping[str, Any], upon: Upon) -> Path:
    """Learn on top of a run; see ``sfumato.verbs.train``.

    Args:
        asked: the other arguments of the verb.
        upon: what is learned, and on which run.
    """
    method, wanted = upon.method, _wanted(asked)
    run = Run.open(upon.folder)
    _refuse(need_diffusion(run.config.model, f"{upon.folder}: --{method}"), run, method)
    adapted = RUNS / f"{run.folder.name}-{method}" if asked["out"] is None else Path(asked["out"])
    with joined(device_of(wanted.device)[0]) as workers:
        show = watch(leads=workers.leads)
        with workers.together():
            if workers.leads:
                _prepare(asked["data"], run, upon, adapted, wanted, show)
        return train_run(Run.open(adapted), workers, show)


def _refuse(model: DiffusionSpec, run: Run, method: str) -> None:
    """Raise a UserError if nothing of this kind can be learned on top of a run."""
    why = ""
    if model.gives != "mean":
        why = f"is a student of '{run.config.student.teacher}'"
    elif model.hint or model.reads:
        why = "follows outlines already" if model.hint else "reads classes already"
    elif method == CONTROL and model.network != "unet":
        why = "has no U-Net, beside which a branch stands"
    elif method == READER and model.classes:
        why = "hears classes already"
    if why:
        raise UserError(f"{run.folder}: {why}; give another run to --{method}")


def _change(upon: Upon, dataset: Dataset, choices: Choices) -> tuple[dict[str, Any], int]:
    """Return what of the model differs from that below, and the rank of its change."""
    if upon.method == LORA:
        rank = choices.take("rank", upon.rank, RANK, "of the change of each weight")
        if rank < 1:
            raise UserError(f"--rank must be at least 1, got {rank}")
        return {}, rank
    if upon.method == CONTROL:
        hint = choices.take("hint", upon.hint, HINT, "what a drawing tells, and a picture of anything")
        choose("hint", hint, HINTS)
        return {"hint": hint}, 0
    if not dataset.classes:
        raise UserError(f"{dataset.name}: has no classes that a reader could learn to read; leave --reader out")
    return {"reads": len(dataset.classes)}, 0


def _wanted(asked: Mapping[str, Any]) -> Sequel:
    """Return what may be asked, and refuse all else that was."""
    ours = {field.name: asked[field.name] for field in fields(Sequel) if field.name in asked}
    for field in fields(Asked):
        if field.name not in (*ours, "data", "out") and asked[field.name] != field.default:
            word = field.name.replace("_", "-")
            raise UserError(f"--{word} stays as the run below has it: leave it out")
    return Sequel(**ours)


def _prepare(data: str, run: Run, upon: Upon, adapted: Path, wanted: Sequel, show: Watch) -> None:
    """Make the folder of the new run, with the weights of the other in it."""
    Run.refuse(adapted)
    model, _ = run.load()
    dataset, side = _loaded(data, model)
    choices = Choices()
    change, rank = _change(upon, dataset, choices)
    config = replace(
        wanted.config(run.config, USUAL[upon.method], choices),
        model=replace(run.config.model, **change),
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
        show.say(f"  note       not known to {run.folder.name}, and not heard: {', '.join(words)}")
    create(adapted, config, dataset, model, Student(upon.method, 0, run.folder.name, rank=rank))


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
