"""How well a run of `sfumato train shapes --text` obeys sentences: what was asked for against what pixels say.

    python bench/shapes.py RUN [prompts]       adds to results/shapes.json, draws shapes.png (weights) and prompts.png

Sentences are drawn by another seed than the set; those of unseen pairs of colour and shape are met nowhere in it. Every
aspect is the share of the sentences that tell it, read back by `sfumato.data.scenes`, which reads all of 2,000 real
pictures rightly ("reader"). Weights other than the usual one are asked a third of the sentences. "early": guided away
from what the run was early on (autoguidance) instead of from no sentence. "away": sentences that leave the colour open,
half as many, with and without that a colour is to be avoided (a negative prompt): how often it comes. Rows are kept by
the fingerprint of the weights.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from interleave import RESULTS, read, write

from sfumato.condition import Condition
from sfumato.data.scenes import ASPECTS, obeyed
from sfumato.data.scenes import read as things
from sfumato.data.shapes import COLOURS, PLACES, SHAPES, SIZES, draw, scenes
from sfumato.defaults import GRID, SAMPLER, STEPS
from sfumato.dist import stream
from sfumato.engine.machine import tuned
from sfumato.engine.run import Run
from sfumato.files import write_png
from sfumato.guide import Guidance
from sfumato.sampler import generate, sampler

FILE = "shapes.json"
SEED, UNSEEN_SEED = 2, 3  # the set is drawn by 0 and 1
WEIGHTS = (1.0, 1.5, 2.0, 3.0, 4.0)
USUAL = 2.0
EARLY = 0.13
WAYS = (
    (Guidance(3.0, worse=EARLY), SAMPLER, STEPS),
    (Guidance(2.0, worse=EARLY), "ancestral", 100),
)
"""Of autoguidance; chosen by sentences of another seed."""
BATCH = 50


def drawn(model, prompts, guidance, name=SAMPLER, steps=STEPS):
    """Pictures of sentences, (n, 3, 32, 32); the noise of each depends on its place alone."""
    made = []
    for start in range(0, len(prompts), BATCH):
        some = prompts[start : start + BATCH]
        cond = Condition.of([model.prompt(text) for text in some])
        rng = [stream(0, k) for k in range(start, start + len(some))]
        asked = model.asked(cond, guidance)
        noise = asked.process.prior(torch.zeros(len(some), *model.codec.dims)).sample(rng)
        made.append(model.codec.decode(generate(asked, sampler(name), noise, GRID, steps, rng)))
    return torch.cat(made)


def pixels(items):
    return items.permute(0, 2, 3, 1).numpy()


def answered(some, pictures):
    """Shares of the sentences whose aspects are as asked."""
    answers = [obeyed(scene, things(each)) for scene, each in zip(some, pictures, strict=True)]
    shares = {
        aspect: round(float(np.mean([told[aspect] for told in answers if aspect in told])), 4)
        for aspect in (*ASPECTS, "all")
    }
    return {"n": len(some)} | shares


def avoided(model, count):
    """How often a colour comes that was left open, and how often if it is to be avoided."""
    rng = np.random.default_rng(SEED)
    size, shape, place, colour = (rng.choice(list(names), count) for names in (SIZES, SHAPES, PLACES, COLOURS))
    prompts = [f"a {a} {b} in the middle" if c == "middle" else f"a {a} {b} at the {c}"
               for a, b, c in zip(size, shape, place, strict=True)]  # fmt: skip
    rates = {"left open": [], "avoided": []}
    for name in COLOURS:
        mine = [prompt for prompt, each in zip(prompts, colour, strict=True) if each == name]
        for told, away in (("left open", None), ("avoided", model.prompt(name))):
            pictures = pixels(drawn(model, mine, Guidance(USUAL, away=away)))
            rates[told] += [any(thing.colour == name for thing in things(each)) for each in pictures]
    return {told: round(float(np.mean(each)), 4) for told, each in rates.items()}


def curve(told):
    figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for kind, line in (("seen", "-"), ("unseen", "--")):
        rows = told[kind]
        for aspect, colour in zip(("colour", "shape", "position", "all"), plt.cm.tab10.colors, strict=False):
            axis.plot(
                [float(w) for w in rows], [row[aspect] for row in rows.values()], line + "o", ms=3, color=colour,
                label=aspect if kind == "seen" else None,
            )  # fmt: skip
    axis.set(xlabel="guidance weight", ylabel="share obeyed", title="dashed: pairs never seen in training")
    axis.legend(fontsize=8)
    figure.savefig(RESULTS / "shapes.png", dpi=110)


def main(folder, count):
    run = Run.open(Path(folder))
    model, notes = run.load()
    model.worse[EARLY] = run.worse(model, EARLY)
    known = read(FILE)
    told = known if known.get("weights") == model.fingerprint() and known.get("n") == count else {}
    empty = {"seen": {}, "unseen": {}, "early": {}}
    told = {"weights": model.fingerprint(), "step": int(notes["step"]), "n": count} | empty | told
    kinds = {"seen": scenes(count, SEED), "unseen": scenes(count, UNSEEN_SEED, unseen=True)}
    with tuned(torch.get_num_threads(), "cpu"):
        if "reader" not in told:
            real = scenes(2_000, SEED)
            told["reader"] = answered(real, draw(real))
        for kind, some in kinds.items():
            captions = [scene.caption for scene in some]
            for weight in WEIGHTS:
                if str(weight) in told[kind]:
                    continue
                mine = some if weight == USUAL else some[: count // 3]
                items = drawn(model, captions[: len(mine)], Guidance(weight))
                told[kind][str(weight)] = answered(mine, pixels(items))
                print(f"{kind}, weight {weight:g}: {told[kind][str(weight)]}", flush=True)
                write(FILE, told)
                if kind == "seen" and weight == USUAL:
                    write_png(RESULTS / "prompts.png", model.codec.picture(items[:24], 8), {"prompts": captions[:24]})
            for guidance, name, steps in WAYS:
                way = f"{guidance.words()}, {name}, {steps} steps"
                rows = told["early"].setdefault(way, {})
                if kind not in rows:
                    rows[kind] = answered(some, pixels(drawn(model, captions, guidance, name, steps)))
                    print(f"{kind}, {way}: {rows[kind]}", flush=True)
                    write(FILE, told)
        if "away" not in told:
            told["away"] = {"n": count // 2} | avoided(model, count // 2)
            print(f"away: {told['away']}", flush=True)
            write(FILE, told)
    curve(told)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1_000)
