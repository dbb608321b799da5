"""Against diffusers: the same sigmas, the same model, the same noise, and every state on the way.

Two libraries that agree may share a mistake, which the laws of test_sampler.py would show; two that differ do not
share the definition. PEERS says which of their classes stands beside each sampler; at the end of this file, and in
test_diffusers_multistep.py, stands what they do otherwise, as theirs.
"""

import pytest
import torch

from oracles import Exact, mixture, tensor
from peers import (
    BETAS,
    CLOSE,
    MODEL,
    STEPS,
    TABLE,
    discrete,
    exact_eps,
    noise,
    our_way,
    seeded,
    sigma_times,
    their_scaled_way,
    their_way,
)
from sfumato.errors import UserError
from sfumato.grid import times
from sfumato.process import Gaussian
from sfumato.sampler import DDIM, SAMPLERS, Ancestral, Euler, generate, sampler
from sfumato.schedule import EDM, VP, Flow
from test_pitfalls import missing

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # theirs, with numpy 2

PEERS = {
    "ancestral": "test_diffusers::test_ddpm",
    "ancestral-large": "test_diffusers::test_ddpm",
    "ancestral-learned": "test_denoise::test_learned_range_is_that_of_diffusers",
    "ddim": "test_diffusers::test_ddim",
    "euler": "test_diffusers::test_runge_kutta",
    "heun": "test_diffusers::test_runge_kutta",
    "dpm2": "test_diffusers::test_runge_kutta",
    "dpm++2s": "test_diffusers::test_single_steps",
    "dpm++3s": "test_diffusers::test_single_steps",
    "reverse-diffusion": "test_diffusers::test_reverse_diffusion",
    "euler-maruyama": "test_diffusers::test_euler_maruyama",
    "ab2": "test_diffusers_multistep::test_lms",
    "ab3": "test_diffusers_multistep::test_lms",
    "lms": "test_diffusers_multistep::test_lms",
    "deis2": "test_diffusers_multistep::test_deis",
    "deis3": "test_diffusers_multistep::test_deis",
    "ipndm": "test_diffusers_multistep::test_ipndm",
    "dpm++2m": "test_diffusers_multistep::test_dpm_solver",
    "dpm++3m-shipped": "test_diffusers_multistep::test_dpm_solver",
    "dpm++2m-sde": "test_diffusers_multistep::test_dpm_solver_sde",
    "unipc2": "test_diffusers_multistep::test_unipc",
    "unipc3": "test_diffusers_multistep::test_unipc",
    "sa": "test_diffusers_multistep::test_sa_solver",
}
ALONE = {
    "ancestral-optimal": "they have no such variance",
    "euler-churn": "their step sees the network's answer only: test_churn_comes_after_the_network",
    "heun-churn": "as euler-churn",
    "dpm2-churn": "as euler-churn",
    "dpm++3m": "theirs halves the second difference; the corrected start is that of UniPC",
    "langevin": "they have no such sampler",
    "predictor-corrector": "their corrector has one size of step for a batch: test_their_corrector_couples_the_batch",
    "restart": "they have no such sampler",
    "flowmap": "of a mean it is ddim, and they have no maps",
    "consistency": "the exact law of tests/test_flowmap.py",
    "adaptive": "they have no such sampler",
    "unmask": "for tokens: by enumeration in test_predict.py",
    "unmask-confidence": "for tokens",
}
"""Samplers without a peer in diffusers, and why."""


def test_every_sampler_has_a_peer_or_a_reason():
    assert sorted([*PEERS, *ALONE]) == sorted(SAMPLERS)
    assert missing(" ".join(PEERS.values())) == []


def chain_way(scheduler, **options):
    """The last state of a scheduler over x whose timesteps are whole."""
    x = noise()
    for k in scheduler.timesteps:
        x = scheduler.step(exact_eps(x, discrete(k)), k, x, **options).prev_sample
    return x


def chain_stops(scheduler):
    return [*discrete(scheduler.timesteps).tolist(), 0.0]


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(variance):
    scheduler = diffusers.DDPMScheduler(variance_type=f"fixed_{variance}", clip_sample=False)
    scheduler.set_timesteps(STEPS)
    ours = generate(MODEL, Ancestral(variance), noise(), chain_stops(scheduler), rng=seeded())
    torch.testing.assert_close(ours, chain_way(scheduler, generator=seeded()), **CLOSE)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta):
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading")
    scheduler.set_timesteps(STEPS)
    ours = generate(MODEL, DDIM(eta), noise(), chain_stops(scheduler), rng=seeded())
    torch.testing.assert_close(ours, chain_way(scheduler, eta=eta, generator=seeded()), **CLOSE)


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize(("name", "peer"), [("euler", "Euler"), ("heun", "Heun"), ("dpm2", "KDPM2")])
def test_runge_kutta(name, peer, karras):
    scheduler = getattr(diffusers, f"{peer}DiscreteScheduler")(**BETAS, use_karras_sigmas=karras)
    scheduler.set_timesteps(STEPS)
    stops, theirs = their_scaled_way(scheduler)
    torch.testing.assert_close(our_way(sampler(name), theirs[0].double(), stops), theirs, **CLOSE)


