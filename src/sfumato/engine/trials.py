"""Which learning rate suits a model on the data of a contest: as many trials for each, before its first run.

A trial is a run like any other, below trials/ in the contest's folder, for a TRIAL_SHARE of the time of training, with
a seed that is not judged. Its samples are held against training examples (nearness.py): what is held out has no say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from sfumato.data import Dataset
from sfumato.engine.asked import seconds_of
from sfumato.engine.contest import TRIAL_SHARE, Terms, Trial
from sfumato.engine.entry import enter
from sfumato.engine.nearness import Nearness
from sfumato.engine.run import Run
from sfumato.errors import Diverged

__all__ = ["FOLDER", "factor", "hold"]

FOLDER = "trials"
"""In that of a contest, where they lie."""
SEED = 1_000_000
"""Of the trials: far from those of the contest, which count from 0."""


def factor(k: int) -> float:
    """Return by what the usual learning rate is multiplied in trial k: 1, 2, 1/2, 4, 1/4 and so on."""
    return 2.0 ** ((k + 1) // 2 * (1 if k % 2 else -1))


def hold(
    model: str,
    known: Sequence[Trial],
    folder: Path,
    teacher: Path,
    terms: Terms,
    dataset: Dataset,
    device: str,
    say: Callable[[str], None],
) -> Trial:
    """Hold the next trial of a model.

    Args:
        model: which of ``sfumato.engine.contest.MODELS``.
        known: its trials before.
        folder: of the contest.
        teacher: of a student: the folder of the diffusion model.
        terms: of the contest.
        dataset: its data.
        device: where to compute.
        say: told what is tried and found.
    """
    times = factor(len(known))
    lr = known[0].lr * times if known else None
    run, name = folder / FOLDER / f"{model}-{times:g}", f"{model}, trial {len(known) + 1} of {terms.trials}"
    say(f"{name}, {times:g} times the usual learning rate: {run}")
    time, distance = f"{TRIAL_SHARE * seconds_of(terms.time):g}s", None
    try:
        enter(model, run, teacher, terms, time=time, seed=SEED, lr=lr, device=device)
        trained, _ = Run.open(run).load(device=device)
        far = Nearness(dataset, say)(name, trained.to(device))
        distance = far if math.isfinite(far) else None
    except Diverged as error:
        say(f"{name}: {error}")
    return Trial(model, Run.open(run).config.lr, distance)
