"""The chain view of likelihood: a bound on -log p(x), term by term, of the very chain that ancestral sampling walks.

A chain stops at times 1 = t_0 > t_1 > ... > t_low > 0. With s the stop after t, D = E[x_0 | x_t] as the model says it,
snr = (alpha/sigma)^2 = e^l and r = sigma/alpha, in nats:

(1)  -log p(x) <= KL(q(x_1|x) || p(x_1))                                 prior          (Ho et al. 2006.11239, eq. 5;
                  + sum_k E KL(q(x_s|x_t, x) || p(x_s|x_t))              diffusion      Kingma et al. 2107.00630,
                  + E[-log p(x | x_{t_low})]                             reconstruction eq. 11)
(2)  KL = 1/2 (snr_s - snr_t) |x - D|^2        each step of a Gaussian chain with the posterior's ("small") variance
(3)  1/2 int snr |x - D|^2 dl                  the sum in the limit of infinitely many steps  (Kingma et al., eq. 18)

The gap of (2) falls as 1/steps, and is not small: 0.05 nats a dimension at 1,000 steps on Gaussian data. The chain of
"optimal" variance and (3) have none of it.

A few draws estimate (2) and (3) without bias: draw a step with probability p_k (or l with density p) and divide its
term by it. No data of standard deviation sd are harder to denoise than a Gaussian, |x - D|^2 <= sd^2/(1 + snr sd^2) a
dimension on average (the best linear estimate attains it), so with p proportional to the terms under this bound

(4)  p_k ~ (snr_s - snr_t) / (1 + snr_t sd^2),     p(l) ~ sigmoid(l + 2 log sd),    int p ~ softplus(l + 2 log sd)

no weighted term is large on average, and for Gaussian data all are equal. Draws are stratified, one in each n-th part
of (4), each example with its own. Where g_1..g_n are what the draws (or the steps) add, in the order of time,

(5)  error^2 = n / (2 (n - 1)) sum (g_{i+1} - g_i)^2          (Wolter, J. Am. Stat. Assoc. 79, 1984: neighbouring
     differences; unlike the plain variance it does not count as error what stratification takes away)

The last step, from t_low to x, is the decoder's (decoder.py), which is given D and its variance, v = Var(x_0 | x_t) if
the model knows it, else that of a Gaussian,

(6)  v = r^2 sd^2 / (r^2 + sd^2)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sfumato.denoise import Model, need_mean
from sfumato.density.decoder import Decoder, Density
from sfumato.dist import Rng, per_example, rand
from sfumato.errors import UserError
from sfumato.grid import R_MAX
from sfumato.grid import times as grid_times
from sfumato.process import Gaussian, Process
from sfumato.sampler.ancestral import Ancestral, Variance
from sfumato.schedule import Instant, Schedule, as_time

__all__ = ["Bound", "vlb"]

_DECODINGS = 4
"""Draws of the last step: where steps are many its noise is the largest part of the error, and one has no error."""


@dataclass(frozen=True)
class Bound:
    """A bound on -log p(x), in nats, float64; equation (1).

    Attributes:
        prior: (B,).
        terms: (B, n) what each step of the chain, or each draw, adds to the diffusion term, from noise to data.
        times: (B, n) at which these were computed.
        reconstruction: (B,).
        error: (B,) standard error of ``nats`` over the noise and the draws; nan where there is a single draw.
        decoder: what made the last step: "density", "discretised", or "chain" where the chain's own step ends in a
            probability, as for tokens.
        mass: whether the bound is of a probability; else of a density, which depends on the unit of x.
        steps: of the chain, the decoder's included; None in continuous time.
        dims: numbers in one example.
    """

    prior: Tensor
    terms: Tensor
    times: Tensor
    reconstruction: Tensor
    error: Tensor
    decoder: str
    mass: bool
    steps: int | None
    dims: int

    @property
    def diffusion(self) -> Tensor:
        """The sum over the steps, or its estimate, (B,)."""
        return self.terms.sum(1)

    @property
    def nats(self) -> Tensor:
        """The bound, (B,)."""
        return self.prior + self.diffusion + self.reconstruction

    def bits_per_dim(self, log_volume: float = 0.0) -> Tensor:
        """Return the bound for the user's items in bits per dimension, (B,).

        Args:
            log_volume: the codec's log |d state / d item|. It turns a density of states into one of items; a
                probability has no unit, so with a discretised decoder it is not used and may always be given.
        """
        return (self.nats - (0.0 if self.mass else log_volume)) / (self.dims * math.log(2))


@torch.no_grad()
def vlb(
    model: Model,
    x: Tensor,
    *,
    grid: str | Sequence[float] | Tensor | None = None,
    steps: int | None = 1000,
    variance: Variance = "small",
    calls: int | None = None,
    decoder: Decoder | None = None,
    sigma_data: float = 1.0,
    rng: Rng = None,
) -> Bound:
    """Bound -log p(x) of each example; equation (1).

    Args:
        model: what estimates the data, of a Gaussian process or of tokens. With dropout, in ``eval()`` mode.
        x: (B, ...) data as states.
        grid: the chain's times: a name in ``sfumato.grid.GRIDS``, or explicit times that fall from 1; the decoder
            steps from the last one above 0. By default "uniform" for tokens, else "logsnr", which here goes down to
            the decoder's noise.
        steps: of a named grid, the decoder's included; None: continuous time, equation (3).
        variance: of the reverse steps, see ``Ancestral``.
        calls: how many network calls estimate the diffusion term; None: one for every step of the chain.
        decoder: last step of a Gaussian process, by default ``Density()``. Tokens need none.
        sigma_data: the data's standard deviation: it places the draws of (4), and is the width (6) of a model that
            does not know Var(x_0 | x_t).
        rng: where noise comes from; one generator for each example makes it independent of its neighbours.

    Returns:
        The bound and its parts, after ``calls`` or ``steps`` - 1 network calls and 4 for the reconstruction.

    Raises:
        UserError: x that is not (B, ...), not finite, not of the model's shape or out of the decoder's reach; steps
            or calls < 1; continuous time without calls, or of tokens; an unknown name; a grid that does not fall
            from 1; a model that does not know the variance; or a term that is NaN, with its time.
    """
    need_mean(model, "the bound on log p")
    q: Process = model.process
    schedule, chain = model.process.schedule, Ancestral(variance)
    decoder = _checked(q, x, calls, decoder, sigma_data)
    if steps is None:
        if decoder is None or calls is None or grid is not None:
            raise UserError("continuous time (steps=None) is for a Gaussian process, and takes calls and no grid")
        end = schedule.at(float(schedule.time(-2 * math.log(decoder.noise))))
        times, terms = _continuous(model, x, end, calls, sigma_data, rng)
    else:
        stops = _stops(grid, steps, schedule, decoder)
        steps, end = len(stops), schedule.at(float(stops[-1]))
        times, terms = _discrete(model, x, stops, chain, calls, sigma_data, rng)
    decodings = torch.stack([_decode(model, x, end, decoder, sigma_data, rng) for _ in range(_DECODINGS)], 1)
    return Bound(
        prior=_number(q.marginal(x, 1.0).kl(q.prior(x)), schedule.at(1.0)),
        terms=terms,
        times=times.expand(terms.shape),
        reconstruction=decodings.mean(1),
        error=(_squared_error_of_sum(terms) + _squared_error_of_sum(decodings / _DECODINGS)).sqrt(),
        decoder="chain" if decoder is None else decoder.name,
        mass=decoder is None or decoder.mass,
        steps=steps,
        dims=x[0].numel(),
    )


def _checked(q: Process, x: Tensor, calls: int | None, decoder: Decoder | None, sigma_data: float) -> Decoder | None:
    """Refuse what can't be meant; return the decoder, None for a process that reaches t = 0 with a probability."""
    if not isinstance(x, Tensor) or x.ndim < 2 or x.numel() == 0:
        raise UserError(
            f"x is one tensor of examples along the first axis, (B, ...), got {getattr(x, 'shape', type(x))}"
        )
    if calls is not None and calls < 1:
        raise UserError(f"calls must be at least 1, got {calls}")
    if not 0 < sigma_data < math.inf:
        raise UserError(f"sigma_data must be above 0, got {sigma_data}")
    if not isinstance(q, Gaussian):
        if decoder is not None:
            raise UserError(f"{type(q).__name__} makes its last step itself: leave out the decoder")
        return None
    if not x.is_floating_point() or not bool(x.isfinite().all()):
        raise UserError("x must be finite floating-point states: encode the data, and look for NaN or inf in them")
    decoder = Density() if decoder is None else decoder
    decoder.log_prob(x, x, x.new_ones(()))  # refuses what it can't produce now, not after a thousand network calls
    return decoder


