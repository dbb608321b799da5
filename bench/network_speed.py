"""Which image network trains fastest here: the library's U-Net against variations of it and against diffusers'.

    PYTHONPATH=src python bench/network_speed.py [seconds per case] [case ...]

A *candidate* is the library's design with one choice changed. Every candidate's whole training step (forward,
backward, fused AdamW, average of the weights) is timed in one process, all candidates once per round in a new random
order, because a shared machine drifts by more than the differences looked for. Two yardsticks (a float32 matrix
product, a float32 convolution) run in every round: a round in which they, or other processes, were disturbed is
dropped. Results are medians over the kept rounds, and medians of ratios within a round, so drift cancels.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sfumato.nn import UNet
from sfumato.nn.layers import Attention, Conditioning, channel_norm

RESULTS = Path(__file__).parent / "results" / "network_speed.json"


@dataclass(frozen=True)
class Design:
    """One point in the space of choices; the defaults are the library's."""

    precision: str = "bf16"
    memory: str = "channels_last"  # or "channels_first"
    norm: str = "layer"  # over channels; or "group", "rms"
    norms: int = 2  # per block; 1 leaves out the one after the first convolution
    block: str = "res"  # or "next7", "next5": depthwise 7x7 or 5x5, then two 1x1 with 4x the width
    attention: str = "written"  # or "sdpa", "none"
    down: str = "conv2"  # 2x2 stride 2; or "conv3", "pool", "unshuffle"
    up: str = "transpose"  # 2x2 stride 2; or "shuffle", "nearest"
    skip: str = "cat"  # or "add"


VARIATIONS = {
    "same design": Design(),
    "fp32": Design(precision="fp32"),
    "fp32 GroupNorm channels_first": Design(precision="fp32", norm="group", memory="channels_first"),
    "fp32 GroupNorm channels_last": Design(precision="fp32", norm="group"),
    "GroupNorm channels_first": Design(norm="group", memory="channels_first"),
    "GroupNorm channels_last": Design(norm="group"),
    "RMSNorm": Design(norm="rms"),
    "one norm per block": Design(norms=1),
    "fused attention": Design(attention="sdpa"),
    "no attention": Design(attention="none"),
    "down 3x3 stride 2": Design(down="conv3"),
    "down average pool": Design(down="pool"),
    "down pixel unshuffle": Design(down="unshuffle"),
    "up pixel shuffle": Design(up="shuffle"),
    "up nearest + 3x3": Design(up="nearest"),
    "skip by addition": Design(skip="add"),
    "ConvNeXt 7x7": Design(block="next7"),
    "ConvNeXt 5x5": Design(block="next5"),
}


@dataclass(frozen=True)
class Case:
    """Shape of the data and size of the network."""

    side: int
    batch: int
    widths: tuple[int, ...]
    blocks: int
    peer_widths: tuple[int, ...]  # diffusers' network of about the same work per image

    @property
    def attention(self) -> tuple[bool, ...]:
        return tuple(level == len(self.widths) - 1 for level in range(len(self.widths)))


CASES = {
    "28x28": Case(28, 128, (32, 64, 96), 2, (32, 64, 64)),
    "28x28-batch64": Case(28, 64, (32, 64, 96), 2, (32, 64, 64)),
    "8x8": Case(8, 128, (32, 64), 2, (32, 64)),
}


def norm(design: Design, x: Tensor) -> Tensor:
    if design.norm == "group":
        return F.group_norm(x, 8)
    if design.norm == "rms":
        return F.rms_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)
    return channel_norm(x)


class ResBlock(nn.Module):
    def __init__(self, design: Design, width: int):
        super().__init__()
        self.design = design
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale, shift = film.chunk(2, 1)
        h = self.first(F.silu(norm(self.design, x)))
        h = norm(self.design, h) if self.design.norms == 2 else h
        return x + self.second(F.silu(torch.addcmul(shift, h, 1 + scale)))


class NextBlock(nn.Module):
    def __init__(self, design: Design, width: int):
        super().__init__()
        self.design = design
        kernel = int(design.block[-1])
        self.spatial = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.first = nn.Conv2d(width, 4 * width, 1)
        self.second = nn.Conv2d(4 * width, width, 1)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale, shift = film.chunk(2, 1)
        h = torch.addcmul(shift, norm(self.design, self.spatial(x)), 1 + scale)
        return x + self.second(F.silu(self.first(h)))


class FusedAttention(Attention):
    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = F.layer_norm(x.permute(0, 2, 3, 1).reshape(b, h * w, c), (c,))
        q, k, v = self.qkv(tokens).view(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, c)
        return x + self.out(mixed).view(b, h, w, c).permute(0, 3, 1, 2)


