"""What the user did not say about a run is chosen here, and said with its reason."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from sfumato.data import Dataset
from sfumato.engine.config import Config
from sfumato.engine.machine import device_of, has_bf16
from sfumato.engine.measure import best_batch
from sfumato.engine.optimizer import Rule
from sfumato.errors import UserError, choose
from sfumato.models.diffusion import Spec

__all__ = ["Asked", "Choices", "configure", "length", "seconds_of"]

Size = Literal["tiny", "small", "base"]


@dataclass(frozen=True)
class _UNetSize:
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]


UNETS = {
    "tiny": _UNetSize((32, 64), 2, (False, True)),
    "small": _UNetSize((32, 64, 96), 1, (False, False, False)),
    "base": _UNetSize((64, 128, 192), 2, (False, False, True)),
}
"""U-Nets by size; bench/network_speed.py measured them."""
MLPS = {"tiny": (128, 3), "small": (256, 4), "base": (512, 6)}
"""Width and depth of the networks for points."""


FEW = 10_000
"""Below so many examples a network learns them by heart within minutes, unless dropout slows it."""
LEAST_PART = 16
"""Examples of one part of a step: with fewer a process idles."""
LEARNING_RATES = {
    "muon": {"tiny": 2e-3, "small": 2e-3, "base": 1e-3},
    "adamw": {"tiny": 1e-3, "small": 4e-3, "base": 5e-4},
}
"""Learning rates by optimiser and size."""
NOISE_MEAN = -0.1
"""Of the log of the noise that networks see in training, against the data's spread."""


@dataclass(frozen=True)
class Asked:
    """The arguments of ``sfumato.verbs.train``, with its defaults; None where the choice is ours."""

    data: str
    time: str | None = None
    steps: int | None = None
    size: Size | None = None
    classes: bool = False
    out: str | None = None
    seed: int = 0
    batch: int | None = None
    accumulate: int = 1
    lr: float | None = None
    optimizer: Rule | None = None
    coupling: str = "independent"
    mirror: bool = False
    resolution: int | None = None
    skip_bad: bool = False
    stream: bool = False
    schedule: str = "cosine"
    parameterisation: str = "edm"
    weighting: str | None = None
    likelihood: bool = False
    learn_variance: bool = False
    precision: Literal["fp32", "bf16"] | None = None
    compile: bool = False
    device: str | None = None
    shard: bool = False
    save_every: float = 30.0
    resume: bool = False
    tensorboard: bool = False


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
    little = points or dims[-1] * dims[-2] <= 16 * 16
    time, why = ("2m", "enough for data this small") if little else ("10m", "enough for a first good model")
    steps, seconds = length(asked.time, asked.steps, time, why, choices)
    shape = "x".join(map(str, dims))
    size = choices.take("size", asked.size, "tiny" if little else "small", f"learns {shape} values in minutes on a CPU")
    if asked.shard and asked.optimizer == "muon":
        raise UserError("muon needs whole matrices, and --shard splits them: leave one of the two out")
    optimizer = choices.take("optimizer", asked.optimizer, *_optimizer(asked.shard, points))
    lr = choices.take("lr", asked.lr, LEARNING_RATES[optimizer][size], f"of {optimizer} at this size")
    precision = choices.take("precision", asked.precision, *_precision(device, points, asked.likelihood))
    few = len(dataset.items) < FEW and not points
    dropout = choices.take("dropout", None, 0.1 if few else 0.0, "few examples" if few else "enough examples")
    aim = _likelihood(dataset, asked, choices) if asked.likelihood else _samples(asked, choices)
    width = dataset.codec.level_width if aim["dequantise"] else 0.0
    sigma_data = math.hypot(float(dataset.codec.encode(dataset.sample(10_000)).std()), width / math.sqrt(12))
    choices.take("sigma_data", None, round(sigma_data, 4), "the data's standard deviation, measured")
    model = Spec(
        **_network(size, points),
        dropout=dropout,
        classes=len(dataset.classes) if asked.classes else 0,
        schedule=asked.schedule,
        parameterisation=asked.parameterisation,
        **aim,
        coupling=asked.coupling,
        variance="learned" if asked.learn_variance else "fixed",
        sigma_data=sigma_data,
        precision=precision,
    )
    model.build(dataset.codec)  # refuses what cannot work, before anything is written
    parts = workers * asked.accumulate
    config = Config(
        data=asked.data,
        model=model,
        resolution=asked.resolution or 0,
        skip_bad=asked.skip_bad,
        seed=asked.seed,
        batch=parts,
        parts=parts,
        shard=asked.shard,
        lr=lr,
        optimizer=optimizer,
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
    batch, why = (asked.batch, "") if asked.batch else _batch(config, dataset, points)
    return replace(config, batch=choices.take("batch", asked.batch, batch, why))


def length(time: str | None, steps: int | None, chosen: str, why: str, choices: Choices) -> tuple[int, float]:
    """Return the steps and seconds of a run; one of them is 0.

    Args:
        time: asked for.
        steps: asked for.
        chosen: the time if neither is.
        why: that.
        choices: collects what is chosen.

    Raises:
        UserError: both are asked for, or no step.
    """
    if time is not None and steps is not None:
        raise UserError("give either --time or --steps, not both")
    if steps is not None:
        if steps < 1:
            raise UserError(f"--steps must be at least 1, got {steps}")
        return int(choices.take("steps", steps, 0, "")), 0.0
    return 0, seconds_of(choices.take("time", time, chosen, why))


def _batch(config: Config, dataset: Dataset, points: bool) -> tuple[int, str]:
    """Return the examples of a step, over all processes, and why."""
    batch, why = (256, "points are cheap") if points else best_batch(config, dataset)
    if config.parts == 1:
        return batch, why
    each = max(LEAST_PART, -(-batch // config.parts))
    return each * config.parts, f"{config.parts} parts of {each}; alone, {why}"


def _network(size: str, points: bool) -> dict[str, Any]:
    if points:
        width, depth = choose("size", size, MLPS)
        return {"network": "mlp", "widths": (width,), "blocks": depth}
    unet = choose("size", size, UNETS)
    return {"network": "unet", "widths": unet.widths, "blocks": unet.blocks, "attention": unet.attention}


def _samples(asked: Asked, choices: Choices) -> dict[str, Any]:
    """Return what training looks at for good samples."""
    weighting = choices.take(
        "weighting", asked.weighting, asked.parameterisation, "plain error of the network's output"
    )
    return {"weighting": weighting, "law": "lognormal", "noise_mean": NOISE_MEAN, "dequantise": False}


def _optimizer(shard: bool, points: bool) -> tuple[Rule, str]:
    """Return the optimiser, and why."""
    if shard:
        return "adamw", "Muon needs whole matrices, and --shard splits them"
    if points:
        return "adamw", "the network is too small to gain from more"
    return "muon", "better samples after equal time"


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
    if has_bf16(device):
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
