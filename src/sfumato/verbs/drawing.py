"""The verbs that use models: sample, show, load, and what there is to choose from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sfumato.verbs.words import Class, Count, Folder

if TYPE_CHECKING:
    from sfumato.models.base import GenerativeModel
    from sfumato.view.catalogue import Catalogue

__all__ = ["load", "sample", "samplers", "show"]


def sample(
    run: Folder,
    *,
    n: Count = 64,
    steps: int | None = None,
    seed: int = 0,
    class_: Class = None,
    prompt: str | None = None,
    where: tuple[str, ...] = (),
    guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    away: str | None = None,
    also: tuple[str, ...] = (),
    worse: float | None = None,
    sampler: str | None = None,
    grid: str | None = None,
    ema: float | None = None,
    lora: float = 1.0,
    hint: str | None = None,
    first: int = 0,
    shards: int | None = None,
    format: Literal["png", "csv", "npz", "tar"] | None = None,
    threads: int | None = None,
    out: str | None = None,
    device: str | None = None,
) -> list[Path]:
    """Draw new examples: a file for each and a picture of all. Sample i depends on the weights, the seed and i alone.

    With shards, for many: the same command again makes the shards that are missing, and only those; started by
    torchrun, or with RANK and WORLD_SIZE in the environment, each worker makes its share of them.

    Args:
        run: folder of a trained run.
        n: how many.
        steps: steps of the sampler; by default 12, or those a student was taught for.
        seed: of the noise.
        class_: name or index of one class, or none for no class in particular; by default every class in turn.
        prompt: what a run trained with --text shall show, "" for nothing in particular; by default captions of its
            data in turn.
        where: what facts shall be, such as colour=red price=3.5, of a run trained with --facts.
        guidance: weight towards what is asked for, for runs trained with --classes or --text: 0 asks for nothing, 1 is
            the model as it was trained, 1.5 to 3 show it more clearly and vary less. Twice the network calls.
        interval: of the noise sigma/alpha within which there is guidance, two numbers such as 0.2 5; by default all.
        rescale: in [0, 1], gives strongly guided pictures back the contrast that they have without.
        away: class or sentence to go away from (a negative prompt); by default from nothing in particular.
        also: more classes or sentences to go towards, each with its weight after a colon, such as "a red ring:1.5"; by
            default that of guidance.
        worse: share of the run, such as 0.2: what the model was then is gone away from, so that samples get better
            where training made them better (autoguidance); by default not.
        sampler: its name; `sfumato samplers` lists them. By default unipc2, a student's own, or what tune-sampler
            learned for so many steps.
        grid: where the steps stop: uniform, logsnr (the default), karras, trailing, or the times themselves, such as
            1,0.5,0.
        ema: horizon of the average of the weights, as a share of the run, in (0, 0.28]; by default the run's own.
        hint: a picture whose outline samples shall have, of a run trained with --control.
        lora: how much is taken of what a run trained with --lora learned on top of the other: 1 all, 0 nothing.
        first: index of the first sample, to make again one that was seen.
        shards: parts in which they are made, each of whole batches; those that are done survive any crash.
        format: of a shard: png or csv (a folder), npz (arrays), tar (WebDataset); by default a file for each.
        threads: of the CPU, on whose number the last bits may depend; by default as many as trained the run.
        out: folder for the files; by default one below the run whose name says how they were made.
        device: cpu, cuda or mps.

    Returns:
        The files or shards, the picture of all last, or in a bulk that is not complete its bulk.json.

    Raises:
        UserError: no such run, class, sampler or grid; guidance of a model that knows none; a format that is not for
            the data; or ``out`` holds other files.
    """
    from sfumato.engine.bulk import bulk
    from sfumato.engine.formats import format_of
    from sfumato.engine.generate import Wish, drawing, generate
    from sfumato.engine.machine import device_of

    outline = None if hint is None else Path(hint)
    wish = Wish(
        seed, steps, sampler, grid, ema, class_, guidance, interval, rescale, away, prompt, where, also, worse, lora,
        outline,
    )  # fmt: skip
    folder = None if out is None else Path(out)
    with drawing(Path(run), wish, device_of(device)[0], threads) as draws:
        indices = range(first, first + n)
        if shards is None and format in (None, format_of(draws.model.codec.kind)):
            return generate(draws, indices, folder)
        return bulk(draws, indices, 1 if shards is None else shards, format, folder)


def samplers() -> Catalogue:
    """List the samplers (order, network calls a step, noise, source) and the grids of the way back."""
    from sfumato.view.catalogue import catalogue

    return catalogue()


def show(
    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN|DATA")]],
    *,
    gif: bool = False,
    schedule: str = "cosine",
    steps: int | None = None,
    seed: int = 0,
    sampler: str | None = None,
    grid: str | None = None,
    out: str | None = None,
) -> list[Path]:
    """Draw how data turn to noise and back: strips, schedules; for points paths, score and density too.

    Args:
        source: folder of a trained run, or data as for inspect (then only the way to noise is drawn).
        gif: draw an animation too.
        schedule: of the way to noise where there is no run.
        steps: of the way back, as for sample.
        seed: of the noise.
        sampler: as for sample.
        grid: as for sample.
        out: folder for the pictures; by default show/ in the run, or show/ and the name of the data.

    Returns:
        The pictures.

    Raises:
        UserError: neither a run nor data.
    """
    from sfumato.engine.generate import Wish
    from sfumato.view.show import show

    return show(source, Wish(seed=seed, steps=steps, method=sampler, grid=grid), gif, schedule, out)


def load(run: str | Path, ema: float | None = None) -> GenerativeModel:
    """Load a trained model, with its averaged weights.

    Args:
        run: folder of the run.
        ema: as for sample.

    Raises:
        UserError: no such run, a damaged checkpoint, or an impossible average.
    """
    from sfumato.engine.run import Run

    return Run.open(Path(run)).load(ema)[0]
