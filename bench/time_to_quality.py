"""Which quality after which time: diffusers and denoising-diffusion-pytorch, by their default recipes and by a searched
one, a DCGAN, and ours, on Fashion-MNIST without classes.

    python bench/time_to_quality.py [seeds] [name ...]     adds to results/time_to_quality.json
    python bench/time_to_quality.py curves                 draws results/time_to_quality.png from it

Time is steps: each contestant does as many as fit into the minutes by the step times of one interleaved measurement,
which the JSON keeps, so a disturbed minute costs nobody, what was stopped goes on, and several processes may share the
work, each with other names. All that diffuse are sampled by our default sampler in 12 calls. Networks of the peers do
the work of diffusers' at 28x28 (`CASES` of peers.py).

A searched recipe is the best by distance to *training* pictures: learning rate (3e-4, 1e-3, 3e-3), batch (32, 128) and
horizon of the average (0.05, 0.1) in runs of 2 minutes, the best two again in runs of 5, all with a warm-up of 100
steps and a cosine to the end. What a peer has reached after 1 and 3 minutes is read on the way of its run of 10; ours,
whose learning rate falls to 0, is a run of its own for each.
"""

import copy
import itertools
import math
import statistics
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from interleave import RESULTS, keep, read, step_seconds, write
from judge import MEASURES, Judge
from torch import nn

from peers import CASES, Diffusers, Lucidrains
from sfumato.data import load
from sfumato.defaults import GRID, SAMPLER, STEPS
from sfumato.dist import stream
from sfumato.engine.asked import Asked, Choices
from sfumato.engine.average import PowerAverage
from sfumato.engine.choices import configure
from sfumato.engine.machine import tuned
from sfumato.engine.run import Run
from sfumato.engine.trainer import Trainer
from sfumato.metrics.frechet import frechet
from sfumato.process import Gaussian
from sfumato.rows import ROWS, Estimate
from sfumato.sampler import sampler, trajectory
from sfumato.schedule import Table

FILE = "time_to_quality.json"
DATA = load("fashion-mnist")
STATES = DATA.codec.encode(DATA.items[:])
JUDGE = Judge(DATA)
N, BATCH = 2_000, 100
MINUTES = (1, 3, 10)
SEARCH, FINALISTS, SEARCHED_N = (2.0, 5.0), 2, 1_000
HORIZONS = (0.05, 0.1)
RECIPES = [{"lr": lr, "batch": batch} for lr, batch in itertools.product((3e-4, 1e-3, 3e-3), (32, 128))]


def batch_of(step, size, seed):
    return STATES[torch.randint(len(STATES), (size,), generator=stream(seed, step))]


class Ours:
    """`sfumato train fashion-mnist`; its learning rate falls to 0 at the end, so every time is a run of its own.

    Args:
        seed: of weights, data and noise.
        steps: of the run.
        changes: to its model.
    """

    def __init__(self, seed, steps, **changes):
        asked = Asked("fashion-mnist", steps=steps, seed=seed, batch=32)
        config = configure(DATA, asked, Choices())
        config = replace(config, steps=steps, model=replace(config.model, **changes))
        self.trainer = Trainer(Run.of(Path("nowhere"), config, DATA), DATA)

    def step(self, k):
        self.trainer.advance()

    def draw(self, n, seed):
        return torch.cat(list(self.trainer.ema.eval().states(n, seed=seed)))


class Peer:
    """A library with its own recipe, or with a searched one.

    Args:
        kind: of peers.py.
        row: what its network predicts.
        size: examples a step.
        steps: of the run.
        seed: of weights, data and noise.
        lr: of a searched recipe; None for the library's own, with the average that it keeps.
    """

    def __init__(self, kind, row, size, steps, seed, lr=None):
        torch.manual_seed(seed)
        self.peer, self.row = kind(CASES["28x28"], size), row
        self.size, self.steps, self.seed, self.lr = size, steps, seed, lr
        self.averages = {h: copy.deepcopy(self.peer.network).requires_grad_(False) for h in HORIZONS if lr}
        self.power = [PowerAverage(self.peer.network, each, h) for h, each in self.averages.items()]
        self.horizon = HORIZONS[-1]

    def step(self, k):
        x = batch_of(k, self.size, self.seed)
        self.peer.x = (x + 1) / 2 if isinstance(self.peer, Lucidrains) else x
        if self.lr is not None:
            rate = self.lr * min(1, (k + 1) / 100) * (1 + math.cos(math.pi * k / self.steps)) / 2
            for group in self.peer.optimiser.param_groups:
                group["lr"] = rate
        self.peer.step()
        for each in self.power:
            each.update(k + 1)

    def network(self):
        """The averaged one."""
        if self.lr is not None:
            return self.averages[self.horizon]
        network = copy.deepcopy(self.peer.network)
        if isinstance(self.peer, Diffusers):
            self.peer.ema.copy_to(network.parameters())
            return network
        return self.peer.ema.ema_model.model

    def betas(self):
        peer = self.peer
        return peer.scheduler.betas if isinstance(peer, Diffusers) else peer.trained.betas

    def draw(self, n, seed):
        model = Asking(self.network().eval(), Gaussian(Table(self.betas().double().tolist())), self.row)
        return torch.cat([drawn(model, range(i, i + BATCH), seed) for i in range(0, n, BATCH)])


