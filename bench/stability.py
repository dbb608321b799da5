"""How steadily each family learns sets whose modes are known: a ring of 8, a grid of 25, stacked digits of 1,000.

    python bench/stability.py SET [seconds each] [seeds] [family ...]     adds to results/stability.json

SET is ring8, grid25 or stacked-digits. Every run is what `sfumato train SET --model FAMILY` would do and has as many
steps as fit into the time, by step times of one interleaved measurement that the JSON keeps; so what is stopped goes
on, and a disturbed minute costs nobody. Sets of points take one core: several commands may run beside each other.
Told are modes found, the share of samples that are of a mode, the divergence of their histogram from the true one, and
for points the sliced Wasserstein distance; see metrics/modes.py. The classifier that says of which mode a stacked
picture is knows digits, one channel at a time; its accuracy is that on held-out pictures.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from interleave import median, race, read, timers, write

from sfumato.data import load
from sfumato.data.toys import CENTRES, SPREAD
from sfumato.engine.asked import Asked, Choices
from sfumato.engine.choices import configure
from sfumato.engine.machine import tuned
from sfumato.engine.run import Run
from sfumato.engine.trainer import Trainer
from sfumato.metrics.modes import modes_of_labels, modes_of_points, sliced_wasserstein
from sfumato.metrics.recognise import recogniser
from sfumato.models import FAMILIES

FILE = "stability.json"
SAMPLES = {"ring8": 2_500, "grid25": 2_500, "stacked-digits": 26_000}
BATCH = {"ring8": 256, "grid25": 256, "stacked-digits": 64}
ROUNDS, STEPS = 9, 8


class Bench:
    def __init__(self, name):
        self.name, self.data = name, load(name)
        self.points = name in CENTRES
        if not self.points:
            digits = load("digits")
            self.known = recogniser(self.pixels(digits.items[:]), digits.labels.numpy())

    def pixels(self, items):
        return items.reshape(len(items), -1, 64).flatten(0, 1).double().numpy()

    def config(self, family, seed, steps):
        return configure(
            self.data, Asked(self.name, model=family, steps=steps, seed=seed, batch=BATCH[self.name]), Choices()
        )

    def trainer(self, family, seed=0, steps=10**6):
        config = replace(self.config(family, seed, steps), steps=steps)
        return Trainer(Run.of(Path("nowhere"), config, self.data), self.data)

    def step_times(self):
        """Seconds a step of each family, in turns in one process."""
        trainers = {family: self.trainer(family) for family in FAMILIES}
        works = {f: lambda each=each: [each.advance() for _ in range(STEPS)] for f, each in trainers.items()}
        rounds = race(timers(works), dict.fromkeys(works, 1), ROUNDS)
        return {family: round(median(rounds, family) / STEPS, 5) for family in works}

    def judged(self, items):
        """What samples make of the modes."""
        if self.points:
            points, real = items.double().numpy(), self.data.test.items[: len(items)].double().numpy()
            found = modes_of_points(points, CENTRES[self.name], SPREAD)
            more = {"sliced wasserstein": round(sliced_wasserstein(points, real), 4)}
        else:
            seen = self.known.predict(self.pixels(items)).reshape(-1, 3)
            found, more = modes_of_labels(seen @ np.array([100, 10, 1]), 1000), {}
        return {"found": found.found, "on": round(found.on, 4), "kl": round(found.kl, 4)} | more

    def real(self):
        """The same of held-out examples, and how often the classifier is right."""
        items = self.data.test.items[: SAMPLES[self.name]]
        if self.points:
            return self.judged(items)
        right = self.known.predict(self.pixels(items)).reshape(-1, 3) @ np.array([100, 10, 1])
        accuracy = float((right == self.data.test.labels[: len(items)].numpy()).mean())
        return self.judged(items) | {"classifier": round(accuracy, 4)}

    def row(self, family, seed, steps):
        """Train one run, and judge its average; a run whose weights are not finite has failed."""
        trainer = self.trainer(family, seed, steps)
        for _ in range(steps):
            trainer.advance()
        if not trainer.healthy():
            return {"steps": steps, "failed": "weights are not finite"}
        return {"steps": steps} | self.judged(trainer.ema.sample(SAMPLES[self.name], seed=seed))


def keep(case, *path, value):
    """Write one value into the JSON, beside those that other processes have written meanwhile."""
    told = within = read(FILE)
    for key in ("cases", case, *path[:-1]):
        within = within.setdefault(key, {})
    within[path[-1]] = value
    write(FILE, told)


def main(name, seconds, seeds, families):
    bench, case = Bench(name), f"{name}, {seconds:g} s"
    with tuned(1 if bench.points else torch.get_num_threads(), "cpu"):
        told = read(FILE).get("cases", {}).get(case, {})
        if "step seconds" not in told:
            keep(case, "step seconds", value=bench.step_times())
            keep(case, "real", value=bench.real() | {"n": SAMPLES[name]})
        told = read(FILE)["cases"][case]
        for seed in range(seeds):
            for family in families:
                if str(seed) in told.get("rows", {}).get(family, {}):
                    continue
                row = bench.row(family, seed, round(seconds / told["step seconds"][family]))
                keep(case, "rows", family, str(seed), value=row)
                print(f"{case}, seed {seed}: {family}: {row}", flush=True)


if __name__ == "__main__":
    words = dict(enumerate(sys.argv))
    main(words[1], float(words.get(2, 120)), int(words.get(3, 10)), sys.argv[4:] or list(FAMILIES))
