"""A run that adapts another to few examples: its config and its folder; lora.py tells how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sfumato.data import Dataset
from sfumato.data import load as load_data
from sfumato.data.image import ImageCodec
from sfumato.engine.asked import Asked, Choices
from sfumato.engine.begin import RUNS, train_run
from sfumato.engine.config import Student
from sfumato.engine.distributed import joined
from sfumato.engine.lora import LORA
from sfumato.engine.machine import device_of
from sfumato.engine.progress import Watch, watch
from sfumato.engine.run import Run
from sfumato.engine.sequel import Sequel, Usual, create
from sfumato.errors import UserError, nearest
from sfumato.models.base import GenerativeModel
from sfumato.models.diffusion import need_diffusion

__all__ = ["RANK", "Adapt", "adapt"]

RANK = 8
"""Of the change of each weight, unless another is asked for."""
USUAL = Usual(time=("2m", "enough for a style"), lr=(3e-3, "of what is 0 at first"))


@dataclass(frozen=True, kw_only=True)
class Adapt(Sequel):
    """What may be asked of such a run by ``sfumato.verbs.train``, with its defaults; None where the choice is ours."""

    rank: int | None = None


def adapt(lora: str | None, rank: int | None, asked: Mapping[str, Any]) -> Path:
    """Adapt a run to data; see ``sfumato.verbs.train``.

    Args:
        lora: folder of the run.
        rank: of the change.
        asked: the other arguments of the verb.
    """
    if lora is None:
        raise UserError("--rank is of the change that --lora learns: give that too, or leave it out")
    run, data, wanted = Run.open(Path(lora)), asked["data"], _wanted(asked, rank)
    model = need_diffusion(run.config.model, f"{lora}: --lora")
    if model.gives != "mean":
        raise UserError(f"{lora}: is a student of '{run.config.student.teacher}'; adapt its teacher")
    adapted = RUNS / f"{run.folder.name}-{Path(data).stem}" if asked["out"] is None else Path(asked["out"])
    with joined(device_of(wanted.device)[0]) as workers:
        show = watch(leads=workers.leads)
        with workers.together():
            if workers.leads:
                _prepare(data, run, adapted, wanted, show)
        return train_run(Run.open(adapted), workers, show)


def _wanted(asked: Mapping[str, Any], rank: int | None) -> Adapt:
    """Return what may be asked, and refuse all else that was."""
    ours = {field.name: asked[field.name] for field in fields(Adapt) if field.name in asked}
    for field in fields(Asked):
        if field.name not in (*ours, "data", "out") and asked[field.name] != field.default:
            raise UserError(f"--{field.name.replace('_', '-')} is what the run of --lora has it: leave it out")
    return Adapt(rank=rank, **ours)


def _prepare(data: str, run: Run, adapted: Path, wanted: Adapt, show: Watch) -> None:
    """Make the folder of the adapted run, with the weights of the other in it."""
    Run.refuse(adapted)
    model, _ = run.load()
    dataset, side = _loaded(data, model)
    choices = Choices()
    rank = choices.take("rank", wanted.rank, RANK, "of the change of each weight")
    if rank < 1:
        raise UserError(f"--rank must be at least 1, got {rank}")
    config = replace(
        wanted.config(run.config, USUAL, choices),
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
    create(adapted, config, dataset, model, Student(LORA, 0, run.folder.name, rank=rank))


def _loaded(data: str, model: GenerativeModel) -> tuple[Dataset, int | None]:
    """Load data of a model's shape, and return them with the longest side that they had to be brought to, if any."""
    dataset, dims, side = load_data(data), model.codec.dims, None
    if dataset.codec.dims != dims and isinstance(dataset.codec, ImageCodec) and isinstance(model.codec, ImageCodec):
        side = max(dims[1:])
        dataset = load_data(data, resolution=side)
    if dataset.codec.dims != dims:
        theirs, ours = ("x".join(map(str, each)) for each in (dataset.codec.dims, dims))
        raise UserError(f"{data}: {theirs} values an example, and the run knows {ours}; give data of its shape")
    strange = sorted({*dataset.classes} - {*model.classes}) if model.classes else []
    if strange:
        raise UserError(f"{data}: the run knows no class '{strange[0]}'{nearest(strange[0], model.classes)}")
    return dataset, side
