"""Samples by the million: in shards that any number of workers make, again after any crash, to the same bytes.

    bulk.json            what the folder holds, and all that decides its bytes: a second start must ask for the same
    shard-00003.tar      a shard; .npz, or a folder of files, as the format has it
    shard-00003.done     its mark, written when the shard is whole and in its place
    grid.png             the first samples, drawn by whoever sees that every shard is done

A shard is made in the worker's own folder and moved when it is whole; then its mark is moved. So a crash costs the
shards that were being made, and what has a mark is never made again. Worker r of W takes the shards r, r + W, ... that
have no mark: W may be another at each start. Shards begin where the model's batches begin, so no batch is drawn twice,
and a sample is drawn in the same batch whoever draws it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato.engine.formats import FORMATS, digest, format_of, size
from sfumato.engine.generate import Draws, Pace
from sfumato.engine.interrupt import Interrupt
from sfumato.engine.progress import Plain, Watch, duration, watch
from sfumato.engine.worker import LOCK, WORK, Worker, workspace
from sfumato.errors import UserError
from sfumato.files import writable, write_atomic

__all__ = ["Shard", "bulk", "shared_out"]

MANIFEST, SHEET, SHOWN = "bulk.json", "grid.png", 64
LONGEST = 1 << 20  # bytes of a manifest or mark: more is none of ours


@dataclass(frozen=True)
class Shard:
    """A part of the samples that is made, and lost, as a whole.

    Attributes:
        number: from 0.
        indices: of its samples.
    """

    number: int
    indices: range

    @property
    def name(self) -> str:
        """Without suffix."""
        return f"shard-{self.number:05d}"


def shared_out(indices: range, shards: int, batch: int) -> list[Shard]:
    """Part samples into shards that begin where a batch begins, as even as whole batches can be.

    Args:
        indices: of the samples.
        shards: how many at most; fewer if there are fewer batches.
        batch: size of a batch; batches begin at its multiples.

    Raises:
        UserError: fewer than one shard.
    """
    if shards < 1:
        raise UserError(f"--shards must be at least 1, got {shards}")
    low = indices.start // batch
    batches = -(-indices.stop // batch) - low
    count = min(shards, batches)
    cuts = [max(indices.start, (low + k * batches // count) * batch) for k in range(count)]
    return [Shard(k, range(a, b)) for k, (a, b) in enumerate(zip(cuts, [*cuts[1:], indices.stop], strict=True))]


def bulk(draws: Draws, indices: range, shards: int, form: str | None, out: Path | None) -> list[Path]:
    """Draw samples of a run into shards: those of this worker that are not there yet.

    Args:
        draws: the model and the way.
        indices: of the samples.
        shards: how many at most; none is smaller than a batch of the model.
        form: a key of ``FORMATS``; by default the data's own.
        out: folder for the shards; by default one beside ``draws.folder`` whose name says what is in it.

    Returns:
        The shards that are done, and the picture of the first samples once all are; else the manifest last.

    Raises:
        UserError: an impossible choice, a folder that holds something else, or one that cannot be written.
    """
    worker = Worker.here()
    form = format_of(draws.model.codec.kind, form)
    draws.try_out(indices)
    plan = shared_out(indices, shards, draws.model.batch)
    if out is None:
        start = f"-from{indices.start}" if indices.start else ""
        out = draws.folder.with_name(f"{draws.folder.name}{start}-n{len(indices)}-shards{len(plan)}-{form}")
    job = _Job(draws, plan, form, out, indices)
    show = watch("sample", "sample") if worker.world == 1 else Plain(unit=f"{worker}: sample")
    try:
        _refuse(out, job.manifest)
        with Interrupt() as stop, workspace(out, job.enter) as desk:
            job.work(worker, desk, show, stop, shards)
    finally:
        show.close()
    done = [shard for shard in plan if job.marked(shard)]
    last = SHEET if len(done) == len(plan) else MANIFEST
    return [*(job.place(shard) for shard in done), out / last]


@dataclass(frozen=True)
class _Job:
    """What is to be made, where."""

    draws: Draws
    plan: Sequence[Shard]
    form: str
    out: Path
    indices: range

    @property
    def manifest(self) -> dict[str, Any]:
        """All that decides the bytes of the shards."""
        return {
            "n": len(self.indices),
            "first": self.indices.start,
            "shards": len(self.plan),
            "format": self.form,
            "recipe": self.draws.recipe,
            "device": self.draws.device,
            "threads": self.draws.threads,
            "torch": torch.__version__,
        }

    def place(self, shard: Shard) -> Path:
        return self.out / f"{shard.name}{FORMATS[self.form].suffix}"

    def mark(self, shard: Shard) -> Path:
        return self.out / f"{shard.name}.done"

    def marked(self, shard: Shard) -> bool:
        return self.mark(shard).is_file()

    def enter(self, desk: Path) -> None:
        """Write the manifest, or find that it is the same. No other worker does so meanwhile."""
        if not _refuse(self.out, self.manifest):
            write_atomic(desk / MANIFEST, json.dumps(self.manifest, indent=2).encode()).replace(self.out / MANIFEST)

    def work(self, worker: Worker, desk: Path, show: Watch, stop: Interrupt, asked: int) -> None:
        """Make what this worker has to make, and say so."""
        own = self.plan[worker.rank :: worker.world]
        todo = [shard for shard in own if not self.whole(shard)]
        for line in self.told(worker, own, todo, asked):
            show.say(line)
        pace = Pace(show, stop, sum(len(shard.indices) for shard in todo))
        try:
            for shard in todo:
                self.make(shard, desk, pace)
        except KeyboardInterrupt:
            show.say(f"{self.out}: stopped; whole shards are kept, and the same command goes on")
            raise
        missing = sum(not self.marked(shard) for shard in self.plan)
        if not missing and not (self.out / SHEET).exists():
            self.picture(desk)
        made = f"{len(todo)} made in {duration(pace.seconds)}" if todo else "all made before"
        state = f"{missing} not done yet" if missing else f"complete, {len(self.indices):,} samples"
        show.say(f"{self.out}: {state}; {len(self.plan)} shards, {made}" + (f" by {worker}" * (worker.world > 1)))

    def told(self, worker: Worker, own: Sequence[Shard], todo: Sequence[Shard], asked: int) -> list[str]:
        """Return what to say before the work."""
        batch, threads = self.draws.model.batch, self.draws.threads
        lines = [f"{worker}: {len(own)} shards, {len(own) - len(todo)} done before"]
        if worker.rank == 0:
            sizes = sorted({len(shard.indices) for shard in self.plan})
            span = " to ".join(f"{n:,}" for n in dict.fromkeys((sizes[0], sizes[-1])))
            few = f" instead of {asked}" if asked > len(self.plan) else ""
            lines = [
                f"{len(self.indices):,} samples in {len(self.plan)} shards{few} of {span} as {self.form} -> {self.out}",
                f"  shards     whole batches of {batch}, so that none is drawn twice",
                f"  threads    {threads}; samples agree to the last bit between workers of equal threads",
                *lines,
            ]
        cores = os.cpu_count() or 1
        if worker.local_rank == 0 and threads * worker.local_world > cores and self.draws.device == "cpu":
            lines.append(f"  note       {worker.local_world} workers of {threads} threads share {cores} cores: "
                         f"start anew with --threads {max(1, cores // worker.local_world)} to go faster")  # fmt: skip
        return lines

    def make(self, shard: Shard, desk: Path, pace: Pace) -> None:
        """Make a shard on the desk, move it to its place, and then mark it."""
        place, draft = self.place(shard), desk / self.place(shard).name
        with writable(self.out):
            FORMATS[self.form].write(draft, self.draws.part(shard.indices, pace))
            mark = self.expected(shard) | {"bytes": size(draft), "sha256": digest(draft)}
            if place.is_dir():  # whole but without a mark, or damaged: folders are not replaced in one move
                place.rename(desk / f"{place.name}.old")
            draft.replace(place)
            write_atomic(desk / "mark", json.dumps(mark, indent=2).encode()).replace(self.mark(shard))

    def expected(self, shard: Shard) -> dict[str, Any]:
        """Return what is known of a shard's mark before the shard is made."""
        span = {"shard": shard.number, "first": shard.indices.start, "count": len(shard.indices)}
        return span | {"format": self.form, "recipe": self.draws.recipe}

    def whole(self, shard: Shard) -> bool:
        """Whether a shard has its mark and its bytes. What is missing or cut is made again."""
        try:
            mark, expected = _read(self.mark(shard)), self.expected(shard)
            return {key: mark.get(key) for key in expected} == expected and mark["bytes"] == size(self.place(shard))
        except (OSError, ValueError, KeyError):
            return False

    def picture(self, desk: Path) -> None:
        """Draw the first samples. They are drawn again, since the shards may be far away by now."""
        some = self.indices[:SHOWN]
        part = self.draws.part(some, lambda batch: None)
        items = torch.cat([batch.items for batch in part.batches])
        with writable(self.out):
            self.draws.sheet(desk / SHEET, items, some.start).replace(self.out / SHEET)


