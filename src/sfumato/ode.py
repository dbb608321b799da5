"""An ordinary differential equation solved for each example by itself: adaptive Dormand-Prince 5(4).

One step of size h from (u, y), with the coefficients a, b, c and the error weights e of the method's table:

(1)  k_i  = f(u + c_i h, y + h sum_{j<i} a_ij k_j),    i = 1..7
(2)  y'   = y + h sum_i b_i k_i = the point of k_7, so k_7 is the next step's k_1: six calls of f a step
(3)  e    = h sum_i e_i k_i, the difference to the method's fourth-order answer
                                          (Dormand and Prince, J. Comput. Appl. Math. 6, 1980, table 2)
(4)  size = max_d |e_d| / (atol + rtol max(|y_d|, |y'_d|)); a step is kept if size <= 1, and
     h <- h clip(0.9 size^(-1/5), 1/5, 5)  (Hairer, Norsett and Wanner, Solving ODEs I, 1993, eq. II.4.13)

Every example has its own u, h and verdict, so its answer does not depend on its neighbours. All step in one batch;
who has arrived leaves it. What can be differentiated with respect to y stays so: nothing is written in place.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.errors import UserError

__all__ = ["Measure", "Slope", "Solution", "solve"]

Slope = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(u (B',) float64, y (B', D), rows (B',)) -> dy/du (B', D) of the examples that still move; ``rows`` says which."""

Measure = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(u, y, dy/du, e) -> (B',): how much the error e (B', D) of the point reached matters."""

_A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_LEAST = 4 * torch.finfo(torch.float64).eps  # a step below this share of u does not change u


@dataclass(frozen=True)
class Solution:
    """Where each example arrived.

    Attributes:
        y: (B, D) the state at u1.
        error: (B,) the error estimates (3) of all steps kept, each measured, and summed.
        calls: (B,) calls of f in which the example took part; the largest is the number of calls made.
    """

    y: Tensor
    error: Tensor
    calls: Tensor


def solve(
    f: Slope,
    y: Tensor,
    u0: Tensor | float,
    u1: Tensor | float,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    first: float | None = None,
    most: int = 10_000,
    measure: Measure | None = None,
) -> Solution:
    """Solve dy/du = f(u, y) from u0 to u1, up or down; equations (1) to (4).

    Args:
        f: the slope. It is asked only about the examples that still move.
        y: (B, D) states at u0, float32 or float64.
        u0: start, one number or one for each example, (B,).
        u1: end, likewise.
        rtol: relative tolerance of each number of the state at each step.
        atol: absolute tolerance.
        first: size of the first step, above 0; by default found with one more call of f.
        most: steps that an example may try.
        measure: what is summed into ``Solution.error``; by default the root mean square of e.

    Raises:
        UserError: a tolerance or first step that is not above 0, more than ``most`` steps, or a step too small to
            change u, as where f is not finite.
    """
    if not (0 < rtol < torch.inf and 0 < atol < torch.inf and (first is None or first > 0)):
        raise UserError(f"rtol, atol and the first step must be above 0 and finite, got {rtol}, {atol} and {first}")
    problem = _Problem(f, rtol, atol, measure or (lambda u, y, slope, e: e.square().mean(1).sqrt()))
    moving, arrived = problem.start(y, u0, u1, first), []
    for tried in itertools.count():
        there = moving.u == moving.end
        arrived.append(moving[there])
        moving = moving[~there]
        if not len(moving.rows):
            break
        stuck = ~(moving.size > _LEAST * moving.u.abs())  # also where it is NaN
        if bool(stuck.any()):
            u = float(moving.u[stuck][0])
            raise UserError(f"the ODE's step became too small at u = {u:.6g}: is its slope finite there?")
        if tried == most:
            u = float(moving.u[0])
            raise UserError(f"the ODE needs more than {most:,} steps and got to u = {u:.6g}: loosen rtol and atol")
        moving = problem.step(moving)
    back = torch.cat([part.rows for part in arrived]).argsort()
    y, error, calls = (torch.cat([getattr(part, name) for part in arrived])[back] for name in ("y", "error", "calls"))
    return Solution(y, error, calls)


@dataclass(frozen=True)
class _Moving:
    """The examples on their way, all (B',) or (B', D)."""

    rows: Tensor
    u: Tensor
    end: Tensor
    size: Tensor
    y: Tensor
    slope: Tensor
    error: Tensor
    calls: Tensor

    def __getitem__(self, which: Tensor) -> _Moving:
        return _Moving(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class _Problem:
    f: Slope
    rtol: float
    atol: float
    measure: Measure

    def start(self, y: Tensor, u0: Tensor | float, u1: Tensor | float, first: float | None) -> _Moving:
        u, end = (torch.as_tensor(v, dtype=torch.float64, device=y.device).expand(len(y)) for v in (u0, u1))
        rows = torch.arange(len(y), device=y.device)
        slope = self.f(u, y, rows)
        size = self._guess(u, y, rows, slope, end - u) if first is None else torch.full_like(u, first)
        calls = torch.full_like(rows, 2 if first is None else 1)
        return _Moving(rows, u, end, size, y, slope, torch.zeros_like(u), calls)

    @torch.no_grad()
    def _guess(self, u: Tensor, y: Tensor, rows: Tensor, slope: Tensor, way: Tensor) -> Tensor:
        """Return the first step, from the slope and its change over a small Euler step (Hairer et al., sec. II.4)."""
        scale = self.atol + self.rtol * y.abs()
        steep = _worst(slope / scale)
        h = way.sign() * torch.minimum(0.01 * (_worst(y / scale) + 1) / (steep + 1), 0.01 * way.abs())
        change = self.f(u + h, y + _column(h, y) * slope, rows) - slope
        bent = _worst(change / scale) / h.abs()
        return torch.minimum((0.01 / torch.maximum(steep, bent)) ** (1 / 5), way.abs())

    def step(self, now: _Moving) -> _Moving:
        """Try one step with every example; who fails stays where it is, with a smaller step."""
        left = now.end - now.u
        last = now.size >= left.abs()
        u = torch.where(last, now.end, now.u + now.size * left.sign())
        h = u - now.u
        step, slopes = _column(h, now.y), [now.slope]
        for a, c in zip(_A, _C, strict=True):
            y = now.y + step * _mix(a, slopes)
            slopes.append(self.f(now.u + c * h, y, now.rows))
        with torch.no_grad():
            e = step * _mix(_E, slopes)
            size = _worst(e / (self.atol + self.rtol * torch.maximum(now.y.abs(), y.abs())))
            size = size.nan_to_num(torch.inf, torch.inf)
            error = self.measure(u, y, slopes[-1], e).double()
        keep = size <= 1
        return replace(
            now,
            u=torch.where(keep, u, now.u),
            size=h.abs() * (0.9 * size ** (-1 / 5)).clamp(0.2, 5.0),
            y=torch.where(keep[:, None], y, now.y),
            slope=torch.where(keep[:, None], slopes[-1], now.slope),
            error=now.error + torch.where(keep, error, 0.0),
            calls=now.calls + len(_A),
        )


def _mix(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """Sum of weight times slope; weights of 0 cost nothing."""
    terms = [weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight]
    return torch.stack(terms).sum(0)


def _column(h: Tensor, y: Tensor) -> Tensor:
    return h.to(y.dtype)[:, None]


def _worst(scaled: Tensor) -> Tensor:
    """The largest magnitude of each row, (B, D) -> (B,) float64; NaN if there is one."""
    return scaled.abs().amax(1).double()
