"""What the user did not say about a run is chosen here, and said with its reason."""

from __future__ import annotations

from dataclasses import replace

import torch

from sfumato.data import Dataset
from sfumato.engine.asked import Asked, Choices, length
from sfumato.engine.config import Config
from sfumato.engine.machine import device_of
from sfumato.engine.measure import best_batch
from sfumato.engine.recipes import RECIPES, Setting
from sfumato.errors import UserError, choose

__all__ = ["configure"]

LEAST_PART = 16
"""Examples of one part of a step: with fewer a process idles."""


def configure(dataset: Dataset, asked: Asked, choices: Choices, workers: int = 1) -> Config:
    """Return the config of a run: what was asked for, and choices for the rest.

    Args:
        dataset: the data that were asked for, loaded.
        asked: what was asked for.
        choices: collects what is chosen, and why.
        workers: processes that will share the run.

    Raises:
        UserError: something impossible was asked for.
    """
    if asked.classes and not dataset.classes:
        raise UserError(
            f"'{asked.data}' has no classes; leave --classes out, or sort the files into a folder for each class"
        )
    device, why = device_of(asked.device)
    choices.take("device", asked.device, device, why)
    if (asked.latent or asked.codec is not None) and (asked.likelihood or asked.masks):
        word = "likelihood" if asked.likelihood else "masks"
        raise UserError(f"--{word} is of pixels, and a model of latents sees none: leave it out, or --latent")
    if asked.shard and workers == 1:
        raise UserError("--shard splits the weights over several processes: start them with torchrun")
    if asked.accumulate < 1:
        raise UserError(f"--accumulate must be at least 1, got {asked.accumulate}")
    if asked.mirror and dataset.codec.kind != "image":
        raise UserError(f"--mirror turns pictures, and '{asked.data}' has none: leave it out")
    dims = dataset.codec.dims
    points = dataset.codec.kind == "points"
    threads = 1 if points else torch.get_num_threads()
    choices.take("threads", None, threads, "points are too few numbers to share" if points else "all that there are")
    little = points or (dataset.codec.kind == "image" and dims[-1] * dims[-2] <= 16 * 16)
    time, why = ("2m", "enough for data this small") if little else ("10m", "enough for a first good model")
    steps, seconds = length(asked.time, asked.steps, time, why, choices)
    shape = "x".join(map(str, dims))
    size = choices.take("size", asked.size, "tiny" if little else "small", f"learns {shape} values in minutes on a CPU")
    recipe = choose("model", asked.model, RECIPES)
    chosen = recipe(dataset, asked, Setting(size, device, points), choices)
    chosen.model.build(dataset.codec)  # refuses what cannot work, before anything is written
    parts = workers * asked.accumulate
    config = Config(
        data=asked.data,
        model=chosen.model,
        resolution=asked.resolution or 0,
        skip_bad=asked.skip_bad,
        seed=asked.seed,
        batch=parts,
        parts=parts,
        shard=asked.shard,
        lr=chosen.lr,
        optimizer=chosen.optimizer,
        cool_down=chosen.cool_down,
        ema=chosen.ema,
        facts=asked.facts,
        encoder=asked.encoder or "",
        mirror=asked.mirror,
        steps=steps,
        seconds=seconds,
        save_every=asked.save_every,
        device=device,
        compile=asked.compile,
        stream=dataset.streamed,
        tensorboard=asked.tensorboard,
        threads=threads,
    )
    batch, why = (asked.batch, "") if asked.batch else _batch(config, dataset, chosen.batch)
    return replace(config, batch=choices.take("batch", asked.batch, batch, why))


def _batch(config: Config, dataset: Dataset, usual: tuple[int, str] | None) -> tuple[int, str]:
    """Return the examples of a step, over all processes, and why; ``usual`` is what the family takes for one."""
    batch, why = usual or best_batch(config, dataset)
    if config.parts == 1:
        return batch, why
    each = max(LEAST_PART, -(-batch // config.parts))
    return each * config.parts, f"{config.parts} parts of {each}; alone, {why}"
