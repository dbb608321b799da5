"""How the commands of this folder time things on a shared machine, whose speed drifts by more than what is looked for.

Everything is timed once a round, in a new random order; results are medians over rounds and medians of ratios within a
round, so drift cancels. Where memory matters each library works in a process of its own (``Remote``), as for its users:
in one process all would share the heap that the first of them grew. Those whose turn it is not wait for a message. Two
yardsticks (a float32 matrix product, a float32 convolution) can run in the same rounds. A time during which other
processes used more than a tenth of a core is dropped.
"""

from __future__ import annotations

import fcntl
import gc
import json
import math
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from sfumato.files import write_atomic

Work = Callable[[], object]
Timer = Callable[[int], tuple[float, float]]
"""Takes how often to repeat a work, and returns what ``timed`` does."""
Round = dict[str, tuple[float, float]]
"""For each work of a round: seconds a repeat, and how many cores other processes used meanwhile."""

RESULTS = Path(__file__).parent / "results"
QUIET = 0.1  # cores that others may use
FEWEST = 5  # quiet rounds; with fewer, loud ones count too, and the result says that it was disturbed
LONG = 0.3  # seconds that a time lasts at least, by repeating


def yardsticks() -> dict[str, tuple[Work, float]]:
    """Name to (work, GFLOP)."""
    a = torch.randn(1024, 1024)
    conv = nn.Conv2d(256, 256, 3, padding=1).to(memory_format=torch.channels_last).requires_grad_(False)
    x = torch.randn(128, 256, 7, 7).contiguous(memory_format=torch.channels_last)
    return {
        "gemm fp32": (lambda: a @ a, 2 * 1024**3 / 1e9),
        "conv fp32": (lambda: conv(x), 2 * 128 * 49 * 256 * 256 * 9 / 1e9),
    }


class Remote:
    """Works of a new process, which waits while others are timed.

    Args:
        make: called there; returns the works by name. A function of a module, or a partial of one.
    """

    def __init__(self, make: Callable[[], Mapping[str, Work]]) -> None:
        server = multiprocessing.get_context("forkserver")
        self.pipe, theirs = server.Pipe()
        server.Process(target=_serve, args=(theirs, make), daemon=True).start()

    def ask(self, name: str, repeats: int = 0) -> Any:
        """Return what a work returns, or, with repeats, its time as ``timed`` says."""
        self.pipe.send((name, repeats))
        return self.pipe.recv()

    def timer(self, name: str) -> Timer:
        """Times one of its works, there."""
        return partial(self.ask, name)


def _serve(pipe: Connection, make: Callable[[], Mapping[str, Work]]) -> None:
    works = make()
    with suppress(EOFError):  # nobody asks any more
        while True:
            name, repeats = pipe.recv()
            pipe.send(timed(works[name], repeats) if repeats else works[name]())


def timed(work: Work, repeats: int = 1) -> tuple[float, float]:
    """Seconds per repeat, and how many cores other processes used meanwhile."""
    begin, busy, own = time.perf_counter(), busy_seconds(), sum(os.times()[:2])
    for _ in range(repeats):
        work()
    wall = time.perf_counter() - begin
    return wall / repeats, (busy_seconds() - busy - (sum(os.times()[:2]) - own)) / wall