@pytest.mark.parametrize(("order", "steps"), [(2, 21), (3, 22)])
def test_single_steps(order, steps):
    """Their inner points are points of their grid: on one uniform in log sigma they are the paper's.

    Their third-order method ("midpoint") goes to its point at 2h/3 as 2S does, by half the difference. Ours, as the
    paper, integrates the line, which in theirs is the formula "heun" of that stage.
    """
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        **BETAS, solver_order=order, use_exponential_sigmas=True, final_sigmas_type="sigma_min"
    )
    scheduler.set_timesteps(steps)
    whole = len([o for o in scheduler.order_list if o == order])
    assert scheduler.order_list[: order * whole] == [*range(1, order + 1)] * whole
    x, states = noise(), []
    for k, t in enumerate(scheduler.timesteps):
        states.append(x)
        scheduler.register_to_config(solver_type="heun" if (order, scheduler.order_list[k]) == (3, 2) else "midpoint")
        x = scheduler.step(exact_eps(x, sigma_times(scheduler.sigmas[k])), t, x).prev_sample
    shared = slice(0, order * whole + 1, order)
    ours = our_way(sampler(f"dpm++{order}s"), noise().double(), sigma_times(scheduler.sigmas[:steps])[shared])
    torch.testing.assert_close(ours, torch.stack(states)[shared], **CLOSE)


def test_reverse_diffusion():
    """Of VE, where the factor of x is 1: they have no other. Their last step draws noise, without which it is ours."""
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50.0)
    scheduler.set_timesteps(STEPS)
    scheduler.set_sigmas(STEPS)
    model, sigmas = Exact(mixture(), Gaussian(EDM())), scheduler.discrete_sigmas.flip(0).double()
    stops = [*EDM().time(-2 * sigmas.log()).tolist(), 0.0]
    x, states, rng = 50 * noise(), [], seeded()
    for k, t in enumerate(scheduler.timesteps):
        states.append(x)
        went = scheduler.step_pred(model(x.double(), stops[k]).score.float(), t, x, generator=rng)
        x = went.prev_sample
    theirs = torch.stack([*states, went.prev_sample_mean])
    torch.testing.assert_close(
        our_way(sampler("reverse-diffusion"), 50 * noise(), stops, seeded(), model), theirs, **CLOSE
    )


def test_euler_maruyama():
    """Of VP, down to the last step, which draws noise in theirs.

    Their step is 1/N however their timesteps lie: it goes to the next one only if the last is 1/N.
    """
    from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler

    scheduler = ScoreSdeVpScheduler(sampling_eps=1 / 40)
    scheduler.set_timesteps(40)
    model, stops = Exact(mixture(), Gaussian(VP())), tensor([k / 40 for k in range(40, 0, -1)])
    states, rng = [noise()], seeded()
    for t, stop in zip(scheduler.timesteps[:-1], stops, strict=False):
        eps = model(states[-1].double(), stop).eps.float()
        states.append(scheduler.step_pred(eps, states[-1], t, generator=rng)[0])
    ours = our_way(sampler("euler-maruyama"), noise(), stops, seeded(), model)
    torch.testing.assert_close(ours, torch.stack(states), **CLOSE)


def test_flow():
    """Euler on the straight line between data and noise."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    model, states = Exact(mixture(), Gaussian(Flow())), [noise()]
    for sigma, t in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
        velocity = model(states[-1].double(), sigma.double()).velocity.float()
        states.append(scheduler.step(velocity, t, states[-1]).prev_sample)
    ours = our_way(Euler(), noise().double(), scheduler.sigmas.double(), model=model)
    torch.testing.assert_close(ours, torch.stack(states), **CLOSE)


# ── Theirs to mend ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 10), ("trailing", 64)])
def test_ddim_goes_where_its_grid_does_not(spacing, steps):
    """Issues #9261, #11347, #12633: their previous step is t - 1000//N, which need not be a stop.

    The first step comes to that time, and the last to another than the data.
    """
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    t, following = scheduler.timesteps[:2]
    went = scheduler.step(exact_eps(noise(), discrete(t)), t, noise()).prev_sample
    strided = t - 1000 // steps
    assert strided != following
    ours = generate(MODEL, DDIM(), noise(), discrete(torch.stack([t, strided])))
    torch.testing.assert_close(ours, went, **CLOSE)
    whole = generate(MODEL, DDIM(), noise(), chain_stops(scheduler))
    assert (whole - chain_way(scheduler)).abs().max() > 0.01


@pytest.mark.parametrize("name", ["DEISMultistep", "SASolver"])
def test_the_last_step_goes_nowhere(name):
    """Issue #5689, mended in the DPM family: with these sigmas the last step is from sigma_min to sigma_min."""
    scheduler = getattr(diffusers, f"{name}Scheduler")(**BETAS, use_karras_sigmas=True)
    scheduler.set_timesteps(STEPS)
    assert scheduler.sigmas[-1] == scheduler.sigmas[-2] > 0
    with pytest.raises(UserError, match="falls strictly"):
        times(sigma_times(scheduler.sigmas), STEPS, TABLE)