def _stops(
    grid: str | Sequence[float] | Tensor | None, steps: int, schedule: Schedule, decoder: Decoder | None
) -> Tensor:
    """Return the chain's times above 0, falling from 1."""
    if grid is None:
        grid = "uniform" if decoder is None else "logsnr"
    if isinstance(grid, str) and grid == "logsnr" and decoder is not None and steps >= 1:
        start = max(float(schedule.logsnr(1.0)), -2 * math.log(R_MAX))  # grid.logsnr stops where samples look clean
        logsnr = torch.linspace(start, -2 * math.log(decoder.noise), steps, dtype=torch.float64)
        grid = torch.cat([logsnr.new_ones(1), schedule.time(logsnr[1:]), logsnr.new_zeros(1)])
    stops = grid_times(grid, steps, schedule)
    if stops[0] != 1:
        raise UserError(f"the chain of a bound starts at t = 1, got a grid from {float(stops[0])}")
    return stops[stops > 0]


def _discrete(
    model: Model, x: Tensor, stops: Tensor, chain: Ancestral, calls: int | None, sigma_data: float, rng: Rng
) -> tuple[Tensor, Tensor]:
    """Return times, and terms (B, n) whose sum is the diffusion term of (1): of all steps, or of draws by (4)."""
    schedule = model.process.schedule
    if calls is None or len(stops) == 1:
        terms = [_kl(model, x, t, s, chain, rng) for t, s in pairwise(schedule.instants(stops))]
        return stops[:-1], torch.stack(terms, 1) if terms else x.new_zeros((len(x), 0), dtype=torch.float64)
    p = _importance(model.process, stops, sigma_data)
    k = torch.searchsorted(p.cumsum(0), _strata(x, calls, rng)).clamp(max=len(p) - 1)
    terms = [_kl(model, x, schedule.at(stops[i]), schedule.at(stops[i + 1]), chain, rng) for i in k.T]
    return stops[k], torch.stack(terms, 1) / (calls * p[k]).to(x.device)


