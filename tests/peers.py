"""One model for two libraries: the exact mixture, asked by a scheduler of diffusers or by a sampler of ours.

Traps, as met: ``timesteps`` are rounded, so the model must take its noise level from the scheduler's own sigmas; Euler,
Heun, DPM-2 and LMS live in y = x/alpha, the DPM family in x; theirs are float32 throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oracles import Exact, mixture, tensor
from sfumato.dist import Rng, stream
from sfumato.process import Gaussian
from sfumato.sampler import Sampler, trajectory
from sfumato.schedule import Table

TABLE = Table()
MODEL = Exact(mixture(), Gaussian(TABLE))
BETAS = {"beta_start": 1e-4, "beta_end": 0.02}
"""Those of the default table, which are not the default of every scheduler."""
STEPS = 20
CLOSE = {"rtol": 3e-5, "atol": 3e-5}
"""Their states, betas and coefficients are float32."""


def noise() -> Tensor:
    return torch.randn(16, 2, generator=stream(0))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def discrete(k: int | Tensor) -> Tensor:
    """Our time of diffusers' timestep k = 0..999, whose alpha_bar has k + 1 factors."""
    return (tensor(k) + 1) / 1000


def sigma_times(sigmas: Tensor) -> Tensor:
    """Our times of diffusers' sigma/alpha, 0 included."""
    r = tensor(sigmas)
    return torch.where(r > 0, TABLE.time(-2 * r.clamp(min=1e-9).log()).clamp(max=1.0), 0.0)


def exact_eps(x: Tensor, t: Tensor) -> Tensor:
    """E[eps | x_t] of the mixture, float64 inside, as a float32 network would say it."""
    return MODEL(x.double(), t).eps.float()


def their_way(scheduler, x: Tensor, **options) -> Tensor:
    """All states (N + 1, B, D) of a scheduler over x with a table of sigmas."""
    states = [x]
    for sigma, t in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
        x = scheduler.step(exact_eps(x, sigma_times(sigma)), t, x, **options).prev_sample
        states.append(x)
    return torch.stack(states)


def their_scaled_way(scheduler, **options) -> tuple[Tensor, Tensor]:
    """Our times (N + 1,) and all states as x (N + 1, B, D) of a scheduler over y, with one or two calls a step."""
    y, sigmas, states = noise() * float(scheduler.init_noise_sigma), [], []
    for t in scheduler.timesteps:
        x = scheduler.scale_model_input(y, t)
        sigma = scheduler.sigmas[scheduler.step_index]
        if getattr(scheduler, "state_in_first_order", True):
            sigmas.append(sigma)
            states.append(y)
        else:
            sigma = getattr(scheduler, "sigmas_interpol", scheduler.sigmas)[scheduler.step_index]
        y = scheduler.step(exact_eps(x, sigma_times(sigma)), t, y, **options).prev_sample
    stops = sigma_times(torch.stack([*sigmas, torch.zeros(())]))
    return stops, (torch.stack([*states, y]) * TABLE.alpha(stops)[:, None, None]).float()


def our_way(sampler: Sampler, x: Tensor, stops, rng: Rng = None, model=MODEL) -> Tensor:
    """All states (N + 1, B, D) of a sampler of ours, as float32."""
    return torch.stack([state.x.float() for state in trajectory(model, sampler, x, stops, rng=rng)])
