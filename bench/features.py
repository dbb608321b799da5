"""Train the small network whose features judge grey pictures (sfumato/metrics/grey.py), and say how good it is.

    python bench/features.py [epochs]      writes src/sfumato/weights/grey.safetensors and results/features.json

Classes of Fashion-MNIST and of scikit-learn's digits (enlarged to 28x28, eight times as often as there are), on the
training parts only. Shifts, squares of noise and smoothed labels keep the features of training pictures from standing
apart from those of held-out ones: `gap` is the Frechet distance of train and held-out over that of two halves of the
training part, at the same n, and would be 1 for features that know no difference.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from sfumato.data import load
from sfumato.metrics.frechet import frechet
from sfumato.metrics.grey import WEIGHTS, Grey, grey, to_grey_side

RESULTS = Path(__file__).parent / "results" / "features.json"
BATCH, OFTEN = 256, 8


def states(data):
    return to_grey_side(data.codec.encode(data.items))


def augmented(x, rng):
    """Shifted by up to two places, with a square of noise in half of them."""
    padded = F.pad(x, (2, 2, 2, 2), value=-1.0)
    dx, dy = torch.randint(0, 5, (2,), generator=rng).tolist()
    x = padded[:, :, dy : dy + 28, dx : dx + 28].clone()
    size = int(torch.randint(4, 12, (), generator=rng))
    left, top = torch.randint(0, 28 - size, (2,), generator=rng).tolist()
    half = len(x) // 2
    x[:half, :, top : top + size, left : left + size] = torch.rand(half, 1, size, size, generator=rng) * 2 - 1
    return x


def train(network, x, y, epochs, rng):
    steps = epochs * (len(x) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, steps)
    network.train().to(memory_format=torch.channels_last)
    begin, seen = time.monotonic(), []
    for k in range(steps):
        if k % (len(x) // BATCH) == 0:
            order = torch.randperm(len(x), generator=rng)
        index = order[k % (len(x) // BATCH) * BATCH :][:BATCH]
        batch = augmented(x[index], rng).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(batch)
        loss = F.cross_entropy(logits.float(), y[index], label_smoothing=0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        seen.append(float(loss.detach()))
        if k % 100 == 99:
            print(
                f"step {k + 1} of {steps}: loss {np.mean(seen[-100:]):.4f}, {time.monotonic() - begin:.0f} s",
                flush=True,
            )


@torch.no_grad()
def outputs(network, x):
    features = torch.cat([network.features(part) for part in x.split(500)])
    return features.numpy(), network.names(features).argmax(1)


def main(epochs):
    clothes, digits = load("fashion-mnist"), load("digits")
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    x = torch.cat([states(clothes)] + [states(digits)] * OFTEN)
    y = torch.cat([clothes.labels] + [digits.labels + 10] * OFTEN)
    network = Grey()
    train(network, x, y, epochs, rng)
    kept = {k: v.half().contiguous() for k, v in network.state_dict().items() if v.is_floating_point()}
    WEIGHTS.parent.mkdir(exist_ok=True)
    save_file(kept, WEIGHTS, {"made by": f"bench/features.py {epochs}"})
    network, report = grey(), {"epochs": epochs, "bytes": WEIGHTS.stat().st_size, "sets": {}}
    for data, offset in ((clothes, 0), (digits, 10)):
        seen, _ = outputs(network, states(data))
        unseen, named = outputs(network, states(data.test))
        n = min(len(unseen), len(seen) // 2)
        some = np.random.default_rng(0).permutation(len(seen))
        halves = frechet(seen[some[:n]], seen[some[n : 2 * n]])
        floor = frechet(seen[some[:n]], unseen[:n])
        report["sets"][data.name] = {
            "accuracy": round(float((named == data.test.labels + offset).float().mean()), 4),
            "n": n, "frechet train/held-out": round(floor, 6), "frechet train/train": round(halves, 6),
            "gap": round(floor / halves, 3),
        }  # fmt: skip
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
