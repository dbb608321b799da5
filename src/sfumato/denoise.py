"""The way back: a network that estimates the data behind x_t, and the reverse step it defines.

(1)  p_theta(x_s | x_t) = q(x_s | x_t, x_0 = x_0_hat(x_t, t))              (Ho et al. 2006.11239, sec. 3.2)
(2)  network input: x_t / sqrt(alpha^2 sd^2 + sigma^2), of unit variance   (Karras et al. 2206.00364, table 1: c_in)
     and level = -logsnr/8 = ln(sigma/alpha)/4                             (c_noise)
     and beside x_t, if wished, the best linear guess of x_0 / sd, ppca.py (2): a convolution sees little of a picture
(3)  loss = w(t) |x_0 - x_0_hat|^2 = w(t) (sigma/D)^2 |target - output|^2, mean over dimensions; see weighting.py
(4)  mmse(t) = E |x_0 - x_0_hat(x_t, t)|^2 / d, measured on data: the variance of x_0 that the estimate leaves open,
     from which the optimal reverse variance follows                       (Bao et al. 2201.06503, eq. 7)
(5)  a network of twice the channels says v too, f = sigmoid(2 v), and its step has the variance tau^(2-2f) var_ts^f
                                                                           (Nichol and Dhariwal 2102.09672, eq. 15)
(6)  it is trained on  (3) + KL(q(x_s|x_t, x_0) || p_theta(x_s|x_t)),  the mean of p_theta detached, in bits for each
     dimension, of the step from t to s = t - 1/1000                       (eq. 16)

What an estimate stands for is said by ``gives``. Every one of them makes a DDIM step from t to s,
(7)  x_s = alpha_s x_0_hat + sigma_s eps_hat,   x_t = alpha_t x_0_hat + sigma_t eps_hat,
and with "mean", E[x_0 | x_t], which all laws of the chain and the score need, such a step is right if it is small. With
"map" the network hears s too, and the step is the flow's own, however large (Boffi et al. 2406.07507, def. 2.1); at
s = t it is the mean. With "end" x_0_hat is where the flow through x_t ends (Song et al. 2303.01469, eq. 5), times the
gain of contrast.py. With "step" the step to the next stop of one grid is right (Salimans and Ho 2202.00512, app. G).

In (5) the paper has f = (v + 1)/2, the same to first order, which may leave [0, 1]. In (6) the paper's factors
lambda = 0.001 and T = 1000 cancel. Below t = 2/1000 the step is to s = t/2, so that none ends in the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.condition import Condition
from sfumato.coupling import COUPLINGS
from sfumato.dist import Normal, randn_like
from sfumato.errors import UserError, choose
from sfumato.hint import HINTS
from sfumato.known import known, random_masks
from sfumato.ppca import PPCA
from sfumato.process import Gaussian, spread
from sfumato.rows import ROWS, Estimate, input_scale
from sfumato.schedule import Instant, Time
from sfumato.weighting import WEIGHTINGS, Law, LogNormal, Uncertainty, weight

__all__ = [
    "GIVES", "Denoiser", "Given", "Model", "Network", "cost", "learned_step", "meaning", "need_mean", "squared_error",
    "take", "tells_mean",
]  # fmt: skip

GIVES = {
    "mean": "the mean of the data behind a state",
    "map": "steps of any length",
    "end": "where a state's path ends",
    "step": "the steps of one grid",
}
"""What an estimate may stand for; equation (7)."""


LEVEL_BOUND = 2.5
"""Levels of (2) beyond it (logsnr beyond 20) are given to the network as this: it can't tell them apart."""


CHAIN = 1000
"""Steps of the chain of which (6) takes one."""


class Model(Protocol):
    """What samplers need: a process, and an estimate for any state and time. Guidance wraps one in another."""

    @property
    def process(self) -> Gaussian:
        """The forward process."""

    def __call__(self, x_t: Tensor, t: Time, *, s: Time | None = None) -> Estimate:
        """Estimate the data behind ``x_t`` (B, ...); ``s`` is given to one that gives a map alone."""


