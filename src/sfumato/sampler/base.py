"""The one loop of the way back. Samplers step; only this file goes round.

(1)  x at t_0 ~ prior;   x at t_{k+1} = step(model, x at t_k, t_k, t_{k+1})   for the times t_0 > t_1 > ... of a grid

A sampler keeps no state of its own: what it must remember (earlier estimates of a multistep method) is a value
that ``step`` takes and returns, so one sampler serves any number of trajectories. Noise comes from ``rng`` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from sfumato.denoise import Model
from sfumato.dist import Rng
from sfumato.errors import UserError
from sfumato.grid import times
from sfumato.process import Gaussian
from sfumato.rows import Estimate
from sfumato.schedule import Time

__all__ = ["Sampler", "State", "generate", "trajectory"]


class Sampler(Protocol):
    """One way to go from time t to an earlier time s."""

    @property
    def order(self) -> int:
        """Order of convergence of the whole way in the step size: declared here, measured by the tests."""

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise; then ``order`` is that of the law (weak order)."""

    def init(self, model: Model, x: Tensor, t: Tensor) -> Any:
        """Return the memory before the first step.

        Args:
            model: what estimates the data.
            x: (B, ...) state at the start.
            t: its time.
        """

    def step(
        self, model: Model, x: Tensor, t: Tensor, s: Tensor, memory: Any, rng: Rng
    ) -> tuple[Tensor, Estimate, Any]:
        """Go from ``x`` at ``t`` to the earlier time ``s``.

        Args:
            model: what estimates the data.
            x: (B, ...) state.
            t: its time.
            s: the grid's next time.
            memory: what ``init`` or the step before returned.
            rng: where noise comes from, if the sampler is stochastic.

        Returns:
            The new state, the estimate made at ``t``, and the memory for the next step.
        """


@dataclass(frozen=True)
class State:
    """One stop of the way back.

    Attributes:
        k: steps done, 0 at the start.
        t: the time of ``x``.
        x: (B, ...) the state.
        x0: (B, ...) the estimate of the data from which this state was made; None at the start.
        nfe: network calls so far.
    """

    k: int
    t: float
    x: Tensor
    x0: Tensor | None
    nfe: int


class _Counted:
    """A model that counts its calls."""

    def __init__(self, model: Model) -> None:
        self.model, self.calls = model, 0

    @property
    def process(self) -> Gaussian:
        return self.model.process

    def __call__(self, x_t: Tensor, t: Time) -> Estimate:
        self.calls += 1
        return self.model(x_t, t)


@torch.no_grad()
def trajectory(
    model: Model,
    sampler: Sampler,
    x: Tensor,
    grid: str | Sequence[float] | Tensor = "logsnr",
    steps: int = 12,
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
        UserError: a bad grid, or ``x`` or a state that is not finite; the line names the step.
    """
    counted = _Counted(model)
    stops = times(grid, steps, model.process.schedule)
    memory = sampler.init(counted, x, stops[0])
    _check(x, 0, stops[0])
    yield State(0, float(stops[0]), x, None, 0)
    for k, (t, s) in enumerate(pairwise(stops), start=1):
        x, estimate, memory = sampler.step(counted, x, t, s, memory, rng)
        _check(x, k, s)
        yield State(k, float(s), x, estimate.x0, counted.calls)


def generate(
    model: Model,
    sampler: Sampler,
    x: Tensor,
    grid: str | Sequence[float] | Tensor = "logsnr",
    steps: int = 12,
    rng: Rng = None,
) -> Tensor:
    """Return the last state of :func:`trajectory`, whose arguments it takes."""
    for state in trajectory(model, sampler, x, grid, steps, rng):
        x = state.x
    return x


def _check(x: Tensor, k: int, t: Tensor) -> None:
    if not bool(x.isfinite().all()):
        raise UserError(
            f"the state is not finite after step {k} (t = {float(t):.4g}): "
            "the start or the network's weights hold NaN or inf"
        )
