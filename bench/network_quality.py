"""Which image network makes the best samples after equal training time: the designs of network_speed.py on digits.

    python bench/network_quality.py [seconds each] [name ...]      adds to bench/results/network_quality.json

Every design trains for as many steps as fit into the time by the step times of one interleaved run of
network_speed.py, so a disturbed minute here costs nobody. Judged by the held-out loss (same noise for all) and by the
Frechet distance of 1,000 samples on the 64 raw pixels, for two seeds.
"""

import json
import sys
from pathlib import Path

import torch
from network_speed import CASES, VARIATIONS, Candidate, Design, Peer
from torch import nn

from sfumato.data import load
from sfumato.denoise import Denoiser
from sfumato.dist import stream
from sfumato.engine.average import PowerAverage
from sfumato.metrics.frechet import frechet
from sfumato.models.diffusion import Diffusion
from sfumato.nn.layers import started
from sfumato.process import Gaussian
from sfumato.schedule import Cosine

RESULTS = Path(__file__).parent / "results"
CASE = CASES["8x8"]
NAMES = (
    "sfumato", "two norms per block", "skip by addition", "no attention", "GroupNorm channels_first",
    "fp32 GroupNorm channels_first", "ConvNeXt 5x5", "diffusers",
)  # fmt: skip


class Unconditional(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, level, cond=None):
        return self.network(x, level)


def build(name):
    """The candidate, started as the library starts its own: residual branches and the outlet at zero."""
    if name == "diffusers":
        return Unconditional(Peer(CASE))
    network = Candidate(VARIATIONS.get(name, Design()), CASE)
    for path, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and "conditioning" not in path:
            zero = path.endswith((".second", "film", "outlet"))
            started(layer, 0.0 if zero else 1.0)
    return Unconditional(network)


def train(name, steps, seed, data):
    torch.manual_seed(seed)
    states = data.codec.encode(data.items)
    kept = [Denoiser(build(name), Gaussian(Cosine()), sigma_data=float(states.std())) for _ in range(2)]
    model, average = kept
    keeper = PowerAverage(model, average, 0.1)
    keeper.update(1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=True)
    for k in range(1, steps + 1):
        rng = stream(seed, k)
        x = states[torch.randint(len(states), (CASE.batch,), generator=rng)]
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1, k / 100, (steps - k + 1) / (0.3 * steps))
        model.loss(x, rng=rng).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        keeper.update(k)
    held_out = data.codec.encode(data.test.items)
    diffusion = Diffusion(average, data.codec).eval()
    with torch.no_grad():
        loss = torch.stack([average.loss(held_out, rng=stream(0, k)).mean() for k in range(20)]).mean().item()
    samples = data.codec.encode(diffusion.sample(1000, seed=seed))
    distance = frechet(samples.flatten(1).numpy(), held_out.flatten(1).numpy())
    return {"seed": seed, "steps": steps, "held-out loss": round(loss, 4), "frechet[64 raw values]": round(distance, 4)}


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 40.0
    speed = json.loads((RESULTS / "network_speed.json").read_text())["cases"]["8x8"]["networks"]
    data = load("digits")
    path = RESULTS / "network_quality.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [row for row in before if row["seconds"] != seconds]
    for name in sys.argv[2:] or NAMES:
        steps = round(seconds * speed["sfumato"]["images_per_second"] / CASE.batch / speed[name]["time_over_sfumato"])
        for seed in (0, 1):
            rows.append({"seconds": seconds, "network": name} | train(name, steps, seed, data))
            print(rows[-1], flush=True)
    result = {"data": "digits", "torch": torch.__version__, "rows": rows}
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
