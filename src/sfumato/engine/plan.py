"""A dry run: what a training would take, from real steps on the real data.

(1)  seconds of a run = start + steps (seconds a step) + previews (seconds a preview) + saves (seconds a save) + end
(2)  seconds a step   = median of steps timed here, in as many processes as the run will have

Nothing is guessed that can be done: the plan draws a preview and writes a checkpoint too, into a folder that it
removes, and the peak of memory is that of the process that did all this. Several workers are really started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from sfumato.data import load as load_data
from sfumato.dist import stream
from sfumato.engine import checkpoint
from sfumato.engine.asked import Asked, Choices
from sfumato.engine.checkpoint import KEEP
from sfumato.engine.choices import configure
from sfumato.engine.config import Config
from sfumato.engine.distributed import Workers, joined, world
from sfumato.engine.gauge import memory
from sfumato.engine.machine import device_of, tuned
from sfumato.engine.measure import pace
from sfumato.engine.preview import preview
from sfumato.engine.progress import duration
from sfumato.engine.run import Run
from sfumato.engine.session import FIRST_PREVIEW, between_previews
from sfumato.engine.trainer import Trainer
from sfumato.engine.worker import Worker
from sfumato.errors import UserError
from sfumato.files import write_atomic

__all__ = ["Plan", "plan"]

TRIAL = 3.0  # seconds of timed steps


@dataclass(frozen=True)
class Plan:
    """What a run will take; its times and memory were measured on this machine.

    Attributes:
        data: what it is trained on.
        workers: processes that share it.
        parameters: of the network.
        flops: of the network's forward pass for one example; a step takes three times as many.
        batch: examples a step.
        step: seconds a step.
        start: seconds from the command to the first step.
        preview: seconds a preview.
        save: seconds a checkpoint.
        end: seconds after the last step.
        steps: in all.
        seconds: in all.
        memory: MB at most, of one process.
        disk: MB of the run's folder.
        choices: what was chosen for the run, a line each.
    """

    data: str
    workers: int
    parameters: int
    flops: float
    batch: int
    step: float
    start: float
    preview: float
    save: float
    end: float
    steps: int
    seconds: float
    memory: float
    disk: float
    choices: tuple[str, ...] = ()

    @property
    def examples_per_second(self) -> float:
        """Examples that training sees in a second."""
        return self.batch / self.step

    def lines(self) -> list[str]:
        """The plan, a line for each figure."""
        shared = f", shared by {self.workers} processes" if self.workers > 1 else ""
        each = " for each process" if self.workers > 1 else ""
        return [
            f"{self.data}: plan of a training run{shared}; nothing was kept",
            *self.choices,
            f"  parameters {self.parameters:,}",
            f"  FLOPs      {self.flops / 1e6:,.1f} million an example forward, three times that in training",
            f"  speed      {self.examples_per_second:,.0f} examples/s, {1000 * self.step:,.1f} ms a step, measured",
            f"  length     {self.steps:,} steps, {self.steps * self.batch:,} examples",
            f"  time       {duration(self.seconds)}, of it {duration(self.start)} to the first step",
            f"  memory     {self.memory:,.0f} MB at most{each}",
            f"  disk       {self.disk:,.1f} MB",
        ]

    def write(self, path: Path) -> None:
        """Write the figures as JSON; of several processes rank 0 does."""
        if Worker.here().rank == 0:
            write_atomic(path, json.dumps(asdict(self), indent=1).encode())


def plan(asked: Asked, workers: int, begun: float) -> Plan:
    """Time a few real steps and say what the run would take.

    Args:
        asked: as for training.
        workers: processes that share the run.
        begun: time of ``time.perf_counter`` when it was asked for.

    Raises:
        UserError: bad data, an impossible choice, or more workers than cores or GPUs here.
    """
    device, _ = device_of(asked.device)
    there = torch.cuda.device_count() if device == "cuda" else os.cpu_count() or 1
    if not 1 <= workers <= there:
        raise UserError(f"--workers {workers}: they are really started, and there is room for 1 to {there} here")
    if workers > world():
        return _with_workers(asked, workers)
    with joined(device) as mates, tempfile.TemporaryDirectory() as folder:
        return _measured(asked, mates, Path(folder), begun)


def _measured(asked: Asked, workers: Workers, folder: Path, begun: float) -> Plan:
    """Do everything that a run does once, and time it."""
    choices = Choices()
    dataset = load_data(asked.data, resolution=asked.resolution, skip_bad=asked.skip_bad, stream=asked.stream or None)
    config = configure(dataset, asked, choices, workers.size)
    config = replace(config, batch=int(workers.decide([config.batch])[0]))  # each may have measured another
    run = Run.of(folder, config, dataset)
    with tuned(config.threads, config.device):
        trainer = Trainer(run, dataset, workers)
        start = time.perf_counter() - begun
        step = pace(trainer, TRIAL)
        flops = _flops(trainer)
        models = {"average": trainer.ema, "raw": trainer.model}
        shown = _timed(lambda: preview(run, models, 0, workers))
        saved = _timed(trainer.save)
        ended = _timed(trainer.finish)
    steps, seconds = _length(config, step, shown, saved)
    files = checkpoint.checkpoints(run.checkpoints)
    previews = 1 + _previews(seconds)
    disk = KEEP * sum(map(_size, files)) + previews * sum(map(_size, run.samples.glob("*")))
    return Plan(
        data=dataset.name,
        workers=workers.size,
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        flops=flops,
        batch=config.batch,
        step=step,
        start=start,
        preview=shown,
        save=saved,
        end=ended,
        steps=steps,
        seconds=start + seconds + shown + saved + ended,
        memory=float(memory().peak or 0.0),
        disk=disk / 2**20,
        choices=tuple(choices.lines),
    )


def _length(config: Config, step: float, shown: float, saved: float) -> tuple[int, float]:
    """Return the steps of a run and the seconds from the first to the last; equation (1)."""
    busy = 1 - saved / (saved + config.save_every)  # the share of time that is left beside saving
    if config.seconds:
        return max(1, int((config.seconds - _previews(config.seconds) * shown) * busy / step)), config.seconds
    seconds = config.steps * step / busy
    return config.steps, seconds + _previews(seconds) * shown


def _previews(seconds: float) -> int:
    """Return how many previews a run draws before its end."""
    return 1 + int((seconds - FIRST_PREVIEW) / between_previews(seconds)) if seconds > FIRST_PREVIEW else 0


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _size(path: Path) -> int:
    return path.stat().st_size


def _flops(trainer: Trainer) -> float:
    """Count the operations of all networks for one example."""
    states, cond = trainer.examples(torch.zeros(1, dtype=torch.int64), stream(0))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        trainer.model.call(states, cond)
    return float(counter.get_total_flops())


def _with_workers(asked: Asked, workers: int) -> Plan:
    """Let torchrun start so many processes that plan together, and read what they found."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
        command += ["-m", "sfumato", "plan", *_words(asked), "--workers", str(workers), "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not out.exists():
            lines = [line for line in done.stderr.splitlines() if line.startswith("sfumato: ")]
            raise UserError(lines[0].removeprefix("sfumato: ") if lines else f"{workers} processes: {done.stderr}")
        record = json.loads(out.read_text("utf-8"))
        return Plan(**record | {"choices": tuple(record["choices"])})


def _words(asked: Asked) -> list[str]:
    """Return what was asked for as words of the command line."""
    words = [asked.data]
    for field in fields(asked):
        value = getattr(asked, field.name)
        if field.name != "data" and value != field.default:
            name = f"--{field.name.replace('_', '-')}"
            words += [name] if value is True else [name, *value] if isinstance(value, tuple) else [name, str(value)]
    return words
