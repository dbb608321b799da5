"""Print the README's tables from what train_step.py, sampling.py, memory.py, few_calls.py, time_to_quality.py,
ablation.py, stability.py and `sfumato compare` (as results/compare_*.json) wrote.

python bench/tables.py [--spanish]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from interleave import read

from sfumato.engine.contest import Contest, Entrant, Terms
from sfumato.engine.speed import Speed

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
    "few": (
        "Fashion-MNIST, {:,} samples, by network calls",
        "Fashion-MNIST, {:,} muestras, según las llamadas a la red",
    ),
    "frechet": ("Frechet distance", "distancia de Fréchet"),
    "of 100": ("over that of 100 calls", "sobre la de 100 llamadas"),
    "recall": ("recall", "exhaustividad"),
    "coverage": ("coverage", "cobertura"),
    "untuned": ("untuned, {}", "sin ajustar, {}"),
    "tuned": ("tuned, {}", "ajustado, {}"),
    "student": ("student, {}", "alumno, {}"),
    "real": ("training data", "datos de entrenamiento"),
    "floor": ("training pictures", "imágenes de entrenamiento"),
    "minutes": ("{} min", "{} min"),
    "quality": (
        "Frechet distance after minutes of training, median of {} seeds ({:,} samples)",
        "Distancia de Fréchet tras minutos de entrenamiento, mediana de {} semillas ({:,} muestras)",
    ),
    "ablation": (
        "{}: held-out loss, {}, medians over {} seeds",
        "{}: pérdida en datos apartados, {}, medianas de {} semillas",
    ),
    "contest": (
        "sfumato compare {} --time {} --seeds {}: medians (least to most)",
        "sfumato compare {} --time {} --seeds {}: medianas (mínimo a máximo)",
    ),
    "stability": (
        "{} each: medians of {} seeds (least to most)",
        "{} cada uno: medianas de {} semillas (mínimo a máximo)",
    ),
    "steps": ("steps", "pasos"),
    "found": ("modes found", "modos hallados"),
    "on": ("share of the samples on a mode", "parte de las muestras en un modo"),
    "kl": ("divergence over the modes, nats", "divergencia sobre los modos, nats"),
    "sliced wasserstein": ("sliced Wasserstein distance", "distancia de Wasserstein por cortes"),
    "failed": ("failed", "fallidos"),
    "loss": ("loss", "pérdida"),
    "distance": ("distance", "distancia"),
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


def few(result: dict[str, Any], say: Say) -> Iterator[Table]:
    def cells(row: dict[str, Any]) -> list[str]:
        value, low, high = row["frechet"]
        of_100 = f"{row['of 100 calls']:.2f}" if "of 100 calls" in row else ""
        return [f"{value:.3f} ({low:.3f} to {high:.3f})", of_100, f"{row['recall']:.3f}", f"{row['coverage']:.3f}"]

    found = {way: row for rows in result["rows"].values() for way, row in rows.items() if isinstance(row, dict)}
    ways = sorted(found, key=lambda way: (("untuned", "tuned", "student").index(way.split()[0]), int(way.split()[1])))
    rows = [[say(way.split()[0]).format(way.split()[1]), *cells(found[way])] for way in ways]
    head = [say("frechet"), say("of 100"), say("recall"), say("coverage")]
    yield say("few").format(result["n"]), head, [*rows, [say("floor"), *cells(result["floor"])]]


def quality(result: dict[str, Any], say: Say) -> Iterator[Table]:
    if not result["rows"]:
        return
    minutes = sorted({float(m) for seeds in result["rows"].values() for rows in seeds.values() for m in rows})

    def cell(seeds: dict[str, Any], at: float) -> str:
        values = [rows[f"{at:g}"]["frechet"] for rows in seeds.values() if f"{at:g}" in rows]
        return f"{statistics.median(values):.2f}" if values else ""

    rows = [[name, *(cell(seeds, m) for m in minutes)] for name, seeds in result["rows"].items()]
    count = max(len(seeds) for seeds in result["rows"].values())
    yield say("quality").format(count, result["n"]), [say("minutes").format(f"{m:g}") for m in minutes], rows


def ablation(result: dict[str, Any], say: Say) -> Iterator[Table]:
    for name, case in result["cases"].items():
        rows = [
            [change, *(f"{statistics.median(row[key] for row in seeds.values()):.4g}" for key in ("loss", "distance"))]
            for change, seeds in case["rows"].items()
        ]
        count = max(len(seeds) for seeds in case["rows"].values())
        yield say("ablation").format(name, case["measure"], count), [say("loss"), say("distance")], rows


def stability(result: dict[str, Any], say: Say) -> Iterator[Table]:
    for case, told in result["cases"].items():
        measures = [key for key in ("found", "on", "kl", "sliced wasserstein") if key in told["real"]]

        def cells(rows: list[dict[str, Any]], measures: list[str] = measures) -> list[str]:
            good = [row for row in rows if "failed" not in row]
            shown = [f"{statistics.median(row['steps'] for row in rows):.0f}"]
            for key in measures:
                values = [row[key] for row in good]
                ends = f"{min(values):.4g} to {max(values):.4g}"
                shown.append(f"{statistics.median(values):.4g} ({ends})")
            return [*shown, str(len(rows) - len(good))]

        rows = [[name, *cells(list(seeds.values()))] for name, seeds in told["rows"].items()]
        real = ["", *(f"{told['real'][key]:.4g}" for key in measures), ""]
        head = [say("steps"), *(say(key) for key in measures), say("failed")]
        count = max(len(seeds) for seeds in told["rows"].values())
        yield say("stability").format(case, count), head, [*rows, [say("real"), *real]]


def contest(result: dict[str, Any], say: Say) -> Iterator[Table]:
    terms = Terms(**result["terms"] | {"models": tuple(result["terms"]["models"])})
    speeds = {name: Speed(**speed) for name, speed in result["speeds"].items()}
    held = Contest(Path(), terms, tuple(Entrant.from_dict(record) for record in result["entrants"]), speeds)
    head, *rows = held.table()
    yield say("contest").format(terms.data, terms.time, terms.seeds), head[1:], rows


TABLES = {
    "train_step": training,
    "sampling": sampling,
    "memory": memory,
    "few_calls": few,
    "time_to_quality": quality,
    "ablation": ablation,
    "stability": stability,
    "compare_digits": contest,
    "compare_fashion_mnist": contest,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spanish", action="store_true")
    spanish = parser.parse_args().spanish
    for name, tables in TABLES.items():
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
