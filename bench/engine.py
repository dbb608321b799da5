"""What the engine promises, measured: start-up, the plan's error, bf16 against fp32, memory over a long run.

    python bench/engine.py startup | plan | precision | soak

Each part writes its own key of results/engine.json. Runs are made by the command line, as a user would, in a folder
that is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "engine.json"
HELP, STEP, PREVIEW = "seconds to --help", "seconds to the first step of digits", "seconds to its first preview"


def sfumato(*words: object) -> list[str]:
    return [sys.executable, "-m", "sfumato", *map(str, words)]


def run(*words: object) -> float:
    """Seconds that a command took."""
    begin = time.perf_counter()
    subprocess.run(sfumato(*words), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def log(folder: Path) -> list[dict]:
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def startup(folder: Path) -> dict:
    """Medians of five: from the start of the process to what a user waits for."""
    found: dict[str, list[float]] = {HELP: [], STEP: [], PREVIEW: []}
    for k in range(5):
        found[HELP].append(run("--help"))
        target, begin = folder / f"start{k}", time.perf_counter()
        with subprocess.Popen(sfumato("train", "digits", "--out", target), stdout=subprocess.PIPE) as process:
            # the first step follows within a step's time (tens of milliseconds) on the checkpoint of step 0
            for name, there in ((STEP, "checkpoints/step-00000000-*"), (PREVIEW, "samples/step-*.png")):
                while not list(target.glob(there)):
                    time.sleep(0.005)
                found[name].append(time.perf_counter() - begin)
            process.kill()
    return {name: round(statistics.median(values), 2) for name, values in found.items()}


def plan(folder: Path) -> dict:
    """The plan's time and memory against those of the run, for a length in time and one in steps."""
    rows = []
    for k, words in enumerate(
        [
            ["digits", "--classes", "--steps", 1000],
            ["digits", "--classes", "--time", "40s"],
            ["fashion-mnist", "--batch", 64, "--steps", 250],
            ["fashion-mnist", "--batch", 64, "--time", "60s"],
        ]
    ):
        run("plan", *words, "--out", folder / "plan.json")
        said = json.loads((folder / "plan.json").read_text())
        if "--batch" not in words:  # measured by each; the run takes the plan's
            words = [*words, "--batch", said["batch"]]
        took = run("train", *words, "--out", folder / f"plan{k}")
        peak = max(record.get("peak") or 0 for record in log(folder / f"plan{k}"))
        steps = max(record["step"] for record in log(folder / f"plan{k}"))
        rows.append(
            {
                "command": "train " + " ".join(map(str, words)),
                "seconds planned": round(said["seconds"], 1),
                "seconds": round(took, 1),
                "time error": round(said["seconds"] / took - 1, 3),
                "steps planned": said["steps"],
                "steps": steps,
                "memory planned, MB": round(said["memory"]),
                "memory, MB": round(peak),
                "memory error": round(said["memory"] / peak - 1, 3),
            }
        )
        print(rows[-1], flush=True)
    return {"rows": rows}


def precision(folder: Path) -> dict:
    """Mean loss over the last tenth of a run of as many images, by precision and seed."""
    rows = []
    for data, words in (("digits", ["--steps", 600]), ("fashion-mnist", ["--steps", 250])):
        for seed in range(3):
            losses = {}
            for name in ("fp32", "bf16"):
                target = folder / f"{data}-{name}-{seed}"
                run("train", data, *words, "--batch", 64, "--precision", name, "--seed", seed, "--out", target)
                numbers = [record for record in log(target) if "loss" in record]
                late = [record["loss"] for record in numbers if record["step"] > 0.7 * numbers[-1]["step"]]
                losses[name] = statistics.mean(late)
            rows.append(
                {"data": data, "seed": seed, **losses, "bf16 / fp32": round(losses["bf16"] / losses["fp32"], 5)}
            )
            print(rows[-1], flush=True)
    return {"images": {"digits": 600 * 64, "fashion-mnist": 250 * 64}, "rows": rows}


def soak(folder: Path) -> dict:
    """Resident memory over 2,000 steps, previews and checkpoints included, after the first preview."""
    run("train", "digits", "--classes", "--steps", 2000, "--batch", 128, "--save-every", 2, "--out", folder / "soak")
    records = log(folder / "soak")
    shown = next(record["step"] for record in records if record.get("event") == "preview")
    memory = [record["memory"] for record in records if "memory" in record and record["step"] > shown]
    return {
        "steps": records[-1]["step"],
        "from step": shown,
        "MB then": memory[0],
        "MB at most": max(memory),
        "MB at the end": memory[-1],
        "growth": round(max(memory) / memory[0] - 1, 4),
    }


PARTS: dict[str, Callable[[Path], dict]] = {"startup": startup, "plan": plan, "precision": precision, "soak": soak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all by default")
    for name in parser.parse_args().parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            found = PARTS[name](Path(folder))
        print(name, json.dumps(found, indent=1), flush=True)
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(results | {name: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
