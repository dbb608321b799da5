"""Which lowest noise level makes the best samples for a given number of network calls, with a few samplers and grids.

    python bench/defaults.py RUN [-n 1000]      writes bench/results/defaults.json

Frechet distance on raw values against the training data, as held-out data are not for choosing defaults; the mean over
two seeds. Heun takes half as many steps for the same number of calls. R_MIN of grid.py was
taken from it; solvers.py measures all deterministic samplers.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

import sfumato
from sfumato import grid
from sfumato.data import load
from sfumato.engine.run import Run
from sfumato.metrics.frechet import frechet

SEEDS = (1, 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("-n", type=int, default=1000)
    asked = parser.parse_args()
    run = Run.open(Path(asked.run))
    model = sfumato.load(asked.run)
    train = load(run.config.data)
    seen = train.codec.encode(train.items).flatten(1).numpy()

    def distance(calls, method, name, lowest):
        grid.R_MIN = lowest
        steps = (calls + 1) // 2 if method == "heun" else calls
        values = []
        for seed in SEEDS:
            items = model.sample(asked.n, seed=seed, steps=steps, method=method, grid=name)
            values.append(frechet(train.codec.encode(items).flatten(1).numpy(), seen))
        return round(statistics.mean(values), 4)

    rows = []
    for method in ("dpm++2m", "heun", "ddim", "ancestral", "ancestral-optimal"):
        for name in ("logsnr", "karras", "uniform"):
            for lowest in (0.005, 0.02, 0.05) if name != "uniform" else (grid.R_MIN,):
                row = {"sampler": method, "grid": name, "r_min": lowest if name != "uniform" else None}
                row |= {str(calls): distance(calls, method, name, lowest) for calls in (6, 12, 24)}
                rows.append(row)
                print(row, flush=True)
    result = {
        "measure": f"frechet[{seen.shape[1]} raw values] against training data, mean of seeds {list(SEEDS)}",
        "data": run.data["name"],
        "weights": model.fingerprint(),
        "n": asked.n,
        "torch": torch.__version__,
        "columns": "network calls",
        "rows": rows,
    }
    Path(__file__).with_name("results").joinpath("defaults.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
