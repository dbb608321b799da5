"""Beginning and resuming runs: what the user did not say is chosen here, and said with its reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from sfumato.data import Dataset
from sfumato.data import load as load_data
from sfumato.engine.config import Config
from sfumato.engine.progress import duration, watch
from sfumato.engine.run import Run, latest
from sfumato.engine.trainer import Trainer
from sfumato.errors import UserError, choose
from sfumato.models.diffusion import Spec

__all__ = ["begin", "configure", "device_of", "go_on", "seconds_of"]

RUNS = Path("runs")
Size = Literal["tiny", "small", "base"]


@dataclass(frozen=True)
class _UNetSize:
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]


UNETS = {
    "tiny": _UNetSize((32, 64), 2, (False, True)),
    "small": _UNetSize((32, 64, 96), 2, (False, False, True)),
    "base": _UNetSize((64, 128, 192), 2, (False, False, True)),
}
"""U-Nets by size; bench/network_speed.py measured them."""
MLPS = {"tiny": (128, 3), "small": (256, 4), "base": (512, 6)}
"""Width and depth of the networks for points."""


class _Choices:
    """Collects what was chosen, and says it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def take(self, name: str, asked: Any, chosen: Any, reason: str) -> Any:
        """Return what was asked for, or else what is chosen; note which, and why."""
        value = chosen if asked is None else asked
        self.lines.append(f"  {name:<10} {value!s:<12} {reason if asked is None else 'as asked'}")
        return value


def begin(data: str, out: str | None, **asked: Any) -> Path:
    """Start a run and train it to its end; see ``sfumato.verbs.train``."""
    dataset = load_data(data, resolution=asked["resolution"], skip_bad=asked["skip_bad"])
    choices = _Choices()
    config = configure(data, dataset, choices, **asked)
    name = Path(data).stem if Path(data).is_file() else dataset.name
    folder = RUNS / name if out is None else Path(out)
    run = Run.create(folder, config, dataset)
    show = watch()
    shape = "x".join(map(str, dataset.codec.dims))
    show.say(f"{dataset.name}: {len(dataset.items):,} examples of {shape}, {len(dataset.classes)} classes -> {folder}")
    for line in (*(f"  note       {note}" for note in dataset.notes), *choices.lines):
        show.say(line)
    return _train(run, dataset, show)


def go_on(run: str | None) -> Path:
    """Resume a run; see ``sfumato.verbs.resume``."""
    folder = latest(RUNS) if run is None else Path(run)
    if folder is None:
        raise UserError(f"no run below {RUNS}/ to go on with; name its folder, or begin with 'sfumato train DATA'")
    opened = Run.open(folder)
    config = opened.config
    dataset = load_data(config.data, resolution=config.resolution or None, skip_bad=config.skip_bad)
    return _train(opened, dataset, watch())


def _train(run: Run, dataset: Dataset, show: Any) -> Path:
    try:
        trainer = Trainer(run, dataset)
        if trainer.step:
            show.say(f"{run.folder}: going on at step {trainer.step} of {trainer.total}")
        if not trainer.fit(show):
            show.say(f"go on with: sfumato resume {run.folder}")
            raise KeyboardInterrupt
    finally:
        show.close()
    show.say(f"{run.folder}: {trainer.step} steps in {duration(trainer.seconds)}")
    return run.folder


