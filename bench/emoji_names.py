"""Whether a picture of `sfumato train emoji --text` (--latent) shows its name: retrieval, by a judge of real pictures.

    python bench/emoji_names.py RUN       writes results/emoji.json, draws emoji.png and emoji_nearest.png

The judge is a small encoder of pictures and one of names (English and Spanish), trained on real pairs alone so that a
picture's inner product with its own name is the largest of a batch (symmetric cross-entropy, Radford et al. 2103.00020,
section 2.3); it is told nothing of any generated picture. It ranks the same 200 names of training for every picture, in
the language of the prompt: "top 1" and "top 5" are the shares of the pictures whose own name is among the first, chance
.005 and .025. "real" are the emoji themselves, of a size and at a place that the judge never saw; "held out" are 150
emoji that neither was shown, of whose names a word is known, ranked among them; no bar is set for these. "nearest" are
the root mean square distances, in [-1, 1], of a generated picture to the nearest of all training pictures and of a
held-out emoji to it.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from interleave import RESULTS, write
from shapes import drawn
from torch import Tensor, nn

from sfumato.condition import NULL, Vocabulary
from sfumato.data import load
from sfumato.data.emoji import LANGUAGES, names
from sfumato.dist import stream
from sfumato.engine.machine import tuned
from sfumato.engine.run import Run
from sfumato.files import write_png
from sfumato.guide import Guidance
from sfumato.metrics.neighbours import nearest
from sfumato.nn import Encoder
from sfumato.nn.text import TextEncoder

FILE = "emoji.json"
WEIGHTS = (1.0, 2.0, 3.0)
USUAL = 2.0
ASKED, HELD_OUT, TOP = 200, 150, 5
STEPS, BATCH, RATE, WIDTH = 1_500, 192, 2e-3, 96
SMALLEST, FURTHEST = 0.7, 0.15  # share of the side, and of half of it
GRID = [
    "pizza", "cat face", "red apple", "rocket", "soccer ball", "sunflower", "house", "automobile",
    "grapes", "panda", "guitar", "snowman", "hamburger", "red heart", "umbrella", "octopus",
    "banana", "full moon", "bicycle", "bell", "frog", "strawberry", "key", "Christmas tree",
]  # fmt: skip


class Judge(nn.Module):
    """Pictures (B, 3, 32, 32) in [-1, 1] and names to vectors of length 1."""

    def __init__(self, captions):
        super().__init__()
        self.known = Vocabulary.of(captions, "emoji")
        self.eye = Encoder((3, 32, 32), WIDTH, (32, 64, 128), 1)
        self.ear = TextEncoder(len(self.known.words), self.known.length)
        self.join = nn.Linear(self.ear.width, WIDTH)
        self.scale = nn.Parameter(torch.tensor(2.5))

    def seen(self, x: Tensor) -> Tensor:
        return F.normalize(self.eye(x), dim=1)

    def told(self, captions) -> Tensor:
        return F.normalize(self.join(self.ear(self.known.rows(captions)).words[:, 0]), dim=1)


def moved(x: Tensor, rng) -> Tensor:
    """Pictures smaller or larger, beside their place, with a little noise; white around them."""
    share, x_off, y_off = torch.rand(3, len(x), generator=rng)
    size = 1 / (SMALLEST + (1.05 - SMALLEST) * share)
    place = torch.zeros(len(x), 2, 3)
    place[:, 0, 0] = place[:, 1, 1] = size
    place[:, 0, 2], place[:, 1, 2] = ((2 * each - 1) * FURTHEST * size for each in (x_off, y_off))
    found = F.grid_sample(x - 1, F.affine_grid(place, x.shape, align_corners=False), align_corners=False) + 1
    return found + 0.05 * torch.randn(found.shape, generator=rng)


def judge(x: Tensor, captions) -> Judge:
    """A judge, trained on pairs."""
    torch.manual_seed(0)
    found = Judge(captions)
    optimiser = torch.optim.AdamW(found.parameters(), RATE, weight_decay=0.05)
    fall = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, STEPS)
    for step in range(STEPS):
        rng = stream(5, step)
        some = torch.randperm(len(x), generator=rng)[:BATCH]
        mine = [captions[k] for k in some.tolist()]
        scores = found.scale.exp() * found.seen(moved(x[some], rng)) @ found.told(mine).T
        same = torch.tensor([[a == b for b in mine] for a in mine])  # a name may come twice
        target = same.float() / same.sum(1, keepdim=True)
        loss = F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        fall.step()
        if step % 250 == 0:
            print(f"judge, step {step}: loss {loss.item():.3f}", flush=True)
    return found.eval()


@torch.no_grad()
def ranked(by: Judge, x: Tensor, captions) -> dict:
    """Shares of the pictures whose own name is the first, or among the first."""
    scores = by.seen(x) @ by.told(captions).T
    place = (scores > scores.diagonal()[:, None]).sum(1)
    return {f"top {k}": round(float((place < k).float().mean()), 4) for k in (1, TOP)}


class Names:
    """The names that are asked for, with both languages, and what the judge makes of pictures of them."""

    def __init__(self, model, data):
        self.model, self.data = model, data
        self.whole = data.codec.encode(data.items[:])
        self.of = {record[language]: record for record in names().values() for language in LANGUAGES}
        self.asked, self.strange = self._some(data, ASKED), self._some(data.test, HELD_OUT)
        self.judge = judge(self.whole, data.captions)

    def _some(self, part, n):
        row = self.model.vocabulary.row
        mine = sorted({self.of[caption]["en"] for caption in part.captions})
        mine = [name for name in mine if set(row(name)) != {NULL}]  # of the others no word is heard
        return [self.of[mine[k]] for k in np.random.default_rng(6).permutation(len(mine))[:n]]

    def real(self, part, records, language):
        """Ranks of real pictures, moved as the judge never saw them."""
        first = {caption: k for k, caption in reversed(list(enumerate(part.captions)))}
        captions = [record[language] for record in records]
        x = self.data.codec.encode(part.items[torch.tensor([first[caption] for caption in captions])])
        return ranked(self.judge, moved(x, stream(7)), captions)

    def drawn(self, records, language, weight):
        """Ranks of drawn pictures, and these."""
        captions = [record[language] for record in records]
        made = drawn(self.model, captions, Guidance(weight))
        return ranked(self.judge, self.data.codec.encode(made), captions), made

    def copies(self, made):
        """Distances to the nearest training pictures, and whether those have the name that was asked for."""
        encoded, rows = self.data.codec.encode, self.whole.flatten(1).numpy()
        far, places = nearest(encoded(made).flatten(1).numpy(), rows)
        usual, _ = nearest(encoded(self.data.test.items[::2]).flatten(1).numpy(), rows)
        side = rows.shape[1] ** 0.5
        own = [self.of[self.data.captions[k]] is record for k, record in zip(places, self.asked, strict=True)]
        told = {"drawn": np.median(far) / side, "held out": np.median(usual) / side, "of the own name": np.mean(own)}
        near = self.data.items[torch.from_numpy(places[:16])]
        rows = [made[:8], near[:8], made[8:16], near[8:]]
        recipe = {"rows": 2 * ["drawn", "nearest in training"], "prompts": [each["en"] for each in self.asked[:16]]}
        write_png(RESULTS / "emoji_nearest.png", self.data.codec.picture(torch.cat(rows), 8), recipe)
        return {name: round(float(value), 4) for name, value in told.items()}


def main(folder):
    model, notes = Run.open(Path(folder)).load()
    told = {"weights": model.fingerprint(), "step": int(notes["step"]), "asked": ASKED, "drawn": {}}
    with tuned(torch.get_num_threads(), "cpu"):
        data = load("emoji")
        known = Names(model, data)
        for name, part, records in (("real", data, known.asked), ("real, held out", data.test, known.strange)):
            told[name] = {language: known.real(part, records, language) for language in LANGUAGES}
            print(f"{name}: {told[name]}", flush=True)
        for weight in WEIGHTS:
            told["drawn"][str(weight)] = {}
            for language in LANGUAGES:
                told["drawn"][str(weight)][language], made = known.drawn(known.asked, language, weight)
                if (weight, language) == (USUAL, "en"):
                    told["nearest"] = known.copies(made)
            print(f"weight {weight:g}: {told['drawn'][str(weight)]}", flush=True)
            write(FILE, told)
        told["drawn, held out"], _ = known.drawn(known.strange, "en", USUAL)
        print({name: told[name] for name in ("nearest", "drawn, held out")}, flush=True)
        write(FILE, told)
        write_png(RESULTS / "emoji.png", data.codec.picture(drawn(model, GRID, Guidance(USUAL)), 8), {"prompts": GRID})


if __name__ == "__main__":
    main(sys.argv[1])
