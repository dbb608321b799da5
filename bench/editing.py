"""How well pictures are changed: found again from their own noise, and made anew under a mask as a sentence asks.

    python bench/editing.py [RUN of shapes --text [fill ...]]      writes results/editing.json, draws editing.png

"own noise": held-out pictures of Fashion-MNIST by the model that comes along, told their classes; the root mean square
between a picture and what its own noise leads to, in [-1, 1], by how often that noise is corrected, with the network
calls of each way. "masks" needs a run of `sfumato train shapes --text`: of a picture of two things the half with the
second is hidden, and a sentence asks for another thing there. Told is how often the picture then shows both as the
sentence says, read back from the pixels, and how often every pixel outside the mask is as it was.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from interleave import RESULTS, read, write

from sfumato.condition import Condition
from sfumato.data import load
from sfumato.data.scenes import obeyed
from sfumato.data.scenes import read as things
from sfumato.data.shapes import RELATIONS, SIDE, draw, scenes
from sfumato.denoise import Given
from sfumato.engine.machine import tuned
from sfumato.engine.run import Run
from sfumato.files import write_png
from sfumato.guide import Guidance
from sfumato.models.edit import FILLS, edited
from sfumato.sampler import encode, generate, sampler

FILE = "editing.json"
PICTURES, SENTENCES, SHOWN = 64, 64, 8
SEED, GUIDANCE = 4, 2.0  # the set of shapes is drawn by 0 and 1, bench/shapes.py asks 2 and 3


def found_again(name="heun", steps=25, grid="logsnr"):
    """Root mean square by corrections."""
    (model, _), data = Run.open(Path("fashion-mnist")).load(precision="fp32"), load("fashion-mnist").test
    x = data.codec.encode(data.items[:PICTURES])
    given = Given(model.denoiser, Condition(data.labels[:PICTURES]) if model.classes else None)
    told = {"pictures": PICTURES, "sampler": name, "order": sampler(name).order, "calls each way": 2 * steps, "rms": {}}
    with model.resting():
        for corrections in range(4):
            noise = encode(given, sampler(name), x, grid, steps, corrections)
            error = generate(given, sampler(name), noise, grid, steps) - x
            told["rms"][str(corrections)] = round(float(error.square().mean().sqrt()), 6)
    return told


def changed(count):
    """Pairs of scenes: what there is, and the same with another second thing; and what is hidden for it."""
    two = [scene for scene in scenes(8 * count, SEED) if scene.relation]
    pairs, masks = [], []
    for now, other in zip(two[::2], two[1::2], strict=False):
        first, second = now.things
        fresh = [each for each in other.things if each.colour not in (first.colour, second.colour)]
        if not fresh or len(pairs) == count:
            continue
        thing = fresh[0]
        caption = f"{first.words} {now.relation} {thing.words}"
        wanted = (first, replace(second, shape=thing.shape, colour=thing.colour))
        pairs.append((now, replace(now, caption=caption, things=wanted)))
        along = np.array(RELATIONS[now.relation])
        middle = (np.array([first.x + second.x, first.y + second.y]) / 2) @ along
        rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
        masks.append(torch.from_numpy(columns * along[0] + rows * along[1] < middle))
    return pairs, masks


def masked(model, fill, whole, pairs, masks):
    """Pictures with what a mask hides made anew as each sentence asks."""
    made, how = [], {} if fill == "trained" else {"steps": 24, "method": "ancestral"}  # as sfumato edit has it
    for k, ((_, wanted), mask) in enumerate(zip(pairs, masks, strict=True)):
        way = model.way(**how, cond=model.prompt(wanted.caption), guidance=Guidance(GUIDANCE))
        made.append(edited(model, whole[k : k + 1], way, 1.0, mask, [k], fill=fill))
    return torch.cat(made)


def main(folder=None, *wanted):
    told = read(FILE)
    with tuned(torch.get_num_threads(), "cpu"):
        told["own noise"] = found_again()
        print(told["own noise"], flush=True)
        write(FILE, told)
        if folder is None:
            return
        model, notes = Run.open(Path(folder)).load()
        pairs, masks = changed(SENTENCES)
        rows = {"sentences": SENTENCES, "guidance": GUIDANCE, "step": int(notes["step"]), "fills": {}}
        whole = torch.from_numpy(draw([now for now, _ in pairs])).permute(0, 3, 1, 2)
        sheet = [whole[:SHOWN]]
        fills = [fill for fill in wanted or FILLS if fill != "trained" or model.denoiser.masks]
        for fill in fills:
            begin = time.perf_counter()
            made = masked(model, fill, whole, pairs, masks)
            took = time.perf_counter() - begin
            pixels = made.permute(0, 2, 3, 1).numpy()
            kept = [torch.equal(a[:, m], b[:, m]) for a, b, m in zip(made, whole, masks, strict=True)]
            answers = [obeyed(wanted, things(each)) for (_, wanted), each in zip(pairs, pixels, strict=True)]
            rows["fills"][fill] = {
                "obeyed": round(float(np.mean([answer["all"] for answer in answers])), 4),
                "known pixels kept": round(float(np.mean(kept)), 4),
                "seconds a picture": round(took / SENTENCES, 3),
            }
            print(f"{fill}: {rows['fills'][fill]}", flush=True)
            sheet.append(made[:SHOWN])
            write(FILE, told | {"masks": rows})
        recipe = {"rows": ["as it was", *fills], "prompts": [wanted.caption for _, wanted in pairs[:SHOWN]]}
        write_png(RESULTS / "editing.png", model.codec.picture(torch.cat(sheet), SHOWN), recipe)


if __name__ == "__main__":
    main(*sys.argv[1:])
