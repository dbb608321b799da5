"""A run that corrects another by what that draws itself: its config and its folder; neon.py tells how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sfumato.denoise import need_mean
from sfumato.engine.begin import RUNS, train_run
from sfumato.engine.checkpoint import write_weights
from sfumato.engine.choices import Choices, device_of, length
from sfumato.engine.config import Config, Student
from sfumato.engine.distributed import Workers
from sfumato.engine.generate import Pace, Wish, drawing
from sfumato.engine.interrupt import Interrupt
from sfumato.engine.progress import Watch, watch
from sfumato.engine.run import Run
from sfumato.engine.worker import Worker
from sfumato.errors import UserError

__all__ = ["Polish", "polish"]

TIME = "1m"
DRAWN = 4_000
LEAST = 64
LR = 5e-4
BATCH = 64


@dataclass(frozen=True)
class Polish:
    """The arguments of ``sfumato.verbs.polish``, with its defaults; None where the choice is ours."""

    n: int = DRAWN
    time: str | None = None
    steps: int | None = None
    seed: int = 0
    batch: int | None = None
    lr: float | None = None
    device: str | None = None
    save_every: float = 30.0


def polish(folder: Path, wanted: Polish, out: Path | None) -> Path:
    """Correct a run; see ``sfumato.verbs.polish``.

    Args:
        folder: of the run.
        wanted: what was asked for.
        out: folder of the corrected run.
    """
    if wanted.n < LEAST:
        raise UserError(f"a run corrects itself by {LEAST} samples or more, got -n {wanted.n}")
    if Worker.here().world > 1:
        raise UserError("a run corrects itself in one process: start it without torchrun")
    run = Run.open(folder)
    better = RUNS / f"{run.folder.name}-polished" if out is None else out
    Run.refuse(better)
    show = watch("polish", "sample")
    try:
        _prepare(run, better, wanted, show)
    finally:
        show.close()
    return train_run(Run.open(better), Workers(), watch("polish"))


def _prepare(run: Run, better: Path, wanted: Polish, show: Watch) -> None:
    """Let the run draw, and make the folder of the corrected one, with its weights and what it drew."""
    dataset, choices = run.dataset(), Choices()
    config = _config(run.config, wanted, choices)
    for line in choices.lines:
        show.say(line)
    with Interrupt() as stop, drawing(run.folder, Wish(seed=wanted.seed), None, config.device, None) as draws:
        need_mean(draws.model.denoiser, "correcting a run")
        pace = Pace(show, stop, wanted.n)
        items = torch.cat([batch.items for batch in draws.part(range(wanted.n), pace).batches])
        labels = draws.model.labels(range(wanted.n))
        weights, tensors = draws.recipe["weights"], {"items": items} | ({} if labels is None else {"labels": labels})
        config = replace(config, student=Student("neon", 0, run.folder.name, weights))
        begun = Run.create(better, config, dataset)
        write_weights(begun.teacher, draws.model.state_dict(), {"weights": weights})
        write_weights(begun.drawn, tensors, {"weights": weights})


def _config(base: Config, wanted: Polish, choices: Choices) -> Config:
    """Return the config of the corrected run: the run's own in all that is not chosen here."""
    device = choices.take("device", wanted.device, *device_of(wanted.device))
    steps, seconds = length(wanted.time, wanted.steps, TIME, "enough to see where its own samples lead", choices)
    return replace(
        base,
        seed=wanted.seed,
        batch=choices.take("batch", wanted.batch, BATCH, "as judged"),
        parts=1,
        lr=choices.take("lr", wanted.lr, LR, "a small step from where it is"),
        optimizer="adamw",
        steps=steps,
        seconds=seconds,
        save_every=wanted.save_every,
        device=device,
        mirror=False,
        shard=False,
        compile=False,
    )
