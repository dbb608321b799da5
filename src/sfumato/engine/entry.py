"""One run of a contest: begun by the verb that users have, or gone on with where it was stopped."""

from __future__ import annotations

from pathlib import Path

from sfumato.engine.asked import Asked
from sfumato.engine.begin import begin, go_on
from sfumato.engine.contest import Terms
from sfumato.engine.distill import Wanted, distill
from sfumato.engine.track import read_log

__all__ = ["enter"]

CALLS = 1  # of a student


def enter(
    model: str, run: Path, teacher: Path, terms: Terms, *, time: str, seed: int, lr: float | None, device: str
) -> None:
    """Train a run to its end; one that is there already goes on, or is left as it is.

    Args:
        model: which of ``sfumato.engine.contest.MODELS``.
        run: its folder.
        teacher: of a student: the folder of the diffusion model.
        terms: what all runs of the contest share.
        time: of its training.
        seed: of that.
        lr: its learning rate, or None for the usual one.
        device: where to compute.

    Raises:
        Diverged: its weights are not finite.
    """
    if run.exists():
        if not _ended(run):
            go_on(str(run))
    elif model == "student":
        distill(teacher, Wanted(calls=CALLS, time=time, seed=seed, lr=lr, device=device), run)
    else:
        asked = Asked(
            terms.data, model, time=time, classes=terms.classes, out=str(run), seed=seed, lr=lr, device=device
        )
        begin(asked)


def _ended(run: Path) -> bool:
    """Return whether the training of a run came to its end."""
    return any(record is not None and record.get("event") == "end" for record in read_log(run / "log.jsonl"))
