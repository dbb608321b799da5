"""How near every deterministic sampler comes to the converged sample, and to the data, for a number of network calls.

    python bench/solvers.py RUN [-n 300] [--near 32]      writes bench/results/solvers.json and solvers.png

Two measures, each against network calls from 3 to 50:

    rms       root mean square distance of ``near`` samples to those of a 1,000-step solution from the same noise, with
              the network in float32: what is left is the solver's error
    frechet   Frechet distance of ``n`` samples to the training data on their first 32 principal components. Held-out
              data are not for choosing defaults. Its floor (train against itself, n examples) is given too.

The default sampler and grid of `sfumato sample` are chosen from it. The record is written after every row: a run that
was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from sklearn.decomposition import PCA

import sfumato
from sfumato.data import load
from sfumato.denoise import Given
from sfumato.dist import stream
from sfumato.engine.run import Run
from sfumato.metrics.frechet import frechet
from sfumato.sampler import SAMPLERS, Adaptive, sampler, trajectory

RESULTS = Path(__file__).parent / "results"
CALLS = (3, 4, 5, 6, 8, 10, 12, 16, 25, 50)
SCORED = (5, 8, 12, 25, 50)
BATCH = 64
GREY = {"color": "#b9c2ca", "lw": 0.8, "zorder": 1}
OTHER_GRIDS = {"karras": ("dpm++2m", "dpm++3m", "unipc3", "heun", "ddim"), "uniform": ("dpm++2m", "dpm++3m")}
"""Samplers that are measured on other grids too."""


def methods(name: str, calls: int):
    """(method, steps) of a sampler for so many calls at most; the last step makes one."""
    if name == "adaptive":
        return Adaptive(rtol := 10 ** (-calls / 12), rtol), 2
    method = sampler(name)
    return method, 1 + (calls - 1) // method.calls


@torch.no_grad()
def draw(model, name: str, grid: str, calls: int, n: int):
    """n states at t = 0 and the calls made; sample i starts from noise that is a function of i."""
    out = []
    method, steps = methods(name, calls)
    for first in range(0, n, BATCH):
        rows = range(first, min(first + BATCH, n))
        labels = model.conditions(rows)
        x = torch.stack([torch.randn(model.codec.dims, generator=stream(1, i)) for i in rows])
        *_, last = trajectory(
            Given(model.denoiser, labels), method, x * model.denoiser.process.schedule.at(1.0).sigma, grid, steps
        )
        out.append(last.x)
    return torch.cat(out), last.nfe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("-n", type=int, default=300)
    parser.add_argument("--near", type=int, default=32)
    asked = parser.parse_args()
    run = Run.open(Path(asked.run))
    model = sfumato.load(asked.run)
    train = load(run.config.data)
    chosen = torch.randperm(len(train.items), generator=stream(2))
    pixels = [
        train.codec.encode(train.items[part]).flatten(1).numpy() for part in (chosen[:10_000], chosen[-asked.n :])
    ]
    pca = PCA(32, random_state=0).fit(pixels[0])
    seen, floor = (pca.transform(part) for part in pixels)
    trained = model.denoiser.network.precision
    path = RESULTS / "solvers.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    head = {
        "data": run.data["name"], "weights": model.fingerprint(), "n": asked.n, "near": asked.near, "seed": 1,
        "frechet": f"frechet[PCA-32 of {pixels[0].shape[1]} pixels] to 10,000 training examples",
        "frechet_floor": round(frechet(floor, seen), 3), "precision": {"rms": "fp32", "frechet": trained},
        "torch": torch.__version__,
    }  # fmt: skip
    if {key: record.get(key) for key in head} != head:
        record = head | {"rows": []}
    model.denoiser.network.precision = "fp32"
    converged, _ = draw(model, "dpm++2m", "logsnr", 1000, asked.near)
    names = [name for name in SAMPLERS if name not in ("unmask", "unmask-confidence") and not sampler(name).stochastic]
    done = {(row["sampler"], row["grid"]) for row in record["rows"]}
    for name, grid in [(n, "logsnr") for n in names] + [(n, g) for g, some in OTHER_GRIDS.items() for n in some]:
        if (name, grid) in done:
            continue
        row = {"sampler": name, "grid": grid, "rms": {}, "frechet": {}}
        for calls in CALLS:
            model.denoiser.network.precision = "fp32"
            x, made = draw(model, name, grid, calls, asked.near)
            row["rms"][made] = round(float((x - converged).square().mean().sqrt()), 5)
            if calls in SCORED:
                model.denoiser.network.precision = trained
                x, made = draw(model, name, grid, calls, asked.n)
                features = pca.transform(np.clip(x.flatten(1).numpy(), -1, 1))
                row["frechet"][made] = round(frechet(features, seen), 3)
        record["rows"].append(row)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(name, grid, row["rms"], row["frechet"], flush=True)
    draw_plot(record)
    table(record)


def at(row: dict, measure: str, calls: int) -> float | None:
    """The value with the most calls up to ``calls``."""
    made = [int(k) for k in row[measure] if int(k) <= calls]
    return row[measure][str(max(made))] if made and str(max(made)) in row[measure] else None


def table(record: dict) -> None:
    record = json.loads(json.dumps(record))
    for measure, columns in (("rms", CALLS), ("frechet", SCORED)):
        print(
            f"\n{measure} against network calls" + (f" (floor {record['frechet_floor']})" if measure != "rms" else "")
        )
        print(f"{'sampler':18}{'grid':9}" + "".join(f"{c:>9}" for c in columns))
        for row in sorted(record["rows"], key=lambda r: at(r, measure, 12) or 1e9):
            values = [at(row, measure, c) for c in columns]
            print(
                f"{row['sampler']:18}{row['grid']:9}"
                + "".join(f"{v:9.4g}" if v is not None else " " * 9 for v in values)
            )


def draw_plot(record: dict) -> None:
    """Both measures against calls, on the logsnr grid."""
    record = json.loads(json.dumps(record))
    figure = Figure(figsize=(11, 4.6), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    colours = {"dpm++2m": "#0072b2", "unipc3": "#d55e00", "ddim": "#22303c", "heun": "#009e73", "dpm++3m": "#cc79a7"}
    titles = {"rms": "RMS to the converged sample", "frechet": "Frechet distance to the data"}
    for axes, measure in zip(figure.subplots(1, 2), titles, strict=True):
        for row in record["rows"]:
            if row["grid"] == "logsnr":
                name, values = row["sampler"], row[measure]
                look = {"color": colours[name], "lw": 1.8, "zorder": 2, "label": name} if name in colours else GREY
                axes.plot([int(k) for k in values], list(values.values()), **look)
        axes.set(xscale="log", yscale="log", xlabel="network calls", title=titles[measure], xlim=(2.8, 60))
        axes.set_xticks([3, 5, 8, 12, 25, 50], ["3", "5", "8", "12", "25", "50"])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.spines[["top", "right"]].set_visible(False)
    axes.axhline(record["frechet_floor"], color="#6b7884", lw=1, ls=":")
    axes.legend(frameon=False, title="grey: the others")
    figure.savefig(RESULTS / "solvers.png")


if __name__ == "__main__":
    main()
