"""Which sampler, grid and lowest noise level make the best samples of trained runs, by number of network calls.

    python bench/defaults.py RUN ...      adds to results/defaults.json

Frechet distance of 10,000 samples to the *training* examples, as held-out ones are not for choosing defaults. The
samplers are those that `solvers.py` finds near the converged sample; each has the same noise. Rows are kept by the
fingerprint of the weights, so what was stopped goes on.
"""

import sys
from pathlib import Path

import torch
from interleave import read, write
from judge import Judge

from sfumato.engine.machine import tuned
from sfumato.engine.run import Run
from sfumato.grid import GRIDS, R_MIN
from sfumato.metrics.frechet import frechet

FILE = "defaults.json"
SAMPLES, SEED = 10_000, 7
CALLS = (12, 8, 5)
WAYS = [(sampler, "logsnr", R_MIN) for sampler in ("dpm++2m", "dpm++3m", "unipc2", "unipc3", "ipndm")]
WAYS += [("dpm++2m", "karras", R_MIN), ("dpm++2m", "logsnr", R_MIN / 2), ("dpm++2m", "logsnr", 2 * R_MIN)]


def stops(name, calls, r_min, schedule):
    """A grid with another lowest noise level, written as an explicit one."""
    found = GRIDS[name](calls, schedule, r_min=r_min)
    return ",".join(repr(t) for t in found.tolist())


def main(folders):
    told = {"runs": {}} | read(FILE) | {"n": SAMPLES, "seed": SEED, "torch": torch.__version__}
    told["measure"] = "frechet distance to training examples by network calls"
    for folder in folders:
        run = Run.open(Path(folder))
        model, _ = run.load()
        rows = told["runs"].get(folder, {})
        if rows.get("weights") != model.fingerprint():
            rows = {"weights": model.fingerprint(), "ways": {}}
        told["runs"][folder] = rows
        judge = Judge(run.dataset())
        with tuned(run.config.threads, "cpu"):
            for calls in CALLS:
                for sampler, name, r_min in WAYS:
                    way = f"{sampler}, {name}, r_min {r_min:g}"
                    row = rows["ways"].setdefault(way, {})
                    if str(calls) not in row:
                        grid = stops(name, calls, r_min, model.denoiser.process.schedule)
                        made = judge.drawn(model, SAMPLES, seed=SEED, steps=calls, method=sampler, grid=grid)
                        row[str(calls)] = round(frechet(made, judge.known.train), 4)
                        print(f"{folder}, {calls} calls, {way}: {row[str(calls)]}", flush=True)
                        write(FILE, told)


if __name__ == "__main__":
    main(sys.argv[1:])
