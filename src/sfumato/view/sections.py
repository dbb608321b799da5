"""The parts of a report, each a function to HTML; "" where there is nothing to show."""

from __future__ import annotations

import json
import math
import re
import warnings
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from sfumato.data.decoding import decode
from sfumato.engine.gauge import EDGES
from sfumato.engine.progress import duration
from sfumato.view.chart import Line, Mark, chart
from sfumato.view.history import History
from sfumato.view.markup import embedded, figure, key, number, safe, table

__all__ = ["curves", "events", "figures", "previews", "verdict"]

PICTURES, PICTURE_BYTES = 6, 180_000  # previews, and bytes of each
ROWS = 12  # of the table of figures
EVENTS = 200  # rows of the table of events
SMALL_FILE = 1_000_000  # bytes of an evaluation.json, a thousand times its usual size

HAPPENED = {
    "begin": "began",
    "resume": "resumed",
    "stop": "stopped",
    "skip": "skipped a step",
    "rollback": "rolled back",
    "damaged": "found a damaged checkpoint",
    "end": "finished",
}
"""Events that are told; checkpoints and previews come too often."""
MARKED = ("stop", "resume", "skip", "rollback", "damaged")


def curves(history: History) -> str:
    """Return the curves, each against the step."""
    x = history.steps
    marks = [Mark(float(event["step"]), event["event"]) for event in _told(history) if event["event"] in MARKED]

    def line(name: str, style: str = "a", look: Literal["both", "values"] = "both") -> Line:
        return Line(x, history.numbers[name], style, look=look)

    levels = [Line(x, history.levels[:, k], f"l{k}", history.counts[:, k], "mean") for k in range(len(EDGES) + 1)]
    ram = [line("peak", "b", "values"), line("memory", "a", "values")]
    drawn = [
        ("Loss", "pale: as logged, line: running mean", chart([line("loss")], marks, "loss"), ""),
        ("Loss by noise level", "σ / (α σ_data)", chart(levels, marks, "loss by noise level"), _levels_key()),
        ("Gradient norm", "before clipping", chart([line("norm")], marks, "gradient norm"), ""),
        ("Learning rate", "", chart([line("lr", look="values")], marks, "learning rate", zero=True), ""),
        ("Speed", "items / s", chart([line("items_per_second")], marks, "items a second", zero=True), ""),
        ("Memory", "MB of RAM", chart(ram, marks, "memory", zero=True), key({"line a": "now", "line b": "peak"})),
    ]
    shown = [figure(svg + strokes, name, more) for name, more, svg, strokes in drawn if svg]
    if not shown:
        return ""
    marked = key({f"mark {kind}": HAPPENED[kind] for kind in MARKED if any(mark.style == kind for mark in marks)})
    return f'<h2>Curves</h2>\n{marked}<div class="charts">\n' + "\n".join(shown) + "\n</div>"


def _levels_key() -> str:
    ends = [f"{math.exp(edge):.2g}" for edge in EDGES]
    bins = [f"&lt; {ends[0]}", *(f"{low}–{high}" for low, high in pairwise(ends)), f"&gt; {ends[-1]}"]
    return key({f"line l{k}": words for k, words in enumerate(bins)})


