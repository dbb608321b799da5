"""Beginning and resuming runs: what the user did not say is chosen here, and said with its reason."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from sfumato.data import Dataset
from sfumato.data import load as load_data
from sfumato.engine.config import Config
from sfumato.engine.progress import Watch, duration, watch
from sfumato.engine.run import Run, latest
from sfumato.engine.trainer import Trainer
from sfumato.errors import UserError, choose
from sfumato.models.diffusion import Spec

__all__ = ["Asked", "Choices", "begin", "configure", "device_of", "go_on", "seconds_of"]

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


FEW = 10_000
"""Below so many examples a network learns them by heart within minutes, unless dropout slows it."""
LEARNING_RATES = {
    "tiny": (1e-3, "stable at this size"),
    "small": (1e-3, "stable at this size"),
    "base": (5e-4, "stable at this size"),
}
"""Learning rates by size, and why."""


@dataclass(frozen=True)
class Asked:
    """The arguments of ``sfumato.verbs.train``, which explains them; None where the choice is ours."""

    data: str
    time: str | None
    steps: int | None
    size: Size | None
    classes: bool
    out: str | None
    seed: int
    batch: int | None
    lr: float | None
    resolution: int | None
    skip_bad: bool
    schedule: str
    parameterisation: str
    weighting: str | None
    likelihood: bool
    learn_variance: bool
    precision: Literal["fp32", "bf16"] | None
    device: str | None
    save_every: float


class Choices:
    """Collects what was chosen, and says it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def take(self, name: str, asked: Any, chosen: Any, reason: str) -> Any:
        """Note a choice and return it.

        Args:
            name: of what is chosen.
            asked: what the user wants, or None.
            chosen: what is taken if the user does not say.
            reason: for that.
        """
        value = chosen if asked is None else asked
        self.lines.append(f"  {name:<10} {value!s:<10} {reason if asked is None else 'as asked'}")
        return value


def begin(asked: Asked) -> Path:
    """Start a run and train it to its end; see ``sfumato.verbs.train``."""
    dataset = load_data(asked.data, resolution=asked.resolution, skip_bad=asked.skip_bad)
    choices = Choices()
    config = configure(dataset, asked, choices)
    name = Path(asked.data).stem if Path(asked.data).is_file() else dataset.name
    folder = RUNS / name if asked.out is None else Path(asked.out)
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
    return _train(opened, opened.dataset(), watch())


def _train(run: Run, dataset: Dataset, show: Watch) -> Path:
    """Train a run to its end with the number of threads it began with."""
    before = torch.get_num_threads()
    torch.set_num_threads(run.config.threads or before)
    try:
        trainer = Trainer(run, dataset)
        if trainer.finished:
            show.say(f"{run.folder}: finished before, at step {trainer.step}")
            return run.folder
        if trainer.step:
            show.say(f"{run.folder}: going on at step {trainer.step} of {trainer.total}")
        if not trainer.fit(show):
            show.say(f"go on with: sfumato resume {run.folder}")
            raise KeyboardInterrupt
    finally:
        torch.set_num_threads(before)
        show.close()
    show.say(f"{run.folder}: {trainer.step} steps in {duration(trainer.seconds)}")
    return run.folder


