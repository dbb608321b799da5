"""The score view: the same model as a vector field, without probabilities of steps.

The process is an SDE, and every law p_t it passes through has a score. With it time can be turned round:

(1)  dx = f x dt + g dw                          the way to noise: ``process.sde(t)``   (Song et al. 2011.13456, eq. 5)
(2)  score(x, t) = grad_x log p_t(x) = -E[eps | x_t = x] / sigma                        (Vincent 2011)
(3)  dx = (f x - g^2 score) dt + g dw            the way back, dt < 0                   (Anderson 1982; Song, eq. 6)
(4)  dx = (f x - g^2 score / 2) dt               without noise, both ways               (Song, eq. 13)
        = (alpha' E[x_0 | x_t] + sigma' E[eps | x_t]) dt                                (Lipman et al. 2210.02747)

All three have the marginals p_t. In the second form of (4) nothing is infinite where alpha = 0; (3) has no drift there.

On the circle x~ = x_t / sqrt(alpha^2 + sigma^2), angle = arctan(sigma/alpha), (4) is the same for every schedule, and
bounded at both ends:

(5)  x~ = cos(angle) x_0 + sin(angle) eps,   dx~/dangle = v(x~, angle) = cos(angle) eps_hat - sin(angle) x_0_hat
                                                        (Salimans and Ho 2202.00512, eq. 9 and app. D)
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.denoise import Model, need_mean, take
from sfumato.errors import UserError
from sfumato.ode import Slope
from sfumato.process import spread
from sfumato.rows import Estimate
from sfumato.schedule import Time, as_time

__all__ = ["circle", "ode_drift", "reverse_drift", "score"]


def score(model: Model, x: Tensor, t: Time) -> Tensor:
    """Return grad_x log p_t(x), of the shape of ``x``; equation (2).

    Args:
        model: what estimates the data.
        x: (B, ...) states.
        t: their time in (0, 1], one number or one for each example. Data themselves, t = 0, have no score.

    Raises:
        UserError: t outside (0, 1].
    """
    return _estimate(model, x, t).score


def reverse_drift(model: Model, x: Tensor, t: Time) -> Tensor:
    """Return the drift f x - g^2 score of the reverse SDE, of the shape of ``x``; equation (3). Its noise is g dw.

    Args:
        model: what estimates the data.
        x: (B, ...) states.
        t: their time in (0, 1], one number or one for each example.

    Raises:
        UserError: t outside (0, 1], or where no signal is left (alpha = 0), as at the end of ``Flow``.
    """
    estimate = _estimate(model, x, t)
    if bool(torch.as_tensor(estimate.t.alpha == 0).any()):
        raise UserError(
            f"the reverse SDE has no drift at t = {as_time(t).tolist()}, where {type(estimate.schedule).__name__} "
            "leaves no signal (alpha = 0): start below it, or use ode_drift"
        )
    sde = model.process.sde(estimate.t)
    return sde.drift(x) - estimate.score * spread(sde.g.square(), x)


def ode_drift(model: Model, x: Tensor, t: Time) -> Tensor:
    """Return the drift f x - g^2 score / 2 of the probability-flow ODE, of the shape of ``x``; equation (4).

    Args:
        model: what estimates the data.
        x: (B, ...) states.
        t: their time in (0, 1], one number or one for each example.

    Raises:
        UserError: t outside (0, 1].
    """
    return _estimate(model, x, t).velocity


def circle(model: Model, shape: torch.Size) -> Slope:
    """Return v of equation (5) for ``sfumato.ode.solve``, with states of ``shape`` made flat.

    Raises:
        UserError: the model makes another shape of a state; when called.
    """
    schedule = model.process.schedule

    def v(angle: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        x = x.view(-1, *shape)
        now = schedule.at(schedule.time(-2 * angle.tan().log()).clamp(max=1.0))
        radius = torch.hypot(torch.as_tensor(now.alpha), torch.as_tensor(now.sigma))
        estimate = take(model, rows)(spread(radius, x) * x, now)
        if estimate.x0.shape != x.shape:
            raise UserError(f"the model makes {tuple(estimate.x0.shape[1:])} of states of shape {tuple(shape)}")
        out = estimate.eps * spread(now.alpha / radius, x) - estimate.x0 * spread(now.sigma / radius, x)
        return out.flatten(1)

    return v


def _estimate(model: Model, x: Tensor, t: Time) -> Estimate:
    need_mean(model, "a score")
    time = as_time(t)
    if not bool(((time > 0) & (time <= 1)).all()):
        raise UserError(f"a score needs noise: t lies in (0, 1], got {time.tolist()}")
    return model(x, model.process.schedule.at(t))
