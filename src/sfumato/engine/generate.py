"""Samples of a run, drawn batch by batch and written as files; bulk.py does the same in shards."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.condition import Request, Row, short
from sfumato.engine.formats import FORMATS, Batch, Part, format_of
from sfumato.engine.given import digest, fitted, pictures, pixels
from sfumato.engine.interrupt import Interrupt
from sfumato.engine.machine import pages_kept, threaded
from sfumato.engine.progress import Watch, duration, watch
from sfumato.engine.run import Run
from sfumato.engine.worker import Worker
from sfumato.errors import UserError
from sfumato.files import need_empty, write_png
from sfumato.guide import Guidance
from sfumato.models.base import GenerativeModel, Way
from sfumato.models.diffusion import Diffusion

__all__ = ["Draws", "Pace", "Wish", "drawing", "generate"]


@dataclass(frozen=True)
class Wish:
    """A way as it is asked for: None for what is usual with the model.

    Attributes:
        seed: of the noise.
        steps: steps of the sampler.
        method: name of the sampler.
        grid: name of the grid.
        ema: horizon of the average of the weights.
        wanted: name or index of one class, "none", or None for every class in turn.
        guidance: weight towards what is asked for; None for the model as it was trained.
        interval: of the noise sigma/alpha within which there is guidance; None for all.
        rescale: see ``sfumato.guide.Guidance``.
        away: name or index of a class, or a sentence, to go away from.
        prompt: a sentence; None for those that the model keeps, in turn.
        where: facts that are asked for, each as name=value.
        also: classes or sentences that are asked for beside, each with its weight after a colon if it has its own.
        worse: share of the run after which the model was what to go away from; None for no such.
        lora: how much of what the run learned on top of another is taken.
        hint: file of a picture whose outline is followed.
    """

    seed: int = 0
    steps: int | None = None
    method: str | None = None
    grid: str | None = None
    ema: float | None = None
    wanted: str | None = None
    guidance: float | None = None
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    away: str | None = None
    prompt: str | None = None
    where: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    worse: float | None = None
    lora: float = 1.0
    hint: Path | None = None

    def way(self, model: GenerativeModel) -> Way:
        """Return the way that this is with a model.

        Raises:
            UserError: the model has no such class, hears no such words, or cannot be guided so.
        """
        return model.way(
            seed=self.seed,
            steps=self.steps,
            method=self.method,
            grid=self.grid,
            cond=self._cond(model),
            guidance=self._guidance(model),
            hint=None if self.hint is None else fitted(self.hint, pixels(self.hint), pictures(model.codec)),
        )

    def _cond(self, model: GenerativeModel) -> Row | None:
        label = None if self.wanted is None else model.label(self.wanted)
        words = None if self.prompt is None else model.prompt(self.prompt)
        facts = model.say(self.where) if self.where else None
        if facts is None and (label is None or words is None):
            return words if label is None else label
        return Request(label, words, facts)

    def _guidance(self, model: GenerativeModel) -> Guidance | None:
        if self.guidance is None:
            said = [self.interval, self.away, self.worse, self.rescale or None, self.also or None]
            if any(each is not None for each in said):
                raise UserError(
                    "--interval, --rescale, --away, --also and --worse say how to guide: give a weight with --guidance"
                )
            return None
        interval = (0.0, math.inf) if self.interval is None else self.interval
        away = None if self.away is None else model.request(self.away)
        if self.also and self.wanted is None and self.prompt is None and not self.where:
            raise UserError("--also adds to what is asked for: name that with --prompt, --class or --where")
        also = tuple((model.request(text), weight) for text, weight in self.beside(self.guidance))
        return Guidance(self.guidance, interval, self.rescale, away, also, self.worse or 0.0)

    def beside(self, usual: float) -> list[tuple[str, float]]:
        """Return what is asked for beside, each with its weight.

        Args:
            usual: weight of what tells none.
        """
        found = [re.fullmatch(r"(.*?)\s*(?::\s*(-?\d+(?:\.\d+)?))?", text, re.DOTALL) for text in self.also]
        return [(each[1], float(each[2] or usual)) for each in found if each]

    @property
    def sentences(self) -> str:
        """All that is said in words."""
        return " ".join([self.prompt or "", self.away or "", *(text for text, _ in self.beside(0.0))])


@dataclass(frozen=True)
class Draws:
    """A trained model and a way to draw from it.

    Attributes:
        model: with its averaged weights.
        way: how.
        recipe: of the model and the way, carried by every output.
        folder: for the samples, unless another is asked for; its name says the way.
        device: "cpu", "cuda" or "mps", without a number.
        threads: of the CPU that compute.
    """

    model: GenerativeModel
    way: Way
    recipe: dict[str, Any]
    folder: Path
    device: str
    threads: int

    def part(self, indices: range, tick: Callable[[Batch], None]) -> Part:
        """Return samples to be written together.

        Args:
            indices: of the samples.
            tick: told of each batch that is drawn, before it is written.
        """
        return Part(self.model.codec, self.model.classes, indices, self.recipe, self._batches(indices, tick))

    def _batches(self, indices: range, tick: Callable[[Batch], None]) -> Iterator[Batch]:
        model, first = self.model, indices.start
        for states in model.states(len(indices), self.way, first=first):
            index = range(first, first + len(states))
            rows = model.requests(index, self.way.cond)
            names = list(map(model.named, rows)) if rows else [{}] * len(index)
            recipes = [self.recipe | {"index": i} | name for i, name in zip(index, names, strict=True)]
            labels = torch.tensor([row.label for row in rows]) if model.classes else None
            batch = Batch(index, model.codec.decode(states), labels, recipes)
            tick(batch)
            yield batch
            first = index.stop

    def try_out(self, indices: range) -> None:
        """Begin to draw the first of them, to refuse what cannot work before anything is written.

        Raises:
            UserError: no samples are asked for, or the model, the sampler and the grid do not fit.
        """
        if not indices or indices.start < 0:
            raise UserError(f"ask for at least one sample, from index 0 on, got n = {len(indices)}")
        some = range(indices.start, indices.start + 1)
        self.model.try_out(some, self.way)

    def sheet(self, path: Path, items: Tensor, first: int) -> Path:
        """Draw samples into one picture.

        Args:
            path: of the picture.
            items: (n, *raw) the samples.
            first: index of the first.
        """
        classes = len(self.model.classes)
        columns = classes if classes and self.way.cond is None and len(items) > classes else None
        recipe = self.recipe | {"first": first, "n": len(items)}
        return write_png(path, self.model.codec.picture(items, columns), recipe)


@contextmanager
def drawing(folder: Path, wish: Wish, device: str, threads: int | None, exact: bool = False) -> Iterator[Draws]:
    """Open a run to draw from it, with the CPU's threads set meanwhile, on whose number the last bits may depend.

    Args:
        folder: of the run.
        wish: how.
        device: where to compute; of several GPUs each worker takes its own.
        threads: of the CPU; None for as many as trained the run.
        exact: compute in fp32, whatever the run's precision.

    Raises:
        UserError: the run is none, it has no such class, or a number of threads below 1.
    """
    run = Run.open(folder)
    count = (run.config.threads or torch.get_num_threads()) if threads is None else threads
    if count < 1:
        raise UserError(f"--threads must be at least 1, got {count}")
    model, notes = run.load(wish.ema, device, wish.lora, **{"precision": "fp32"} if exact else {})
    kind = device.split(":")[0]
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{Worker.here().local_rank % torch.cuda.device_count()}"
    model.to(device)
    if wish.worse is not None and isinstance(model, Diffusion):
        model.worse = {wish.worse: run.worse(model, wish.worse)}
    way = wish.way(model)
    strange = [] if model.vocabulary is None else model.vocabulary.strange(wish.sentences)
    if strange:
        watch("prompt").say(f"  not known to {run.folder.name}, and not heard: {', '.join(strange)}")
    only = "" if way.cond is None else f"-{short(way.cond)}"
    only += "" if wish.ema is None else f"-ema{wish.ema:g}"
    only += "" if wish.lora == 1 else f"-lora{wish.lora:g}"
    hint = {} if wish.hint is None else {"hint": digest(wish.hint)}
    only += f"-like-{wish.hint.stem}-{hint['hint'][:8]}" if wish.hint else ""
    slug = model.slug(way)
    out = run.samples / f"step{notes['step']}-seed{way.seed}-{slug}{only}"
    pages_kept()
    with threaded(count):
        yield Draws(model, way, run.recipe(model, notes) | _told(model, way) | hint, out, kind, count)


def _told(model: GenerativeModel, way: Way) -> dict[str, Any]:
    """Return a way for a recipe, which holds words and no infinity; what guides nothing is left out."""

    def words(cond: Row | None) -> str | None:
        if cond is None:
            return None
        first, *rest = [*model.named(cond).items()] or [("", "nothing")]
        return ", ".join([first[1], *(f"{name} {text}" for name, text in rest)]) if rest else first[1]

    told = {key: value for key, value in asdict(way).items() if key not in ("cond", "guidance", "hint")}
    told["asked for"] = words(way.cond)
    if way.guidance is None:
        return told
    ends = [end if math.isfinite(end) else None for end in way.guidance.interval]
    also = [[words(cond), weight] for cond, weight in way.guidance.also]
    named = {"interval": ends, "away": words(way.guidance.away), "also": also}
    return told | {"guidance": asdict(way.guidance) | named}


class Pace:
    """Tells how drawing goes, and stops it between two batches.

    Args:
        show: who is told.
        stop: true if it should stop.
        total: samples to draw.
    """

    def __init__(self, show: Watch, stop: Interrupt, total: int) -> None:
        self.show, self.stop, self.total = show, stop, total
        self.done, self._since = 0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._since

    def __call__(self, batch: Batch) -> None:
        """Count a batch.

        Raises:
            KeyboardInterrupt: it should stop.
        """
        if self.stop:
            raise KeyboardInterrupt
        self.done += len(batch.index)
        left = duration(self.seconds / self.done * (self.total - self.done))
        self.show.update(self.done, self.total, f"{self.done / self.seconds:,.0f} samples/s  {left} left")


def generate(draws: Draws, indices: range, out: Path | None) -> list[Path]:
    """Draw samples of a run into files of their own, and all of them into one picture.

    Args:
        draws: the model and the way.
        indices: of the samples.
        out: folder for the files; by default ``draws.folder``.

    Returns:
        The files, the picture of all last.

    Raises:
        UserError: ``out`` holds other files, or several workers would write the same ones.
    """
    if Worker.here().world > 1:
        raise UserError("several workers share their work in shards: add --shards, at least one for each of them")
    need_empty(out)
    folder = draws.folder if out is None else out
    items: list[Tensor] = []
    show = watch("sample", "sample")
    with Interrupt() as stop:
        pace = Pace(show, stop, len(indices))

        def keep(batch: Batch) -> None:
            pace(batch)
            items.append(batch.items)

        try:
            written = FORMATS[format_of(draws.model.codec.kind)].write(folder, draws.part(indices, keep))
        finally:
            show.close()
    return [*written, draws.sheet(folder / "grid.png", torch.cat(items), indices.start)]
