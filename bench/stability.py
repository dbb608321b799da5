"""How steadily each model learns sets whose modes are known: a ring of 8, a grid of 25, stacked digits of 1,000.

    python bench/stability.py SET [seconds each] [seeds] [model ...]     adds to results/stability.json

SET is ring8, grid25 or stacked-digits. Every run is what `sfumato train SET --model MODEL` would do, but that all take
batches of the same size, and has as many steps as fit into the time, by step times of one interleaved measurement that
the JSON keeps; so what is stopped goes on, and a disturbed minute costs nobody. Sets of points take one core: several
commands may run beside each other. Told are modes found, the share of samples that are of a mode, the divergence of
their histogram from the true one, and for points the sliced Wasserstein distance; see metrics/modes.py. The classifier
that says of which mode a stacked picture is knows digits, one channel at a time; its accuracy is that on held-out
pictures.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from interleave import keep, read, step_seconds

from sfumato.data import load
from sfumato.data.toys import CENTRES, SPREAD
from sfumato.engine.asked import Asked, Choices
from sfumato.engine.choices import configure
from sfumato.engine.machine import tuned
from sfumato.engine.run import Run
from sfumato.engine.trainer import Trainer
from sfumato.metrics.modes import modes_of_labels, modes_of_points, sliced_wasserstein
from sfumato.metrics.recognise import recogniser

FILE = "stability.json"
SAMPLES = {"ring8": 2_500, "grid25": 2_500, "stacked-digits": 26_000}
BATCH = {"ring8": 256, "grid25": 256, "stacked-digits": 64}


POINTS = ("diffusion", "gan", "vae", "ladder", "plain-gan")
PICTURES = (*POINTS, "dcgan")


class Bench:
    def __init__(self, name):
        self.name, self.data = name, load(name)
        self.points = name in CENTRES
        self.models = POINTS if self.points else PICTURES
        if not self.points:
            digits = load("digits")
            self.known = recogniser(self.pixels(digits.items[:]), digits.labels.numpy())

    def pixels(self, items):
        return items.reshape(len(items), -1, 64).flatten(0, 1).double().numpy()

    def trainer(self, model, seed=0, steps=10**6):
        asked = Asked(self.name, model=model, steps=steps, seed=seed, batch=BATCH[self.name])
        return Trainer(Run.of(Path("nowhere"), configure(self.data, asked, Choices()), self.data), self.data)

    def classes(self, items):
        """Which mode each stacked picture is of, by its digits."""
        return self.known.predict(self.pixels(items)).reshape(-1, 3) @ np.array([100, 10, 1])

    def judged(self, items):
        """What samples make of the modes."""
        if not self.points:
            return told(modes_of_labels(self.classes(items), 1000))
        points, real = items.double().numpy(), self.data.test.items[: len(items)].double().numpy()
        found = told(modes_of_points(points, CENTRES[self.name], SPREAD))
        return found | {"sliced wasserstein": round(sliced_wasserstein(points, real), 4)}

    def real(self):
        """The same of training points; of held-out stacks, with how often the classifier is right."""
        if self.points:
            return self.judged(self.data.items[: SAMPLES[self.name]])
        items = self.data.test.items[: SAMPLES[self.name]]
        seen, labels = self.classes(items), self.data.test.labels[: len(items)].numpy()
        return told(modes_of_labels(seen, 1000)) | {"classifier": round(float((seen == labels).mean()), 4)}

    def row(self, model, seed, steps):
        """Train one run, and judge its average; a run whose weights are not finite has failed."""
        trainer = self.trainer(model, seed, steps)
        for _ in range(steps):
            trainer.advance()
        if not trainer.healthy():
            return {"steps": steps, "failed": "weights are not finite"}
        return {"steps": steps} | self.judged(trainer.ema.sample(SAMPLES[self.name], seed=seed))


def told(found):
    return {"found": found.found, "on": round(found.on, 4), "kl": round(found.kl, 4)}


def main(name, seconds, seeds, models):
    bench, case = Bench(name), f"{name}, {seconds:g} s"
    with tuned(1 if bench.points else torch.get_num_threads(), "cpu"):
        known = read(FILE).get("cases", {}).get(case, {})
        keep(FILE, step_seconds(bench.trainer, bench.models, known.get("step seconds")), "cases", case, "step seconds")
        if "real" not in known:
            keep(FILE, bench.real() | {"n": SAMPLES[name]}, "cases", case, "real")
        known = read(FILE)["cases"][case]
        for seed in range(seeds):
            for model in models or bench.models:
                if str(seed) in known.get("rows", {}).get(model, {}):
                    continue
                row = bench.row(model, seed, round(seconds / known["step seconds"][model]))
                keep(FILE, row, "cases", case, "rows", model, str(seed))
                print(f"{case}, seed {seed}: {model}: {row}", flush=True)


if __name__ == "__main__":
    words = dict(enumerate(sys.argv))
    main(words[1], float(words.get(2, 120)), int(words.get(3, 10)), sys.argv[4:])
