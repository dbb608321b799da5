"""Timing real training steps of a model that is thrown away: what `sfumato plan` and the choice of a batch rest on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from sfumato.data import Dataset
from sfumato.data.latents import LatentsCodec
from sfumato.engine.config import Config
from sfumato.engine.machine import tuned
from sfumato.engine.run import Run
from sfumato.engine.trainer import Trainer

__all__ = ["best_batch", "pace"]

BATCHES = (32, 64, 128)  # those with which the defaults were judged; bench/ablation.py
GAIN = 1.25  # a batch twice as large means half the steps: it must show this many times the images
LATENTS = (*BATCHES, 256)  # on latents of shapes, after 4 minutes, 90.7% were counted rightly, with at most 128 88.0%
GAIN_OF_LATENTS = 1.1  # their steps are short, and timed less surely: 64 looked 1.22 times as fast as 32, and were 1.42
SECONDS = 0.2  # that each is timed at least: by two quick steps alone a noisy machine chose one that was too small
LEAST = 2  # steps that are timed, after a first one that does not count


def pace(trainer: Trainer, seconds: float) -> float:
    """Return seconds a step, the median of what fits into some time.

    Args:
        trainer: whose steps are done.
        seconds: to spend on them, at least.
    """
    return median(_times(trainer, [trainer.order.batch], seconds)[0])


def _times(trainer: Trainer, batches: Sequence[int], seconds: float) -> list[list[float]]:
    """Return seconds of steps by each of some batches, a step of each in turn: what disturbs one disturbs all."""
    took: list[list[float]] = [[] for _ in batches]
    while len(took[0]) <= LEAST or min(sum(some[1:]) for some in took) < seconds:
        for some, batch in zip(took, batches, strict=True):
            trainer.order.batch = batch
            begin = time.perf_counter()
            float(trainer.advance())  # waits for the device
            some.append(time.perf_counter() - begin)
    return [some[1:] for some in took]


def best_batch(config: Config, dataset: Dataset) -> tuple[int, str]:
    """Return the smallest of a few batches from which a larger one would gain little, and why.

    Args:
        config: of the run, whose batch is still open.
        dataset: of the run.
    """
    latents = isinstance(dataset.codec, LatentsCodec)
    batches, gain = (LATENTS, GAIN_OF_LATENTS) if latents else (BATCHES, GAIN)
    run = Run.of(Path("nowhere"), replace(config, batch=batches[0], parts=1, compile=False), dataset)
    with tuned(config.threads, config.device):
        trainer = Trainer(run, dataset)  # one for all: what it takes from the data before its first step takes time
        for pair in pairwise(batches):
            took = _times(trainer, pair, SECONDS)
            speed, there = (size / min(some) for size, some in zip(pair, took, strict=True))  # a disturbance only adds
            if there < gain * speed:
                return pair[0], f"{speed:,.0f} images/s, {pair[1]} would give {there:,.0f}"
    return batches[-1], f"{there:,.0f} images/s"
