"""Exponential Adams methods: every linear multistep sampler is one integral of a polynomial through past estimates.

With lambda = log(alpha/sigma), h = lambda_s - lambda_t and r = sigma/alpha, the reverse SDE with noise tau (0: the
probability-flow ODE, 1: the SDE that the chain tends to) is solved exactly where it is linear:

(1)  x_s = sigma_s/sigma_t e^(-tau^2 h) x_t + (1) of weights.py for D = x_0_hat + n z
     n^2 = sigma_s^2 (1 - e^(-2 tau^2 h))              (Lu et al. 2211.01095, eq. 8; Xue et al. 2309.05019, eq. 14)
(2)  x_s = alpha_s/alpha_t x_t + (2) of weights.py for E = eps_hat                      (Lu et al. 2206.00927, eq. 3.4)
(3)  D or E is Lagrange's polynomial through the last estimates, in lambda or in r. The predictor's nodes are t and the
     stops before it; the corrector's, s as well.

    in (1), lambda   exponential Adams-Bashforth: DPM-Solver++ (multistep), UniPC with its corrector, SA-Solver
    in (2), lambda   DEIS (Zhang and Chen 2204.13902, in log rho)
    in (2), r        Adams-Bashforth on dy/dr = eps, y = x/alpha: the "LMS" of k-diffusion

The corrector uses the estimate at s, which the next step needs anyway: it costs no network call (Zhao et al.
2302.04867, sec. 3.1). An uncorrected first step is Euler's and leaves an error of second order for ever, so a method
of third order corrects at least that one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

from torch import Tensor

from sfumato.denoise import Model
from sfumato.dist import Rng, randn_like
from sfumato.errors import UserError
from sfumato.rows import Estimate
from sfumato.sampler.base import Sampler
from sfumato.sampler.weights import Source, Weights, integral, lagrange, lam, quadrature
from sfumato.schedule import Instant

__all__ = ["EVERY", "IPNDM", "Adams", "Halved", "Memory", "Midpoint"]

EVERY = 10**9
"""For :attr:`Adams.corrected`: every step."""


class _Step(NamedTuple):
    """One step as numbers: x_s = keep x_t + sum weights * estimates (newest first) + noise z."""

    of: Source
    keep: float
    weights: Weights
    noise: float
    fix: Weights | None  # weights of the corrector, that of the estimate at s first


class Memory(NamedTuple):
    """What a multistep method carries from step to step.

    Attributes:
        plan: the numbers of all steps.
        k: steps done.
        past: estimates before, newest first.
        before: the state before the last step, times ``keep``, with the step's noise: what its corrector starts from.
    """

    plan: Sequence[_Step]
    k: int
    past: tuple[Tensor, ...]
    before: Tensor | None


@dataclass(frozen=True)
class Adams(Sampler):
    """One network call a step; equations (1) to (3) with the polynomial integrated exactly.

    Steps from alpha = 0 or to sigma = 0, where lambda is infinite, are of first order.

    Attributes:
        points: estimates that the predictor goes through, at least 1.
        corrected: how many of the first steps are corrected.
        of: what the polynomial runs through.
        along: the variable of the polynomial: lambda ("log") or r ("linear").
        tau: noise in [0, 1], for "x0" along "log" only.
        source: paper and equation.

    Raises:
        UserError: numbers or combinations that are not these.
    """

    points: int = 2
    corrected: int = 0
    of: Source = "x0"
    along: Literal["log", "linear"] = "log"
    tau: float = 0.0
    source: str = "Lu et al. 2211.01095, eq. 8"

    def __post_init__(self) -> None:
        if self.points < 1 or self.corrected < 0:
            raise UserError(f"Adams needs points >= 1 and corrected >= 0, got {self.points} and {self.corrected}")
        if not 0 <= self.tau <= 1:
            raise UserError(f"tau is the share of the SDE's noise and lies in [0, 1], got {self.tau}")
        if self.tau and (self.of, self.along) != ("x0", "log"):
            raise UserError("tau > 0 needs a polynomial of x0 along lambda: only there is the noise integrated")

    @property
    def order(self) -> int:  # type: ignore[override]
        """That of the predictor, one more if every step is corrected; 3 at most after a first step with one call.

        Of the law, with noise: 2 at most, as measured; the polynomial does not follow the noise within a step.
        """
        most = 2 if self.stochastic else 2 + (self.corrected > 0)
        return min(self.points + (self.corrected == EVERY), most)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether steps draw noise."""
        return self.tau > 0

    def init(self, model: Model, x: Tensor, stops: Sequence[Instant]) -> Memory:
        return Memory(_plan(self, tuple(stops)), 0, (), None)

    def step(
        self, model: Model, x: Tensor, t: Instant, s: Instant, memory: Memory, rng: Rng
    ) -> tuple[Tensor, Estimate, Memory]:
        plan, k, past, before = memory
        step = plan[k]
        estimate = model(x, t)
        past = (getattr(estimate, step.of), *past)
        if before is not None and (fix := plan[k - 1].fix):
            x = _add(before, fix, past)
        x = step.keep * x
        if step.noise:
            x.add_(randn_like(x, rng), alpha=step.noise)
        before = x.clone() if step.fix else None
        return _add(x, step.weights, past), estimate, Memory(plan, k + 1, past[: len(step.weights)], before)

    def weights(self, nodes: Sequence[float], now: Instant, then: Instant) -> Weights:
        """Return the factor of each estimate in a step.

        Args:
            nodes: their lambdas, newest first; the corrector's first is that of ``then``.
            now: where the step starts.
            then: where it ends.
        """
        places = [self._along(node) for node in nodes]
        return self._integral(lambda place: lagrange(places, self._along(place)), now, then)

    def _along(self, place: float) -> float:
        return place if self.along == "log" else math.exp(-place)

    def _integral(self, values: Callable[[float], Sequence[float]], now: Instant, then: Instant) -> Weights:
        return integral(values, now, then, self.of, self.tau)


