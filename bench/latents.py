"""What latents are worth for pictures of 64x64: emoji by a model of an autoencoder's latents, and by one of pixels.

    python bench/latents.py FOLDER [minutes]      trains what FOLDER lacks; writes results/latents.json and latents.png

`sfumato train emoji64` three times: an autoencoder for half of the minutes, a model of its latents for the minutes, and
one of pixels for as long as both. "psnr" is the mean over held-out emoji of what the autoencoder gives back, in dB.
"frechet" are distances of 2,000 samples of the usual sampler to training pictures, by EfficientNet-Lite0
(sfumato[eval]), "floor" that of other training pictures. "times faster" is what a sample of pixels takes over one of
latents with as many steps, medians of interleaved rounds.
"""

import sys
from pathlib import Path

import torch
from interleave import RESULTS, race, ratio, read, repeats, timers, write

import sfumato
from sfumato.data import load
from sfumato.engine.machine import tuned
from sfumato.engine.run import Run
from sfumato.files import write_png
from sfumato.metrics.features import features_of
from sfumato.metrics.frechet import frechet

FILE, DATA = "latents.json", "emoji64"
SAMPLES, SHOWN, ROUNDS = 2_000, 8, 12
STEPS = (12, 24)


def trained(folder, minutes):
    """The runs, trained as far as they are not."""
    for name, how in {
        "autoencoder": {"model": "autoencoder", "time": f"{30 * minutes:g}s"},
        "latents": {"codec": str(folder / "autoencoder"), "time": f"{60 * minutes:g}s"},
        "pixels": {"time": f"{90 * minutes:g}s"},
    }.items():
        sfumato.train(DATA, out=str(folder / name), resume=True, **how)
    return {name: Run.open(folder / name) for name in ("autoencoder", "latents", "pixels")}


def psnr(codec, items):
    """Mean over pictures, in dB of the largest value."""
    back = codec.decode(codec.encode(items)).float()
    return float((20 * torch.log10(255 / (back - items).square().flatten(1).mean(1).sqrt())).mean())


def main(folder, minutes=10.0):
    runs, data, told = trained(Path(folder), float(minutes)), load(DATA), read(FILE)
    models = {name: runs[name].load()[0] for name in ("latents", "pixels")}
    codec = models["latents"].codec
    told |= {"minutes": float(minutes), "latents": list(codec.dims), "psnr": round(psnr(codec, data.test.items[:]), 2)}
    print(told, flush=True)
    with torch.no_grad(), tuned(torch.get_num_threads(), "cpu"):
        measure, _ = features_of("lite0", data.codec.dims)
        order = torch.randperm(len(data.items), generator=torch.Generator().manual_seed(0))
        known, other = (measure(data.codec.encode(data.items[some])) for some in order[: 2 * SAMPLES].split(SAMPLES))
        told |= {"features": measure.name, "n": SAMPLES, "floor": round(frechet(other, known), 3), "frechet": {}}
        sheet = [data.items[order[:SHOWN]], codec.decode(codec.encode(data.items[order[:SHOWN]]))]
        for name, model in models.items():
            for steps in STEPS:
                made = model.sample(SAMPLES, steps=steps)
                distance = frechet(measure(data.codec.encode(made)), known)
                told["frechet"][f"{name}, {steps} steps"] = round(distance, 3)
                print(f"{name}, {steps} steps: {distance:.3f}", flush=True)
            sheet.append(made[: 2 * SHOWN])
            write(FILE, told)
        works = timers({name: lambda model=model: model.sample(64, steps=STEPS[0]) for name, model in models.items()})
        rounds = race(works, repeats(works), ROUNDS)
        told["times faster"] = round(ratio(rounds, "pixels", "latents"), 2)
        print(f"times faster: {told['times faster']}", flush=True)
    write(FILE, told)
    recipe = {"rows": ["data", "given back", *models]}
    write_png(RESULTS / "latents.png", data.codec.picture(torch.cat(sheet), SHOWN), recipe)


if __name__ == "__main__":
    main(*sys.argv[1:])
