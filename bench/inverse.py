"""What a model that comes along makes of damaged pictures it never saw: Fashion-MNIST, four times smaller, blurred, or
seen through random projections.

    python bench/inverse.py [pictures]          writes results/inverse.json and results/inverse.png

Each way answers the same pictures from the same noise, in as many steps; told are the PSNR of one answer, that of the
mean of four (which is what minimises the error), and seconds a picture on this machine beside those of plain sampling.
Beside them stands what needs no model: bicubic interpolation, or the pseudo-inverse.
"""

import sys
import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from interleave import RESULTS, write

import sfumato
from sfumato.condition import Condition
from sfumato.data import load
from sfumato.denoise import Given
from sfumato.dist import stream
from sfumato.guide import Measured
from sfumato.guide.measured import METHODS
from sfumato.guide.operators import Blur, Projections, Smaller
from sfumato.sampler import generate, sampler

TASKS = {"4x smaller": Smaller(4), "blurred": Blur(1.5), "a quarter of projections": Projections(0.25)}
SAMPLER, NOISE, STEPS, ANSWERS, SHOWN = "ancestral", 0.02, 24, 4, 8


def psnr(x, true):
    """Mean over pictures of -10 log10 of the mean square error, in [0, 1]."""
    error = ((x.clamp(-1, 1) - true) / 2).square().flatten(1).mean(1)
    return round(float((-10 * error.log10()).mean()), 2)


def simple(task, y, operator, shape):
    """What needs no model."""
    if task == "4x smaller":
        return F.interpolate(y, shape[-2:], mode="bicubic", align_corners=False)
    if task == "blurred":
        return y
    matrix = operator.matrix(shape[1:].numel()).to(y.dtype)
    return (y @ torch.linalg.pinv(matrix).T).view(shape)


def main(count=32):
    model, data = sfumato.load("fashion-mnist"), load("fashion-mnist").test
    labels = Condition(data.labels[:count]) if model.classes else None
    true = data.codec.encode(data.items[:count])
    given, sd = Given(model.denoiser, labels), model.denoiser.sigma_data
    starts = [given.process.prior(true).sample([stream(k, i) for i in range(count)]) for k in range(ANSWERS)]
    told, shown = (
        {
            "pictures": count,
            "noise": NOISE,
            "sampler": SAMPLER,
            "steps": STEPS,
            "classes": bool(model.classes),
            "tasks": {},
        },
        {},
    )
    generate(given, sampler(SAMPLER), starts[0], steps=2, rng=stream(8))  # prepares kernels
    begin = time.perf_counter()
    generate(given, sampler(SAMPLER), starts[0], steps=STEPS, rng=stream(8))
    plain = time.perf_counter() - begin
    for task, operator in TASKS.items():
        y = operator(true)
        y = y + NOISE * torch.randn(y.shape, generator=stream(9))
        rows = told["tasks"][task] = {"without a model": {"psnr": psnr(simple(task, y, operator, true.shape), true)}}
        pictures = [true, simple(task, y, operator, true.shape)]
        for method in METHODS:
            asked = Measured(given, y, operator, NOISE, method, sigma_data=sd)
            begin = time.perf_counter()
            answers = [
                generate(asked, sampler(SAMPLER), start, steps=STEPS, rng=stream(8, k))
                for k, start in enumerate(starts)
            ]
            took = (time.perf_counter() - begin) / ANSWERS
            rows[method] = {
                "psnr": psnr(answers[0], true),
                "psnr of the mean": psnr(torch.stack(answers).mean(0), true),
                "seconds a picture": round(took / count, 4),
                "times plain sampling": round(took / plain, 2),
                "rms of what was measured": round(float((operator(answers[0]) - y).square().mean().sqrt()), 4),
            }
            pictures.append(answers[0])
            print(f"{task}: {method}: {rows[method]}", flush=True)
        shown[task] = pictures
    write("inverse.json", told)
    draw(shown)


def draw(shown):
    """A row of pictures for each: the truth, what needs no model, and each way."""
    names = ["truth", "no model", *METHODS]
    figure, axes = plt.subplots(1, len(shown), figsize=(4 * len(shown), 2.6), layout="constrained")
    for axis, (task, rows) in zip(axes, shown.items(), strict=True):
        sheet = torch.cat([torch.cat([*row[:SHOWN, 0]], 1) for row in rows])
        axis.imshow(sheet.clamp(-1, 1), cmap="gray")
        height = rows[0].shape[-2]
        axis.set_yticks([height * (k + 0.5) for k in range(len(names))], names, fontsize=7)
        axis.set(title=task, xticks=[])
    figure.savefig(RESULTS / "inverse.png", dpi=110)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
