"""A run that corrects another by what that draws itself: its config and its folder; neon.py tells how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sfumato.denoise import need_mean
from sfumato.engine.adaptation import ADAPTATIONS
from sfumato.engine.asked import Choices
from sfumato.engine.begin import RUNS, train_run
from sfumato.engine.checkpoint import write_weights
from sfumato.engine.config import Student
from sfumato.engine.distributed import Workers
from sfumato.engine.generate import Pace, Wish, drawing
from sfumato.engine.interrupt import Interrupt
from sfumato.engine.neon import NEON
from sfumato.engine.progress import Watch, watch
from sfumato.engine.run import Run
from sfumato.engine.sequel import Sequel, Usual, create
from sfumato.engine.worker import Worker
from sfumato.errors import UserError
from sfumato.models.diffusion import need_diffusion

__all__ = ["Polish", "polish"]

DRAWN = 4_000
LEAST = 64
USUAL = Usual(time=("1m", "enough to see where its own samples lead"), lr=(5e-4, "a small step from where it is"))


@dataclass(frozen=True, kw_only=True)
class Polish(Sequel):
    """The arguments of ``sfumato.verbs.polish``, with its defaults; None where the choice is ours."""

    n: int = DRAWN


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
    config = replace(wanted.config(run.config, USUAL, choices), optimizer="adamw", mirror=False)
    for line in choices.lines:
        show.say(line)
    with Interrupt() as stop, drawing(run.folder, Wish(seed=wanted.seed), config.device, None) as draws:
        need_mean(need_diffusion(draws.model, "correcting a run").denoiser, "correcting a run")
        if run.config.student.method in ADAPTATIONS:
            raise UserError(f"{run.folder}: rests on '{run.config.student.teacher}': correct that one")
        pace = Pace(show, stop, wanted.n)
        items = torch.cat([batch.items for batch in draws.part(range(wanted.n), pace).batches])
        asked = draws.model.conditions(range(wanted.n))
        begun = create(better, config, dataset, draws.model, Student(NEON, 0, run.folder.name))
        tensors = {"items": items} | ({} if asked is None else asked.parts)
        write_weights(begun.drawn, tensors, {"weights": begun.config.student.weights})
