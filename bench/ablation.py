"""What each choice of the default recipe is worth: every change of it alone, after equal training time, on three seeds.

    python bench/ablation.py DATA [seconds each] [seeds] [change ...]      adds to results/ablation.json
    python bench/ablation.py table                                         writes results/ablation.md from it

DATA is digits, fashion-mnist or emoji. Every run does as many steps as fit into the
time by step times of one interleaved measurement, which the JSON keeps: a disturbed minute costs nobody, and a
benchmark that was stopped goes on. A fifth of the training part is kept from all, and they are judged by their loss on
it (the same noise levels and noise for all) and by the Frechet distance of samples to it, or the kernel distance where
it has fewer pictures than features: what is chosen here has not seen the held-out part.
"""

import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from statistics import median

import numpy as np
import torch
from interleave import RESULTS, read, step_seconds, write
from judge import for_choosing

from sfumato.condition import Condition
from sfumato.coupling import COUPLINGS
from sfumato.data import load
from sfumato.dist import stream
from sfumato.engine.asked import Asked, Choices
from sfumato.engine.average import partner
from sfumato.engine.choices import configure
from sfumato.engine.machine import tuned
from sfumato.engine.reference import reference
from sfumato.engine.run import Run
from sfumato.engine.trainer import Trainer
from sfumato.metrics.features import features_of
from sfumato.metrics.frechet import frechet
from sfumato.metrics.kernel import kernel_distance
from sfumato.weighting import LogNormal

N = 2_000
BATCH = {"digits": 64}  # what --time chooses; else 32
DEFAULT = "optimizer", "lr", "batch", "cool_down", "ema"  # words of it that the table tells


def network(**changes):
    return lambda config: replace(config, model=replace(config.model, **changes))


def run(**changes):
    return lambda config: replace(config, **changes)


