"""Which way to teach makes the best student after equal time, for one call and for two.

    python bench/students.py RUN [seconds each] [seeds]      adds to results/students.json

Every method is taught by the run as `sfumato distill` teaches it, for as many steps as fit into the time by step times
of one interleaved measurement. Judged by the Frechet distance and recall of 2,000 samples; the teacher's own, in 12
calls, stand beside it.
"""

import sys
import tempfile
from pathlib import Path

import torch
from interleave import read, step_seconds, write
from judge import Judge

from sfumato.engine.asked import Choices
from sfumato.engine.config import Student
from sfumato.engine.distill import Wanted, config_of
from sfumato.engine.machine import tuned
from sfumato.engine.run import Run
from sfumato.engine.sequel import create
from sfumato.engine.trainer import Trainer
from sfumato.teaching import METHODS

FILE, N = "students.json", 2_000
CASES = [(method, calls) for method in METHODS for calls in (1, 2)]


class Bench:
    def __init__(self, folder):
        self.run = Run.open(folder)
        self.model, _ = self.run.load()
        self.data = self.run.dataset()
        self.judge = Judge(self.data)

    def trainer(self, place, method, calls, steps, seed):
        wanted = Wanted(calls=calls, method=method, steps=steps, seed=seed)
        config = config_of(self.run.config, method, wanted, Choices())
        taught = Student(method, calls, self.run.folder.name)
        return Trainer(create(Path(place) / f"{method}-{calls}", config, self.data, self.model, taught), self.data)

    def judged(self, model):
        return self.judge.of(self.judge.drawn(model, N))


def main(folder, seconds=150.0, seeds=1):
    bench = Bench(Path(folder))
    case = f"{bench.run.data['name']}, {seconds:g} s"
    told = read(FILE).get("cases", {}).get(case, {})
    if told.get("weights") != bench.model.fingerprint():
        told = {"weights": bench.model.fingerprint(), "step seconds": {}, "rows": {}}
    with tuned(bench.run.config.threads, "cpu"), tempfile.TemporaryDirectory() as place:
        told |= {"n": N, "torch": torch.__version__, "teacher": bench.judged(bench.model)}
        if not told["step seconds"]:
            cases = {f"{m}, {c}": (m, c) for m, c in CASES}
            told["step seconds"] = step_seconds(
                lambda name: bench.trainer(place, *cases[name], 10**6, 0), cases, steps=2
            )
        for seed in range(seeds):
            for method, calls in CASES:
                name, key = f"{method}, {calls}", f"{method}, {calls}, seed {seed}"
                if key in told["rows"]:
                    continue
                steps = round(seconds / told["step seconds"][name])
                with tempfile.TemporaryDirectory() as own:
                    trainer = bench.trainer(own, method, calls, steps, seed)
                    for _ in range(steps):
                        trainer.advance()
                    told["rows"][key] = {"steps": steps} | bench.judged(trainer.ema)
                print(key, told["rows"][key], flush=True)
                write(FILE, {"cases": {case: told}})


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:3]), *map(int, sys.argv[3:]))
