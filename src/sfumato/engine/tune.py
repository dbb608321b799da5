"""A way back learned for one number of calls: its stops, the times the network hears, and the weights of the estimates.

(1)  minimise the mean over noise z of  rms(x - x*) + mean over k of rms(m_k(x) - m_k(x*)),   x = x(z; table),
     x* the end of many steps from the same z, m_k the mean over places of f_k of overheard.py, with hardly any noise

The table (sampler/tuned.py) starts as the usual sampler on the usual grid. Its stops move with the weights that belong
to them, which are the integrals of sampler/weights.py; what is learned of the weights is a correction. At t = 1 the
network hears less noise than there is, and learns how much: an estimate in pure noise is hardly more than the data's
mean, too little for one of few calls. A few dozen numbers and a few hundred paths of the teacher are enough (Tong et
al. 2405.15506; Zhou et al. 2502.17423). The model's own weights stay as they are.

By values alone the nearest end is a blurred one, whose samples as a law are farther from the data (measured, of
Fashion-MNIST in 5 calls: 0.35 instead of 0.29). The features are the model's own, not those that samples are judged by.

(2)  table = first + w (learned - first)     in lambda of the stops and of what is heard, and in the weights

A table that comes nearer to the ends of paths need not bring the law of its samples nearer to the data's. So the w of
FURTHER is taken whose samples have the least Frechet distance to *training* examples, often a little more than 1; if
the way used so far is nearer, that stays. Kept in the run as samplers.json, for these weights alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.denoise import Given, need_mean
from sfumato.dist import stream
from sfumato.engine.interrupt import Interrupt
from sfumato.engine.machine import pages_kept
from sfumato.engine.nearness import Nearness
from sfumato.engine.progress import Watch, duration, watch
from sfumato.engine.run import Run
from sfumato.errors import UserError
from sfumato.files import write_atomic
from sfumato.grid import logsnr
from sfumato.models.diffusion import Diffusion, need_diffusion
from sfumato.overheard import heard
from sfumato.sampler import Midpoint, Tuned, generate
from sfumato.sampler.adams import EVERY
from sfumato.sampler.weights import lam
from sfumato.schedule import Instant, Schedule

__all__ = ["Table", "Tuning", "tune"]

START = Midpoint(2, EVERY)  # the usual sampler
WINDOW = 3  # estimates that a step looks at: its own, and those before
MANY = 48  # steps of the way whose end is the aim
BATCH = 32
HELD_OUT = 64
FIRST = 20.0  # noise that the network hears at t = 1, in units of the data's, before it is learned
HEARD = 0.1  # noise, in units of the data's, of the states whose features are compared
LR = 0.02
PATHS = 0  # what a stream is for
FURTHER = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
"""The w of (2) that are tried."""


class Table(nn.Module):
    """The numbers of a way back as parameters; equation (1) of sampler/tuned.py.

    Args:
        schedule: of the process.
        calls: steps, at least 2.
        first: noise that the network hears at t = 1, to begin with; no more than there is.
    """

    def __init__(self, schedule: Schedule, calls: int, first: float) -> None:
        super().__init__()
        self.schedule, self.calls = schedule, calls
        inner = logsnr(calls, schedule)[1:-1]
        self.levels = nn.Parameter(schedule.logsnr(inner) / 2)  # lambda of the stops between
        self.shift = nn.Parameter(torch.zeros_like(self.levels))  # of what the network hears there
        self.first = nn.Parameter(torch.tensor(-math.log(first), dtype=torch.float64))  # lambda that it hears at t = 1
        rows = [torch.zeros(min(k + 1, WINDOW), dtype=torch.float64) for k in range(calls)]
        self.more = nn.ParameterList(rows)

    def stops(self) -> list[Instant]:
        """Return where the way stops, from 1 to 0."""
        times = self.schedule.time(2 * self.levels)
        return [self.schedule.at(1.0), *(self.schedule.at(t) for t in times.unbind()), self.schedule.at(0.0)]

    def heard(self) -> list[Instant]:
        """Return the time that the network hears at each stop but the last."""
        levels = torch.cat([self.first[None], self.levels + self.shift])
        times = self.schedule.time(2 * levels).clamp(max=1.0)
        return [self.schedule.at(t) for t in times.unbind()]

    def rows(self) -> Iterator[tuple[Any, list[Any]]]:
        """Yield keep and the weights of each step, newest estimate first: those of START, and what was learned.

        A step is corrected once the estimate at its end is made: by the next step.
        """
        stops = self.stops()
        fix: list[Any] = []  # weights that the step before lacked, that of the estimate at its end first
        nodes: list[Any] = []  # lambdas of the estimates so far
        for k, (now, then) in enumerate(pairwise(stops)):
            keep = then.sigma / now.sigma
            if k + 1 < self.calls and (k > 0 or math.isfinite(now.logsnr)):
                nodes = [lam(now), *nodes][: START.points]
                weights = list(START.weights(nodes, now, then))
            else:
                nodes, weights = [], [then.alpha - keep * now.alpha]
            whole = [w + keep * f for w, f in zip_longest(weights, fix, fillvalue=0.0)]
            fix = []
            if nodes and k < START.corrected:
                newest, *others = START.weights([lam(then), *nodes], now, then)
                fix = [newest, *(other - w for other, w in zip(others, weights, strict=True))]
            yield keep, [w + more for w, more in zip_longest(whole, self.more[k], fillvalue=0.0)]

    def forward(self, model: Given, x: Tensor) -> Tensor:
        """Return the end of the way from noise x (B, ...)."""
        past: list[Tensor] = []
        for now, (keep, weights) in zip(self.heard(), self.rows(), strict=True):
            past = [model(x, now).x0, *past][:WINDOW]
            x = _times(keep, x)
            for weight, x0 in zip(weights, past, strict=False):
                x = x + _times(weight, x0)
        return x

    @torch.no_grad()
    def frozen(self) -> Tuned:
        """Return the way as a sampler."""
        rows = list(self.rows())
        return Tuned(
            stops=tuple(float(stop.t) for stop in self.stops()),
            heard=tuple(float(now.t) for now in self.heard()),
            keep=tuple(float(keep) for keep, _ in rows),
            weights=tuple(tuple(map(float, weights)) for _, weights in rows),
        )


def _times(factor: Any, x: Tensor) -> Tensor:
    return x * (factor.to(x) if isinstance(factor, Tensor) else factor)


@dataclass(frozen=True)
class Tuning:
    """What was learned.

    Attributes:
        file: where it lies.
        calls: steps, each of one network call.
        before: distance to the end of many steps, root mean square over the values, of unseen noise, by as many steps
            of the usual way.
        after: the same with what was learned.
        further: the w of (2) that was taken; 0 if the way used so far stays.
        seconds: that it took.
    """

    file: Path
    calls: int
    before: float
    after: float
    further: float
    seconds: float

    def lines(self) -> list[str]:
        """Return the report."""
        kept = f"kept in {self.file}, used by default for --steps {self.calls}"
        return [
            f"{self.calls} calls: distance to the end of {MANY} steps {self.before:.4f} -> {self.after:.4f}",
            f"{duration(self.seconds)}; {kept if self.further else 'no better than the way used so far, which stays'}",
        ]


def tune(folder: Path, calls: int, paths: int, rounds: int, seed: int, device: str) -> Tuning:
    """Learn a way back of some calls and keep it with the run.

    Args:
        folder: of the run.
        calls: steps, at least 2.
        paths: of the teacher to learn from.
        rounds: steps of the optimiser.
        seed: of the noise.
        device: where to compute.

    Raises:
        UserError: no such run, a student's, too few calls, paths or rounds.
    """
    if calls < 2:
        raise UserError(f"--calls must be at least 2, got {calls}: one step has nothing to tune; 'sfumato distill' has")
    if paths < BATCH or rounds < 1:
        raise UserError(f"tuning needs at least {BATCH} --paths and one of --rounds, got {paths} and {rounds}")
    started, run = time.monotonic(), Run.open(folder)
    loaded, notes = run.load(device=device, precision="fp32")
    model = need_diffusion(loaded, "tuning a sampler")
    need_mean(model.denoiser, "tuning a sampler")
    model.to(device).requires_grad_(False)
    pages_kept()
    show = watch("tune", "round")
    with Interrupt() as stop:
        try:
            noise, ends = _paths(model, paths + HELD_OUT, seed, show, stop)
            table = Table(model.denoiser.process.schedule, calls, FIRST * model.denoiser.sigma_data)
            unseen = torch.arange(paths, len(noise))
            before = _distance(partial(_usual, steps=calls), model, unseen, noise, ends)
            _learn(table, model, paths, noise, ends, rounds, seed, show, stop)
            tuned, further = _chosen(table, run, device, show)
            after = _distance(partial(_by, tuned), model, unseen, noise, ends)
        finally:
            show.close()
    result = Tuning(run.folder / "samplers.json", calls, before, after, further, time.monotonic() - started)
    if further:
        _keep(result, tuned, run.recipe(model, notes) | {"paths": paths, "rounds": rounds, "seed": seed})
    return result


Way = Callable[[Given, Tensor], Tensor]
"""From noise to the end."""


def _usual(model: Given, noise: Tensor, steps: int = MANY) -> Tensor:
    return generate(model, START, noise, steps=steps)


def _by(tuned: Tuned, model: Given, noise: Tensor) -> Tensor:
    return generate(model, tuned, noise, tuned.stops)


def _given(model: Diffusion, index: Tensor) -> Given:
    cond = model.conditions(index.tolist())
    return Given(model.denoiser, None if cond is None else cond.to(model.device))


@torch.no_grad()
def _paths(model: Diffusion, n: int, seed: int, show: Watch, stop: Interrupt) -> tuple[Tensor, Tensor]:
    """Return noise (n, ...) and where many steps lead from it."""
    blank = torch.zeros(n, *model.codec.dims)
    noise = model.denoiser.process.prior(blank).sample([stream(seed, PATHS, i) for i in range(n)])
    ends = []
    for index in torch.split(torch.arange(n), BATCH):
        if stop:
            raise KeyboardInterrupt
        ends.append(_usual(_given(model, index), noise[index].to(model.device)).cpu())
        show.update(len(torch.cat(ends)), n, f"paths of {MANY} steps")
    return noise, torch.cat(ends)


def _both(way: Way, model: Diffusion, index: Tensor, noise: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the way and many steps lead, (B, ...), by places in ``noise``, which the classes go by."""
    return way(_given(model, index), noise[index].to(model.device)), ends[index].to(model.device)


