"""How good samples are against network calls: a trained run, its tuned ways back, and its student.

    python bench/few_calls.py RUN [STUDENT ...]      adds to results/few_calls.json and draws few_calls.png

Every row is 10,000 samples against as many held-out examples; the floor is as many training examples. Rows are kept
by the fingerprint of the weights, so what was stopped goes on. The wall time of the student is that of `model.sample`
for 1,000 pictures in one call, against bare forward passes of its network on the same batches, in turns.
"""

import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from interleave import RESULTS, race, ratio, read, timers, write
from judge import MEASURES, Judge

from sfumato.defaults import GRID, SAMPLER
from sfumato.engine.machine import tuned
from sfumato.engine.run import Run

FILE = "few_calls.json"
SAMPLES, PICTURES = 10_000, 1_000


def rows_of(name, model, ways, told, judge):
    """Fill in what is missing of a model's rows; a way is steps, sampler and grid."""
    weights = model.fingerprint()
    rows = told["rows"].get(name, {})
    known = rows if rows.get("weights") == weights else {}
    rows = told["rows"][name] = {"weights": weights} | {way: known[way] for way in ways if way in known}
    for way, how in ways.items():
        made = {"sampler": how["method"]} if "method" in how else {}
        made |= {"stops": list(model.tuned[how["steps"]].stops)} if way.startswith("tuned") else {}
        if way not in rows or not made.items() <= rows[way].items():
            begin = time.monotonic()
            found = judge.of(judge.drawn(model, told["n"], **how), interval=True)
            rows[way] = found | {"seconds": round(time.monotonic() - begin)} | made
            print(f"{name}, {way}: {rows[way]}", flush=True)
            write(FILE, told)


def latency(model):
    """How many times as long a call of `sample` takes as bare forward passes on the same batches."""
    size = model.batch
    batches = -(-PICTURES // size)
    network = model.denoiser.network
    x, level = torch.randn(size, network.shown, *model.codec.dims[1:]), torch.zeros(size)
    labels = model.conditions(range(size))

    @torch.no_grad()
    def forward():
        for _ in range(batches):
            network(x, level, labels)

    works = timers({"sample": lambda: model.sample(batches * size), "forward": forward})
    rounds = race(works, dict.fromkeys(works, 1), 9)
    return {"pictures": batches * size, "sample over forward": round(ratio(rounds, "sample", "forward"), 3)}


def draw(told):
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for axis, measure in zip(axes, MEASURES, strict=True):
        for name, mark in (("untuned", "o-"), ("tuned", "s-"), ("student", "^-")):
            found = {}
            for rows in told["rows"].values():
                for way, row in rows.items():
                    if way.startswith(name):
                        value = row[measure]
                        found[int(way.split()[1])] = value[0] if isinstance(value, list) else value
            if found:
                axis.plot(sorted(found), [found[k] for k in sorted(found)], mark, label=name)
        floor = told["floor"][measure]
        axis.axhline(floor[0] if isinstance(floor, list) else floor, color="grey", ls=":", label="training pictures")
        axis.set(xlabel="network calls", title=measure, xscale="log")
    axes[0].set_yscale("log")
    axes[0].legend(fontsize=8)
    figure.savefig(RESULTS / "few_calls.png", dpi=110)


def main(folder, *students):
    run, n = Run.open(Path(folder)), SAMPLES
    told = {"rows": {}} | read(FILE) | {"n": n, "torch": torch.__version__}
    with tuned(run.config.threads, "cpu"):
        judge = Judge(run.dataset(), n)
        told |= {"features": judge.features.name, "floor": judge.of(judge.known.train[:n], interval=True)}
        model, _ = run.load()
        ways = {f"tuned {calls}": {"steps": calls, "method": "tuned"} for calls in sorted(model.tuned)}
        ways |= {f"untuned {calls}": {"steps": calls, "method": SAMPLER, "grid": GRID} for calls in (12, 100, 8, 5)}
        rows_of("teacher", model, ways, told, judge)
        for student in students:
            pupil, _ = Run.open(Path(student)).load()
            calls = len(pupil.stops) - 1
            told |= {"latency": latency(pupil)} if calls == 1 else {}
            rows_of(f"student for {calls}", pupil, {f"student {calls}": {"steps": calls}}, told, judge)
    best = told["rows"]["teacher"]["untuned 100"]
    for rows in told["rows"].values():
        for row in rows.values():
            if isinstance(row, dict):
                row["of 100 calls"] = round(row["frechet"][0] / best["frechet"][0], 3)
                row["recall of 100 calls"] = round(row["recall"] / best["recall"], 3)
    write(FILE, told)
    draw(told)


if __name__ == "__main__":
    main(*sys.argv[1:])
