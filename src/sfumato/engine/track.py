"""What a run tells about itself: log.jsonl, always; TensorBoard, if asked.

log.jsonl is JSON, a record a line, in the order in which things happened:

    {"step": 13, "seconds": 1.0, "loss": 1.1, "levels": [..], "counts": [..], "norm": 0.7, "lr": 1e-3, ...}
    {"step": 500, "seconds": 40.2, "event": "resume", "clock": "2026-01-31T12:00:00Z", ...}

A record with "event" tells what happened, every other one how the training goes. A key may be missing, and a number
that is not finite is null. What is written is out at once: a killed process loses half a line at most.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfumato.engine.gauge import EDGES, Levels, memory
from sfumato.errors import UserError
from sfumato.files import writable, write_atomic

__all__ = ["EVENTS", "Track", "read_log"]

EVENTS = ("begin", "resume", "save", "preview", "skip", "rollback", "damaged", "replaced", "stop", "end")
"""What can happen to a run."""

LASTING = ("begin", "resume", "rollback", "damaged", "stop")  # true even if the steps around them are done again
WAY_OUT = "free space or mend its permissions"
LONGEST = 65_536  # bytes of a line; ours have hundreds


def read_log(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the records of a log in the order of the file, None for a line that is broken; nothing if there is no log.

    A line is broken that is no JSON object with a step, or is longer than any of ours. A last line without its end is
    passed over: it is being written, or was when the process died.

    Raises:
        UserError: the file cannot be read.
    """
    for record, line in _scan(path):
        if line.endswith(b"\n") or len(line) >= LONGEST:
            yield record


def _scan(path: Path) -> Iterator[tuple[dict[str, Any] | None, bytes]]:
    """Yield the record, or None, and the text of each line; lines that are too long come in pieces."""
    try:
        with path.open("rb") as log:
            while line := log.readline(LONGEST):
                yield _record(line) if line.endswith(b"\n") else None, line
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend its permissions or move it away") from error


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        if isinstance(record, dict) and type(record["step"]) is int and 0 <= record["step"] < 2**53:
            return record
    except (ValueError, KeyError, RecursionError):
        pass
    return None


class Track:
    """The log of a run that is being trained, open for writing.

    Opening it drops the numbers of all steps after ``step``, of which a killed process had no checkpoint, and what is
    half written: those steps are done again. What happened to the run itself (resume, rollback ...) stays.

    Args:
        path: of log.jsonl.
        step: at which the run goes on; 0 for a new one.
        tensorboard: folder for TensorBoard's files; None for none.

    Raises:
        UserError: the log cannot be written, or TensorBoard is not installed.
    """

    def __init__(self, path: Path, step: int, tensorboard: Path | None = None) -> None:
        self.path = path
        self._folder = tensorboard
        self._open(step, lambda record: record.get("event") in LASTING)

    def numbers(
        self,
        step: int,
        seconds: float,
        *,
        loss: float,
        lr: float,
        norm: float | None = None,
        items_per_second: float | None = None,
        levels: Levels | None = None,
    ) -> None:
        """Log how the training goes, and the memory of this process.

        Args:
            step: steps done.
            seconds: of training so far, those before a resume included.
            loss: mean since the last such record.
            lr: learning rate.
            norm: of the gradient.
            items_per_second: speed; None before it is known.
            levels: loss by noise level.

        Raises:
            UserError: the log cannot be written.
        """
        now, peak = memory()
        scalars = {"loss": loss, "norm": norm, "lr": lr, "items_per_second": items_per_second}
        scalars |= {"memory": now, "peak": peak}
        known = {key: float(value) for key, value in scalars.items() if value is not None}
        parts = {} if levels is None else levels._asdict()
        self._write({"step": step, "seconds": round(seconds, 2)} | known | parts)
        if self._board is not None:
            self._board.scalars(step, known, levels)

    def event(self, step: int, what: str, seconds: float, **facts: Any) -> None:
        """Log what happened.

        Args:
            step: steps done.
            what: one of :data:`EVENTS`.
            seconds: of training so far.
            facts: what there is to say about it; JSON-able.

        Raises:
            UserError: the log cannot be written.
            ValueError: no such event, or a fact by a name that the record needs itself.
        """
        own = {"step": step, "seconds": round(seconds, 2), "event": what}
        own["clock"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if what not in EVENTS or own.keys() & facts.keys():
            raise ValueError(f"no event '{what}' with {', '.join(facts)}")
        self._write(own | facts)

    def preview(self, step: int, seconds: float, picture: Path) -> None:
        """Log that samples were drawn.

        Args:
            step: steps done.
            seconds: of training so far.
            picture: a PNG file of them.

        Raises:
            UserError: the log cannot be written.
        """
        self.event(step, "preview", seconds, file=picture.name)
        if self._board is not None:
            self._board.picture(step, picture)

    def rewind(self, step: int) -> None:
        """Drop the numbers of all steps after ``step``, to which a running process goes back; events stay.

        Raises:
            UserError: the log cannot be written.
        """
        self.close()
        self._open(step, lambda record: "event" in record)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _open(self, step: int, lasting: Callable[[Mapping[str, Any]], bool]) -> None:
        """Drop what is after ``step`` and does not last, or cannot be read, and open what is left."""
        kept, dropped = [], 0
        for record, line in _scan(self.path):
            if record is not None and (record["step"] <= step or lasting(record)):
                kept.append(line)
            else:
                dropped += 1
        if dropped:
            write_atomic(self.path, b"".join(kept))
        self._board = None if self._folder is None else _Board(self._folder, step)
        with writable(self.path, WAY_OUT):
            self._file = self.path.open("ab", buffering=0)

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(_plain(record), allow_nan=False).encode() + b"\n"
        with writable(self.path, WAY_OUT):
            while line:
                line = line[self._file.write(line) :]


class _Board:
    """The same for TensorBoard, which forgets what it was told of the steps after ``step``."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            writer = import_module("torch.utils.tensorboard").SummaryWriter
        except ImportError as error:
            raise UserError("TensorBoard is not installed; pip install 'sfumato[track]' or go on without") from error
        self._folder = folder
        with writable(folder, WAY_OUT):
            self._writer: Any = writer(str(folder), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float], levels: Levels | None) -> None:
        with writable(self._folder, WAY_OUT):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            for k, mean in enumerate(levels.levels if levels else ()):
                if mean is not None:
                    self._writer.add_scalar(f"loss by noise level/{k + 1} of {len(EDGES) + 1}", mean, step)

    def picture(self, step: int, path: Path) -> None:
        with writable(self._folder, WAY_OUT), Image.open(path) as picture:
            self._writer.add_image("samples", np.asarray(picture.convert("RGB")), step, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        with writable(self._folder, WAY_OUT):
            self._writer.close()


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: a number that is not finite is null."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
