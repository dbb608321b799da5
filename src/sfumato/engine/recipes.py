"""What is chosen for a run of each family: its networks, its optimiser and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch

from sfumato.data import Codec, Dataset
from sfumato.engine.asked import Asked, Choices
from sfumato.engine.config import Config
from sfumato.engine.heard import hearing
from sfumato.engine.machine import has_bf16
from sfumato.engine.optimizer import Rule
from sfumato.errors import UserError, choose
from sfumato.models.base import Spec
from sfumato.models.diffusion import DiffusionSpec
from sfumato.models.gan import GANSpec
from sfumato.models.vae import GridSpec, LadderSpec, VAESpec

__all__ = ["RECIPES", "Setting"]

Pair = TypeVar("Pair", GANSpec, VAESpec, LadderSpec, GridSpec)


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
DITS = {"tiny": (128, 4), "small": (192, 6), "base": (384, 12)}
"""Width and depth of transformers over patches."""
PATCHES, LARGE = (2, 4), 28
"""Sides of a patch, and the side of a picture from which it is the larger: a picture is 16 to 256 patches."""
MLPS = {"tiny": (128, 3), "small": (256, 4), "base": (512, 6)}
"""Width and depth of the networks for points."""
FEW = 10_000
"""Below so many examples a network learns them by heart within minutes, unless dropout slows it. Half a
minute of digits is too short to tell (bench/ablation.py)."""
LEARNING_RATES = {
    "muon": {"tiny": 2e-3, "small": 2e-3, "base": 1e-3},
    "adamw": {"tiny": 1e-3, "small": 4e-3, "base": 5e-4},
}
"""Learning rates of diffusion models by optimiser and size. Of digits half or twice Muon's is no better:
bench/ablation.py."""
OCTAVES = 4
"""Of the waves through which a network of diffusion sees points: of 2,000 steps on grid25 94% of the samples were on a
mode with them, 43% without."""
NOISE = {"pictures": (-0.1, 1.2), "sentences": (1.0, 1.2), "points": (-1.0, 1.6)}
"""Mean and deviation of the log of the noise that networks see in training, against the data's spread. Points have
structure a thirtieth as wide as all of them, at levels that the law of pictures hardly draws. Where sentences say what
lies where, that is decided at noise ten times as large as the data: after 600 steps on shapes 91% of the places were
right, by the law of pictures 12% after 1,290."""

DIRECTIONS = 32
"""Of the Gaussian whose guess a network of pictures sees: after a minute of Fashion-MNIST without classes samples are
nearer to the data by a fifth (bench/time_to_quality.py), and were no nearer with 128."""

ENDING = {"cool_down": 0.6, "ema": 0.05}
"""Of a run of pictures: of digits and of Fashion-MNIST samples of all three seeds were nearer to the data than with 0.3
and 0.1 (bench/results/ablation.md). The steps of a run that is given a time are fixed from the cool-down on."""

FINENESS = 32
"""Steps in which the widths of a GAN or VAE are tried, as parts of those of a diffusion model."""
EVEN, MORE = 8, range(-16, 17, 8)
"""What widths are multiples of, and what the coarsest may have beside its part. A GAN's step with 32 and 80 channels
took three quarters of the time that it did with 37 and 74."""
CHEAP = (256, "points are cheap")
"""Batch of points, and why."""
OF_VAE = 2
"""Times the learning rate of a diffusion model that a VAE with one layer of latents takes: best of .5 to 4 times on
digits and grid25, where a ladder is best at once that (of points by Muon, of pictures by AdamW); bench/rates.py."""
EVERY = 4
"""Of how many examples of a GAN one has penalties."""
GAN_OCTAVES = 3
"""The same for the critic of a GAN: after 4,200 steps on grid25 77% (with 4 67%), without 41%."""
GAN_BATCH = 32
"""Pictures a step of a GAN."""
TUTORIAL_BATCH, TUTORIAL_LR = 128, 2e-4
"""Of DCGAN (Radford et al. 1511.06434, section 4)."""
GRID_LEVELS = 3
"""Of a VAE with a grid of latents; each but the first halves the sides."""
RUNGS = 3
"""Levels of a ladder for points; for pictures they are those of the networks."""
DIFFUSIONS = (
    *("network", "text", "encoder", "facts", "masks", "latent", "codec", "coupling", "schedule"),
    *("parameterisation", "weighting", "likelihood", "learn_variance"),
)
"""What may be asked of a diffusion model alone."""


class Setting(NamedTuple):
    """What is decided before the family is asked.

    Attributes:
        size: of the networks.
        device: where to compute.
        points: whether the data are points.
    """

    size: str
    device: str
    points: bool


class Recipe(NamedTuple):
    """What a family chooses.

    Attributes:
        model: its networks, and what they learn by.
        optimizer: its rule.
        lr: its learning rate.
        batch: examples a step and why; None to find out what is fastest.
        cool_down: share of the run over which the learning rate falls.
        ema: horizon of the average.
    """

    model: Spec
    optimizer: Rule
    lr: float
    batch: tuple[int, str] | None = None
    cool_down: float = Config.cool_down
    ema: float = Config.ema


def diffusion(dataset: Dataset, asked: Asked, setting: Setting, choices: Choices) -> Recipe:
    """Choose for a diffusion model.

    Args:
        dataset: that it is trained on.
        asked: what was asked for.
        setting: what is decided already.
        choices: collects what is chosen, and why.

    Raises:
        UserError: something impossible was asked for.
    """
    size, device, points = setting
    if asked.shard and asked.optimizer == "muon":
        raise UserError("muon needs whole matrices, and --shard splits them: leave one of the two out")
    if asked.network is not None and points:
        raise UserError(f"--network {asked.network} is for pictures, and these data are points: leave it out")
    if asked.text and asked.coupling != "independent":
        raise UserError(
            f"{asked.coupling} noise is matched within a class, and --text knows none: leave one of them out"
        )
    optimizer = choices.take("optimizer", asked.optimizer, *_optimizer(asked.shard, points))
    lr = choices.take("lr", asked.lr, LEARNING_RATES[optimizer][size], f"of {optimizer} at this size")
    precision = choices.take("precision", asked.precision, *_precision(device, points, asked.likelihood))
    few = len(dataset.items) < FEW and not points
    dropout = choices.take("dropout", None, 0.1 if few else 0.0, "few examples" if few else "enough examples")
    aim = (
        _likelihood(dataset, asked, choices)
        if asked.likelihood
        else _samples(asked, "points" if points else "sentences" if asked.text else "pictures", choices)
    )
    network = _network(size, points, asked.network == "dit", max(dataset.codec.dims[1:], default=0))
    if asked.text and network["network"] == "unet":
        choices.take("attention", None, "coarsest", "a sentence tells of the whole picture")
        network["attention"] = (*network["attention"][:-1], True)
    model = DiffusionSpec(
        **network,
        dropout=dropout,
        **hearing(dataset, asked, choices),
        schedule=asked.schedule,
        parameterisation=asked.parameterisation,
        **aim,
        coupling=asked.coupling,
        variance="learned" if asked.learn_variance else "fixed",
        sigma_data=_spread(dataset, choices, aim["dequantise"]),
        ppca=0 if points else _directions(dataset, choices),
        precision=precision,
    )
    if points or asked.likelihood:
        return Recipe(model, optimizer, lr, CHEAP if points else None)
    ending = {
        word: choices.take(word, None, value, "its samples are nearer to the data") for word, value in ENDING.items()
    }
    return Recipe(model, optimizer, lr, **ending)


def gan(dataset: Dataset, asked: Asked, setting: Setting, choices: Choices, penalties: bool = True) -> Recipe:
    """Choose for a GAN; arguments as for :func:`diffusion`, and whether it has the penalties and the game for them."""
    _refuse(asked, *DIFFUSIONS, "optimizer", "precision", "compile", "shard", model="gan")
    choices.take("optimizer", None, "adamw", "without momentum: the other player moves")
    lr = choices.take("lr", asked.lr, 3e-3 if setting.points else 1e-3, "of both players")
    choices.take("precision", None, "fp32", "the penalty is a gradient of a gradient")
    if penalties:
        gamma = choices.take("gamma", None, 0.01 if setting.points else 0.2, "weight of the penalties R1 and R2")
    else:
        gamma = choices.take("gamma", None, 0.0, "no penalties: what a tutorial gives")
    model = GANSpec(
        **_thin(setting),
        latent=min(64, math.prod(dataset.codec.dims)),
        game="relativistic" if penalties else "non-saturating",
        gamma=gamma,
        every=EVERY,
        octaves=GAN_OCTAVES * setting.points,
        classes=len(dataset.classes) if asked.classes else 0,
        sigma_data=_spread(dataset, choices, False),
    )
    batch = CHEAP if setting.points else (GAN_BATCH, "the players need steps more than examples")
    return Recipe(_as_large(model, dataset, setting, choices), "adamw", lr, batch)


def plain_gan(dataset: Dataset, asked: Asked, setting: Setting, choices: Choices) -> Recipe:
    """Choose for the same networks in the game without penalties; arguments as for :func:`diffusion`."""
    return gan(dataset, asked, setting, choices, penalties=False)


def dcgan(dataset: Dataset, asked: Asked, setting: Setting, choices: Choices) -> Recipe:
    """Choose for DCGAN; arguments as for :func:`diffusion`."""
    _refuse(asked, *DIFFUSIONS, "optimizer", "precision", "compile", "shard", model="dcgan")
    lr = choices.take("lr", asked.lr, TUTORIAL_LR, "of DCGAN")
    model = GANSpec(
        **_levels(setting),
        latent=100,
        network="dcgan",
        game="non-saturating",
        gamma=0.0,
        classes=len(dataset.classes) if asked.classes else 0,
        sigma_data=1.0,  # tanh makes states themselves
    )
    return Recipe(_as_large(model, dataset, setting, choices), "adamw", lr, (TUTORIAL_BATCH, "of DCGAN"))


def vae(dataset: Dataset, asked: Asked, setting: Setting, choices: Choices) -> Recipe:
    """Choose for a VAE; arguments as for :func:`diffusion`."""
    _refuse(asked, *DIFFUSIONS, "optimizer", "precision", "shard", model="vae")
    lr = _of_autoencoders(asked, choices, setting, OF_VAE)
    latent = choices.take("latent", None, min(32, 2 * math.prod(dataset.codec.dims)), "numbers behind an example")
    choices.take("prior", None, "flow", "of the latent numbers, as a second stage that learns beside the first")
    model = VAESpec(
        **_levels(setting),
        latent=latent,
        prior=32 if setting.points else 64,
        classes=len(dataset.classes) if asked.classes else 0,
        sigma_data=_spread(dataset, choices, False),
    )
    return Recipe(_as_large(model, dataset, setting, choices), "muon", lr, CHEAP if setting.points else None)


def ladder(dataset: Dataset, asked: Asked, setting: Setting, choices: Choices) -> Recipe:
    """Choose for a VAE with latents at every level; arguments as for :func:`diffusion`."""
    _refuse(asked, *DIFFUSIONS, "optimizer", "precision", "shard", model="ladder")
    rule: Rule = "muon" if setting.points else "adamw"
    lr = _of_autoencoders(asked, choices, setting, rule=rule)
    levels = _levels(setting)
    if setting.points:
        levels = {"widths": RUNGS * levels["widths"], "blocks": -(-levels["blocks"] // RUNGS)}
    latent = choices.take("latent", None, math.prod(dataset.codec.dims) if setting.points else 4, "channels a level")
    model = LadderSpec(
        **levels,
        latent=latent,
        classes=len(dataset.classes) if asked.classes else 0,
        sigma_data=_spread(dataset, choices, False),
    )
    return Recipe(_as_large(model, dataset, setting, choices), rule, lr, CHEAP if setting.points else None)


def autoencoder(dataset: Dataset, asked: Asked, setting: Setting, choices: Choices) -> Recipe:
    """Choose for a VAE with a grid of latents; arguments as for :func:`diffusion`."""
    _refuse(asked, *DIFFUSIONS, "optimizer", "shard", model="autoencoder")
    lr = _of_autoencoders(asked, choices, setting)
    precision = choices.take("precision", asked.precision, *_precision(setting.device, False, False))
    latent = choices.take("latent", None, 4, "channels of the grid, one vector for each 4x4 pixels")
    levels = _levels(setting)
    levels["widths"] = (*levels["widths"], *GRID_LEVELS * levels["widths"][-1:])[:GRID_LEVELS]
    classes = len(dataset.classes) if asked.classes else 0
    spread = _spread(dataset, choices, False)
    model = GridSpec(**levels, latent=latent, classes=classes, sigma_data=spread, precision=precision)
    return Recipe(_as_large(model, dataset, setting, choices), "muon", lr)


def _of_autoencoders(asked: Asked, choices: Choices, setting: Setting, times: float = 1, rule: Rule = "muon") -> float:
    """Tell what all kinds choose, and return the learning rate: by default some times that of a diffusion model."""
    choices.take("optimizer", None, rule, "what comes back and what is drawn are nearest to the data after equal time")
    choices.take("sigma", None, "learned", "the noise under which the data are most likely")
    usual = times * LEARNING_RATES["muon"][setting.size]
    lr: float = choices.take("lr", asked.lr, usual, f"{times:g} times that of diffusion by muon")
    return lr


RECIPES: dict[str, Callable[[Dataset, Asked, Setting, Choices], Recipe]] = {
    "diffusion": diffusion,
    "gan": gan,
    "plain-gan": plain_gan,
    "dcgan": dcgan,
    "vae": vae,
    "ladder": ladder,
    "autoencoder": autoencoder,
}
"""By name: families, and of the GAN what a tutorial gives."""


def _as_large(spec: Pair, dataset: Dataset, setting: Setting, choices: Choices) -> Pair:
    """Return a spec with the widths that give it as many parameters as a diffusion model of that size on these data."""
    like = DiffusionSpec(**_network(setting.size, setting.points), classes=spec.classes)
    wanted = _parameters(like, dataset.codec)

    def scaled(part: int, more: int) -> tuple[int, ...]:
        *finer, coarsest = (EVEN * max(1, round(width * part / FINENESS / EVEN)) for width in spec.widths)
        return (*finer, max([EVEN, *finer, coarsest + more]))

    tried = {scaled(part, more) for part in range(FINENESS // 2, 3 * FINENESS, 2) for more in MORE}
    counts = {widths: _parameters(replace(spec, widths=widths), dataset.codec) for widths in sorted(tried)}
    best = replace(spec, widths=min(counts, key=lambda widths: abs(counts[widths] - wanted)))
    count = counts[best.widths]
    choices.take("widths", None, "-".join(map(str, best.widths)), f"{count:,} parameters; of diffusion {wanted:,}")
    return best


def _levels(setting: Setting) -> dict[str, Any]:
    """Return widths and blocks of the networks of a diffusion model."""
    return {key: value for key, value in _network(setting.size, setting.points).items() if key in ("widths", "blocks")}


def _thin(setting: Setting) -> dict[str, Any]:
    """Return the same with half the channels at the finest level of pictures, where a channel costs most and holds
    least: with as many parameters a GAN's step took three quarters of the time.
    """
    levels = _levels(setting)
    finest, *coarser = levels["widths"]
    return levels if setting.points else levels | {"widths": (finest // 2, *coarser)}


@cache
def _parameters(spec: Spec, codec: Codec) -> int:
    with torch.device("meta"):  # nothing is allocated
        model = spec.build(codec)
    return sum(parameter.numel() for parameter in model.parameters())


def _refuse(asked: Asked, *names: str, model: str) -> None:
    """Raise a UserError if one of these was asked of a model that has no such choice."""
    for field in fields(asked):
        if field.name in names and getattr(asked, field.name) != field.default:
            word = field.name.replace("_", "-")
            raise UserError(f"--{word} is a choice of diffusion models, and a {model} has none: leave it out")


def _spread(dataset: Dataset, choices: Choices, dequantise: bool) -> float:
    """Return the data's standard deviation, measured."""
    width = dataset.codec.level_width if dequantise else 0.0
    sigma_data = math.hypot(float(dataset.codec.encode(dataset.sample(10_000)).std()), width / math.sqrt(12))
    choices.take("sigma_data", None, round(sigma_data, 4), "the data's standard deviation, measured")
    return sigma_data