class Midpoint(Adams):
    """As shipped by DPM-Solver++ 2M and UniPC: two estimates count as if D were its value in the middle of the step.

    More than two are integrated exactly. The order is the same.
    """

    def weights(self, nodes: Sequence[float], now: Instant, then: Instant) -> Weights:
        """Return the factor of each estimate in a step; see :meth:`Adams.weights`."""
        if len(nodes) != 2:
            return super().weights(nodes, now, then)
        (whole,) = super().weights(nodes[:1], now, then)
        return tuple(whole * part for part in lagrange(nodes, (lam(now) + lam(then)) / 2))


class Halved(Midpoint):
    """DPM-Solver++ 3M as shipped everywhere: its second difference is half of what it should be.

    With D2 = (D1_0 - D1_1)/(r0 + r1) = h^2 D''/2 in the place of h^2 D'' the method is of second order.
    """

    order = 2

    def weights(self, nodes: Sequence[float], now: Instant, then: Instant) -> Weights:
        """Return the factor of each estimate in a step; see :meth:`Adams.weights`."""
        whole = super().weights(nodes, now, then)
        if len(nodes) != 3:
            return whole
        (bend,) = self._integral(lambda place: [(place - lam(now)) ** 2], now, then)
        second = [1 / math.prod(a - b for j, b in enumerate(nodes) if j != i) for i, a in enumerate(nodes)]
        return tuple(w - bend * d / 2 for w, d in zip(whole, second, strict=True))


class IPNDM(Adams):
    """Adams-Bashforth with its factors for equal steps, on whatever grid; of second order where steps vary smoothly."""

    order = 2

    def weights(self, nodes: Sequence[float], now: Instant, then: Instant) -> Weights:
        """Return the factor of each estimate in a step; see :meth:`Adams.weights`."""
        (whole,) = super().weights(nodes[:1], now, then)
        steps = [-float(j) for j in range(len(nodes))]  # t and the stops before it, if all steps were 1
        return tuple(whole * part for part in quadrature(lambda place: lagrange(steps, place), 1.0))


def _add(x: Tensor, weights: Weights, estimates: Sequence[Tensor]) -> Tensor:
    """Add weighted estimates to x, in place."""
    for weight, estimate in zip(weights, estimates, strict=False):
        x.add_(estimate, alpha=weight)
    return x


@lru_cache(maxsize=64)
def _plan(method: Adams, stops: tuple[Instant, ...]) -> tuple[_Step, ...]:
    """Return the numbers of every step, once for a grid."""
    plan: list[_Step] = []
    nodes: list[float] = []  # lambdas of the estimates to come, newest first
    for k, (now, then) in enumerate(pairwise(stops)):
        if not (math.isfinite(now.logsnr) and math.isfinite(then.logsnr)):
            keep = float(then.sigma / now.sigma)
            plan.append(_Step("x0", keep, (float(then.alpha) - keep * float(now.alpha),), 0.0, None))
            nodes = []
            continue
        nodes = [lam(now), *nodes][: method.points]
        if method.of == "x0":
            fall = method.tau**2 * (lam(then) - lam(now))
            keep = float(then.sigma / now.sigma) * math.exp(-fall)
            noise = float(then.sigma) * math.sqrt(-math.expm1(-2 * fall))
        else:
            keep, noise = float(then.alpha / now.alpha), 0.0
        seen = k + 2 < len(stops) and (method.of == "x0" or math.isfinite(stops[k + 2].logsnr))  # an estimate at s
        fix = method.weights([lam(then), *nodes], now, then) if k < method.corrected and seen else None
        plan.append(_Step(method.of, keep, method.weights(nodes, now, then), noise, fix))
    return tuple(plan)
