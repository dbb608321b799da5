"""Laws with known answers: mixtures of Gaussians, whose every noisy marginal, score and posterior is closed form.

For data from sum_k w_k N(m_k, S_k), diagonal S_k, at noise level (alpha, sigma), with A_k = alpha^2 S_k + sigma^2:

(1)  p_t(x)       = sum_k w_k N(x; alpha m_k, A_k),                       g_k = responsibility of component k
(2)  E[x_0 | x]   = sum_k g_k d_k,    d_k = m_k + alpha S_k / A_k (x - alpha m_k)
(3)  Var(x_0 | x) = sum_k g_k (S_k sigma^2 / A_k + d_k^2) - E[x_0 | x]^2   (elementwise)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.process import Gaussian, spread
from sfumato.rows import Estimate, row
from sfumato.schedule import EDM, VE, VP, Cosine, Flow, Instant, Number, Schedule, SubVP, Table, Time

SCHEDULES = {
    "vp": VP(),
    "cosine": Cosine(),
    "subvp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "flow": Flow(),
    "table": Table(),
}


class EmpiricalNetwork(nn.Module):
    """The perfect EDM network of a finite set of points (N, D) with sigma_data = 1: ORACLES 8.

    With r = sigma/alpha and y = x_t/alpha, E[x_0 | y] = sum_i softmax_i(-|y - x_i|^2 / 2 r^2) x_i.
    """

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.points = points

    def forward(self, x: Tensor, level: Tensor, cond: Tensor | None = None) -> Tensor:
        r = (4 * level)[:, None].exp()
        scale = (1 + r**2).sqrt()
        y = x * scale
        x0 = (-(torch.cdist(y, self.points) ** 2) / (2 * r**2)).softmax(1) @ self.points
        return (x0 - y / scale**2) * scale / r  # (x_0 - c_skip y) / c_out


def tensor(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class Mixture:
    """Gaussians with weights (K,), means (K, D) and variances (K, D)."""

    weights: Tensor
    means: Tensor
    variances: Tensor

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        k = torch.multinomial(self.weights, n, replacement=True, generator=rng)
        noise = torch.randn(n, self.means.shape[1], generator=rng, dtype=torch.float64)
        return self.means[k] + self.variances[k].sqrt() * noise

    def _components(self, x: Tensor, alpha: Number, sigma: Number) -> tuple[Tensor, Tensor, Tensor]:
        """log [w_k N(x; alpha m_k, A_k)] (B, K), A_k (B or 1, K, D) and x - alpha m_k (B, K, D)."""
        alpha, sigma = (tensor(c).reshape(-1, 1, 1) for c in (alpha, sigma))
        spread = alpha**2 * self.variances + sigma**2
        z = x[:, None] - alpha * self.means
        return self.weights.log() - 0.5 * (z**2 / spread + (2 * torch.pi * spread).log()).sum(-1), spread, z

    def log_prob(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        return self._components(x, alpha, sigma)[0].logsumexp(-1)

    def posterior(self, x: Tensor, alpha: Number, sigma: Number) -> tuple[Tensor, Tensor]:
        """E[x_0 | x] and Var(x_0 | x), both (B, D)."""
        log_joint, spread, z = self._components(x, alpha, sigma)
        g = log_joint.softmax(-1)[..., None]
        d = self.means + tensor(alpha).reshape(-1, 1, 1) * self.variances / spread * z
        mean = (g * d).sum(1)
        left = self.variances * tensor(sigma).reshape(-1, 1, 1) ** 2 / spread
        return mean, (g * (left + d**2)).sum(1) - mean**2


@dataclass(frozen=True)
class Exact:
    """The perfect denoiser of a mixture: a Model for samplers, its answer given in any parameterisation."""

    law: Mixture
    process: Gaussian
    parameterisation: str = "x0"

    def __call__(self, x_t: Tensor, t: Time) -> Estimate:
        schedule = self.process.schedule
        now = schedule.at(t)
        x0, var = self.law.posterior(x_t.double(), now.alpha, now.sigma)
        a, b = row(self.parameterisation, schedule, now)
        eps = (x_t - spread(now.alpha, x_t) * x0) / spread(now.sigma, x_t)
        output = spread(a, x_t) * x0 + spread(b, x_t) * eps
        return Estimate(x_t, now, schedule, output.to(x_t.dtype), a, b, lambda _: var.to(x_t.dtype))


@dataclass(frozen=True)
class At:
    """A law that draws one time only."""

    t: float

    def times(self, n, schedule, sigma_data, rng):
        return tensor(self.t).expand(n)

    def density(self, t, schedule, sigma_data):
        return torch.ones_like(t)


def gaussian(mean: float = 0.7, var: float = 0.5, dim: int = 3) -> Mixture:
    return Mixture(tensor([1.0]), tensor([[mean] * dim]), tensor([[var] * dim]))


def mixture() -> Mixture:
    """Three unequal, unequally wide modes in the plane: a score that is far from linear."""
    return Mixture(
        tensor([0.5, 0.3, 0.2]),
        tensor([[1.0, 0.5], [-1.0, 0.2], [0.1, -1.2]]),
        tensor([[0.10, 0.20], [0.15, 0.08], [0.20, 0.10]]),
    )


def flow_map(law: Mixture, schedule: Schedule, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The exact solution of the probability-flow ODE of one Gaussian (K = 1), from t to s."""
    mean, var = law.means[0], law.variances[0]
    a_t, a_s = schedule.alpha(t), schedule.alpha(s)
    stretch = ((a_s**2 * var + schedule.var(s)) / (a_t**2 * var + schedule.var(t))).sqrt()
    return a_s * mean + stretch * (x - a_t * mean)


