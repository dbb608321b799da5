"""The report of a run: one HTML file that needs no network and no script, light or dark, wide or narrow.

It shows what lies in the run's folder and computes nothing anew, so it may be made at any time, of a run that is still
training too. What cannot be read is left out with a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfumato import __version__
from sfumato.data import codec_from
from sfumato.engine.checkpoint import checkpoints
from sfumato.engine.config import config_record
from sfumato.engine.progress import duration
from sfumato.engine.run import Run
from sfumato.errors import UserError
from sfumato.files import write_atomic
from sfumato.view import sections
from sfumato.view.chart import short
from sfumato.view.history import History, history
from sfumato.view.markup import COVER, document, number, safe

__all__ = ["Report", "report"]

CLASSES = 20  # names that are told


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        path: of the page.
        step: the furthest that its log tells of.
        bytes: of the page.
        notes: what could not be shown, and why.
    """

    path: Path
    step: int
    bytes: int
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return what there is to say, a line each."""
        head = f"{self.path}: {self.step:,} steps, {self.bytes / 1000:,.0f} kB; open it in a browser"
        return [head, *(f"  note: {note}" for note in self.notes)]


@dataclass(frozen=True)
class _Model:
    """What the newest checkpoint holds.

    Attributes:
        parameters: numbers that are learned.
        weights: their fingerprint; None if there are none yet.
        step: at which they were saved.
    """

    parameters: int
    weights: str | None
    step: str


def report(folder: Path, out: Path | None) -> Report:
    """Write the report of a run; see ``sfumato.verbs.report``.

    Args:
        folder: of the run.
        out: the file; by default report.html in the run.

    Raises:
        UserError: the run is none, or ``out`` is a file of somebody else.
    """
    run = Run.open(folder)
    path = run.folder / "report.html" if out is None else out
    _refuse_foreign(path)
    notes: list[str] = []
    told = history(run.log)
    if told.broken:
        notes.append(f"{run.log.name}: {told.broken:,} lines cannot be read; left out")
    if not len(told.steps):
        notes.append(f"{run.log.name} holds no numbers yet")
    model = _model(run, notes)
    parts = [
        sections.curves(told),
        sections.previews(run.samples, notes),
        sections.verdict(run.folder / "evaluation.json", model.weights, notes),
        sections.events(told),
        sections.figures(told),
        _choices(run),
    ]
    name = safe(run.folder.resolve().name)
    warned = [f'<p class="note">{safe(note)}</p>' for note in notes]
    foot = f"<footer>Made by sfumato {__version__} from {name}/: config.toml, data.json, log.jsonl.</footer>"
    body = "\n".join([_head(run, told, model, name), *warned, *(part for part in parts if part), foot])
    content = document(f"{name} · sfumato", __version__, body).encode()
    write_atomic(path, content)
    return Report(path, told.step, len(content), tuple(notes))


def _refuse_foreign(path: Path) -> None:
    """Raise a UserError unless there is no such file, or it is a page of ours."""
    try:
        if not path.exists():
            return
        with path.open("rb") as page:
            if COVER.encode() in page.read(2048):
                return
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
    raise UserError(f"{path}: exists and is not a report made by sfumato; move it, or choose another --out")


def _model(run: Run, notes: list[str]) -> _Model:
    if checkpoints(run.checkpoints):
        try:
            model, said = run.load()
            return _Model(_parameters(model), model.fingerprint(), said.get("step", "?"))
        except UserError as error:
            notes.append(str(error))
    return _Model(_parameters(run.build()), None, "")


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _head(run: Run, told: History, model: _Model, name: str) -> str:
    """Return the title, what was trained in words, and the main figures."""
    config, spec, data = run.config, run.config.model, run.data
    shape = "×".join(map(str, codec_from(data["codec"]).dims))
    classes = [str(label) for label in data.get("classes") or []]
    some = ", ".join(classes[:CLASSES]) + (f" and {len(classes) - CLASSES} more" if len(classes) > CLASSES else "")
    sentences = [
        f"Data <b>{safe(data.get('name'))}</b>: {_count(run):,} examples of {shape} values"
        + (f"; {len(classes)} classes: {safe(some)}" if classes else "")
        + f". Fingerprint {safe(str(data.get('fingerprint'))[:16])}.",
        f"{safe(spec.family)}: {safe(spec.words())}; {model.parameters:,} parameters, seed {config.seed}, "
        f"sfumato {safe(config.version)}.",
        f"Weights <b>{model.weights}</b> of step {safe(model.step)}." if model.weights else "No weights yet.",
    ]
    lines = "\n".join(f"<p>{sentence}</p>" for sentence in sentences)
    return f"<h1>{name}</h1>\n{lines}\n{_tiles(run, told)}"


def _tiles(run: Run, told: History) -> str:
    """Return the main figures that are known: what it is, the figure, and a remark."""
    config, count, seen = run.config, _count(run), told.step * run.config.batch
    epochs = f"{seen / count:,.{1 if seen < 100 * count else 0}f} epochs" if count else ""
    status, planned = _status(told), f"{config.steps:,}" if config.steps else duration(config.seconds)
    remarks = [f"of {planned} asked for", status] if config.steps else [status, f"of {planned} asked for"]
    tiles = [("Steps", f"{told.step:,}", remarks[0])]
    seconds, loss, peak = (told.last(name) for name in ("seconds", "loss", "peak"))
    if seconds is not None:
        tiles.append(("Training time", duration(seconds), remarks[1]))
    if loss is not None:
        tiles.append(("Last loss", number(loss), "as logged"))
    tiles.append(("Items seen", short(seen), epochs))
    speeds = told.numbers["items_per_second"]
    if np.isfinite(speeds).any():
        tiles.append(("Speed", f"{short(float(np.nanmedian(speeds)))} / s", "median"))
    if peak is not None:
        tiles.append(("Memory", f"{peak:,.0f} MB", "at most"))
    cells = (f"<div><dt>{what}</dt><dd>{main}<small>{more}</small></dd></div>" for what, main, more in tiles)
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def _count(run: Run) -> int:
    count = run.data.get("count")
    return count if type(count) is int else 0


def _status(told: History) -> str:
    last = next((e["event"] for e in reversed(told.events) if e["event"] in ("begin", "resume", "stop", "end")), None)
    return {"stop": "stopped", "end": "finished", None: ""}.get(last, "not finished")


def _choices(run: Run) -> str:
    """Return all that config.toml says."""
    record = config_record(run.config)
    spec = record.pop("model")
    return (
        f'<h2>Choices</h2>\n<div class="choices">\n{_details("The run", record)}\n{_details("The model", spec)}\n</div>'
    )


def _details(name: str, record: Mapping[str, Any]) -> str:
    entries = "".join(f"<dt>{safe(key)}</dt><dd>{safe(_shown(value))}</dd>" for key, value in record.items())
    return f"<details open><summary>{name}</summary><dl>{entries}</dl></details>"


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
