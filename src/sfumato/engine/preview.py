"""Small pictures of how a training run goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from sfumato import __version__
from sfumato.engine.distributed import Workers
from sfumato.engine.run import Run
from sfumato.files import write_png
from sfumato.models.base import GenerativeModel

__all__ = ["preview"]

COUNT, COLUMNS = 32, 4


def preview(run: Run, models: Mapping[str, GenerativeModel], step: int, workers: Workers) -> Path | None:
    """Draw the same 32 samples of each model side by side into the run's samples folder; every rank draws a share.

    Args:
        run: whose samples.
        models: by name, from left to right.
        step: of the training, for the name of the file.
        workers: who draw them together; all must ask.

    Returns:
        The picture, on rank 0; None on the others.
    """
    pictures = []
    for model in models.values():
        items = model.codec.decode(_states(model, run.config.seed, workers))
        pictures.append(model.codec.picture(items, COLUMNS))
    if not workers.leads:
        return None
    gap = np.full((pictures[0].shape[0], 8, 3), 255, np.uint8)
    joined = np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)
    recipe = {"sfumato": __version__, "run": run.folder.name, "step": step, "seed": run.config.seed} | {
        "left to right": list(models)
    }
    return write_png(run.samples / f"step-{step:08d}.png", joined, recipe)


def _states(model: GenerativeModel, seed: int, workers: Workers) -> Tensor:
    """Return the states of the first samples, (COUNT, *dims); all ranks make as many network calls."""
    share = -(-COUNT // workers.size)
    drawn = model.draw(range(workers.rank * share, (workers.rank + 1) * share), model.way(seed=seed))
    return workers.gather(drawn)[:COUNT].cpu()
