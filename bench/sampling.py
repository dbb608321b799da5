"""How fast the library draws samples against diffusers with a U-Net of the same work per image.

    python bench/sampling.py [-n 64] [--rounds 3] [--processes 1]      writes bench/results/sampling.json

20 network calls of DPM-Solver++ 2M and 50 of DDIM, all ``n`` images in one batch. diffusers' loop is that of its
pipelines: the network, then the scheduler's step. Each draw is timed once a round as interleave.py says; ``outside``
is what a draw spends outside the network. The networks are untrained: their speed is that of trained ones.

Each library works in a process of its own, ours as its engine sets it up, diffusers as it comes and, to tell how much
of the difference is the allocator's setting, with that of ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import diffusers
import torch
from interleave import Remote, Round, Work, disturbed, fresh, median, quiet, race, ratio, write
from torch import Tensor

from peers import CASES, CONTESTANTS, Contestant
from sfumato.denoise import Given
from sfumato.sampler import generate, sampler

CALLS = {"dpm++2m": 20, "ddim": 50}
SCHEDULERS = {
    "dpm++2m": lambda: diffusers.DPMSolverMultistepScheduler(1000),
    "ddim": lambda: diffusers.DDIMScheduler(1000),
}
ENTERED = ("sfumato bf16", "sfumato fp32", "diffusers", "diffusers, pages kept")


class Draw:
    """Draws samples, and says for each draw how many milliseconds a call went outside the network."""

    def __init__(self, contestant: Contestant, way: Callable[[Tensor], Tensor], calls: int) -> None:
        self.way, self.calls, self.made = way, calls, 0
        self.noise, self.outside = torch.randn_like(contestant.x), []
        contestant.network.register_forward_pre_hook(self.enter)
        contestant.network.register_forward_hook(self.leave)
        self.inside, self.since = 0.0, 0.0

    def enter(self, *_: object) -> None:
        self.since = time.perf_counter()

    def leave(self, *_: object) -> None:
        self.inside += time.perf_counter() - self.since
        self.made += 1

    def __call__(self) -> None:
        self.inside, self.made, begin = 0.0, 0, time.perf_counter()
        assert bool(self.way(self.noise).isfinite().all())
        assert self.made == self.calls, f"{self.made} network calls, not {self.calls}"
        self.outside.append(1e3 * (time.perf_counter() - begin - self.inside) / self.made)


def way(name: str, contestant: Contestant, method: str) -> Callable[[Tensor], Tensor]:
    """From noise to samples."""
    calls = CALLS[method]
    if name.startswith("sfumato"):
        return lambda x: generate(Given(contestant.trained, None), sampler(method), x, steps=calls)
    scheduler = SCHEDULERS[method]()

    @torch.no_grad()
    def loop(x: Tensor) -> Tensor:
        scheduler.set_timesteps(calls)
        for t in scheduler.timesteps:
            x = scheduler.step(contestant.network(x, t), t, x).prev_sample
        return x

    return loop


def measure(case: str, n: int, rounds: int) -> dict[str, object]:
    """The rounds of one process, and what each draw spent outside the network."""
    entered = {name: Remote(partial(enter, name, case, n)) for name in ENTERED}
    draws = {f"{name} {method}": each.timer(method) for name, each in entered.items() for method in CALLS}
    seen = race(draws, dict.fromkeys(draws, 1), rounds)
    told = {name: each.ask("outside") for name, each in entered.items()}
    return {
        "gflop_forward": {name: each.ask("gflop") for name, each in entered.items()},
        "rounds": seen,
        "outside": {f"{name} {method}": each[method] for name, each in told.items() for method in CALLS},
    }


def enter(name: str, case: str, n: int) -> dict[str, Work]:
    """What a contestant can be asked for, in its own process."""
    torch.manual_seed(0)
    contestant = CONTESTANTS[name](CASES[case], n)
    for _ in range(3):
        contestant.forward()  # which warms up
    contestant.trained.eval()
    draws = {method: Draw(contestant, way(name, contestant, method), calls) for method, calls in CALLS.items()}
    outside = {method: draw.outside for method, draw in draws.items()}
    return {**draws, "gflop": lambda: round(contestant.gflop, 4), "outside": lambda: outside}


def summary(n: int, processes: list[dict]) -> dict[str, object]:
    """What a case says: medians over the rounds of all processes."""
    rounds: list[Round] = [each for process in processes for each in process["rounds"]]
    rows = []
    for method, calls in CALLS.items():
        for name in ENTERED:
            drawn, theirs = f"{name} {method}", f"diffusers {method}"
            seconds = median(rounds, drawn)
            outside = statistics.median(x for process in processes for x in process["outside"][drawn])
            rows.append(
                {
                    "sampler": method,
                    "calls": calls,
                    "library": name,
                    "gflop_forward": processes[0]["gflop_forward"][name],
                    "seconds": round(seconds, 2),
                    "images_per_second": round(n / seconds, 2),
                    "over_diffusers": round(ratio(rounds, theirs, drawn), 3),
                    "outside_ms_per_call": round(outside, 2),
                    "outside_share": round(outside * calls / 1e3 / seconds, 4),
                    "rounds": len(quiet(rounds, drawn, theirs)),
                    "disturbed": disturbed(rounds, drawn, theirs),
                }
            )
    return {"images": n, "processes": len(processes), "rounds": len(rounds), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=64, help="images")
    parser.add_argument("--rounds", type=int, default=3, help="in each process")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--raw", action="store_true", help="measure in this process and print the rounds")
    asked = parser.parse_args()
    if asked.raw:
        print(json.dumps({case: measure(case, asked.n, asked.rounds) for case in asked.cases}))
        return
    processes = [fresh(__file__, *sys.argv[1:], "--raw") for _ in range(asked.processes)]
    cases = {case: summary(asked.n, [each[case] for each in processes]) for case in asked.cases}
    for case, each in cases.items():
        print(f"\n{case}, {asked.n} images, {each['rounds']} rounds")
        for row in each["rows"]:
            print("".join(f"{value:>16}" for value in row.values()))
    write("sampling.json", {"torch": torch.__version__, "threads": torch.get_num_threads(), "cases": cases})


if __name__ == "__main__":
    main()
