"""Which image network trains fastest here: the library's U-Net against variations of it and against diffusers'.

    PYTHONPATH=src python bench/network_speed.py [seconds per case] [case ...]

A *candidate* is the library's design with one choice changed. Every candidate's whole training step (forward,
backward, fused AdamW, average of the weights) is timed in one process, as interleave.py says.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from interleave import Round, disturbed, gflop, quiet, race, ratio, repeats, timers, yardsticks
from torch import Tensor, nn

from sfumato.nn import UNet
from sfumato.nn.layers import Attention, Conditioning, channel_norm

RESULTS = Path(__file__).parent / "results" / "network_speed.json"


@dataclass(frozen=True)
class Design:
    """One point in the space of choices; the defaults are the library's."""

    precision: str = "bf16"
    memory: str = "channels_last"  # or "channels_first"
    norm: str = "layer"  # over channels; or "group", "rms"
    norms: int = 1  # per block; 2 adds one after the first convolution
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
    "two norms per block": Design(norms=2),
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
    "28x28": Case(28, 128, (32, 64, 96), 2, (32, 32, 64)),
    "28x28-batch64": Case(28, 64, (32, 64, 96), 2, (32, 32, 64)),
    "8x8": Case(8, 128, (32, 64), 2, (32, 32)),
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
        self.stages = nn.ModuleList(nn.ModuleList(block(design, w) for _ in range(case.blocks)) for w in order)
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
        self.gflop = gflop(lambda: network(self.x, self.level), case.batch)

    def step(self) -> None:
        F.mse_loss(self.network(self.x, self.level), self.x).backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        torch._foreach_lerp_(self.average, self.params, 0.001)


def measure(case: Case, budget: float) -> dict[str, object]:
    torch.manual_seed(0)
    ours = UNet(1, widths=case.widths, blocks=case.blocks, attention=case.attention, precision="bf16")
    runs = {"sfumato": Training(ours, case), "diffusers": Training(Peer(case), case)}
    runs |= {name: Training(Candidate(design, case), case) for name, design in VARIATIONS.items()}
    sticks = yardsticks()
    raced = timers({name: run.step for name, run in runs.items()} | {name: work for name, (work, _) in sticks.items()})
    rounds = race(raced, repeats(raced), sys.maxsize, budget)

    def kept(name: str) -> list[Round]:
        """The rounds in which neither this work nor the library's was disturbed."""
        return quiet(rounds, name, "sfumato")

    median = {name: statistics.median(r[name][0] for r in kept(name)) for name in raced}
    yardstick = {name: gflop / median[name] for name, (_, gflop) in sticks.items()}
    table = {}
    for name, run in runs.items():
        gflops = 3 * run.gflop * case.batch / median[name]  # a step is a forward and a backward of twice the work
        table[name] = {
            "parameters": sum(p.numel() for p in run.params),
            "gflop_forward": round(run.gflop, 4),
            "images_per_second": round(case.batch / median[name], 1),
            "gflops": round(gflops, 1),
            "of_conv_yardstick": round(gflops / yardstick["conv fp32"], 3),
            "time_over_sfumato": round(ratio(rounds, name, "sfumato"), 3),
            "rounds": len(kept(name)),
            "disturbed": disturbed(rounds, name, "sfumato"),
        }
    return {
        "case": asdict(case),
        "rounds": len(rounds),
        "yardstick_gflops": {name: round(value, 1) for name, value in yardstick.items()},
        "networks": table,
    }


def show(name: str, result: dict[str, object]) -> None:
    print(f"\n{name}: {result['rounds']} rounds, yardsticks {result['yardstick_gflops']}")
    for network, row in sorted(result["networks"].items(), key=lambda item: item[1]["time_over_sfumato"]):
        print(
            f"{network:32s} time x{row['time_over_sfumato']:<6} {row['images_per_second']:8.1f} img/s"
            f" {row['gflops']:6.1f} GFLOP/s = {row['of_conv_yardstick']:.2f} conv,"
            f" {row['gflop_forward']:.4f} GFLOP, {row['parameters'] / 1e6:.2f}M,"
            f" {row['rounds']} rounds{' (disturbed)' if row['disturbed'] else ''}"
        )


def main() -> None:
    budget = float(sys.argv[1]) if len(sys.argv) > 1 else 200.0
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cases": {}}
    results |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for name in sys.argv[2:] or CASES:
        results["cases"][name] = measure(CASES[name], budget)
        show(name, results["cases"][name])
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