def busy_seconds() -> float:
    """Core seconds that all processes of this machine have used."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def timers(works: Mapping[str, Work]) -> dict[str, Timer]:
    """What times each work in this process."""
    return {name: partial(timed, work) for name, work in works.items()}


def repeats(each: Mapping[str, Timer]) -> dict[str, int]:
    """How often each work is to be repeated to be long enough to time, after a first call that warms up."""
    wanted = {}
    for name, timer in each.items():
        seconds, _ = timer(1)
        if seconds < LONG:
            seconds, _ = timer(2)
        wanted[name] = max(1, round(LONG / seconds))
    return wanted


def race(each: Mapping[str, Timer], wanted: Mapping[str, int], most: int, limit: float = math.inf) -> list[Round]:
    """Time every work once a round: so many rounds, or, after the first, as many as begin within ``limit`` seconds."""
    rounds: list[Round] = []
    names = list(each)
    end = time.perf_counter() + limit
    while not rounds or (len(rounds) < most and time.perf_counter() < end):
        random.shuffle(names)
        gc.collect()  # between times, not within
        rounds.append({name: each[name](wanted[name]) for name in names})
    return rounds


def loudness(each: Round, *names: str) -> float:
    """How many cores other processes used in the worst of these times."""
    return max(each[name][1] for name in names)


def quiet(rounds: list[Round], *names: str) -> list[Round]:
    """The rounds in which none of these works was disturbed; if they are too few, the quieter half, or some of it."""
    ranked = sorted(rounds, key=lambda each: loudness(each, *names))
    calm = sum(loudness(each, *names) < QUIET for each in ranked)
    return ranked[: max(calm, min(FEWEST, (len(ranked) + 1) // 2))]


def disturbed(rounds: list[Round], *names: str) -> bool:
    """Whether the rounds that count for these works are not all quiet."""
    return any(loudness(each, *names) >= QUIET for each in quiet(rounds, *names))


def median(rounds: list[Round], name: str) -> float:
    """Median seconds of a work."""
    return statistics.median(r[name][0] for r in quiet(rounds, name))


def ratio(rounds: list[Round], a: str, b: str) -> float:
    """Median over rounds of how many times as long ``a`` took as ``b``."""
    return statistics.median(r[a][0] / r[b][0] for r in quiet(rounds, a, b))


def step_seconds(
    trainer: Callable[..., Any], names: Iterable[str], known: Mapping[str, float] | None = None, steps: int = 8
) -> dict[str, float]:
    """Seconds a training step of each name, some steps of each a round; what is known already is not measured again.

    Args:
        trainer: makes that of a name.
        names: whose step times are wanted.
        known: those of before; the first of them is measured again, and the others set in proportion to it.
        steps: of each a round.
    """
    told = dict(known or {})
    missing = [name for name in names if name not in told]
    if not missing:
        return told
    trainers = {name: trainer(name) for name in [*list(told)[:1], *missing]}
    works = {name: lambda each=each: [each.advance() for _ in range(steps)] for name, each in trainers.items()}
    rounds = race(timers(works), dict.fromkeys(works, 1), 9)
    took = {name: median(rounds, name) / steps for name in works}
    scale = next((told[name] / took[name] for name in took if name in told), 1.0)
    return told | {name: round(took[name] * scale, 5) for name in missing}


def gflop(call: Callable[[], Tensor], images: int) -> float:
    """GFLOP an image of a forward pass; a multiplication and an addition count as two."""
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}  # torch counts CUDA's only
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=attention) as counter:
        call()
    return counter.get_total_flops() / images / 1e9


def _attention(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *_: object, **__: object) -> int:
    return sdpa_flop_count(q, k, v)


def fresh(*arguments: str) -> Any:
    """Run Python in a new process and return the JSON of its last line."""
    run = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def read(name: str) -> dict[str, Any]:
    """A result of before, or nothing."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else {}


def write(name: str, result: dict[str, Any]) -> None:
    """Write a result, into whose cases those of before are taken that were not asked for."""
    if "cases" in result:
        result["cases"] = read(name).get("cases", {}) | result["cases"]
    RESULTS.mkdir(exist_ok=True)
    write_atomic(RESULTS / name, (json.dumps(result, indent=1) + "\n").encode())


def keep(name: str, value: Any, *path: str) -> None:
    """Write one value into a result, beside those that other processes have written meanwhile.

    Args:
        name: of the file.
        value: for JSON.
        path: keys that lead to it.
    """
    RESULTS.mkdir(exist_ok=True)
    folder = os.open(RESULTS, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        told = within = read(name)
        for key in path[:-1]:
            within = within.setdefault(key, {})
        within[path[-1]] = value
        write(name, told)
    finally:
        os.close(folder)  # and so the lock