CHANGES = {
    "default": lambda config: config,
    "one block a level": network(blocks=1),
    "two blocks a level": network(blocks=2),
    "no attention": lambda c: network(attention=(False,) * len(c.model.widths))(c),
    "attention at the lowest level": lambda c: network(attention=(*[False] * (len(c.model.widths) - 1), True))(c),
    "half as wide again": lambda c: network(widths=tuple(3 * w // 2 for w in c.model.widths))(c),
    "AdamW": run(optimizer="adamw", lr=4e-3),
    "AdamW, half the rate": run(optimizer="adamw", lr=2e-3),
    "Muon": run(optimizer="muon", lr=2e-3),
    "Muon, half the rate": run(optimizer="muon", lr=1e-3),
    "Muon, twice the rate": run(optimizer="muon", lr=4e-3),
    "half the batch": lambda c: replace(c, batch=c.batch // 2),
    "twice the batch": lambda c: replace(c, batch=2 * c.batch),
    "noise of mean -0.5": network(noise_mean=-0.5),
    "noise of mean 0.3": network(noise_mean=0.3),
    "noise of deviation 1.6": network(noise_std=1.6),
    "immiscible noise": network(coupling="immiscible"),
    "mirrored": run(mirror=True),
    "no guess of a Gaussian": network(ppca=0),
    "guess of 8 directions": network(ppca=8),
    "no dropout": network(dropout=0.0),
    "cool-down over 0.9": run(cool_down=0.9),
    "cool-down over 0.3": run(cool_down=0.3),
    "horizon of 0.1": run(ema=0.1),
}
"""Each is one word of the recipe: a function of the config."""


class Bench:
    def __init__(self, name):
        self.name = Path(name).name
        self.data = for_choosing(load(name))
        defaults = Asked(name, steps=1, batch=BATCH.get(self.name, 32), classes=bool(self.data.classes))
        self.config = configure(self.data, defaults, Choices())
        self.features, _ = features_of(None, self.data.codec.dims)
        self.known = reference(self.data, self.data.test, self.features)
        self.held_out = self.data.test.codec.encode(self.data.test.items[:1_000])
        self.cond = Condition(self.data.test.labels[:1_000]) if self.config.model.classes else None

    def config_of(self, change, **changes):
        return change(replace(self.config, **changes))

    def changes(self, change):
        """Whether it is something else than the default."""
        return self.config_of(change) != self.config

    def alike(self, names):
        """For each name the first one whose steps do the same work, and so take equally long."""
        first = {}
        return {name: first.setdefault(self.work(CHANGES[name]), name) for name in names}

    def work(self, change):
        """What the time of a step depends on."""
        config = self.config_of(change)
        return replace(
            config, lr=1.0, ema=0.1, cool_down=0.3, model=replace(config.model, noise_mean=0.0, noise_std=1.0)
        )

    def forever(self, name):
        """One that is only to be timed."""
        return self.trainer(self.config_of(CHANGES[name], steps=10**6))

    def trainer(self, config):
        return Trainer(Run.of(Path("nowhere"), config, self.data), self.data)

    def row(self, change, steps, seed):
        trainer = self.trainer(self.config_of(change, steps=steps, seed=seed))
        begin = time.monotonic()
        for _ in range(steps):
            trainer.advance()
        minutes = round((time.monotonic() - begin) / 60, 2)
        second = {"horizon": partner(trainer.config.ema)} | self.judged(trainer.second, seed)
        return self.judged(trainer.ema, seed) | {"second average": second, "minutes": minutes}

    @torch.no_grad()
    def judged(self, model, seed):
        denoiser = model.eval().denoiser
        denoiser.law, denoiser.coupled = LogNormal(-0.5, 1.2), COUPLINGS["independent"]
        loss = np.mean([float(denoiser.loss(self.held_out, self.cond, stream(0, k)).mean()) for k in range(4)])
        drawn = self.features(torch.cat(list(model.states(N, seed=seed))))
        return {"loss": round(float(loss), 4), "distance": round(self.distance(drawn), 4)}

    @property
    def kind(self):
        few = len(self.known.held_out) <= self.features.dim
        return f"{'kernel' if few else 'frechet'}[{self.features.name}]"

    def distance(self, rows):
        if self.kind.startswith("frechet"):
            return frechet(rows, self.known.held_out)
        return kernel_distance(rows, self.known.held_out).value


def table():
    """Medians over the seeds, and in how many of them a change is nearer to the data than the default."""
    lines = [
        "Made by `python bench/ablation.py table`. Medians of the seeds (least to most); nearer: in how many of them",
        "the samples of a change lie nearer to the examples that were kept back than those of the default; second: the",
        "same of the average that a run keeps beside its own.",
    ]
    for case, told in read("ablation.json")["cases"].items():
        default = told["rows"].get("default")
        if default is None:  # only its step times are known
            continue
        unit = f"{told['measure']}; training pictures {told['floor']:g}"
        words = ", ".join(f"{word} {value}" for word, value in told["default"].items())
        second = default["0"]["second average"]["horizon"]
        lines += [
            "",
            f"**{case}** ({unit}). The default: {words}; second average: {second:g}.",
            "",
            "| | steps | distance | nearer | second | nearer | loss |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, rows in filter(itemgetter(1), told["rows"].items()):
            cells = [name, f"{rows['0']['steps']:,}"]
            for each in (rows, {seed: row["second average"] for seed, row in rows.items()}):
                distances = [row["distance"] for row in each.values()]
                nearer = sum(row["distance"] < default[seed]["distance"] for seed, row in each.items())
                cells.append(f"{median(distances):.4g} ({min(distances):.4g} to {max(distances):.4g})")
                cells.append("-" if each is default else f"{nearer} of {len(each)}")
            cells.append(f"{median(row['loss'] for row in rows.values()):.4g}")
            lines.append(f"| {' | '.join(cells)} |")
    (RESULTS / "ablation.md").write_text("\n".join(lines) + "\n")


def main(name, seconds, seeds, names):
    bench = Bench(name)
    names = [each for each in names if each == "default" or bench.changes(CHANGES[each])]
    case = f"{bench.name}, {seconds:g} s"
    with ExitStack() as stack:
        stack.enter_context(tuned(bench.config.threads, "cpu"))
        default = {word: getattr(bench.config, word) for word in DEFAULT}
        told = read("ablation.json").get("cases", {}).get(case, {"default": default, "step seconds": {}, "rows": {}})
        if told["default"] != default:
            sys.exit(f"results/ablation.json: {case} is of the default {told['default']}: rename it, to measure anew")
        alike = bench.alike(["default", *names])
        told["step seconds"] = step_seconds(bench.forever, dict.fromkeys(alike.values()), told["step seconds"])
        floor = bench.distance(bench.known.train[:N])
        told |= {"measure": bench.kind, "n": N, "floor": round(floor, 4), "torch": torch.__version__}
        write("ablation.json", {"cases": {case: told}})
        for seed in range(seeds):
            for each in names:
                rows = told["rows"].setdefault(each, {})
                if str(seed) not in rows:
                    steps = round(seconds / told["step seconds"][alike[each]])
                    rows[str(seed)] = {"steps": steps} | bench.row(CHANGES[each], steps, seed)
                    print(f"{case}, seed {seed}: {each}: {rows[str(seed)]}", flush=True)
                    write("ablation.json", {"cases": {case: told}})


if __name__ == "__main__":
    words = dict(enumerate(sys.argv))
    if sys.argv[1:] == ["table"]:
        sys.exit(table())
    main(words[1], float(words.get(2, 120)), int(words.get(3, 3)), sys.argv[4:] or CHANGES)
