"""Print the README's tables from what train_step.py, sampling.py and memory.py wrote.

python bench/tables.py [--spanish]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from interleave import read

Table = tuple[str, list[str], list[list[str]]]
"""Title, head of the columns after the first, rows."""
Say = Callable[[str], str]

TEXT = {
    "sizes": ("Networks: weights, GFLOP an image forward", "Redes: pesos, GFLOP por imagen hacia delante"),
    "step": (
        "Training: images a second, times diffusers' (per FLOP), rate over the fp32 convolution's",
        "Entrenamiento: imágenes por segundo, veces las de diffusers (por FLOP), ritmo sobre el de la convolución fp32",
    ),
    "forward": (
        "Forward only: images a second, times diffusers' (per FLOP), rate over the fp32 convolution's",
        "Solo hacia delante: imágenes por segundo, veces las de diffusers (por FLOP), ritmo sobre el de la convolución "
        "fp32",
    ),
    "batch": ("batch", "lote"),
    "over": ("{} over the fastest peer, per FLOP", "{} sobre el más rápido de los otros, por FLOP"),
    "conv fp32": ("fp32 convolution, GFLOP/s", "convolución fp32, GFLOP/s"),
    "gemm fp32": ("fp32 matrix product, GFLOP/s", "producto de matrices fp32, GFLOP/s"),
    "sampling": (
        "{} images: images a second, times diffusers', outside the network",
        "{} imágenes: imágenes por segundo, veces las de diffusers, fuera de la red",
    ),
    "calls": ("calls", "llamadas"),
    "memory": (
        "Peak memory of training, batch {}, over the process before: MiB, share of diffusers'",
        "Memoria máxima al entrenar, lote {}, sobre la del proceso antes: MiB, parte de la de diffusers",
    ),
    "imports": ("Import, seconds beyond torch's", "Importación, segundos además de los de torch"),
    "seconds": ("seconds", "segundos"),
    "parts used": ("parts used", "partes usadas"),
}
"""English and Spanish."""


def training(result: dict[str, Any], say: Say) -> Iterator[Table]:
    cases = result["cases"]
    head = [name.replace("batch", say("batch")) for name in cases]
    columns = [case["networks"] for case in cases.values()]
    sizes = {name.split()[0]: case["networks"] for name, case in cases.items()}
    yield (
        say("sizes"),
        list(sizes),
        [[name, *(size(networks[name]) for networks in sizes.values())] for name in columns[0]],
    )
    for kind in ("step", "forward"):
        rows = [[name, *(speed(networks[name][kind]) for networks in columns)] for name in columns[0]]
        rows += [
            [say("over").format(name), *(lead(networks[name][kind]) for networks in columns)]
            for name, row in columns[0].items()
            if "fastest_peer" in row[kind]
        ]
        rows += [
            [say(stick), *(f"{case['yardstick_gflops'][stick]:.0f}" for case in cases.values())]
            for stick in ("conv fp32", "gemm fp32")
        ]
        yield say(kind), head, rows


def size(row: dict[str, Any]) -> str:
    return f"{row['parameters'] / 1e6:.2f}M, {row['gflop_forward']:.2f}"


def speed(row: dict[str, Any]) -> str:
    return (
        f"{row['images_per_second']:.0f}, x{row['over_diffusers']:.2f} (x{row['over_diffusers_per_flop']:.2f}), "
        f"{row['of_conv_yardstick']:.2f}"
    )


def lead(row: dict[str, Any]) -> str:
    return f"x{row['over_fastest_peer_per_flop']:.2f} ({row['fastest_peer']})"


def sampling(result: dict[str, Any], say: Say) -> Iterator[Table]:
    cases = result["cases"]
    rows: dict[tuple[str, str], list[str]] = {}
    for case in cases.values():
        for row in case["rows"]:
            name = f"{row['library']}, {row['sampler']}, {row['calls']} {say('calls')}"
            rows.setdefault((row["sampler"], row["library"]), [name]).append(
                f"{row['images_per_second']:.1f}, x{row['over_diffusers']:.2f}, {row['outside_share']:.1%}"
            )
    yield say("sampling").format(next(iter(cases.values()))["images"]), list(cases), list(rows.values())


def memory(result: dict[str, Any], say: Say) -> Iterator[Table]:
    cases = result["cases"]
    rows = [
        [name, *(f"{case[name]['peak_over_before_mib']}, {case[name]['of_diffusers']:.2f}" for case in cases.values())]
        for name in next(iter(cases.values()))
    ]
    yield say("memory").format(result["batch"]), list(cases), rows
    named = {name.replace("parts used", say("parts used")): row for name, row in result["imports"].items()}
    yield say("imports"), [say("seconds")], [[name, f"{row['seconds']:.3f}"] for name, row in named.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spanish", action="store_true")
    spanish = parser.parse_args().spanish
    for name, tables in {"train_step": training, "sampling": sampling, "memory": memory}.items():
        if not (result := read(f"{name}.json")):
            print(f"(python bench/{name}.py was not run)\n")
            continue
        for title, head, rows in tables(result, lambda key: TEXT[key][spanish]):
            print(f"**{title}**\n")
            for cells in (["", *head], ["---"] * (1 + len(head)), *rows):
                print("| " + " | ".join(cells) + " |")
            print()


if __name__ == "__main__":
    main()