class Asking:
    """A network of 1,000 numbered noise levels as a model of ours: asked between them, its embeddings are smooth.

    Its estimates are left as they are: kept within [-1, 1] the samples of short runs were farther from the data, by
    this sampler and by diffusers' own DDIM.
    """

    def __init__(self, network, process, row):
        self.network, self.process, self.row = network, process, row

    def __call__(self, x_t, t, s=None):
        now = self.process.schedule.at(t)
        level = torch.full((len(x_t),), float(now.t) * 1000 - 1).clamp(min=0)
        a, b = ROWS[self.row](self.process.schedule, now, 1.0)
        return Estimate(x_t, now, self.process.schedule, self.network(x_t, level), a, b)


@torch.no_grad()
def drawn(model, indices, seed):
    rng = [stream(seed, i) for i in indices]
    start = model.process.prior(torch.zeros(len(rng), *DATA.codec.dims)).sample(rng)
    for state in trajectory(model, sampler(SAMPLER), start, GRID, STEPS, rng):
        last = state.x
    return last


class DCGAN:
    """Radford et al. 1511.06434 at 28x28: its widths, rates, first weights and activations."""

    def __init__(self, seed, steps, size=128):
        torch.manual_seed(seed)
        self.size, self.seed = size, seed
        self.g = nn.Sequential(
            nn.ConvTranspose2d(100, 128, 7), nn.BatchNorm2d(128), nn.ReLU(),
            nn.ConvTranspose2d(128, 64, 4, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.ConvTranspose2d(64, 1, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip
        self.d = nn.Sequential(
            nn.Conv2d(1, 64, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(64, 128, 4, 2, 1), nn.BatchNorm2d(128), nn.LeakyReLU(0.2), nn.Conv2d(128, 1, 7), nn.Flatten(),
        )  # fmt: skip
        for layer in (*self.g, *self.d):
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(layer.weight, std=0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)
        self.optimisers = [
            torch.optim.Adam(n.parameters(), 2e-4, betas=(0.5, 0.999), fused=True) for n in (self.g, self.d)
        ]

    def step(self, k):
        ours, theirs = self.optimisers
        real, fake = batch_of(k, self.size, self.seed), self.g(torch.randn(self.size, 100, 1, 1))
        theirs.zero_grad()
        (F.softplus(-self.d(real)).mean() + F.softplus(self.d(fake.detach())).mean()).backward()
        theirs.step()
        ours.zero_grad()
        F.softplus(-self.d(fake)).mean().backward()
        ours.step()

    @torch.no_grad()
    def draw(self, n, seed):
        z = torch.randn(n, 100, 1, 1, generator=stream(seed))
        pictures = torch.cat([self.g.eval()(part) for part in z.split(BATCH)])
        self.g.train()
        return pictures


ALONE = {"sfumato": Ours, "sfumato, no guess": partial(Ours, ppca=0), "DCGAN": DCGAN}
PEERS = {"diffusers": (Diffusers, "eps"), "denoising-diffusion-pytorch": (Lucidrains, "v")}
DEFAULT_BATCH = 16  # in both libraries' training scripts


def contestant(name, seed, steps, told):
    """Build a contestant by name."""
    if name in ALONE:
        return ALONE[name](seed, steps)
    library, _, recipe = name.partition(", ")
    if recipe == "default":
        return Peer(*PEERS[library], DEFAULT_BATCH, steps, seed)
    best = told["search"][library]["best"]
    peer = Peer(*PEERS[library], best["batch"], steps, seed, best["lr"])
    peer.horizon = best["horizon"]
    return peer


def step_times(known):
    """Seconds a step of everyone, in turns in one process; who is missing is measured beside the first known."""
    makers = {name: lambda make=make: make(0, 10**6) for name, make in ALONE.items()}
    for library, (kind, row) in PEERS.items():
        makers[f"{library}, default"] = lambda kind=kind, row=row: Peer(kind, row, DEFAULT_BATCH, 10**6, 0)
        for size in sorted({recipe["batch"] for recipe in RECIPES}):
            makers[f"{library}, {size}"] = lambda kind=kind, row=row, size=size: Peer(kind, row, size, 10**6, 0, 1e-3)

    def stepping(name):
        each = makers[name]()
        return SimpleNamespace(advance=lambda: each.step(0))

    return step_seconds(stepping, makers, known, steps=4)


def tried(library, recipe, minutes, told):
    """A recipe with the distance to training pictures that it reaches in some minutes, for every horizon."""
    steps = round(60 * minutes / told["step seconds"][f"{library}, {recipe['batch']}"])
    peer, found = Peer(*PEERS[library], recipe["batch"], steps, 0, recipe["lr"]), {}
    for k in range(steps):
        peer.step(k)
    for peer.horizon in HORIZONS:
        found[str(peer.horizon)] = round(frechet(JUDGE.rows(peer.draw(SEARCHED_N, 0)), JUDGE.known.train), 4)
    print(f"{library}, {minutes:g} min: {recipe}, {steps} steps: {found}", flush=True)
    return recipe | {"steps": steps, "frechet to train": found}


def reached(row):
    """The least distance of a row, over the horizons."""
    return min(row["frechet to train"].values())


def search(library, told):
    """Fill in what short runs of every recipe reach, what longer runs of the best do, and the best of these."""
    known = told["search"].setdefault(library, {})
    recipes, finalists = RECIPES, f"{SEARCH[-1]:g} min"
    for minutes in SEARCH:
        rows = known.setdefault(f"{minutes:g} min", [])
        for recipe in recipes[len(rows) :]:
            rows.append(tried(library, recipe, minutes, told))
            keep(FILE, rows, "search", library, f"{minutes:g} min")
        recipes = [{key: row[key] for key in ("lr", "batch")} for row in sorted(rows, key=reached)[:FINALISTS]]
    best = min(known[finalists], key=reached)
    horizon = min(best["frechet to train"], key=best["frechet to train"].get)
    known["best"] = {"lr": best["lr"], "batch": best["batch"], "horizon": float(horizon)}
    keep(FILE, known["best"], "search", library, "best")


def seconds_a_step(name, told):
    library, _, recipe = name.partition(", ")
    key = f"{library}, {told['search'][library]['best']['batch']}" if recipe == "searched" else name
    return told["step seconds"][key]


def fill(name, seed, told):
    """Train a contestant with one seed, and judge it at every time that is not told yet."""
    missing = [m for m in MINUTES if str(m) not in told["rows"].get(name, {}).get(str(seed), {})]
    runs = [[m] for m in missing] if name.startswith("sfumato") else [missing] * bool(missing)
    for run in runs:
        each = seconds_a_step(name, told)
        last = round(60 * run[-1] / each)
        one = contestant(name, seed, last, told)
        due = {round(60 * m / each): m for m in run}
        for k in range(last):
            one.step(k)
            if k + 1 in due:
                found = JUDGE.of(JUDGE.rows(one.draw(N, seed))) | {"steps": k + 1}
                keep(FILE, found, "rows", name, str(seed), str(due[k + 1]))
                print(f"{name}, seed {seed}, {due[k + 1]} min: {found}", flush=True)


def curves():
    """Draw every measure against minutes, a line through the medians and a mark for each seed."""
    told = read(FILE)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for axis, measure in zip(axes, MEASURES, strict=True):
        for colour, (name, seeds) in zip(plt.cm.tab10.colors, told["rows"].items(), strict=False):
            at = sorted({float(m) for rows in seeds.values() for m in rows})
            values = [[rows[f"{m:g}"][measure] for rows in seeds.values() if f"{m:g}" in rows] for m in at]
            axis.plot(at, [statistics.median(each) for each in values], color=colour, label=name)
            axis.plot(
                *zip(*((m, v) for m, each in zip(at, values, strict=True) for v in each), strict=True),
                ".",
                color=colour,
            )
        axis.axhline(told["floor"][measure], color="grey", ls=":", label="training pictures")
        axis.set(
            xlabel="minutes of training, 2 cores", title=measure, xscale="log", xticks=MINUTES, xticklabels=MINUTES
        )
    axes[0].set_yscale("log")
    axes[0].legend(fontsize=7)
    figure.savefig(RESULTS / "time_to_quality.png", dpi=110)


def main(seeds, names):
    told = {"n": N, "torch": torch.__version__, "search": {}, "rows": {}} | read(FILE)
    with tuned(torch.get_num_threads(), "cpu"):
        if "floor" not in told:
            told["floor"] = JUDGE.of(JUDGE.known.train[:N])
            write(FILE, told)
        told["step seconds"] = step_times(told.get("step seconds"))
        keep(FILE, told["step seconds"], "step seconds")
        peers = [f"{library}, {recipe}" for recipe in ("searched", "default") for library in PEERS]
        for library in PEERS:
            if not names or f"{library}, searched" in names:
                search(library, told)
        for seed in range(seeds):
            for name in names or ["sfumato", "DCGAN", *peers]:
                fill(name, seed, told)


if __name__ == "__main__":
    if sys.argv[1:2] == ["curves"]:
        curves()
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, sys.argv[2:])
