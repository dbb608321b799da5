"""How fast the library's U-Net trains and samples against its peers' of the same work per image.

    python bench/train_step.py [--rounds 4] [--processes 3]      writes bench/results/train_step.json

Each library makes its own whole training step (peers.py) and, apart from it, the forward pass of sampling, in a process
of its own: ours as its engine sets it up, a peer as it comes. They take turns as interleave.py says, and all of it is
done anew with other processes, whose rounds are merged. "diffusers, pages kept" tells how much of the difference is
the allocator's setting (engine/machine.py). A step counts as three forward passes of work. ``by_process`` is the ratio
to diffusers in each set of processes alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial

import torch
from interleave import (
    QUIET,
    Remote,
    Round,
    Work,
    disturbed,
    fresh,
    loudness,
    median,
    quiet,
    race,
    ratio,
    repeats,
    timers,
    write,
    yardsticks,
)

from peers import BATCHES, CASES, CONTESTANTS, OURS

PASSES = {"step": 3, "forward": 1}
NEAR = 0.1  # how far the work of a network may be from diffusers'


def measure(case: str, batch: int, rounds: int, limit: float) -> dict[str, object]:
    """The rounds of one process, and what the networks are."""
    entered = {name: Remote(partial(enter, name, case, batch)) for name in CONTESTANTS}
    raced = {f"{name} {kind}": each.timer(kind) for name, each in entered.items() for kind in PASSES}
    raced |= timers({name: work for name, (work, _) in yardsticks().items()})
    return {
        "networks": {name: each.ask("describe") for name, each in entered.items()},
        "rounds": race(raced, repeats(raced), rounds, limit),
    }


def enter(name: str, case: str, batch: int) -> dict[str, Work]:
    """What a contestant can be asked for, in its own process."""
    torch.manual_seed(0)
    contestant = CONTESTANTS[name](CASES[case], batch)
    weights = sum(p.numel() for p in contestant.network.parameters())
    told = {"parameters": weights, "gflop_forward": round(contestant.gflop, 4)}
    return {"step": contestant.step, "forward": contestant.forward, "describe": lambda: told}


def summary(batch: int, processes: list[dict]) -> dict[str, object]:
    """What a case says: medians over the rounds of all processes."""
    rounds: list[Round] = [each for process in processes for each in process["rounds"]]
    networks = processes[0]["networks"]
    work = {name: network["gflop_forward"] for name, network in networks.items()}
    for name, each in work.items():
        assert abs(each / work["diffusers"] - 1) < NEAR, f"{name} does {each} GFLOP, diffusers {work['diffusers']}"
    stick = {name: amount for name, (_, amount) in yardsticks().items()}

    def row(name: str, kind: str) -> dict[str, object]:
        timed, theirs = f"{name} {kind}", f"diffusers {kind}"
        gflops = PASSES[kind] * work[name] * batch
        over = ratio(rounds, theirs, timed)
        return {
            "images_per_second": round(batch / median(rounds, timed), 1),
            "gflops": round(gflops / median(rounds, timed), 1),
            "of_conv_yardstick": round(gflops / stick["conv fp32"] * ratio(rounds, "conv fp32", timed), 3),
            "of_gemm_yardstick": round(gflops / stick["gemm fp32"] * ratio(rounds, "gemm fp32", timed), 3),
            "over_diffusers": round(over, 3),
            "over_diffusers_per_flop": round(over * work[name] / work["diffusers"], 3),
            "by_process": [round(ratio(each["rounds"], theirs, timed), 3) for each in processes],
            "rounds": len(quiet(rounds, timed, theirs)),
            "disturbed": disturbed(rounds, timed, theirs),
        }

    for kind in PASSES:
        for name, network in networks.items():
            network[kind] = row(name, kind)
        peers = [name for name in networks if name not in OURS]
        best = max(peers, key=lambda name: networks[name][kind]["gflops"])
        for name in OURS:
            faster = ratio(rounds, f"{best} {kind}", f"{name} {kind}") * work[name] / work[best]
            networks[name][kind] |= {"fastest_peer": best, "over_fastest_peer_per_flop": round(faster, 3)}
    return {
        "batch": batch,
        "processes": len(processes),
        "rounds": len(rounds),
        "yardstick_gflops": {name: round(amount / median(rounds, name), 1) for name, amount in stick.items()},
        "networks": networks,
    }


def show(name: str, result: dict) -> None:
    print(f"\n{name}: {result['rounds']} rounds, yardsticks {result['yardstick_gflops']} GFLOP/s")
    for network, row in result["networks"].items():
        print(f"{network:28s} {row['parameters'] / 1e6:.2f}M {row['gflop_forward']:.3f} GFLOP", end="")
        for kind in PASSES:
            each = row[kind]
            print(
                f" | {kind} {each['images_per_second']:7.1f} img/s {each['gflops']:6.1f} GFLOP/s"
                f" = {each['of_conv_yardstick']:.2f} conv, x{each['over_diffusers']:.2f} diffusers"
                f" {each['by_process']}, x{each['over_diffusers_per_flop']:.2f} per FLOP,"
                f" {each['rounds']} rounds{' (disturbed)' if each['disturbed'] else ''}",
                end="",
            )
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4, help="of each case in each process")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds after which no round of a case begins")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--raw", action="store_true", help="measure in this process and print the rounds")
    asked = parser.parse_args()
    wanted = {f"{case} batch {batch}": (case, batch) for case in asked.cases for batch in asked.batches}
    if asked.raw:
        raw = {}
        for name, (case, batch) in wanted.items():
            raw[name] = measure(case, batch, asked.rounds, asked.limit)
            loud = [loudness(each, *each) >= QUIET for each in raw[name]["rounds"]]
            print(f"{name}: {len(loud)} rounds, {sum(loud)} disturbed somewhere", file=sys.stderr)
        print(json.dumps(raw))
        return
    processes = [fresh(__file__, *sys.argv[1:], "--raw") for _ in range(asked.processes)]
    cases = {name: summary(batch, [each[name] for each in processes]) for name, (_, batch) in wanted.items()}
    for name, each in cases.items():
        show(name, each)
    write("train_step.json", {"torch": torch.__version__, "threads": torch.get_num_threads(), "cases": cases})


if __name__ == "__main__":
    main()
