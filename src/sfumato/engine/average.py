"""Averages of the weights over training, with a horizon that grows with the run, and any other horizon afterwards.

(1)  w_avg(k) = b_k w_avg(k-1) + (1 - b_k) w(k),   b_k = (1 - 1/k)^(gamma + 1)   (Karras et al. 2312.02696, eq. 1-2)
(2)  horizon = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)): the standard deviation of the weights' age, as a
     share of the run                                                              (app. C.1)

b_1 = 0, so nothing of the random start remains; a fixed b = 0.9999 would keep 74% of it after 3,000 steps.

(1) weighs w(tau) by p(tau; t, gamma) = (gamma + 1) tau^gamma / t^(gamma + 1) up to t. So the average of another gamma
at another t is nearly a combination of averages that were kept, and the best one solves         (app. C.2, alg. 3)

(3)  A x + lambda = b,  sum x = 1,   A_ij = int p_i p_j,   b_i = int p_i p,
     int p(t_a, a) p(t_b, b) = (a + 1)(b + 1) (t_a/t_b)^(b if t_a < t_b else -a) / ((a + b + 1) max(t_a, t_b))

That the factors add up to 1 is ours: few averages, or a horizon far from theirs, gave 0.9 to 1.005, and so all weights
were smaller or larger by as much.

Two averages, of the run's horizon and of half or twice of it, are kept KEPT times on the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sfumato.engine.checkpoint import read_weights, write_weights
from sfumato.engine.distributed import local, whole
from sfumato.errors import UserError

__all__ = [
    "KEPT",
    "SECOND",
    "Averages",
    "PowerAverage",
    "combination",
    "early",
    "on_the_way",
    "partner",
    "power",
    "put",
    "reconstructed",
]

KEPT = 8
"""How often averages are kept in a run, evenly spaced."""
OWN, SECOND = "long", "short"  # in files: a run's own average was always the longer one, before that could be 0.05
BETWEEN = 0.07
NAME = re.compile(r"average-(\d{8,})\.safetensors")


class PowerAverage:
    """Keeps ``average`` at the power-function average of ``model``; equation (1).

    Args:
        model: what is trained.
        average: a copy of it.
        horizon: in (0, 0.28]: above that no power gives it; equation (2).

    Raises:
        UserError: an impossible horizon.
    """

    def __init__(self, model: nn.Module, average: nn.Module, horizon: float) -> None:
        self.gamma = power(horizon)
        self.source = [local(p.detach()) for p in model.parameters()]
        self.target = [local(p.detach()) for p in average.parameters()]

    def update(self, step: int) -> None:
        """Take in the weights after step ``step`` = 1, 2, ...; equation (1)."""
        torch._foreach_lerp_(self.target, self.source, 1 - (1 - 1 / step) ** (self.gamma + 1))


def partner(horizon: float) -> float:
    """Return the horizon of the average that is kept beside a run's own: both are near those of EDM2, 0.05 and 0.1.

    From these any between 0.03 and 0.15 can be had; from 0.05 and 0.025 none above (tests/test_average.py).
    """
    return horizon / 2 if horizon > BETWEEN else 2 * horizon


class Averages:
    """The run's average and the one beside it, of the horizon that ``partner`` gives.

    Args:
        model: what is trained.
        own: a copy of it, which becomes the run's own.
        second: another, which becomes the one beside it.
        horizon: of the first.

    Raises:
        UserError: an impossible horizon.
    """

    def __init__(self, model: nn.Module, own: nn.Module, second: nn.Module, horizon: float) -> None:
        self.modules = {OWN: own, SECOND: second}
        self.tracks = [PowerAverage(model, own, horizon), PowerAverage(model, second, partner(horizon))]

    def update(self, step: int) -> None:
        """Take in the weights after step ``step`` = 1, 2, ..."""
        for track in self.tracks:
            track.update(step)

    def tensors(self) -> dict[str, Tensor]:
        """Return both, in half precision; every rank must ask."""
        return {
            f"{name}.{key}": whole(p.detach()).half()
            for name, module in self.modules.items()
            for key, p in module.named_parameters()
        }

    @staticmethod
    def keep(folder: Path, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write averages beside those of before.

        Args:
            folder: of the averages.
            step: after which they are, counted from where they began.
            tensors: what ``tensors`` returned.
        """
        write_weights(folder / f"average-{step:08d}.safetensors", tensors, {"weights": str(step)})

    @staticmethod
    def forget(folder: Path) -> None:
        """Remove what was kept: averages begin anew."""
        for _, path in _kept(folder):
            path.unlink(missing_ok=True)