@dataclass(frozen=True)
class Quantiles:
    """The exact flow map of a mixture on the line: the flow keeps order, x_s = F_s^-1(F_t(x_t)) (ORACLES 4).

    As a model it gives the end of paths ("end") or a step to any stop ("map").
    """

    law: Mixture
    process: Gaussian
    gives: str = "map"

    def cdf(self, x: Tensor, now: Instant) -> Tensor:
        spread = (tensor(now.alpha) ** 2 * self.law.variances[:, 0] + tensor(now.sigma) ** 2).sqrt()
        return (torch.special.ndtr((x - now.alpha * self.law.means[:, 0]) / spread) * self.law.weights).sum(-1)

    def step(self, x: Tensor, t: Time, s: Time) -> Tensor:
        """x (B, 1) from t to s, by bisection of F_s."""
        t, s = (self.process.schedule.at(float(now.t) if isinstance(now, Instant) else float(now)) for now in (t, s))
        want, high = self.cdf(x, t), torch.full((len(x),), 400.0, dtype=torch.float64)
        low = -high
        for _ in range(80):
            middle = (low + high) / 2
            below = self.cdf(middle[:, None], s) < want
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return ((low + high) / 2)[:, None]

    def __call__(self, x_t: Tensor, t: Time, s: Time | None = None) -> Estimate:
        schedule = self.process.schedule
        now, then = schedule.at(t), schedule.at(0.0 if s is None or self.gives == "end" else s)
        keep, signal, _ = self.process.bridge(now, then, eta=0.0)
        x0 = (self.step(x_t.double(), now, then) - keep * x_t) / signal
        return Estimate(x_t, now, schedule, x0.to(x_t.dtype), 1.0, 0.0)


def line() -> Mixture:
    """Two unequal modes on the line."""
    return Mixture(tensor([0.65, 0.35]), tensor([[-0.8], [1.1]]), tensor([[0.09], [0.04]]))


def observed_order(steps: list[int], errors: list[float]) -> float:
    """The slope of log(error) against log(1/steps), by least squares."""
    x, y = -tensor(steps).log(), tensor(errors).log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())
