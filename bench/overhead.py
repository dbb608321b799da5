"""What the loop costs outside the network, against peers and against the least that could be done.

    python bench/overhead.py [rounds]

The network is trivial: it returns its input. Every candidate makes the same number of network calls in each round, in
a new random order, on one thread. Figures are medians over the rounds of microseconds a call, and of ratios within a
round.

    bare        a three-operation update with its numbers known before: x = a x + b network(x); with a draw of noise
                added for stochastic samplers
    loop        trajectory with a model that hands the network's output on as noise: all that a scheduler does, the way
                in time, the history, the count of calls and the check that states are finite
    whole       the same with Denoiser: EDM's preconditioning and the level for the network
    diffusers   the scheduler of the same name: scale_model_input and step
    functions   k-diffusion's way of writing samplers (Euler): a denoiser wrapper, sigmas as tensors; written here anew
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from torch import Tensor, nn

from sfumato.denoise import Denoiser, Model
from sfumato.process import Gaussian
from sfumato.rows import Estimate
from sfumato.sampler import generate, sampler
from sfumato.schedule import VP, Instant

Candidate = Callable[[Tensor], None]

RESULTS = Path(__file__).parent / "results" / "overhead.json"
SHAPES = ((16, 3, 32, 32), (4, 2))
CALLS = 50
PEERS = {
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "dpm++2m": lambda: diffusers.DPMSolverMultistepScheduler(),
    "dpm++3m-shipped": lambda: diffusers.DPMSolverMultistepScheduler(solver_order=3),
    "unipc2": lambda: diffusers.UniPCMultistepScheduler(),
    "deis2": lambda: diffusers.DEISMultistepScheduler(),
    "heun": lambda: diffusers.HeunDiscreteScheduler(),
    "dpm2": lambda: diffusers.KDPM2DiscreteScheduler(),
    "euler": lambda: diffusers.EulerDiscreteScheduler(),
    "lms": lambda: diffusers.LMSDiscreteScheduler(),
    "ancestral": lambda: diffusers.DDPMScheduler(clip_sample=False),
    "dpm++2m-sde": lambda: diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
}
"""Ours and theirs of the same name."""


class Nothing(nn.Module):
    def forward(self, x: Tensor, level: Tensor, cond: Tensor | None = None) -> Tensor:
        return x


class Passing:
    """A model without a network: its input is its estimate of the noise."""

    process = Gaussian(VP())

    def __call__(self, x_t: Tensor, t: Instant) -> Estimate:
        return Estimate(x_t, t, self.process.schedule, x_t, 0.0, 1.0)


def bare(x: Tensor) -> None:
    for _ in range(CALLS):
        x = 0.9 * x + 0.1 * x


def bare_with_noise(x: Tensor) -> None:
    rng = torch.Generator().manual_seed(0)
    for _ in range(CALLS):
        x = 0.9 * x + 0.1 * x
        x.add_(torch.randn(x.shape, generator=rng), alpha=0.1)


def functions(x: Tensor) -> None:
    """Euler in sigma with a denoiser of EDM's preconditioning."""
    sigmas = torch.linspace(80, 0.02, CALLS + 1)
    network = Nothing()
    for k in range(CALLS):
        sigma = sigmas[k] * x.new_ones(len(x))
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        skip, out, scale = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25).sqrt(), 1 / (s**2 + 0.25).sqrt()
        denoised = network(x * scale, sigma.log() / 4) * out + x * skip
        x = x + (x - denoised) / s * (sigmas[k + 1] - sigmas[k])


def ours(name: str, model: Model) -> Candidate:
    method = sampler(name)

    def run(x: Tensor) -> None:
        generate(model, method, x, "logsnr", CALLS // method.calls, torch.Generator().manual_seed(0))

    return run


def theirs(name: str) -> Candidate:
    scheduler, calls = PEERS[name](), sampler(name).calls

    def run(x: Tensor) -> None:
        scheduler.set_timesteps(CALLS // calls)
        rng = {"generator": torch.Generator()} if "generator" in scheduler.step.__code__.co_varnames else {}
        for t in scheduler.timesteps:
            x = scheduler.step(scheduler.scale_model_input(x, t), t, x, **rng).prev_sample

    return run


def measured(shape: tuple[int, ...], candidates: dict[str, Candidate], rounds: int) -> dict[str, list[float]]:
    """Microseconds a call of every candidate in every round; a first round warms up."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name in random.sample(list(candidates), len(candidates)):
            start = time.perf_counter()
            candidates[name](x)
            times[name].append((time.perf_counter() - start) / CALLS * 1e6)
    return {name: each[1:] for name, each in times.items()}


def ratio(a: list[float], b: list[float]) -> float:
    return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 2)


@torch.no_grad()
def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    candidates: dict[str, Candidate] = {"bare": bare, "bare with noise": bare_with_noise, "functions": functions}
    whole = Denoiser(Nothing(), Gaussian(VP())).eval()
    for name in PEERS:
        candidates |= {f"loop {name}": ours(name, Passing()), f"whole {name}": ours(name, whole)}
        candidates[f"diffusers {name}"] = theirs(name)
    record = {"calls": CALLS, "rounds": rounds, "torch": torch.__version__, "diffusers": diffusers.__version__}
    for shape in SHAPES:
        times = measured(shape, candidates, rounds)
        medians = {name: round(statistics.median(times[name]), 2) for name in ("bare", "bare with noise", "functions")}
        rows = []
        for name in PEERS:
            floor = times["bare with noise" if sampler(name).stochastic else "bare"]
            parts = {kind: times[f"{kind} {name}"] for kind in ("loop", "whole", "diffusers")}
            row = {"sampler": name} | {kind: round(statistics.median(each), 2) for kind, each in parts.items()}
            row |= {"loop/bare": ratio(parts["loop"], floor), "whole/bare": ratio(parts["whole"], floor)}
            row |= {"diffusers/bare": ratio(parts["diffusers"], floor)}
            rows.append(row | {"loop/diffusers": ratio(parts["loop"], parts["diffusers"])})
        record["x".join(map(str, shape))] = medians | {
            "functions/bare": ratio(times["functions"], times["bare"]),
            "rows": rows,
        }
        print(f"\n{shape}, microseconds a network call: {medians}")
        print("".join(f"{key:>17}" for key in rows[0]))
        for row in rows:
            print("".join(f"{value:>17}" for value in row.values()))
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
