"""How much memory a training step takes, and how long imports take, against peers.

    python bench/memory.py [--steps 3] [--imports 7] [--batch 128]      writes bench/results/memory.json

Memory is the peak of a whole process in training, less what it held with its libraries imported and nothing built;
each network in a process of its own. An import time is what a library takes when torch is imported already, in fresh
processes, all once a round in a new random order; a first round that fills the page cache does not count.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path

import torch
from interleave import fresh, write

from peers import CASES, CONTESTANTS

IMPORTS = {
    "torch": ("", "import torch"),
    "sfumato": ("import torch", "import sfumato"),
    "sfumato, parts used": (
        "import torch",
        "from sfumato import VP, Denoiser, Gaussian, generate; from sfumato.nn import UNet",
    ),
    "diffusers": ("import torch", "import diffusers"),
    "diffusers, parts used": ("import torch", "from diffusers import DDIMScheduler, UNet2DModel"),
}
"""What is imported before, and what is timed. Both libraries import most of themselves on first use only."""

TIMER = """
{before}
import json, time
begin = time.perf_counter()
{what}
print(json.dumps(time.perf_counter() - begin))
"""


def held(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at the most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def peak(case: str, batch: int, name: str, steps: int) -> dict[str, float]:
    """What this process held before a network was built, and its peak over that in training."""
    CONTESTANTS[name].load()
    before = held("VmRSS")
    contestant = CONTESTANTS[name](CASES[case], batch)
    for _ in range(steps):
        contestant.step()
    return {
        "parameters": sum(p.numel() for p in contestant.network.parameters()),
        "gflop_forward": round(contestant.gflop, 4),
        "before_mib": round(before),
        "peak_over_before_mib": round(held("VmHWM") - before),
    }


def import_times(rounds: int) -> dict[str, dict[str, object]]:
    """Median seconds of each import."""
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for k in range(rounds + 1):
        for name in random.sample(list(IMPORTS), len(IMPORTS)):
            before, what = IMPORTS[name]
            taken = fresh("-c", TIMER.format(before=before, what=what))
            if k:
                seconds[name].append(round(taken, 3))
    return {name: {"seconds": statistics.median(each), "all": each} for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--imports", type=int, default=7, help="rounds of imports")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--raw", choices=CONTESTANTS, help="measure this network in this process and print its memory")
    asked = parser.parse_args()
    if asked.raw:
        (case,) = asked.cases
        print(json.dumps(peak(case, asked.batch, asked.raw, asked.steps)))
        return
    result = {"torch": torch.__version__, "batch": asked.batch, "steps": asked.steps, "cases": {}}
    numbers = ("--batch", str(asked.batch), "--steps", str(asked.steps))
    for case in asked.cases:
        rows = {name: fresh(__file__, *numbers, "--cases", case, "--raw", name) for name in CONTESTANTS}
        for row in rows.values():
            row["of_diffusers"] = round(row["peak_over_before_mib"] / rows["diffusers"]["peak_over_before_mib"], 3)
        result["cases"][case] = rows
        for name, row in rows.items():
            print(f"{case} {name:28s} {row}", flush=True)
    result["imports"] = import_times(asked.imports)
    for name, row in result["imports"].items():
        print(f"import {name:24s} {row}")
    write("memory.json", result)


if __name__ == "__main__":
    main()