ATTENTION: dict[str, Callable[[int], nn.Module]] = {
    "written": Attention,
    "sdpa": FusedAttention,
    "none": lambda _: nn.Identity(),
}
DOWN: dict[str, Callable[[int, int], nn.Module]] = {
    "conv2": lambda fine, coarse: nn.Conv2d(fine, coarse, 2, stride=2),
    "conv3": lambda fine, coarse: nn.Conv2d(fine, coarse, 3, stride=2, padding=1),
    "pool": lambda fine, coarse: nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(fine, coarse, 1)),
    "unshuffle": lambda fine, coarse: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * fine, coarse, 1)),
}
UP: dict[str, Callable[[int, int], nn.Module]] = {
    "transpose": lambda fine, coarse: nn.ConvTranspose2d(coarse, fine, 2, stride=2),
    "shuffle": lambda fine, coarse: nn.Sequential(nn.Conv2d(coarse, 4 * fine, 1), nn.PixelShuffle(2)),
    "nearest": lambda fine, coarse: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(coarse, fine, 3, padding=1)),
}


class Candidate(nn.Module):
    """The library's U-Net, written with every choice open."""

    def __init__(self, design: Design, case: Case):
        super().__init__()
        self.design = design
        self.format = getattr(torch, design.memory.replace("channels_first", "contiguous_format"))
        widths, steps = case.widths, list(zip(case.widths, case.widths[1:], strict=False))
        block = ResBlock if design.block == "res" else NextBlock
        order = (*widths, *reversed(widths))
        self.conditioning = Conditioning(4 * widths[0])
        self.inlet = nn.Conv2d(1, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.ModuleList(block(design, w) for _ in range(case.blocks)) for w in order
        )
        self.attention = nn.ModuleList(
            ATTENTION[design.attention](w) if w == widths[-1] else nn.Identity() for w in order
        )
        self.down = nn.ModuleList(DOWN[design.down](fine, coarse) for fine, coarse in steps)
        self.up = nn.ModuleList(UP[design.up](fine, coarse) for fine, coarse in reversed(steps))
        self.join = nn.ModuleList(
            nn.Conv2d(2 * fine, fine, 1) if design.skip == "cat" else nn.Identity() for fine, _ in reversed(steps)
        )
        self.film_sizes = [2 * w for w in order for _ in range(case.blocks)]
        self.film = nn.Linear(4 * widths[0], sum(self.film_sizes))
        self.outlet = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.design.precision == "bf16"):
            return self.run(x, level).to(x.dtype)

    def run(self, x: Tensor, level: Tensor) -> Tensor:
        films = iter(self.film(self.conditioning(level, None))[:, :, None, None].split(self.film_sizes, 1))
        h, skips, depth = self.inlet(x), [], len(self.down)
        for i, (stage, attention) in enumerate(zip(self.stages, self.attention, strict=True)):
            if 0 < i <= depth:
                skips.append(h)
                h = self.down[i - 1](h)
            if i > depth + 1:
                h, skip = self.up[i - depth - 2](h), skips.pop()
                h = h + skip if self.design.skip == "add" else self.join[i - depth - 2](torch.cat([h, skip], 1))
            h = h.contiguous(memory_format=self.format)
            for block in stage:
                h = block(h, next(films))
            h = attention(h)
        return self.outlet(F.silu(norm(self.design, h)))


class Peer(nn.Module):
    """diffusers' U-Net, in its own precision and memory order, attention on its lowest level as in ours."""

    def __init__(self, case: Case):
        super().__init__()
        depth = len(case.peer_widths)
        self.net = UNet2DModel(
            sample_size=case.side,
            in_channels=1,
            out_channels=1,
            block_out_channels=case.peer_widths,
            layers_per_block=case.blocks,
            down_block_types=["DownBlock2D"] * (depth - 1) + ["AttnDownBlock2D"],
            up_block_types=["AttnUpBlock2D"] + ["UpBlock2D"] * (depth - 1),
        )

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.net(x, level).sample


class Training:
    """A network with all that one training step needs."""

    def __init__(self, network: nn.Module, case: Case):
        self.network = network
        self.params = list(network.parameters())
        self.average = [p.detach().clone() for p in self.params]
        self.optimiser = torch.optim.AdamW(self.params, fused=True)
        self.x, self.level = torch.randn(case.batch, 1, case.side, case.side), torch.randn(case.batch)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(self.x, self.level)
        self.gflop = counter.get_total_flops() / case.batch / 1e9

    def step(self) -> None:
        F.mse_loss(self.network(self.x, self.level), self.x).backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        torch._foreach_lerp_(self.average, self.params, 0.001)