def configure(
    data: str,
    dataset: Dataset,
    choices: _Choices,
    *,
    time: str | None,
    steps: int | None,
    size: Size | None,
    classes: bool,
    seed: int,
    batch: int | None,
    lr: float | None,
    resolution: int | None,
    skip_bad: bool,
    schedule: str,
    parameterisation: str,
    precision: Literal["fp32", "bf16"] | None,
    device: str | None,
    save_every: float,
) -> Config:
    """Return the config of a run: what was asked for, and choices for the rest.

    Raises:
        UserError: something impossible was asked for.
    """
    if classes and not dataset.classes:
        raise UserError(f"'{data}' has no classes; leave --classes out, or sort the files into a folder for each class")
    if time is not None and steps is not None:
        raise UserError("give either --time or --steps, not both")
    if steps is not None and steps < 1:
        raise UserError(f"--steps must be at least 1, got {steps}")
    where, why = device_of(device)
    choices.take("device", device, where, why)
    values = dataset.codec.dims
    points = dataset.codec.kind == "points"
    little = points or values[-1] * values[-2] <= 16 * 16
    if steps is None:
        reason = "two minutes are enough for data this small" if little else "ten minutes give a first good model"
        seconds = seconds_of(choices.take("time", time, "2m" if little else "10m", reason))
    else:
        seconds = 0.0
        choices.take("steps", steps, steps, "")
    size = choices.take(
        "size", size, "tiny" if little else "small", f"for {'x'.join(map(str, values))} values in minutes on a CPU"
    )
    batch = choices.take("batch", batch, 256 if points else 128, "keeps both cores busy; larger ones only wait longer")
    lr = choices.take("lr", lr, 1e-3 if size == "tiny" else 5e-4, "the most that stays stable at this size")
    precision = choices.take("precision", precision, *_precision(where, points))
    sigma_data = float(dataset.codec.encode(dataset.items[:10_000]).std())
    choices.take("sigma_data", None, f"{sigma_data:.3f}", "measured: the data's standard deviation")
    count = len(dataset.classes) if classes else 0
    model = _spec(size, points, count, schedule, parameterisation, sigma_data, precision)
    model.build(dataset.codec)  # refuses what cannot work, before anything is written
    return Config(
        data=data, model=model, resolution=resolution or 0, skip_bad=skip_bad, seed=seed, batch=batch, lr=lr,
        steps=steps or 0, seconds=seconds, save_every=save_every, device=where,
    )  # fmt: skip


def _spec(
    size: str, points: bool, classes: int, schedule: str, parameterisation: str, sigma_data: float, precision: Any
) -> Spec:
    common: dict[str, Any] = {
        "classes": classes,
        "schedule": schedule,
        "parameterisation": parameterisation,
        "weighting": parameterisation,
        "sigma_data": sigma_data,
        "precision": precision,
    }
    if points:
        width, depth = choose("size", size, MLPS)
        return Spec(network="mlp", widths=(width,), blocks=depth, **common)
    unet = choose("size", size, UNETS)
    return Spec(network="unet", widths=unet.widths, blocks=unet.blocks, attention=unet.attention, **common)


def device_of(asked: str | None) -> tuple[str, str]:
    """Return the device to compute on, and why.

    Raises:
        UserError: the device asked for is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    best = next(name for name, found in there.items() if found)
    name = best if asked is None else asked
    if not choose("device", name.split(":")[0], there):
        raise UserError(f"device '{name}' is not available here; leave --device out to use {best}")
    return name, f"the fastest found; {torch.get_num_threads()} threads" if name == "cpu" else "the fastest found"


def _precision(device: str, points: bool) -> tuple[str, str]:
    """Return the precision inside the network, and why."""
    if points:
        return "fp32", "the network is too small to gain from less"
    if device == "cuda":
        return "bf16", "twice as fast as fp32 on GPUs that have it"
    if device == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bf16", "this CPU has bfloat16 arithmetic (AVX512-BF16)"
    return "fp32", "no bfloat16 arithmetic found"


def seconds_of(text: str) -> float:
    """Read a time such as 90s, 2m, 1h30m or 45 (seconds).

    Raises:
        UserError: it is none, or not above 0.
    """
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(f"(?:{number}h)?(?:{number}m)?(?:{number}s?)?", text.strip())
    parts = match.groups() if match else (0, 0, 0)
    seconds = sum(float(part or 0) * unit for part, unit in zip(parts, (3600, 60, 1), strict=True))
    if seconds <= 0:
        raise UserError(f"'{text}' is no time; write 90s, 2m or 1h30m")
    return seconds