def _rms(difference: Tensor) -> Tensor:
    """Return the root mean square of each example, (B,)."""
    square: Tensor = difference.square().flatten(1).mean(1)
    return square.sqrt()


@torch.no_grad()
def _distance(way: Way, model: Diffusion, index: Tensor, noise: Tensor, ends: Tensor) -> float:
    parts = [torch.sub(*_both(way, model, some, noise, ends)) for some in torch.split(index, BATCH)]
    return float(_rms(torch.cat(parts)).mean())


def _loss(table: Table, model: Diffusion, index: Tensor, noise: Tensor, ends: Tensor) -> Tensor:
    """Return equation (1), for some paths."""
    end, goal = _both(table, model, index, noise, ends)
    schedule, cond = table.schedule, _given(model, index).cond
    level = torch.tensor(HEARD * model.denoiser.sigma_data, dtype=torch.float64)
    now = schedule.at(schedule.time(-2 * level.log()))
    features = [heard(model.denoiser, _times(now.alpha, x), now, cond) for x in (end, goal)]
    apart = [_rms((a - b).mean(1)) for a, b in zip(*features, strict=True)]
    return (_rms(end - goal) + torch.stack(apart).mean(0)).mean()


def _learn(
    table: Table,
    model: Diffusion,
    paths: int,
    noise: Tensor,
    ends: Tensor,
    rounds: int,
    seed: int,
    show: Watch,
    stop: Interrupt,
) -> None:
    """Learn the table from the first ``paths``."""
    optimiser = torch.optim.Adam(table.parameters(), lr=LR, betas=(0.9, 0.95))
    begin = time.monotonic()
    for k in range(rounds):
        if stop:
            raise KeyboardInterrupt
        for group in optimiser.param_groups:
            group["lr"] = LR * (1 + math.cos(math.pi * k / rounds)) / 2
        index = torch.randperm(paths, generator=stream(seed, PATHS + 1, k))[:BATCH]
        loss = _loss(table, model, index, noise, ends)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        left = (time.monotonic() - begin) / (k + 1) * (rounds - k - 1)
        show.update(k + 1, rounds, f"loss {float(loss.detach()):.4f}  {duration(left)} left")