def _refuse(out: Path, manifest: dict[str, Any]) -> bool:
    """Return whether a folder has this manifest; False if it is new.

    Raises:
        UserError: it has another, or holds something else.
    """
    path = out / MANIFEST
    try:
        theirs = _read(path)
    except FileNotFoundError:
        others = not out.is_dir() or any(p.name != LOCK and not p.name.startswith(WORK) for p in out.iterdir())
        if out.exists() and others:
            raise UserError(f"{out}: exists and is no bulk of samples; choose another --out") from None
        return False
    except NotADirectoryError:
        raise UserError(f"{out}: is a file; choose another --out") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); restore it, or choose another --out") from error
    ours, theirs = _flat(manifest), _flat(theirs)
    for key in [*ours, *theirs]:
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"{out}: holds other samples, {key} = {theirs.get(key)} where {ours.get(key)} is asked for; "
                "choose another --out"
            )
    return True


def _flat(manifest: dict[str, Any]) -> dict[str, Any]:
    """Lay the recipe's entries beside the others."""
    recipe = manifest.get("recipe")
    return manifest | (recipe if isinstance(recipe, dict) else {}) | {"recipe": isinstance(recipe, dict)}


def _read(path: Path) -> dict[str, Any]:
    """Read a manifest or a mark.

    Raises:
        OSError: there is none.
        ValueError: it is damaged.
    """
    if path.stat().st_size > LONGEST:
        raise ValueError("too large")
    record = json.loads(path.read_text("utf-8"))
    if not isinstance(record, dict):
        raise ValueError("no record")
    return record
