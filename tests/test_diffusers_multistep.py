"""Against diffusers: linear multistep methods, state by state; see test_diffusers.py for how, and for the rest."""

from dataclasses import replace

import pytest
import torch

from peers import (
    BETAS,
    CLOSE,
    MODEL,
    STEPS,
    TABLE,
    noise,
    our_way,
    seeded,
    sigma_times,
    their_scaled_way,
    their_way,
)
from sfumato.sampler import EVERY, Adams, sampler
from sfumato.sampler.weights import lam
from test_sampler import falling

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # theirs, with numpy 2


def uncorrected(name):
    """Without our corrected first step, which theirs lack: they start with Euler's, and are of second order."""
    return replace(sampler(name), corrected=0)


def assert_same(ours, scheduler, rng=False, **close):
    """Compare every state; a scheduler that draws gets the generator, and we float32 states."""
    scheduler.set_timesteps(STEPS)
    options = {"generator": seeded()} if rng else {}
    theirs = their_way(scheduler, noise(), **options)
    start = noise() if rng else noise().double()
    got = our_way(ours, start, sigma_times(scheduler.sigmas), seeded() if rng else None)
    torch.testing.assert_close(got, theirs, **(close or CLOSE))


@pytest.mark.parametrize(("name", "order"), [("ab2", 2), ("ab3", 3), ("lms", 4)])
def test_lms(name, order):
    """All but their last step, which takes the polynomial to sigma = 0 and misses the estimate of the data."""
    scheduler = diffusers.LMSDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(STEPS)
    stops, theirs = their_scaled_way(scheduler, order=order)
    ours = our_way(uncorrected(name), theirs[0].double(), stops)
    torch.testing.assert_close(ours[:-1], theirs[:-1], **CLOSE)
    torch.testing.assert_close(ours[-1], MODEL(ours[-2].double(), stops[-2]).x0.float(), **CLOSE)
    assert (ours[-1] - theirs[-1]).abs().max() > 1e-4


def test_ipndm():
    """On betas of ours: from alpha = 0, where theirs start, their first step knows of no data."""
    stops = falling(TABLE, STEPS, 20.0, 0.05)
    scheduler = diffusers.IPNDMScheduler(trained_betas=TABLE.sigma(stops).tolist())  # theirs are sigmas
    scheduler.set_timesteps(STEPS)
    states = [noise()]
    for stop, t in zip(stops, scheduler.timesteps, strict=False):
        estimate, now = MODEL(states[-1].double(), stop), TABLE.at(stop)
        v = now.alpha * estimate.eps - now.sigma * estimate.x0
        states.append(scheduler.step(v.float(), t, states[-1]).prev_sample)
    torch.testing.assert_close(our_way(sampler("ipndm"), noise().double(), stops), torch.stack(states), **CLOSE)


@pytest.mark.parametrize("order", [2, 3])
def test_deis(order):
    assert_same(uncorrected(f"deis{order}"), diffusers.DEISMultistepScheduler(**BETAS, solver_order=order))


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize(("name", "order"), [("dpm++2m", 2), ("dpm++3m-shipped", 3)])
def test_dpm_solver(name, order, karras):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS, solver_order=order, final_sigmas_type="zero", use_karras_sigmas=karras
    )
    assert_same(sampler(name), scheduler)


def test_dpm_solver_sde():
    scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS, solver_order=2, algorithm_type="sde-dpmsolver++")
    assert_same(sampler("dpm++2m-sde"), scheduler, rng=True)


@pytest.mark.parametrize(
    ("order", "options"),
    [
        (2, {"use_karras_sigmas": True}),
        (2, {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
        (3, {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    ],
)
def test_unipc(order, options):
    """Of bh2. With ``lower_order_final`` theirs ends with a step of second order before its last."""
    scheduler = diffusers.UniPCMultistepScheduler(**BETAS, solver_order=order, solver_type="bh2", **options)
    assert_same(sampler(f"unipc{order}"), scheduler)


class Bent(Adams):
    """Two estimates as SASolverScheduler counts them: int (lambda - lambda_t) e^(...) is replaced by h^2/2.

    They call it a modification of third order in h that they find to look better.
    """

    def weights(self, nodes, now, then):
        whole = super().weights(nodes, now, then)
        if len(nodes) != 2:
            return whole
        h = lam(then) - lam(now)
        (moment,) = self._integral(lambda place: [place - lam(now)], now, then)
        bend = (then.alpha * (1 + self.tau**2) * h**2 / 2 - moment) / (nodes[0] - nodes[1])
        return whole[0] + bend, whole[1] - bend


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("points", [2, 3])
def test_sa_solver(points, tau):
    """Noise is drawn once a step and the corrector keeps it; with Bent for their two estimates.

    Their integrals cancel in float32: 1e-4. With three points only the first two steps are bent, so that "sa" itself
    is as near in the end.
    """
    scheduler = diffusers.SASolverScheduler(
        **BETAS, predictor_order=points, corrector_order=points + 1, tau_func=lambda _: tau, lower_order_final=False
    )
    assert_same(Bent(points, EVERY, tau=tau), scheduler, rng=True, rtol=1e-4, atol=1e-4)
    if (points, tau) == (3, 1.0):
        assert_same(sampler("sa"), scheduler, rng=True, rtol=1e-4, atol=1e-4)