def _chosen(table: Table, run: Run, device: str, show: Watch) -> tuple[Tuned, float]:
    """Return the way of (2) and its w: 1 where the data are not at hand, 0 if the way used so far is nearer."""
    learned = table.frozen()
    try:
        near = Nearness(run.dataset(), show.say)
    except UserError as error:
        show.say(f"taken as learned, for want of examples to compare samples with: {error}")
        return learned, 1.0
    model = need_diffusion(run.load(device=device)[0], "tuning a sampler")
    model.to(device)
    first = Table(table.schedule, table.calls, FIRST * model.denoiser.sigma_data).frozen()
    distances, ways = {0.0: near("the way used so far", model, steps=table.calls)}, {0.0: learned}
    for w in FURTHER:
        way = _along(first, learned, w, table.schedule)
        if all(now > then for now, then in pairwise(way.stops)):  # else stops have passed each other
            model.tuned, ways[w] = {table.calls: way}, way
            distances[w] = near(f"{w:g} times as far", model, steps=table.calls)
    best = min(distances, key=distances.__getitem__)
    return ways[best], best


def _along(first: Tuned, last: Tuned, w: float, schedule: Schedule) -> Tuned:
    """Return equation (2)."""

    def moved(a: Sequence[float], b: Sequence[float]) -> list[float]:
        begin, end = (schedule.logsnr(torch.tensor(times, dtype=torch.float64)) for times in (a, b))
        times: list[float] = schedule.time(torch.lerp(begin, end, w)).clamp(max=1.0).tolist()
        return times

    stops = (1.0, *moved(first.stops[1:-1], last.stops[1:-1]), 0.0)
    rows = zip(first.weights, last.weights, strict=True)
    return Tuned(
        stops=stops,
        heard=tuple(moved(first.heard, last.heard)),
        keep=tuple(float(then.sigma / now.sigma) for now, then in pairwise(map(schedule.at, stops))),
        weights=tuple(tuple(a + w * (b - a) for a, b in zip_longest(*row, fillvalue=0.0)) for row in rows),
    )


def _keep(result: Tuning, tuned: Tuned, recipe: dict[str, Any]) -> None:
    """Write what was learned beside what was learned for other numbers of calls of the same weights."""
    try:
        told = json.loads(result.file.read_text("utf-8"))
        known = told["tuned"] if told["weights"] == recipe["weights"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    figures = {name: getattr(result, name) for name in ("before", "after", "further", "seconds")}
    known[str(result.calls)] = tuned.to_dict() | {"recipe": recipe} | figures
    told = {"weights": recipe["weights"], "tuned": known}
    write_atomic(result.file, json.dumps(told, indent=1).encode())