def _importance(q: Process, stops: Tensor, sigma_data: float) -> Tensor:
    """Return the probability p_k of each step, (n,) float64; equation (4). Steps of tokens are equally likely."""
    p = torch.ones(len(stops) - 1, dtype=torch.float64)
    if isinstance(q, Gaussian):
        snr = q.schedule.logsnr(stops).exp()
        p = snr.diff() / (1 + snr[:-1] * sigma_data**2)
    return p / p.sum()


def _continuous(
    model: Model, x: Tensor, end: Instant, calls: int, sigma_data: float, rng: Rng
) -> tuple[Tensor, Tensor]:
    """Return times (B, n), and terms (B, n) whose sum estimates (3) from t = 1 to ``end``, drawn by (4)."""
    schedule, shift = model.process.schedule, 2 * math.log(sigma_data)
    low, high = (float(softplus(schedule.logsnr(t) + shift)) for t in (1.0, end))
    logsnr = torch.expm1(low + (high - low) * _strata(x, calls, rng)).log() - shift
    t = schedule.time(logsnr).clamp(max=1.0)
    errors = [_error(model, x, schedule.at(column), rng) for column in t.T]
    snr_over_p = (logsnr.exp() + sigma_data**-2) * (high - low)
    return t, snr_over_p.to(x.device) * torch.stack(errors, 1) / (2 * calls)


def _strata(x: Tensor, n: int, rng: Rng) -> Tensor:
    """Draw (B, n) numbers in [0, 1), float64 on the CPU: for every example one in each n-th part."""
    return (torch.arange(n) + rand(torch.empty(len(x), n), rng)) / n


def _estimate(model: Model, x: Tensor, t: Instant, rng: Rng) -> Any:
    """Return the model's estimate at one draw of x_t."""
    estimate = model(model.process.marginal(x, t).sample(rng), t)
    if estimate.x0.shape != x.shape:
        raise UserError(f"the model's estimate has shape {tuple(estimate.x0.shape)} where x has {tuple(x.shape)}")
    return estimate


def _kl(model: Model, x: Tensor, t: Instant, s: Instant, chain: Ancestral, rng: Rng) -> Tensor:
    """Return KL(q(x_s | x_t, x) || p(x_s | x_t)) at one draw of x_t, (B,)."""
    estimate = _estimate(model, x, t, rng)
    q: Process = model.process
    return _number(q.posterior(estimate.x_t, x, t, s).kl(chain.law(model, estimate, t, s)), t)


def _error(model: Model, x: Tensor, t: Instant, rng: Rng) -> Tensor:
    """Return |x - D|^2 at one draw of x_t, (B,)."""
    return _number(per_example((x - _estimate(model, x, t, rng).x0).square()), t)


def _decode(model: Model, x: Tensor, t: Instant, decoder: Decoder | None, sigma_data: float, rng: Rng) -> Tensor:
    """Return -log p(x | x_t) at one draw of x_t, (B,); equation (6)."""
    estimate = _estimate(model, x, t, rng)
    if decoder is None:
        return _number(-model.process.reverse(estimate, t, 0.0).log_prob(x), t)
    var = estimate.x0_var
    if var is None:
        var = x.new_tensor(1 / (sigma_data**-2 + math.exp(t.logsnr)))  # = r^2 sd^2 / (r^2 + sd^2)
    return _number(-decoder.log_prob(x, estimate.x0, var.clamp(min=0).sqrt()), t)


def _number(nats: Tensor, now: Instant) -> Tensor:
    """Return a term in float64, unless it is NaN."""
    if bool(nats.isnan().any()):
        t = as_time(now).expand(len(nats))[nats.isnan().cpu()][0]
        raise UserError(
            f"the bound is not a number at t = {float(t):.4g}: the network's weights hold NaN or inf, or the model "
            "is certain of data that have finitely many levels, which need decoder=Discretised(levels, low, high)"
        )
    return nats.double()


def _squared_error_of_sum(terms: Tensor) -> Tensor:
    """Return the squared standard error of the sum of (B, n) over its columns, (B,); equation (5)."""
    n = terms.shape[1]
    return terms.diff(dim=1).square().sum(1) * (math.nan if n == 1 else n / (2 * (n - 1)))
