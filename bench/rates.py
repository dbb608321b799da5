"""Which learning rate suits each family: as many trials for each, after equal time.

    python bench/rates.py SET [seconds each] [seeds] [family ...]      adds to results/rates.json

SET is ring8, grid25, digits or fashion-mnist. Every run is what `sfumato train SET --model FAMILY` would do with that
rate and optimiser, but that all take batches of the same size, and has as many steps as fit into the time by step times
of one interleaved measurement on one core; several commands may run beside each other. Points are judged by the
divergence of their histogram from the true one in nats, pictures by the Frechet distance of 2,000 samples to *training*
examples by the features of `evaluate`: nothing that is held out has a say. engine/recipes.py cites it.
"""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import torch
from interleave import keep, read, step_seconds

from sfumato.data import load
from sfumato.data.toys import CENTRES, SPREAD
from sfumato.engine.asked import Asked, Choices
from sfumato.engine.choices import configure
from sfumato.engine.machine import tuned
from sfumato.engine.run import Run
from sfumato.engine.trainer import Trainer
from sfumato.metrics.features import features_of
from sfumato.metrics.frechet import frechet
from sfumato.metrics.modes import modes_of_points

FILE, SAMPLES = "rates.json", 2_000
FAMILIES = ("diffusion", "gan", "vae", "ladder")
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
RULES = {"gan": ("adamw",)}  # the others by Muon too: a player that moves is not followed by its momentum
BATCH = {"points": 256, "pictures": 64}


class Bench:
    def __init__(self, name):
        self.name, self.data = name, load(name)
        self.points = name in CENTRES
        if not self.points:
            self.features, _ = features_of(None, self.data.codec.dims)
            self.known = self.features(self.data.codec.encode(self.data.sample(10_000)))

    def trainer(self, family, rule, rate=1e-3, seed=0, steps=10**6):
        batch = BATCH["points" if self.points else "pictures"]
        asked = Asked(self.name, model=family, steps=steps, seed=seed, batch=batch)
        config = replace(configure(self.data, asked, Choices()), optimizer=rule, lr=rate)
        return Trainer(Run.of(Path("nowhere"), config, self.data), self.data)

    @torch.no_grad()
    def judged(self, model, seed):
        if self.points:
            return modes_of_points(model.sample(SAMPLES, seed=seed).double().numpy(), CENTRES[self.name], SPREAD).kl
        made = torch.cat(list(model.states(SAMPLES, seed=seed)))
        return frechet(self.features(made), self.known)

    def row(self, family, rule, rate, seed, steps):
        """Train one run and judge its average; None if its weights are not finite."""
        trainer = self.trainer(family, rule, rate, seed, steps)
        for _ in range(steps):
            trainer.advance()
        return round(self.judged(trainer.ema, seed), 4) if trainer.healthy() else None


def main(name, seconds, seeds, families):
    bench, case = Bench(name), f"{name}, {seconds:g} s"
    ways = [(family, rule) for family in FAMILIES for rule in RULES.get(family, ("adamw", "muon"))]
    with tuned(1, "cpu"):
        known = read(FILE).get("cases", {}).get(case, {}).get("step seconds")
        took = step_seconds(lambda way: bench.trainer(*way.split(", ")), (", ".join(way) for way in ways), known)
        keep(FILE, took, "cases", case, "step seconds")
        for seed, (family, rule), rate in itertools.product(range(100, 100 + seeds), ways, RATES):
            way, trial = f"{family}, {rule}", f"{rate:g}"
            rows = read(FILE)["cases"][case].get("rows", {}).get(way, {}).get(trial, {})
            if str(seed) in rows or (families and family not in families):
                continue
            found = bench.row(family, rule, rate, seed, round(seconds / took[way]))
            keep(FILE, found, "cases", case, "rows", way, trial, str(seed))
            print(f"{case}, seed {seed}: {way}, rate {trial}: {found}", flush=True)


if __name__ == "__main__":
    words = dict(enumerate(sys.argv))
    main(words[1], float(words.get(2, 90)), int(words.get(3, 1)), sys.argv[4:])
