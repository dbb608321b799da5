"""Data of which something was measured: a trained model answers inverse problems without being trained for them.

With y = A x_0 + N(0, s^2), and x_0_hat = E[x_0 | x_t] with the Jacobian J = d x_0_hat / d x_t,

(1)  p(y | x_t) ~ N(y; A x_0_hat, S),    S = s^2 + A C A^T,    C ~ Cov(x_0 | x_t)
(2)  x_0 <- x_0_hat + sigma^2/alpha J^T A^T S^(-1) (y - A x_0_hat)       as in steer.py (2), S held fixed

and what differs is what is taken for C:

     "dps"    0, and for s^2 at least mean (y - A x_0_hat)^2 / zeta      (Chung et al. 2209.14687, alg. 1)
     "pigdm"  sd^2 sigma^2 / (alpha^2 sd^2 + sigma^2), of Gaussian data  (Song et al. 2023, PiGDM, eq. 7 and 8)
     "mmps"   sigma^2/alpha J^T, Tweedie's, which is exact               (Rozet et al. 2405.13712, eq. 14)

DPS names a step of one sampler of a thousand steps, zeta times the gradient of |y - A x_0_hat|; as an estimate for all
samplers it is (2) with a variance in proportion to what is left to explain. S^(-1) is found by conjugate
gradients. For Gaussian data and "mmps" (2) is E[x_0 | x_t, y] itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.denoise import Model, cost, need_mean, take
from sfumato.errors import UserError, choose
from sfumato.guide.operators import Operator
from sfumato.guide.toward import told
from sfumato.process import Gaussian, spread
from sfumato.rows import Estimate
from sfumato.schedule import Instant, Number, Time

__all__ = ["METHODS", "Measured"]

METHODS = {
    "mmps": "the covariance that the network itself implies",
    "pigdm": "the covariance of Gaussian data",
    "dps": "no covariance",
}
"""What may be taken for the covariance of the data behind a state."""

Times = Callable[[Tensor], Tensor]
"""A matrix as what it makes of vectors (B, ...)."""


@dataclass(frozen=True)
class Measured:
    """A model of data of which something was measured; equation (2).

    Args:
        model: of the data, whose estimates are means.
        y: (B, ...) what was measured.
        operator: A, a linear function of states.
        noise: s, the standard deviation of the noise in y, > 0.
        method: a key of :data:`METHODS`.
        iterations: of conjugate gradients, 1 or more. More come nearer to (2), but the Jacobian of a network is not
            quite symmetric, and many may lead astray.
        sigma_data: the data's standard deviation, for "pigdm".
        zeta: for "dps"; more of it follows the measurement closer, in more steps.

    Raises:
        UserError: an unknown method, noise <= 0, iterations < 1, or a model that gives no means.
    """

    model: Model
    y: Tensor
    operator: Operator
    noise: float = 0.01
    method: str = "mmps"
    iterations: int = 1
    sigma_data: float = 1.0
    zeta: float = 10.0

    def __post_init__(self) -> None:
        choose("way to answer an inverse problem", self.method, METHODS)
        need_mean(self.model, "an inverse problem")
        if not self.noise > 0:
            raise UserError(f"the noise of what was measured must be above 0, got {self.noise:g}: take 0.01 for none")
        if self.iterations < 1:
            raise UserError(f"conjugate gradients take 1 iteration or more, got {self.iterations}")

    @property
    def process(self) -> Gaussian:
        """The model's forward process."""
        return self.model.process

    def __call__(self, x_t: Tensor, t: Time, s: Time | None = None) -> Estimate:
        """Estimate the data behind ``x_t`` (B, ...) and what was measured."""
        now = self.process.schedule.at(t)
        if not bool(torch.as_tensor(now.alpha).all()):  # the state says nothing, and its estimate moves with nothing
            return self.model(x_t, now)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            found = self.model(x, now)
            mean = found.x0
            seen = self.operator(mean)
        if seen.shape != self.y.shape:
            raise UserError(
                f"what was measured has the shape {tuple(self.y.shape)}, but of such states one sees "
                f"{tuple(seen.shape)}"
            )
        gain = spread(now.sigma**2 / now.alpha, x_t)

        def back(v: Tensor) -> Tensor:
            return torch.autograd.grad(seen, mean, v, retain_graph=True)[0]

        def jacobian(v: Tensor) -> Tensor:
            return torch.autograd.grad(mean, x, v, retain_graph=True)[0]

        left = self.y - seen.detach()
        if self.method == "dps":
            variance = (left.square().flatten(1).mean(1) / self.zeta).clamp(min=self.noise**2)
            solved = left / spread(variance, left)
        else:
            inner: Times = self._gaussian(now, x_t) if self.method == "pigdm" else lambda v: gain * jacobian(v)
            solved = conjugate_gradients(
                lambda v: self.noise**2 * v + self.operator(inner(back(v))).detach(), left, self.iterations
            )
        return told(found, (mean + gain * jacobian(back(solved))).detach())

    def _gaussian(self, now: Instant, x: Tensor) -> Times:
        prior = self.sigma_data**2
        variance: Number = prior * now.sigma**2 / (now.alpha**2 * prior + now.sigma**2)
        return lambda v: spread(variance, x) * v

    def cost(self, t: Time) -> int:
        """Return how many network calls an estimate at ``t`` takes, the ways back through it not counted."""
        return cost(self.model, t)

    def take(self, rows: Tensor) -> Measured:
        """Return the model for some rows of its batch."""
        return replace(self, model=take(self.model, rows), y=self.y[rows])


@torch.no_grad()
def conjugate_gradients(matrix: Times, b: Tensor, iterations: int) -> Tensor:
    """Return x of matrix x = b for each example, by the method of Hestenes and Stiefel (1952), from x = 0.

    Args:
        matrix: symmetric and positive for each example, as what it makes of (B, ...).
        b: (B, ...).
        iterations: at most; an example that is solved stays.
    """
    x, residual = torch.zeros_like(b), b
    direction, square = residual, _dot(residual, residual)
    for _ in range(iterations):
        moved = matrix(direction)
        along = _dot(direction, moved)
        step = torch.where(along > 0, square / along, 0.0)  # a network's Jacobian is symmetric but nearly
        x, residual = x + step * direction, residual - step * moved
        before, square = square, _dot(residual, residual)
        direction = residual + torch.where(before > 0, square / before, 0.0) * direction
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each example, (B, 1, ...)."""
    found: Tensor = spread((a * b).flatten(1).sum(1), a)
    return found