def reconstructed(folder: Path, kept: float, horizon: float) -> dict[str, Tensor]:
    """Return the parameters of the average of another horizon at the end of a run; equation (3).

    Args:
        folder: of the averages that were kept.
        kept: horizon of the run's own.
        horizon: of the one that is wanted.

    Raises:
        UserError: an impossible horizon, or files that are missing or damaged.
    """
    gamma = power(horizon)
    files = _kept(folder)
    if not files:
        raise UserError(f"{folder}: no averages were kept of this run: leave --ema out")
    both = {OWN: power(kept), SECOND: power(partner(kept))}
    places = [(step, exponent) for step, _ in files for exponent in both.values()]
    factors = iter(combination(places, (files[-1][0], gamma)))
    total: dict[str, Tensor] = {}
    for step, path in files:
        tensors = read_weights(path, str(step))
        for name in both:
            factor = next(factors)
            total = {key: total.get(key, 0.0) + factor * t.double() for key, t in _part(tensors, name).items()}
    return {key: tensor.float() for key, tensor in total.items()}


def on_the_way(folder: Path) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield how many steps before the last one an average was kept, and the parameters of the run's own, in order.

    Args:
        folder: of the averages that were kept.

    Raises:
        UserError: a file is damaged.
    """
    files = _kept(folder)
    for step, path in files:
        yield files[-1][0] - step, _part(read_weights(path, str(step)), OWN)


def early(folder: Path, share: float) -> dict[str, Tensor]:
    """Return the parameters of the run's own average as it was after a share of the run, or nearly then.

    Args:
        folder: of the averages that were kept.
        share: of the run, in (0, 1).

    Raises:
        UserError: an impossible share, or files that are missing or damaged.
    """
    if not 0 < share < 1:
        raise UserError(f"--worse is a share of the run, in (0, 1), got {share:g}")
    files = _kept(folder)
    if not files:
        raise UserError(f"{folder}: no averages were kept of this run: leave --worse out")
    step, path = min(files, key=lambda file: abs(file[0] - share * files[-1][0]))
    return _part(read_weights(path, str(step)), OWN)


def put(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a model the parameters of an average."""
    own = dict(model.named_parameters())
    for name, tensor in tensors.items():
        own[name].data.copy_(tensor)


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}


def _kept(folder: Path) -> list[tuple[int, Path]]:
    """Return the step and the file of all that were kept, in order."""
    return sorted((int(match[1]), path) for path in folder.glob("average-*") if (match := NAME.fullmatch(path.name)))


def combination(places: Sequence[tuple[float, float]], wanted: tuple[float, float]) -> NDArray[np.float64]:
    """Return the factors of averages at (t, gamma) that come nearest to the wanted one; equation (3)."""
    longest = max(t for t, _ in places)  # as the unit of time: all entries are of the same size then
    known = [(t / longest, gamma) for t, gamma in places]
    left, right = np.ones((len(known) + 1,) * 2), np.ones(len(known) + 1)
    left[-1, -1] = 0
    left[:-1, :-1] = [[_product(*a, *b) for b in known] for a in known]
    right[:-1] = [_product(*a, wanted[0] / longest, wanted[1]) for a in known]
    return np.asarray(np.linalg.lstsq(left, right, rcond=1e-12)[0][:-1], np.float64)


def _product(t_a: float, a: float, t_b: float, b: float) -> float:
    return (a + 1) * (b + 1) * (t_a / t_b) ** (b if t_a < t_b else -a) / ((a + b + 1) * max(t_a, t_b))


def power(horizon: float) -> float:
    """Return gamma of a horizon, by (2): (gamma + 2)^2 (gamma + 3) = (gamma + 1) / horizon^2.

    Raises:
        UserError: no power has this horizon.
    """
    if horizon > 0:
        roots = np.roots([1, 7, 16 - horizon**-2, 12 - horizon**-2])
        real = roots[np.isclose(roots.imag, 0)].real
        if (real > 0).any():
            return float(real.max())
    raise UserError(f"ema is the average's horizon as a share of the run, in (0, 0.28], got {horizon}")
