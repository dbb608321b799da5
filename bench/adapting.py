"""What is learned on top of a run: a style from twenty pictures (LoRA), and outlines (a branch beside it).

    python bench/adapting.py RUN [lora] [control]       RUN of shapes --text; writes results/adapting.json, two pictures

"lora": twenty pictures of shapes on a ground of another colour, with their captions, for two minutes. "ground" is how
often a picture then has that ground (its corners, within 16 of 255), with none, half and all of what was learned; "all"
is how often sentences of the set's kind are obeyed then, as bench/shapes.py counts it. "control": a branch that follows
edges, trained for five minutes on `shapes`; then pictures that no one saw give the edges, and a sentence asks for the
same things in other colours. "overlap" is the intersection over union of what is not ground, drawn against given, the
mean over the pictures, with the edges and without; "colour" how often the asked colours come.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from interleave import RESULTS, read, write
from PIL import Image
from shapes import BATCH, USUAL, answered, drawn, pixels

import sfumato
from sfumato.condition import Condition
from sfumato.data.scenes import obeyed
from sfumato.data.scenes import read as things
from sfumato.data.shapes import COLOURS, draw, scenes
from sfumato.dist import stream
from sfumato.engine.machine import tuned
from sfumato.engine.run import Run
from sfumato.files import write_png
from sfumato.guide import Guidance
from sfumato.hint import silhouette
from sfumato.sampler import generate, sampler

FILE = "adapting.json"
GROUND = np.array([200, 225, 255])  # pale blue; bench/shapes.py's reader takes it for white
STYLE, STYLE_SEED, SEED = 20, 7, 8
SENTENCES, FOLLOWED, SHOWN = 500, 200, 8
MINUTES = {"lora": "2m", "control": "5m"}


def tinted(pictures):
    """Pictures on that ground instead of white."""
    return np.round(pictures + (GROUND - 255) * (pictures.min(-1, keepdims=True) / 255.0)).astype(np.uint8)


def grounds(made):
    """How often the corners have that ground."""
    corners = made[:, [0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
    return round(float((np.abs(corners - GROUND).max((1, 2)) <= 16).mean()), 4)


def lora(run, folder):
    some = scenes(STYLE, STYLE_SEED)
    (folder / "style").mkdir()
    for k, (scene, picture) in enumerate(zip(some, tinted(draw(some)), strict=True)):
        Image.fromarray(picture).save(folder / "style" / f"{k}.png")
        (folder / "style" / f"{k}.txt").write_text(scene.caption)
    out = sfumato.train(str(folder / "style"), lora=str(run), time=MINUTES["lora"], out=str(folder / "lora"))
    asked = scenes(SENTENCES, SEED)
    told, sheet = {"pictures": STYLE, "time": MINUTES["lora"], "n": SENTENCES, "shares": {}}, []
    for share in (0.0, 0.5, 1.0):
        model, notes = Run.open(out).load(lora=share)
        made = drawn(model, [scene.caption for scene in asked], Guidance(USUAL))
        row = answered(asked, pixels(made))
        told["shares"][f"{share:g}"] = {"ground": grounds(pixels(made)), "all": row["all"]}
        told["step"] = int(notes["step"])
        sheet.append(made[:SHOWN])
        print(f"lora, {share:g} of it: {told['shares'][f'{share:g}']}", flush=True)
    return told, sheet


def recoloured(scene, rng):
    """The same things in other colours, and the sentence that asks for them."""
    old = list(dict.fromkeys(thing.colour for thing in scene.things))
    new = dict(zip(old, rng.permutation([c for c in COLOURS if c not in old]), strict=False))
    caption = " ".join(str(new.get(word, word)) for word in scene.caption.split())
    return replace(scene, caption=caption, things=tuple(replace(t, colour=str(new[t.colour])) for t in scene.things))


def control(run, folder):
    out = sfumato.train("shapes", control=str(run), time=MINUTES["control"], out=str(folder / "control"))
    model, notes = Run.open(out).load()
    given, rng = scenes(FOLLOWED, SEED), np.random.default_rng(SEED)
    asked = [recoloured(scene, rng) for scene in given]
    x = model.codec.encode(torch.from_numpy(draw(given)).permute(0, 3, 1, 2))
    told = {"time": MINUTES["control"], "step": int(notes["step"]), "n": FOLLOWED}
    sheet = [model.codec.decode(x[:SHOWN])]
    for name in ("with edges", "without"):
        made = []
        for first in range(0, FOLLOWED, BATCH):
            some = slice(first, first + BATCH)
            cond = Condition.of([model.prompt(scene.caption) for scene in asked[some]])
            if name == "with edges":
                cond = replace(cond, hint=model.denoiser.hint(x[some]))
            way, noises = model.way(), [stream(0, k) for k in range(FOLLOWED)[some]]
            way_back = model.asked(cond, Guidance(USUAL))
            noise = way_back.process.prior(x[some]).sample(noises)
            made.append(model.codec.decode(generate(way_back, sampler(way.method), noise, way.grid, way.steps, noises)))
        made = torch.cat(made)
        one, other = silhouette(model.codec.encode(made)), silhouette(x)
        overlap = ((one * other).sum((1, 2, 3)) / (one + other).clamp(max=1).sum((1, 2, 3))).mean()
        colours = [obeyed(scene, things(each))["colour"] for scene, each in zip(asked, pixels(made), strict=True)]
        told[name] = {"overlap": round(float(overlap), 4), "colour": round(float(np.mean(colours)), 4)}
        print(f"control, {name}: {told[name]}", flush=True)
        sheet.append(made[:SHOWN])
    return told, sheet


def main(folder, *wanted):
    told = read(FILE)
    with tempfile.TemporaryDirectory() as place, tuned(torch.get_num_threads(), "cpu"):
        for name, work in (("lora", lora), ("control", control)):
            if name in (wanted or MINUTES):
                told[name], sheet = work(Path(folder), Path(place))
                write(FILE, told)
                codec = sfumato.load(folder).codec
                write_png(RESULTS / f"adapting_{name}.png", codec.picture(torch.cat(sheet), SHOWN), told[name])


if __name__ == "__main__":
    main(*sys.argv[1:])