def _directions(dataset: Dataset, choices: Choices) -> int:
    """Return the directions of the Gaussian whose guess a network sees."""
    most = min(DIRECTIONS, math.prod(dataset.codec.dims) // 2, len(dataset.items) - 1)
    rank: int = choices.take("ppca", None, most, "directions of a Gaussian of the data, whose guess the network sees")
    return rank


def _network(size: str, points: bool, transformer: bool = False, side: int = 0) -> dict[str, Any]:
    if points:
        width, depth = choose("size", size, MLPS)
        return {"network": "mlp", "widths": (width,), "blocks": depth, "octaves": OCTAVES}
    if transformer:
        width, depth = choose("size", size, DITS)
        return {"network": "dit", "widths": (width,), "blocks": depth, "patch": PATCHES[side >= LARGE]}
    unet = choose("size", size, UNETS)
    return {"network": "unet", "widths": unet.widths, "blocks": unet.blocks, "attention": unet.attention}


def _samples(asked: Asked, kind: str, choices: Choices) -> dict[str, Any]:
    """Return what training looks at for good samples."""
    weighting = choices.take(
        "weighting", asked.weighting, asked.parameterisation, "plain error of the network's output"
    )
    mean, std = NOISE[kind]
    return {"weighting": weighting, "law": "lognormal", "noise_mean": mean, "noise_std": std, "dequantise": False}


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