def previews(folder: Path, notes: list[str]) -> str:
    """Return some of the previews in a folder, from the first to the last.

    Args:
        folder: of the run's samples.
        notes: takes a line for each that cannot be read.
    """
    found = sorted(path for path in folder.glob("step-*.png") if re.fullmatch(r"step-\d{1,15}", path.stem))
    found.sort(key=_step)
    some = sorted({round(k) for k in np.linspace(0, len(found) - 1, PICTURES)}) if found else []
    shown = []
    for path in (found[k] for k in some):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures: decode refuses those that are too large
            got = decode(partial(path.open, "rb"))
        if isinstance(got, str):
            notes.append(f"samples/{path.name}: {got}; left out")
            continue
        picture = embedded(got[0], f"samples after step {_step(path)}", PICTURE_BYTES)
        shown.append(figure(picture, f"Step {_step(path):,}", _left_to_right(path)))
    if not shown:
        return ""
    count = f'<p class="grey">{len(shown)} of {len(found)} previews; the same noise each time.</p>\n'
    return f'<h2>Samples on the way</h2>\n{count}<div class="pictures">\n' + "\n".join(shown) + "\n</div>"


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _left_to_right(path: Path) -> str:
    """Return what a preview's recipe says of its halves, as HTML."""
    try:
        with Image.open(path) as picture:
            names = json.loads(picture.info["sfumato"])["left to right"]
        return safe(" · ".join(f"{side}: {name}" for side, name in zip(("left", "right"), names, strict=True)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def events(history: History) -> str:
    """Return a table of what happened."""
    told = _told(history)
    if not told:
        return ""
    half = EVENTS // 2
    shown = told if len(told) <= EVENTS else [*told[:half], *told[-half:]]
    rows = [
        [
            f"{event['step']:,}",
            f'<td class="{event["event"]}">{HAPPENED[event["event"]]}</td>',
            safe(_facts(event)),
            _duration(event.get("seconds")),
            safe(event.get("clock", "")),
        ]
        for event in shown
    ]
    if len(shown) < len(told):
        rows.insert(half, ["…", f"{len(told) - len(shown):,} more", "in log.jsonl", "", ""])
    return "<h2>What happened</h2>\n" + table(["step", "event", "facts", "after", "clock"], rows, "left")


def _told(history: History) -> list[dict[str, Any]]:
    return [event for event in history.events if isinstance(event["event"], str) and event["event"] in HAPPENED]


def _facts(event: dict[str, Any]) -> str:
    own = ("step", "seconds", "event", "clock")
    return ", ".join(f"{what}: {_value(value)}" for what, value in event.items() if what not in own)


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "not finite" if value is None else str(value)


def _duration(seconds: Any) -> str:
    return duration(seconds) if type(seconds) in (int, float) and 0 <= seconds < 1e12 else "–"


def figures(history: History) -> str:
    """Return a table of some records of the log, from the first to the last."""
    if not len(history.steps):
        return ""
    some = sorted({round(k) for k in np.linspace(0, len(history.steps) - 1, ROWS)})
    names = {
        "seconds": "seconds", "loss": "loss", "norm": "gradient norm", "lr": "learning rate",
        "items_per_second": "items / s", "memory": "MB", "peak": "MB at most",
    }  # fmt: skip
    kept = [name for name in names if np.isfinite(history.numbers[name]).any()]
    rows = [[f"{history.steps[k]:.0f}", *(number(history.numbers[name][k]) for name in kept)] for k in some]
    heads = ["step", *(names[name] for name in kept)]
    return f"<h2>Figures</h2>\n{table(heads, rows, 'figures')}"


def verdict(path: Path, weights: str | None, notes: list[str]) -> str:
    """Return what an evaluation.json says.

    Args:
        path: the file.
        weights: fingerprint of the run's newest weights.
        notes: takes a line if the file cannot be read.
    """
    try:
        if not path.exists():
            return ""
        if path.stat().st_size > SMALL_FILE:
            raise ValueError("too large")
        told = json.loads(path.read_text("utf-8"))
        rows = [
            [
                safe(measure["name"]),
                number(float(measure["value"])),
                f"{number(float(measure['low']))} to {number(float(measure['high']))}",
                *(number(float(measure[name])) for name in ("real", "trivial")),
                safe(measure["better"]),
            ]
            for measure in told["measures"]
        ]
        head = f"{int(told['n']):,} samples, seed {safe(told['seed'])}, {safe(told['sampler'])}, "
        head += f"{safe(told['steps'])} steps, weights {safe(told['weights'])}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        notes.append(f"{path.name}: cannot be read ({error}); 'sfumato evaluate' writes it anew")
        return ""
    if weights is not None and told["weights"] != weights:
        notes.append(f"{path.name} is of other weights than the newest; 'sfumato evaluate' brings it up to date")
    heads = ["measure", "samples", "95%", "real data", "values drawn one by one", "better"]
    return f'<h2>Evaluation</h2>\n<p class="grey">{head}</p>\n{table(heads, rows, "wide")}'