def test_flow_shift_is_applied_twice():
    """Issue #13243: the whole grid of 1,000 stops is not the one of training."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    lowest = float(scheduler.sigmas[-1])
    scheduler.set_timesteps(1000)
    assert lowest == pytest.approx(0.002994, rel=1e-3)
    assert float(scheduler.sigmas[-2]) == pytest.approx(0.008929, rel=1e-3)


def test_fixed_large_log_is_not_a_number():
    """Issue #14569: the square root of a logarithm."""
    scheduler = diffusers.DDPMScheduler(variance_type="fixed_large_log", clip_sample=False)
    scheduler.set_timesteps(STEPS)
    assert chain_way(scheduler).isnan().all()


def test_epsilon_at_zero_terminal_snr_is_infinite():
    """Issue #3851. We refuse such a denoiser: test_denoise.py."""
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(5)
    went = scheduler.step(noise() / 2, scheduler.timesteps[0], noise()).prev_sample
    assert not went.isfinite().any()


def test_low_precision_adds_no_noise():
    """Their coefficients follow the type of the sample; ours do not: test_process.py."""
    ones = torch.ones(11, 1, dtype=torch.bfloat16)
    noisy = diffusers.DDPMScheduler().add_noise(0 * ones, ones, torch.arange(11))
    assert noisy.flatten().bool().tolist() == [False] * 10 + [True]


def test_the_range_of_karras_sigmas_depends_on_the_class():
    """Euler reads it from its subsampled grid, the DPM family from the whole table."""
    options = {**BETAS, "use_karras_sigmas": True, "timestep_spacing": "leading"}
    euler, dpm = diffusers.EulerDiscreteScheduler(**options), diffusers.DPMSolverMultistepScheduler(**options)
    euler.set_timesteps(10)
    dpm.set_timesteps(10)
    assert float(euler.sigmas[0]) == pytest.approx(60.8, rel=1e-3)
    assert float(dpm.sigmas[0]) == pytest.approx(157.4, rel=1e-3)


def test_leading_does_not_start_from_noise():
    """Issue #7401. All our grids start at t = 1: test_grid.py."""
    scheduler = diffusers.DDIMScheduler(timestep_spacing="leading")
    scheduler.set_timesteps(300)
    assert int(scheduler.timesteps[0]) == 897


def test_churn_comes_after_the_network():
    """Their Euler adds churn to the state but steps with the noise that the network saw before; ours asks again."""
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(STEPS)
    k = 14
    t, y = scheduler.timesteps[k], noise()
    sigma, following = scheduler.sigmas[k : k + 2]
    scheduler.set_begin_index(k)
    eps = exact_eps(scheduler.scale_model_input(y, t), sigma_times(sigma))
    went = scheduler.step(eps, t, y, s_churn=STEPS / 4, generator=seeded()).prev_sample
    high = 1.25 * sigma
    churned = y + (high**2 - sigma**2).sqrt() * torch.randn(y.shape, generator=seeded())
    torch.testing.assert_close(went, churned + (following - high) * eps, **CLOSE)
    now, later, end = (TABLE.at(sigma_times(r)) for r in (sigma, high, following))
    ours = generate(MODEL, Euler(churn=0.25), (now.alpha * y).float(), [float(now.t), float(end.t)], rng=seeded())
    asked = MODEL(later.alpha * churned, later).eps
    torch.testing.assert_close(ours / end.alpha, churned + (following - high) * asked, check_dtype=False, **CLOSE)
    assert (ours / end.alpha - went).abs().max() > 0.05


def test_their_corrector_couples_the_batch():
    """ScoreSdeVe takes the mean of norms over the batch: an example moves otherwise beside other neighbours."""
    scheduler = diffusers.ScoreSdeVeScheduler()
    scheduler.set_timesteps(STEPS)

    def first(score):
        return scheduler.step_correct(score, noise(), generator=seeded()).prev_sample[0]

    score = noise()
    assert (first(score) - first(torch.cat([score[:1], 2 * score[1:]]))).abs().max() > 0.01


def test_sde_dpmsolver_of_third_order_has_no_branch():
    options = {"algorithm_type": "sde-dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"}
    with pytest.warns(FutureWarning, match="deprecated"):
        scheduler = diffusers.DPMSolverMultistepScheduler(**options)
    scheduler.set_timesteps(STEPS)
    with pytest.raises(UnboundLocalError):
        their_way(scheduler, noise())
