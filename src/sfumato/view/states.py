"""The states that are drawn: a path of the Markov chain to noise, and the stops of the way back.

The way to noise is a real path, each state drawn from the one before it:

(1)  x at t_{k+1} ~ q(x_{t_{k+1}} | x_{t_k}),    0 = t_0 < t_1 < ... < t_K = 1

Its times advance the angle whose tangent is the noise level in equal steps,

(2)  tan(angle_k) = sigma(t_k) / alpha(t_k),    angle_k = k/K angle_K

because x_t / sqrt(alpha^2 + sigma^2) = cos(angle) x_0 + sin(angle) eps: every step changes as much of what is seen,
whatever the schedule. (Equal steps of logsnr would spend most of them where the eye sees data or noise alone.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sfumato.dist import Rng
from sfumato.models.base import Way
from sfumato.models.diffusion import Diffusion
from sfumato.process import Gaussian
from sfumato.schedule import Schedule, Time

__all__ = ["Stop", "even_times", "evenly", "forward_path", "way_back"]


@dataclass(frozen=True)
class Stop:
    """A stop of the way back, with what the model sees from there.

    Attributes:
        t: the time.
        x: (n, *dims) the state.
        x0: (n, *dims) the estimate of the data made from it; at t = 0, the state itself.
    """

    t: float
    x: Tensor
    x0: Tensor


def even_times(schedule: Schedule, steps: int) -> Tensor:
    """Return rising times from 0 to 1 between which a picture changes evenly; equation (2).

    Args:
        schedule: of the process.
        steps: at least 1.

    Returns:
        (steps + 1,) float64.
    """
    angles = float(_angle(schedule, 1.0)) * torch.arange(1, steps, dtype=torch.float64) / steps
    inner = schedule.time(-2 * angles.tan().log())
    return torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)])


def evenly(stops: Sequence[Stop], schedule: Schedule, steps: int) -> list[Stop]:
    """Return the stops nearest to steps + 1 equally spaced angles, each once; equation (2).

    Args:
        stops: of a way back.
        schedule: of the process.
        steps: at most so many lie between the stops returned.
    """
    angles = _angle(schedule, torch.tensor([stop.t for stop in stops], dtype=torch.float64))
    wanted = torch.linspace(float(angles[0]), float(angles[-1]), steps + 1, dtype=torch.float64)
    nearest = (angles - wanted[:, None]).abs().argmin(1)
    return [stops[k] for k in dict.fromkeys(nearest.tolist())]


def _angle(schedule: Schedule, t: Time) -> Tensor:
    return (-schedule.logsnr(t) / 2).exp().atan()


def forward_path(process: Gaussian, x_0: Tensor, stops: Tensor, rng: Rng = None) -> list[Tensor]:
    """Walk from data to noise; equation (1).

    Args:
        process: the forward process.
        x_0: (B, ...) data.
        stops: (K+1,) rising times, the first one 0.
        rng: where the noise comes from.

    Returns:
        K + 1 states (B, ...), the first one ``x_0``.

    Raises:
        UserError: times that do not rise within [0, 1].
    """
    path = [x_0]
    for s, t in pairwise(stops):
        path.append(process.transition(path[-1], s, t).sample(rng))
    return path


def way_back(model: Diffusion, n: int, way: Way) -> list[Stop]:
    """Return the stops of samples 0 .. n - 1, on the CPU.

    Below ``model.batch`` they are made in one smaller batch: the samples of ``sfumato sample`` up to rounding.

    Args:
        model: whose samples.
        n: how many, at least 1.
        way: how they are drawn.

    Raises:
        UserError: an unknown sampler or grid.
    """
    batches = [range(start, min(start + model.batch, n)) for start in range(0, n, model.batch)]
    walks = [list(model.trajectory(batch, way)) for batch in batches]
    rows = list(zip(*walks, strict=True))
    states = [torch.cat([state.x for state in row]).cpu() for row in rows]
    # A state carries the estimate it was made from; the one made at it is found in the next.
    seen = [torch.cat([state.x0 for state in row if state.x0 is not None]).cpu() for row in rows[1:]]
    return [Stop(row[0].t, x, x0) for row, x, x0 in zip(rows, states, [*seen, states[-1]], strict=True)]