class Network(Protocol):
    """A network: (x (B, ...) of unit variance, level (B,), cond) -> output (B, ...); of a map also the level of s."""

    def __call__(self, x: Tensor, level: Tensor, cond: Condition | None = None, to: Tensor | None = None) -> Tensor:
        """Return the output in the denoiser's parameterisation."""


class Denoiser(nn.Module):
    """A network with a process: estimates x_0, steps back, and can be trained.

    Args:
        network: called as ``network(x, level, cond)`` with ``x`` of unit variance and level of shape (B,);
            equation (2). It returns the shape of x_t, with twice the channels for a learned variance. For a map it is
            called as ``network(x, level, cond, to)``, ``to`` the level of s.
        process: the forward process.
        parameterisation: what the output stands for, a key of ``sfumato.rows.ROWS``.
        weighting: what the loss weighs, a key of ``sfumato.weighting.WEIGHTINGS`` or of ``ROWS``, or "learned"; by
            default the plain error of the network's own output.
        sigma_data: the data's standard deviation, > 0: measure it (digits in [-1, 1] have 0.75, not 0.5).
        law: how often each noise level is drawn in training; by default log-normal.
        variance: "learned" if the network says the variance of the reverse step, equation (5); else "fixed".
        gives: what the estimate stands for, a key of :data:`GIVES`; equation (7).
        coupling: which noise goes with which example in training, a key of ``sfumato.coupling.COUPLINGS``.
        drop: share of the examples whose condition is dropped in training, for guidance; condition.py.
        masks: whether the network is shown parts of the pictures in training, under random masks; known.py.
        hint: what it is told of their outlines, a key of ``sfumato.hint.HINTS``; "" for nothing.
        ppca: makes a guess of x_0 that the network sees in as many channels more; None for none.

    Raises:
        UserError: an unknown name, sigma_data <= 0, or a parameterisation that cannot be inverted at t = 1
            ("eps" or "score" where alpha(1) = 0).
    """

    mmse_logsnr: Tensor
    mmse: Tensor
    gain: Tensor

    def __init__(
        self,
        network: nn.Module,
        process: Gaussian,
        *,
        parameterisation: str = "edm",
        weighting: str | None = None,
        sigma_data: float = 0.5,
        law: Law | None = None,
        variance: Literal["fixed", "learned"] = "fixed",
        gives: str = "mean",
        coupling: str = "independent",
        drop: float = 0.0,
        masks: bool = False,
        hint: str = "",
        ppca: PPCA | None = None,
    ) -> None:
        super().__init__()
        choose("parameterisation", parameterisation, ROWS)
        weighting = parameterisation if weighting is None else weighting
        choose("weighting", weighting, dict.fromkeys([*ROWS, *WEIGHTINGS, "learned"]))
        choose("variance", variance, {"fixed": 1, "learned": 2})
        choose("what a network gives", gives, GIVES)
        if not 0 < sigma_data < float("inf"):
            raise UserError(f"sigma_data must be above 0, got {sigma_data}: is every item of the data the same?")
        if parameterisation in ("eps", "score") and float(process.schedule.alpha(1.0)) == 0:
            raise UserError(
                f"'{parameterisation}' can't be read at t = 1, where {type(process.schedule).__name__} leaves no "
                "signal (alpha = 0): use x0, v, flow or edm"
            )
        self.network = network
        self.ppca = ppca
        self.process = process
        self.parameterisation = parameterisation
        self.weighting = weighting
        self.uncertainty = Uncertainty() if weighting == "learned" else None
        self.variance = variance
        self.gives = gives
        self.coupled = choose("coupling", coupling, COUPLINGS)
        if not 0 <= drop < 1:
            raise UserError(f"the share of conditions to drop is in [0, 1), got {drop:g}")
        self.drop = drop
        self.masks = masks
        self.hint = choose("hint", hint, HINTS) if hint else None
        self.sigma_data = sigma_data
        self.law: Law = LogNormal() if law is None else law
        self.register_buffer("mmse_logsnr", torch.linspace(-10, 12, 45))  # falling noise, as np.interp needs
        self.register_buffer("mmse", torch.full((45,), torch.nan))
        if gives == "end":
            self.register_buffer("gain", torch.ones(()))

    def forward(self, x_t: Tensor, t: Time, cond: Condition | None = None, s: Time | None = None) -> Estimate:
        """Estimate the data behind ``x_t``.

        Args:
            x_t: (B, ...) state at time ``t``.
            t: time in (0, 1], one number or one for each example.
            cond: of each example, if the network hears any.
            s: where a step will go, in [0, t], for a network that gives a map; by default t itself, for the mean.

        Raises:
            UserError: a network without the channels for a learned variance.
        """
        schedule = self.process.schedule
        now = schedule.at(t)
        heard = [_level(now, x_t), cond]
        if self.gives == "map":
            heard.append(_level(now if s is None else schedule.at(s), x_t))
        x = x_t / spread(input_scale(schedule, now, self.sigma_data), x_t)
        if self.ppca is not None:
            x = torch.cat([x, self.ppca(x_t, now) / self.sigma_data], 1)
        output = self.network(x, *heard)
        fraction = None
        if self.variance == "learned":
            if output.shape[1] != 2 * x_t.shape[1]:
                raise UserError(f"a learned variance needs a network with {2 * x_t.shape[1]} channels of output")
            output, v = output.chunk(2, 1)
            fraction = (2 * v).sigmoid()
        a, b = ROWS[self.parameterisation](schedule, now, self.sigma_data)
        said = Estimate(x_t, now, schedule, output, a, b, self._x0_var, fraction)
        loud = self.gives == "end" and not self.training
        return Estimate(x_t, now, schedule, self.gain * said.x0, 1.0, 0.0) if loud else said

    def reverse(self, x_t: Tensor, t: Time, s: Time, cond: Condition | None = None) -> Normal:
        """Return p_theta(x_s | x_t) for s < t; equation (1). Arguments as in :meth:`forward`.

        Raises:
            UserError: not 0 <= s < t <= 1.
        """
        estimate = self.forward(x_t, t, cond)
        return (
            self.process.reverse(estimate, t, s)
            if self.variance == "fixed"
            else learned_step(self.process, estimate, t, s)
        )

    def times(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` times in (0, 1] from the law of training, float64, stratified over all of them."""
        return self.law.times(n, self.process.schedule, self.sigma_data, rng)

    def loss(
        self, x_0: Tensor, cond: Condition | None = None, rng: torch.Generator | None = None, t: Tensor | None = None
    ) -> Tensor:
        """Return the training loss of each example at a random time, (B,); equations (3) and (6).

        With the weighting "elbo" and a fixed variance its mean is the diffusion term of the bound on -log p(x), in
        nats for each dimension, over the levels of the law. With "learned" it is what weighting.py says of (8).

        Args:
            x_0: (B, ...) data.
            cond: of each example, if the network hears any.
            rng: CPU generator for the times, the masks and the noise.
            t: (B,) times of a larger batch that was drawn as one; by default drawn here.
        """
        t = self.times(len(x_0), rng) if t is None else t
        cond = None if cond is None else cond.dropped(self.drop, rng)
        if self.masks:
            cond = self.shown(x_0, random_masks(x_0, rng), cond)
        if self.hint is not None:
            cond = replace(Condition() if cond is None else cond, hint=self.hint(x_0))
        now = self.process.schedule.at(t)
        eps = self.coupled(x_0, randn_like(x_0, rng), None if cond is None else cond.label)
        estimate = self.forward(spread(now.alpha, x_0) * x_0 + spread(now.sigma, x_0) * eps, now, cond)
        return self.loss_of(estimate, x_0, eps, t)

    def shown(self, x_0: Tensor, mask: Tensor, cond: Condition | None = None) -> Condition:
        """Return a condition by which the network is shown a part of pictures too; known.py, equation (1).

        Args:
            x_0: (B, C, H, W) data; what lies beyond the mask does not matter.
            mask: (H, W) or (B, 1, H, W), 1 where they are shown.
            cond: what is asked for beside.
        """
        return replace(Condition() if cond is None else cond, known=known(x_0 / self.sigma_data, mask))

    def loss_of(self, estimate: Estimate, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return the training loss of an estimate that is made already, (B,).

        Args:
            estimate: of this denoiser.
            x_0: (B, ...) data.
            eps: (B, ...) noise in them.
            t: (B,) times.
        """
        schedule, sd = self.process.schedule, self.sigma_data
        name = self.weighting if self.uncertainty is None else self.parameterisation
        w = weight(name, schedule, t, sd, self.law.density(t, schedule, sd))
        loss = squared_error(estimate, x_0, eps, w)
        if self.uncertainty is not None:
            u = self.uncertainty(schedule.logsnr(t))
            loss = loss / u.exp() + u
        return loss if estimate.fraction is None else loss + self._step_bits(estimate, x_0, t)

    def _step_bits(self, estimate: Estimate, x_0: Tensor, t: Tensor) -> Tensor:
        """Return the Kullback-Leibler term of (6), (B,)."""
        s = torch.maximum(t - 1 / CHAIN, t / 2)
        step = learned_step(self.process, estimate, t, s)
        kl = self.process.posterior(estimate.x_t, x_0, t, s).kl(Normal(step.mean.detach(), step.std))
        return kl / (x_0[0].numel() * math.log(2))

    @torch.no_grad()
    def measure_mmse(self, x_0: Tensor, cond: Condition | None = None, rng: torch.Generator | None = None) -> None:
        """Measure equation (4) on data and keep it with the weights, for ancestral sampling of optimal variance.

        Args:
            x_0: (B, ...) data, one batch for each noise level; of 64 pictures it is off by a twentieth (measured).
            cond: of each example, if the network hears any.
            rng: CPU generator for the noise.
        """
        for k, logsnr in enumerate(self.mmse_logsnr.tolist()):
            t = self.process.schedule.time(logsnr).clamp(max=1.0)
            x_t = self.process.marginal(x_0, t).sample(rng)
            self.mmse[k] = (x_0 - self.forward(x_t, t, cond).x0).square().mean()

    def _x0_var(self, estimate: Estimate) -> Tensor | None:
        """Read the measured mmse; None before it is measured. Its ratio to a Gaussian's is interpolated, in logsnr
        and logarithm: unlike the mmse itself it goes on unchanged where the measured levels end.
        """
        if bool(self.mmse[0].isnan()):
            return None
        logsnr = torch.as_tensor(estimate.t.logsnr, dtype=torch.float64).detach().cpu()
        ratio = np.interp(
            logsnr.numpy(),
            self.mmse_logsnr.cpu().numpy(),
            (self.mmse.cpu().double() * self._sharpness(self.mmse_logsnr.cpu())).log().numpy(),
        )
        return torch.as_tensor(spread(torch.as_tensor(ratio).exp() / self._sharpness(logsnr), estimate.x_t))

    def _sharpness(self, logsnr: Tensor) -> Tensor:
        """Return 1 / mmse of Gaussian data, float64: 1/sd^2 + snr."""
        return logsnr.double().exp() + self.sigma_data**-2


def squared_error(estimate: Estimate, x_0: Tensor, eps: Tensor, w: Tensor) -> Tensor:
    """Return w |x_0 - x_0_hat|^2, mean over dimensions, (B,); the last form of (3), in which nothing cancels.

    Args:
        estimate: of x_t = alpha x_0 + sigma eps.
        x_0: (B, ...) what it should be.
        eps: (B, ...) the noise that goes with it.
        w: (B,) weight of the error of x_0.
    """
    now, a, b = estimate.t, estimate.a, estimate.b
    w = w * (now.sigma / (a * now.sigma - b * now.alpha)) ** 2
    error = spread(a, x_0) * x_0 + spread(b, x_0) * eps - estimate.output
    return w.to(x_0.device, x_0.dtype) * error.square().flatten(1).mean(1)


def meaning(model: Model) -> str:
    """Return what a model's estimate stands for, a key of :data:`GIVES`; the mean, unless it says otherwise."""
    return getattr(model, "gives", "mean")


def tells_mean(model: Model) -> bool:
    """Return whether a model's estimate is the mean of the data, or can be asked for it; equation (7)."""
    return meaning(model) in ("mean", "map")


def need_mean(model: Model, what: str) -> None:
    """Refuse a model whose estimate is not the mean, equation (7).

    Args:
        model: that is asked.
        what: is computed from it, for the error.

    Raises:
        UserError: the model gives something else.
    """
    if not tells_mean(model):
        raise UserError(
            f"{what} needs the mean of the data behind a state, and this model was distilled to give "
            f"{GIVES[meaning(model)]}: ask its teacher"
        )


def learned_step(process: Gaussian, estimate: Estimate, t: Time, s: Time) -> Normal:
    """Return p_theta(x_s | x_t) with the variance that the network says; equation (5).

    Args:
        process: the forward process.
        estimate: at ``t``, with a fraction.
        t: time of the state.
        s: earlier time; a step to 0 has no noise.

    Raises:
        UserError: the network was not trained to say it.
    """
    if estimate.fraction is None:
        raise UserError("this model was not trained to predict its variance: use small, large or optimal")
    small, large = process.reverse(estimate, t, s), process.transition(estimate.x_t, s, t).std
    between = small.std ** (1 - estimate.fraction) * large**estimate.fraction
    return Normal(small.mean, torch.where(small.std > 0, between, 0.0))


def _level(now: Instant, x: Tensor) -> Tensor:
    """Return the level of (2) for each example, (B,)."""
    level = -now.logsnr / 8
    if isinstance(level, Tensor):
        return level.clamp(-LEVEL_BOUND, LEVEL_BOUND).to(x.device, x.dtype).expand(len(x))
    return x.new_full((len(x),), min(max(level, -LEVEL_BOUND), LEVEL_BOUND))


@dataclass(frozen=True)
class Given:
    """A denoiser with its condition filled in: the model of p(x | cond) that samplers take.

    Attributes:
        denoiser: a conditional denoiser.
        cond: one for each row of the states to come.
    """

    denoiser: Denoiser
    cond: Condition | None

    @property
    def process(self) -> Gaussian:
        """The denoiser's forward process."""
        return self.denoiser.process

    @property
    def gives(self) -> str:
        """What the denoiser's estimate stands for."""
        return self.denoiser.gives

    def __call__(self, x_t: Tensor, t: Time, s: Time | None = None) -> Estimate:
        """Estimate the data behind ``x_t`` (B, ...) under the condition."""
        return self.denoiser.forward(x_t, t, self.cond, s)

    def take(self, rows: Tensor) -> Given:
        """Return the model for some rows of its batch."""
        return self if self.cond is None else Given(self.denoiser, self.cond[rows])


def cost(model: Model, t: Time) -> int:
    """Return how many network calls an estimate at ``t`` takes: one, or what the model's method ``cost`` says."""
    found: int = model.cost(t) if hasattr(model, "cost") else 1
    return found


def take(model: Model, rows: Tensor) -> Model:
    """Return a model for some rows (b,) of its batch: what holds a thing for each example has a method ``take``."""
    taken: Model = model.take(rows) if hasattr(model, "take") else model
    return taken