def configure(dataset: Dataset, asked: Asked, choices: Choices) -> Config:
    """Return the config of a run: what was asked for, and choices for the rest.

    Args:
        dataset: the data that were asked for, loaded.
        asked: what was asked for.
        choices: collects what is chosen, and why.

    Raises:
        UserError: something impossible was asked for.
    """
    if asked.classes and not dataset.classes:
        raise UserError(
            f"'{asked.data}' has no classes; leave --classes out, or sort the files into a folder for each class"
        )
    device, why = device_of(asked.device)
    choices.take("device", asked.device, device, why)
    dims = dataset.codec.dims
    points = dataset.codec.kind == "points"
    threads = 1 if points else torch.get_num_threads()
    choices.take("threads", None, threads, "points are too few numbers to share" if points else "all that there are")
    little = points or dims[-1] * dims[-2] <= 16 * 16
    steps, seconds = _length(asked, little, choices)
    shape = "x".join(map(str, dims))
    size = choices.take("size", asked.size, "tiny" if little else "small", f"learns {shape} values in minutes on a CPU")
    batch = choices.take("batch", asked.batch, *_batch(points, little))
    lr = choices.take("lr", asked.lr, *LEARNING_RATES[size])
    precision = choices.take("precision", asked.precision, *_precision(device, points, asked.likelihood))
    few = len(dataset.items) < FEW and not points
    dropout = choices.take("dropout", None, 0.1 if few else 0.0, "few examples" if few else "enough examples")
    aim = _likelihood(dataset, asked, choices) if asked.likelihood else _samples(asked, choices)
    width = dataset.codec.level_width if aim["dequantise"] else 0.0
    sigma_data = math.hypot(float(dataset.codec.encode(dataset.items[:10_000]).std()), width / math.sqrt(12))
    choices.take("sigma_data", None, round(sigma_data, 4), "the data's standard deviation, measured")
    model = Spec(
        **_network(size, points),
        dropout=dropout,
        classes=len(dataset.classes) if asked.classes else 0,
        schedule=asked.schedule,
        parameterisation=asked.parameterisation,
        **aim,
        variance="learned" if asked.learn_variance else "fixed",
        sigma_data=sigma_data,
        precision=precision,
    )
    model.build(dataset.codec)  # refuses what cannot work, before anything is written
    return Config(
        data=asked.data,
        model=model,
        resolution=asked.resolution or 0,
        skip_bad=asked.skip_bad,
        seed=asked.seed,
        batch=batch,
        lr=lr,
        steps=steps,
        seconds=seconds,
        save_every=asked.save_every,
        device=device,
        threads=threads,
    )


def _length(asked: Asked, little: bool, choices: Choices) -> tuple[int, float]:
    """Return the steps and seconds of a run; one of them is 0."""
    if asked.time is not None and asked.steps is not None:
        raise UserError("give either --time or --steps, not both")
    if asked.steps is not None:
        if asked.steps < 1:
            raise UserError(f"--steps must be at least 1, got {asked.steps}")
        return int(choices.take("steps", asked.steps, 0, "")), 0.0
    chosen, why = ("2m", "enough for data this small") if little else ("10m", "enough for a first good model")
    return 0, seconds_of(choices.take("time", asked.time, chosen, why))


def _batch(points: bool, little: bool) -> tuple[int, str]:
    if points:
        return 256, "points are cheap"
    return (128, "small pictures: fewer would leave cores idle") if little else (64, "more steps in the same time")


def _network(size: str, points: bool) -> dict[str, Any]:
    if points:
        width, depth = choose("size", size, MLPS)
        return {"network": "mlp", "widths": (width,), "blocks": depth}
    unet = choose("size", size, UNETS)
    return {"network": "unet", "widths": unet.widths, "blocks": unet.blocks, "attention": unet.attention}


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
    return name, "the fastest found"


def _samples(asked: Asked, choices: Choices) -> dict[str, Any]:
    """Return what training looks at for good samples."""
    weighting = choices.take(
        "weighting", asked.weighting, asked.parameterisation, "plain error of the network's output"
    )
    return {"weighting": weighting, "law": "lognormal", "dequantise": False}


def _likelihood(dataset: Dataset, asked: Asked, choices: Choices) -> dict[str, Any]:
    """Return what training looks at for a tight bound on log p(x)."""
    weighting = choices.take("weighting", asked.weighting, "elbo", "the bound on log p(x) itself")
    law = choices.take("law", None, "likelihood", "every noise level that has a share in the bound")
    levels = dataset.codec.level_width > 0
    why = "spread over their bins, levels have a density" if levels else "the data vary continuously"
    return {"weighting": weighting, "law": law, "dequantise": choices.take("dequantise", None, levels, why)}


def _precision(device: str, points: bool, likelihood: bool) -> tuple[str, str]:
    """Return the precision inside the network, and why."""
    if likelihood:
        return "fp32", "bits are counted at noise so low that bf16 rounds it away"
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
