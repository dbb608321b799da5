"""Samples of a run, as files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from sfumato.engine.run import Run
from sfumato.errors import UserError
from sfumato.files import write_png

__all__ = ["Way", "generate"]


@dataclass(frozen=True)
class Way:
    """How samples are drawn: with the weights, all that decides them.

    Attributes:
        seed: of the noise.
        steps: steps of the sampler.
        method: name of the sampler.
        grid: name of the grid.
        label: class index, or None for every class in turn.
    """

    seed: int
    steps: int
    method: str
    grid: str
    label: int | None = None


def generate(
    folder: Path, n: int, way: Way, wanted: str | None, first: int, out: Path | None, device: str
) -> list[Path]:
    """Draw samples first .. first + n - 1 of a run into files of their own, and all of them into one picture.

    Args:
        folder: of the run.
        n: how many.
        way: how, its label left open.
        wanted: name or index of one class, or None for every class in turn.
        first: index of the first.
        out: folder for the files, by default one below the run's samples whose name says the way.
        device: where to compute.

    Returns:
        The files, the picture of all last.

    Raises:
        UserError: the run is none, it has no such class, or ``out`` holds other files.
    """
    run = Run.open(folder)
    model, notes = run.load()
    model.to(device)
    if wanted is not None:
        way = replace(way, label=model.label(wanted))
    if out is None:
        kind = "" if way.label is None else f"-{way.label}"
        out = run.samples / f"step{notes['step']}-seed{way.seed}-{way.method}-{way.grid}-{way.steps}{kind}"
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; choose another --out")
    recipe = run.recipe(model, notes) | asdict(way)
    items = model.codec.decode(torch.cat(list(model.states(n, first=first, **asdict(way)))))
    labels = model.labels(range(first, first + n), way.label)
    recipes = [
        recipe | {"index": first + i} | ({} if labels is None else {"class": model.classes[int(labels[i])]})
        for i in range(n)
    ]
    written = model.codec.save(items, out, [f"{first + i:06d}" for i in range(n)], recipes)
    columns = len(model.classes) if labels is not None and way.label is None and n > len(model.classes) else None
    sheet = model.codec.picture(items, columns)
    return [*written, write_png(out / "grid.png", sheet, recipe | {"first": first, "n": n})]
