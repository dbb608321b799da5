"""The one loop of the way back. Samplers step; only this file goes round.

(1)  x at t_0 ~ prior;   x at t_{k+1} = step(model, x at t_k, t_k, t_{k+1})   for the times t_0 > t_1 > ... of a grid

A sampler keeps no state of its own: what it must remember (earlier estimates of a multistep method) is a value
that ``step`` takes and returns, so one sampler serves any number of trajectories. Noise comes from ``rng`` alone.

The deterministic ones solve the probability-flow ODE, which has a way forth as well (Song et al. 2010.02502, eq. 14):

(2)  encode: the same steps over the same times backwards, from x_0 to the noise that leads to it
(3)  y <- y + x_0 - decode(encode(y)), from y = x_0, and then encode(y) leads to x_0

Steps backwards do not undo steps forwards but for their error, of which (3) leaves about the square. The first of them
undoes the last of the way back, to t = 0, which takes the state x at the last stop for its estimate of the data:

(4)  x <- alpha x_0 + sigma eps(alpha x_0), then a few times x <- x + alpha (x_0 - x_0_hat(x))
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.defaults import GRID, STEPS
from sfumato.denoise import GIVES, Model, cost, meaning
from sfumato.dist import Rng
from sfumato.errors import UserError
from sfumato.grid import times
from sfumato.process import Gaussian
from sfumato.rows import Estimate
from sfumato.schedule import Instant, Schedule, Time

__all__ = ["Sampler", "State", "encode", "first_order", "generate", "trajectory"]


UNDOING = 3
"""Times that (4) is done."""


class Sampler(ABC):
    """One way to go from time t to an earlier time s.

    Attributes:
        order: of convergence of the whole way in the step size: declared here, measured by the tests.
        calls: network calls a step.
        stochastic: whether steps draw noise; then ``order`` is that of the law (weak order).
        source: paper and equation.
        takes: what the estimates it works with may stand for, keys of ``sfumato.denoise.GIVES``.
    """

    order: int
    calls: int = 1
    stochastic: bool = False
    source: str
    takes: tuple[str, ...] = ("mean", "map")

    def path(self, stops: Sequence[Instant]) -> Sequence[Instant]:
        """Return where to stop, given the stops of a grid: the same, unless the sampler goes other ways.

        Raises:
            UserError: the sampler cannot go this way.
        """
        return stops

    def init(self, model: Model, x: Tensor, stops: Sequence[Instant]) -> Any:
        """Return the memory before the first step: nothing, unless the sampler remembers or plans.

        Args:
            model: what estimates the data.
            x: (B, ...) state at the start.
            stops: of the whole way, the start included.

        Raises:
            UserError: the sampler does not work with this model or on these stops.
        """
        return None

    @abstractmethod
    def step(self, model: Model, x: Tensor, t: Instant, s: Instant, memory: Any, rng: Rng) -> tuple[Tensor, Any, Any]:
        """Go from ``x`` at ``t`` to the earlier time ``s``.

        Args:
            model: what estimates the data.
            x: (B, ...) state.
            t: its time.
            s: the next stop.
            memory: what ``init`` or the step before returned.
            rng: where noise comes from, if the sampler is stochastic.

        Returns:
            The new state, the model's estimate from which it was made, and the memory for the next step.
        """


class State(NamedTuple):
    """One stop of the way back.

    Attributes:
        k: steps done, 0 at the start.
        t: the time of ``x``.
        x: (B, ...) the state.
        estimate: the model's, from which this state was made; None at the start.
        nfe: network calls so far.
    """

    k: int
    t: float
    x: Tensor
    estimate: Any
    nfe: int

    @property
    def x0(self) -> Tensor | None:
        """(B, ...) the estimate of the data; None at the start."""
        return None if self.estimate is None else self.estimate.x0


class _Counted:
    """A model that counts its calls."""

    def __init__(self, model: Model) -> None:
        self.model, self.process, self.calls = model, model.process, 0
        self.gives = meaning(model)

    def __call__(self, x_t: Tensor, t: Time, s: Time | None = None) -> Any:
        self.calls += cost(self.model, t)
        return self.model(x_t, t) if s is None else self.model(x_t, t, s=s)


@torch.no_grad()
def trajectory(
    model: Model,
    sampler: Sampler,
    x: Tensor,
    grid: str | Sequence[float] | Tensor = GRID,
    steps: int = STEPS,
    rng: Rng = None,
) -> Iterator[State]:
    """Yield every stop of the way back, the start included.

    Args:
        model: what estimates the data.
        sampler: how to step.
        x: (B, ...) state at the grid's first time, such as a sample of ``model.process.prior``.
        grid: a name in ``sfumato.grid.GRIDS``, or explicit falling times.
        steps: number of steps of a named grid.
        rng: where a stochastic sampler's noise comes from.

    Raises:
        UserError: a bad grid, a sampler that does not work with it or with the model, or ``x`` or a state that is
            not finite; the line names the step.
    """
    return _way(model, sampler, x, sampler.path(_stops(grid, steps, model.process.schedule)), rng)


def generate(
    model: Model,
    sampler: Sampler,
    x: Tensor,
    grid: str | Sequence[float] | Tensor = GRID,
    steps: int = STEPS,
    rng: Rng = None,
) -> Tensor:
    """Return the last state of :func:`trajectory`, whose arguments it takes."""
    for state in trajectory(model, sampler, x, grid, steps, rng):
        x = state.x
    return x


@torch.no_grad()
def encode(
    model: Model,
    sampler: Sampler,
    x: Tensor,
    grid: str | Sequence[float] | Tensor = GRID,
    steps: int = STEPS,
    corrections: int = 0,
) -> Tensor:
    """Return the noise at the grid's first time from which a deterministic sampler comes to ``x``; (2) and (3).

    Data have no score: if the grid ends at 0, the first step is (4).

    Args:
        model: what estimates the data.
        sampler: a deterministic one; ``generate`` with the same sampler and grid leads back.
        x: (B, ...) data, or states at the grid's last time.
        grid: as for :func:`trajectory`.
        steps: as for :func:`trajectory`.
        corrections: how often (3) is done, each for a way back and a way forth more.

    Raises:
        UserError: a stochastic sampler, and as for :func:`trajectory`.
    """
    if sampler.stochastic:
        raise UserError("a stochastic sampler has no way forth to encode with: use a deterministic one, such as ddim")
    stops = _stops(grid, steps, model.process.schedule)
    aim, noise = x, _forth(model, sampler, x, stops[::-1])
    for _ in range(corrections):
        for state in _way(model, sampler, noise, stops, None):
            reached = state.x
        aim = aim + x - reached
        noise = _forth(model, sampler, aim, stops[::-1])
    return noise


def _forth(model: Model, sampler: Sampler, x: Tensor, stops: Sequence[Instant]) -> Tensor:
    """Return the state at the last of rising stops; equations (2) and (4)."""
    if stops[0].t == 0:
        stops = stops[1:]
        last, x_0 = stops[0], x
        x = last.alpha * x_0
        x = x + last.sigma * model(x, last).eps
        for _ in range(UNDOING):
            x = x + last.alpha * (x_0 - model(x, last).x0)
    for state in _way(model, sampler, x, stops, None):
        x = state.x
    return x


def first_order(process: Gaussian, estimate: Estimate, t: Instant, s: Instant) -> Tensor:
    """Return the state at ``s`` if the estimate stayed as it is at ``t``; defined at r = inf and at sigma = 0 too.

    Args:
        process: whose ODE it is.
        estimate: at the state from which the step starts.
        t: its time.
        s: where to go.
    """
    keep, signal, _ = process.bridge(t, s, eta=0.0)
    return estimate.combine(keep, signal)


@torch.no_grad()
def _way(model: Model, sampler: Sampler, x: Tensor, stops: Sequence[Instant], rng: Rng) -> Iterator[State]:
    """Yield the states at the stops; equation (1)."""
    counted = _Counted(model)
    if counted.gives not in sampler.takes:
        wanted = " or ".join(GIVES[kind] for kind in sampler.takes)
        raise UserError(
            f"the sampler needs a model that gives {wanted}, this one gives {GIVES[counted.gives]}: 'sfumato samplers' "
            "says what each takes"
        )
    memory = sampler.init(counted, x, stops)
    _check(x, 0, stops[0])
    yield State(0, stops[0].t, x, None, 0)
    for k, (t, s) in enumerate(pairwise(stops), start=1):
        x, estimate, memory = sampler.step(counted, x, t, s, memory, rng)
        _check(x, k, s)
        yield State(k, s.t, x, estimate, counted.calls)


def _stops(grid: str | Sequence[float] | Tensor, steps: int, schedule: Schedule) -> Sequence[Instant]:
    """Return the stops of a grid, with the schedule read at them."""
    return _named(grid, steps, schedule) if isinstance(grid, str) else schedule.instants(times(grid, steps, schedule))


@lru_cache(maxsize=64)
def _named(grid: str, steps: int, schedule: Schedule) -> Sequence[Instant]:
    """Read a named grid once: batches of samples share it."""
    return tuple(schedule.instants(times(grid, steps, schedule)))


def _check(x: Tensor | Mapping[str, Tensor], k: int, t: Instant) -> None:
    """Refuse NaN and inf. A sum is cheaper than a look at every number, and not finite if one of them is not."""
    for part in (x,) if isinstance(x, Tensor) else x.values():
        if not math.isfinite(part.sum().item()) and not bool(part.isfinite().all()):
            raise UserError(
                f"the state is not finite after step {k} (t = {t.t:.4g}): "
                "the start or the network's weights hold NaN or inf"
            )
