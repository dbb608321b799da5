"""Small pictures of how a training run goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sfumato import __version__
from sfumato.engine.run import Run
from sfumato.files import write_png
from sfumato.models.diffusion import Diffusion

__all__ = ["preview"]

COUNT, COLUMNS = 32, 4


def preview(run: Run, models: Mapping[str, Diffusion], step: int) -> Path:
    """Draw the same 32 samples of each model side by side into the run's samples folder.

    Args:
        run: whose samples.
        models: by name, from left to right.
        step: of the training, for the name of the file.

    Returns:
        The picture.
    """
    pictures = [model.codec.picture(model.sample(COUNT, seed=run.config.seed), COLUMNS) for model in models.values()]
    gap = np.full((pictures[0].shape[0], 8, 3), 255, np.uint8)
    joined = np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)
    recipe = {"sfumato": __version__, "run": run.folder.name, "step": step, "seed": run.config.seed} | {
        "left to right": list(models)
    }
    return write_png(run.samples / f"step-{step:08d}.png", joined, recipe)
