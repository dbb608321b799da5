"""Grids: at which times the way back stops.

A grid is a function (n, schedule) -> n + 1 strictly falling times, float64, first 1 and last 0, so a sampler that
calls the network once a step makes n calls. The step before 0 lands on the estimate of the data itself. All
but ``uniform`` and ``trailing`` place their stops by noise level, r = sigma/alpha, and need the lowest one:

(1)  logsnr:   log r uniform from r(1) down to r_min
(2)  karras:   r^(1/rho) uniform from r(1) down to r_min                    (Karras et al. 2206.00364, eq. 5)

The "previous time" of a step is always the grid's next entry, never t minus a stride.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sfumato.errors import UserError, choose
from sfumato.schedule import Schedule

__all__ = ["GRIDS", "Grid", "karras", "logsnr", "times", "trailing", "uniform"]

Grid = Callable[[int, Schedule], Tensor]
"""(n, schedule) -> (n+1,) strictly falling times."""

R_MIN = 0.02
"""Lowest noise level before 0, about three grey levels of 256 in data of unit scale; measured by bench/defaults.py."""
R_MAX = 80.0
"""Highest noise level used to place stops: above it the schedule's own start differs by rounding only."""


def uniform(n: int, schedule: Schedule) -> Tensor:
    """Return n + 1 equally spaced times."""
    return torch.linspace(1, 0, n + 1, dtype=torch.float64)


def trailing(n: int, schedule: Schedule, steps: int = 1000) -> Tensor:
    """Return every (steps/n)-th time of a chain, counted from its end (Lin et al. 2305.08891, table 2).

    Args:
        n: number of steps of the way back.
        schedule: not used: a chain's times do not depend on it.
        steps: of the chain.

    Raises:
        UserError: more stops than the chain has steps.
    """
    if n > steps:
        raise UserError(f"a chain of {steps} steps has no {n} stops: ask for at most {steps}")
    return (torch.linspace(steps, 0, n + 1, dtype=torch.float64)).round() / steps


def logsnr(n: int, schedule: Schedule, r_min: float = R_MIN) -> Tensor:
    """Return stops equally spaced in logsnr; equation (1).

    Args:
        n: number of steps of the way back.
        schedule: of the process.
        r_min: lowest noise level before 0.
    """
    return _by_noise(n, schedule, r_min, torch.log, torch.exp)


def karras(n: int, schedule: Schedule, rho: float = 7.0, r_min: float = R_MIN) -> Tensor:
    """Return stops equally spaced in r^(1/rho); equation (2).

    Args:
        n: number of steps of the way back.
        schedule: of the process.
        rho: 1 for equal spacing in r; the larger, the more stops lie at low noise.
        r_min: lowest noise level before 0.
    """
    return _by_noise(n, schedule, r_min, lambda r: r ** (1 / rho), lambda u: u**rho)


def _by_noise(
    n: int,
    schedule: Schedule,
    r_min: float,
    warp: Callable[[Tensor], Tensor],
    unwarp: Callable[[Tensor], Tensor],
) -> Tensor:
    """Place n stops with ``warp(r)`` equally spaced, then 0."""
    highest = min(math.exp(-schedule.logsnr(1.0).item() / 2), R_MAX)
    ends = warp(torch.tensor([highest, r_min], dtype=torch.float64))
    r = unwarp(ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, n, dtype=torch.float64))
    stops = schedule.time(-2 * r.log())
    stops[0] = 1.0
    return torch.cat([stops, stops.new_zeros(1)])


GRIDS: dict[str, Grid] = {"uniform": uniform, "logsnr": logsnr, "karras": karras, "trailing": trailing}
"""The grids by name."""


def times(grid: str | Sequence[float] | Tensor, n: int, schedule: Schedule) -> Tensor:
    """Return the times of a named grid, or check an explicit list.

    Args:
        grid: a name in :data:`GRIDS`, or times that fall strictly within [0, 1], also as text: "1,0.5,0". An explicit
            list may start below 1 and end above 0.
        n: number of steps; not used with an explicit list.
        schedule: the process' schedule.

    Returns:
        (n+1,) strictly falling float64 times.

    Raises:
        UserError: n < 1, an unknown name, text that is no list of numbers, or a list that does not fall strictly.
    """
    if isinstance(grid, str) and "," in grid:
        grid = _numbers(grid)
    if isinstance(grid, str):
        if n < 1:
            raise UserError(f"steps must be at least 1, got {n}")
        return choose("grid", grid, GRIDS)(n, schedule)
    stops = torch.as_tensor(grid, dtype=torch.float64)
    ok = stops.ndim == 1 and len(stops) >= 2 and bool((stops.diff() < 0).all())
    if not (ok and stops[0] <= 1 and stops[-1] >= 0):
        raise UserError(f"a grid falls strictly within [0, 1] and has at least two times, got {stops.tolist()}")
    return stops


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"an explicit grid is numbers parted by commas, such as 1,0.5,0; got '{text}'") from None
