"""Against diffusers: the same sigmas, the same model, the same noise.

Two libraries that agree may share a mistake, which the laws of test_sampler.py would show; two that differ do not
share the definition. Traps, as met: ``timesteps`` are rounded, so the model must take its noise level from the
scheduler's own sigmas; DDIM's "previous step" is a stride, right only where N divides 1,000 and spacing is
"leading"; Euler and Heun live in x/alpha, the DPM family in x.
"""

import pytest
import torch

from oracles import Exact, mixture
from sfumato.dist import stream
from sfumato.process import Gaussian
from sfumato.sampler import DDIM, Ancestral, DPMpp2M, Heun, generate
from sfumato.schedule import Table

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, with numpy 2

TABLE = Table()
STEPS = 20
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # diffusers computes betas and states in float32


@pytest.fixture
def start():
    return torch.randn(16, 2, generator=stream(0))


def exact_eps(x, r):
    """E[eps | x_t] of the mixture, for x_t = y alpha with noise level r = sigma/alpha, in float64 inside."""
    model = Exact(mixture(), Gaussian(TABLE))
    return model(x.double(), TABLE.time(-2 * torch.as_tensor(r, dtype=torch.float64).log())).eps


def discrete(k):
    """Our time of diffusers' timestep k = 0..999, whose alpha_bar has k + 1 factors."""
    return (torch.as_tensor(k, dtype=torch.float64) + 1) / 1000


def leading(steps):
    return [1000 // steps * k for k in reversed(range(steps))]


def run_vp(scheduler, x, **noise):
    """A scheduler over VP states whose timesteps are whole."""
    model = Exact(mixture(), Gaussian(TABLE))
    for k in scheduler.timesteps:
        eps = model(x.double(), discrete(int(k))).eps.float()
        x = scheduler.step(eps, k, x, **noise).prev_sample
    return x


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(start, variance):
    scheduler = diffusers.DDPMScheduler(variance_type=f"fixed_{variance}", clip_sample=False)
    scheduler.set_timesteps(STEPS)
    theirs = run_vp(scheduler, start, generator=torch.Generator().manual_seed(1))
    stops = [*discrete(scheduler.timesteps).tolist(), 0.0]
    ours = generate(
        Exact(mixture(), Gaussian(TABLE)), Ancestral(variance), start, stops, rng=torch.Generator().manual_seed(1)
    )
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(start, eta):
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading")
    scheduler.set_timesteps(STEPS)
    assert scheduler.timesteps.tolist() == leading(STEPS)
    theirs = run_vp(scheduler, start, eta=eta, generator=torch.Generator().manual_seed(1))
    stops = [*discrete(scheduler.timesteps).tolist(), 0.0]
    ours = generate(Exact(mixture(), Gaussian(TABLE)), DDIM(eta), start, stops, rng=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_ddim_linspace_is_theirs_to_mend(start):
    """Their previous step is t - 1000//N, which the "linspace" grid does not visit (issues #9261, #11347, #12633).

    Ours goes to the grid's next time. The two results differ by far more than rounding.
    """
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="linspace")
    scheduler.set_timesteps(10)
    theirs = run_vp(scheduler, start)
    stops = [*discrete(scheduler.timesteps).tolist(), 0.0]
    ours = generate(Exact(mixture(), Gaussian(TABLE)), DDIM(), start, stops)
    assert (ours - theirs).abs().max() > 0.01


def sigma_times(sigmas):
    """Our falling times of diffusers' list of sigma/alpha, the final 0 included."""
    r = sigmas.double()
    return torch.cat([TABLE.time(-2 * r[:-1].log()).clamp(max=1.0), r.new_zeros(1)])


def test_heun(start):
    scheduler = diffusers.HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02)
    scheduler.set_timesteps(STEPS)
    y = start * float(scheduler.init_noise_sigma)
    stops = sigma_times(torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]]))
    x = (y * TABLE.alpha(stops[0])).double()
    ours = generate(Exact(mixture(), Gaussian(TABLE)), Heun(), x, stops)
    for t in scheduler.timesteps:
        index = scheduler.step_index if scheduler.step_index is not None else 0
        sigma = scheduler.sigmas[index if scheduler.state_in_first_order else index + 1]
        scale = 1 / (sigma.double() ** 2 + 1).sqrt()
        y = scheduler.step(exact_eps(y * scale, sigma).float(), t, y).prev_sample
    torch.testing.assert_close(ours.float(), y, **CLOSE)


@pytest.mark.parametrize("karras", [False, True])
def test_dpm_solver_2m(start, karras):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, solver_order=2, final_sigmas_type="zero", use_karras_sigmas=karras
    )
    scheduler.set_timesteps(STEPS)
    x = start
    for k, t in enumerate(scheduler.timesteps):
        x = scheduler.step(exact_eps(x, scheduler.sigmas[k]).float(), t, x).prev_sample
    ours = generate(Exact(mixture(), Gaussian(TABLE)), DPMpp2M(), start.double(), sigma_times(scheduler.sigmas))
    torch.testing.assert_close(ours.float(), x, **CLOSE)