def yardsticks() -> dict[str, tuple[Callable[[], object], float]]:
    """Name to (work, GFLOP)."""
    a = torch.randn(1024, 1024)
    conv = nn.Conv2d(256, 256, 3, padding=1).to(memory_format=torch.channels_last).requires_grad_(False)
    x = torch.randn(128, 256, 7, 7).contiguous(memory_format=torch.channels_last)
    return {
        "gemm fp32": (lambda: a @ a, 2 * 1024**3 / 1e9),
        "conv fp32": (lambda: conv(x), 2 * 128 * 49 * 256 * 256 * 9 / 1e9),
    }


def seconds(work: Callable[[], object], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - begin) / repeats


def busy_elsewhere(since: tuple[float, float, float] | None = None) -> tuple[tuple[float, float, float], float]:
    """Cores used by other processes since the last reading."""
    cells = [int(c) for c in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    busy = (sum(cells) - cells[3] - cells[4]) / os.sysconf("SC_CLK_TCK")
    now = (time.perf_counter(), busy, sum(os.times()[:2]))
    if since is None:
        return now, 0.0
    wall, total, own = (b - a for a, b in zip(since, now, strict=True))
    return now, max(total - own, 0.0) / wall


def measure(case: Case, budget: float) -> dict[str, object]:
    torch.manual_seed(0)
    runs = {"sfumato": Training(UNet(1, widths=case.widths, blocks=case.blocks, attention=case.attention, precision="bf16"), case)}
    runs["diffusers"] = Training(Peer(case), case)
    runs |= {name: Training(Candidate(design, case), case) for name, design in VARIATIONS.items()}
    sticks = yardsticks()
    works: dict[str, Callable[[], object]] = {name: run.step for name, run in runs.items()}
    works |= {name: work for name, (work, _) in sticks.items()}
    repeats = {name: max(1, round(0.1 / max(seconds(work, 2), 1e-4))) for name, work in works.items()}
    rounds: list[dict[str, float]] = []
    others: list[float] = []
    names = list(works)
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(rounds) < 3:
        random.shuffle(names)
        since, _ = busy_elsewhere()
        rounds.append({name: seconds(works[name], repeats[name]) for name in names})
        others.append(busy_elsewhere(since)[1])
    best = {name: min(r[name] for r in rounds) for name in sticks}
    quiet = [
        r for r, load in zip(rounds, others, strict=True)
        if load < 0.1 and all(r[name] < 1.5 * best[name] for name in sticks)
    ]
    kept = quiet if len(quiet) >= 5 else rounds
    median = {name: statistics.median(r[name] for r in kept) for name in works}
    stick = {name: gflop / median[name] for name, (_, gflop) in sticks.items()}
    table = {
        name: {
            "parameters": sum(p.numel() for p in run.params),
            "gflop_forward": round(run.gflop, 4),
            "images_per_second": round(case.batch / median[name], 1),
            "gflops": round(3 * run.gflop * case.batch / median[name], 1),
            "of_conv_yardstick": round(3 * run.gflop * case.batch / median[name] / stick["conv fp32"], 3),
            "time_over_sfumato": round(statistics.median(r[name] / r["sfumato"] for r in kept), 3),
        }
        for name, run in runs.items()
    }
    return {
        "case": asdict(case),
        "rounds": len(rounds), "rounds_kept": len(kept), "quiet": kept is quiet,
        "others_cores_median": round(statistics.median(others), 3),
        "yardstick_gflops": {name: round(value, 1) for name, value in stick.items()},
        "networks": table,
    }


def main() -> None:
    budget = float(sys.argv[1]) if len(sys.argv) > 1 else 80.0
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cases": {}}
    results |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for name in sys.argv[2:] or CASES:
        result = measure(CASES[name], budget)
        results["cases"][name] = result
        print(f"\n{name}: kept {result['rounds_kept']} of {result['rounds']} rounds, yardsticks {result['yardstick_gflops']}")
        for name, row in sorted(result["networks"].items(), key=lambda item: item[1]["time_over_sfumato"]):
            print(
                f"{name:32s} time x{row['time_over_sfumato']:<6} {row['images_per_second']:8.1f} img/s {row['gflops']:6.1f} GFLOP/s"
                f" = {row['of_conv_yardstick']:.2f} conv, {row['gflop_forward']:.4f} GFLOP, {row['parameters'] / 1e6:.2f}M"
            )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
