"""From a source to a dataset that stays on disk, by a glance: all headers, and a sample of what is behind them.

Headers give sizes; the sample gives channels, as decoding everything twice (see `source`) would for pictures in memory.
For up to `SAMPLE` pictures the two find the same.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sfumato.data import source as bounds
from sfumato.data.codec import Dataset, Findings, evenly
from sfumato.data.decoding import header
from sfumato.data.image import DEFAULT_RESOLUTION, ImageCodec, Pictures
from sfumato.data.source import Fault, Look, Source, admitted, in_order, notes_of
from sfumato.data.store import Store, Stored, item, mapped
from sfumato.data.stream import Rows, Stream
from sfumato.errors import UserError

__all__ = ["SAMPLE", "Seen", "build", "look"]

SAMPLE = 1000
"""So many pictures, evenly spread, are decoded to choose channels."""

SHARE = 4  # of the free memory, one part in so many may be taken by data


@dataclass(frozen=True)
class Seen:
    """What the survey of one part of a stream gave.

    Attributes:
        findings: sizes by all headers, channels by the sample.
        rows: the good items, ascending.
        digest: of the content of the sample.
    """

    findings: Findings
    rows: Rows
    digest: bytes


def look(source: Source, resolution: int | None, stream: bool | None) -> tuple[Seen, Seen | None] | None:
    """Decide whether a source is streamed, and survey it if so.

    Args:
        source: what is to be read.
        resolution: longest side asked for, or None.
        stream: True or False as asked; None to stream only what would not fit in memory well.

    Returns:
        What was seen of the training and of the held-out part; None if the source is to be read into memory.

    Raises:
        UserError: streaming is asked of a source that cannot be streamed.
    """
    if not isinstance(source, Stored):
        if stream:
            raise UserError(
                f"{source.name}: only folders of pictures, tar and parquet files are streamed; leave --stream out"
            )
        return None
    count = len(source.store) + (len(source.held) if source.held else 0)
    limit = _limit()
    if stream is False or (stream is None and count * 4 * (resolution or DEFAULT_RESOLUTION) ** 2 <= limit):
        return None
    train = _survey(source, source.store, resolution)
    size = count * math.prod(train.findings.dims)
    if stream is None and size <= limit:
        return None
    held = None if source.test is None or source.held is None else _survey(source.test, source.held, None)
    reason = "as asked" if stream else f"{_gb(size)} decoded is more than the {_gb(limit)} that data may take here"
    notes = [f"streamed from disk: {reason}", *train.findings.notes]
    if held is not None:
        notes.append(f"held-out: {held.findings.count} of {train.findings.count + held.findings.count}")
    return replace(train, findings=replace(train.findings, notes=notes)), held


def build(source: Source, seen: tuple[Seen, Seen | None], skip_bad: bool) -> Dataset:
    """Make a dataset that stays on disk.

    Args:
        source: what it is made of.
        seen: what `look` gave.
        skip_bad: leave out what is known to be bad instead of refusing.

    Raises:
        UserError: an item is known to be bad, or nothing is left.
    """
    assert isinstance(source, Stored)
    (first, second), dims = seen, seen[0].findings.dims
    train = _part(source.store, first, skip_bad, dims, tuple(first.findings.classes))
    if source.held is None or second is None:
        return train
    return replace(train, test=_part(source.held, second, skip_bad, dims, train.classes))


def _part(store: Store, seen: Seen, skip_bad: bool, dims: tuple[int, ...], classes: tuple[str, ...]) -> Dataset:
    findings, rows = seen.findings, seen.rows
    classes = admitted(findings, skip_bad, classes)
    index_of = {name: index for index, name in enumerate(classes)}
    of_code = np.array([index_of.get(name, -1) for name in store.classes], np.int64)
    labels = of_code[store.codes[rows]] if classes else np.zeros(0, np.int64)
    digest = hashlib.sha256(store.identity + seen.digest + repr((dims, classes, *store.captions)).encode())
    digest.update(repr(store.columns).encode() if store.columns else b"")
    for column in (store.sizes[rows], rows, labels):
        digest.update(np.ascontiguousarray(column).data)
    return Dataset(
        name=findings.name,
        items=Stream(findings.name, store, rows, dims),
        labels=torch.from_numpy(labels) if classes else None,
        classes=classes,
        codec=ImageCodec(*dims),
        test=None,
        fingerprint=digest.hexdigest(),
        notes=tuple(notes_of(findings)),
        captions=tuple(store.captions[row] for row in rows.tolist()) if store.captions else (),
        columns={name: tuple(column[row] for row in rows.tolist()) for name, column in store.columns.items()},
    )


def _survey(source: Source, store: Store, resolution: int | None) -> Seen:
    """Decode a sample, and read the headers of all."""
    kind = Pictures()
    bad: dict[int, Fault] = {}

    def full(index: int) -> Look | Fault:
        got = item(store, index)
        return got if isinstance(got, Fault) else kind.look(got)

    def head(index: int) -> tuple[tuple[int, int], tuple[str, ...]] | Fault:
        got = "no label" if len(store.codes) and store.codes[index] < 0 else header(partial(store.open, index))
        return Fault(store.name(index), got) if isinstance(got, str) else got

    looks: list[Look] = []
    sample = evenly(len(store), SAMPLE).numpy()
    for index, got in zip(sample.tolist(), mapped(full, sample), strict=True):
        if isinstance(got, Fault):
            bad[index] = got
        else:
            looks.append(got)

    sizes, facts = Counter[tuple[int, ...]](), Counter[str]()
    good = np.ones(len(store), bool)
    good[list(bad)] = False
    rows = np.flatnonzero(good)
    for index, told in zip(rows.tolist(), mapped(head, rows), strict=True):
        if isinstance(told, Fault):
            bad[index] = told
            good[index] = False
        else:
            sizes[told[0]] += 1
            facts.update(told[1])

    faults = [*store.faults, *(bad[index] for index in sorted(bad))]
    rows = np.flatnonzero(good)
    digest = hashlib.sha256(b"".join(seen.digest for seen in looks)).digest()
    return Seen(_findings(source, store, rows, sizes, facts, looks, faults, resolution), rows, digest)


def _findings(
    source: Source,
    store: Store,
    rows: Rows,
    sizes: Mapping[tuple[int, ...], int],
    facts: Counter[str],
    looks: list[Look],
    faults: list[Fault],
    resolution: int | None,
) -> Findings:
    """Put together what was seen; arguments are the columns of `_survey`."""
    channels = Counter(seen.channels for seen in looks if seen.channels)
    more = Counter(fact for seen in looks for fact in seen.facts if fact not in facts)
    same: dict[bytes, list[str]] = {}
    for seen in looks:
        same.setdefault(seen.digest, []).append(seen.name)
    classes: Counter[str] = Counter()
    for code, n in enumerate(np.bincount(store.codes[rows]) if len(store.codes) else ()):
        classes[store.classes[code]] += int(n)
    notes = [f"headers of all read, {len(looks):,} evenly spread decoded: channels, values and duplicates are of these"]
    notes += [*source.notes, *(f"{n:,} picture{'s' * (n > 1)} {fact}" for fact, n in facts.most_common())]
    notes += [f"{n:,} of {len(looks):,} pictures {fact}" for fact, n in more.most_common()]
    dims: tuple[int, ...] = ()
    if looks:
        dims, reasons = source.kind.choose(sizes, channels, resolution)
        notes += reasons
    return Findings(
        name=source.name,
        kind=source.kind.name,
        count=len(rows) if looks else 0,
        sizes={"x".join(map(str, shape)): n for shape, n in Counter(sizes).most_common()},
        channels=dict(channels.most_common()),
        range=(min(seen.low for seen in looks), max(seen.high for seen in looks)) if looks else (0.0, 0.0),
        classes={name: classes[name] for name in source.classes or in_order(set(classes)) if classes[name]},
        bad=[(fault.name, fault.reason) for fault in faults],
        duplicates=[group for group in same.values() if len(group) > 1],
        notes=notes,
        dims=dims,
    )


def _limit() -> int:
    """How many bytes of data may be held in memory: a share of what is free, never more than `MAX_BYTES`."""
    free = [size for size in (_available(), _allowed()) if size is not None]
    return min([bounds.MAX_BYTES, *(size // SHARE for size in free)])


def _available() -> int | None:
    """Bytes of memory that programs may still take, where Linux tells."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _allowed() -> int | None:
    """Bytes that are left of the limit of this container, if it has one."""
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text("ascii")) for name in ("max", "current"))
    except (OSError, ValueError):  # "max" says that there is none
        return None
    return max(0, limit - used)


def _gb(size: int) -> str:
    return f"{size / 2**30:.3g} GB"
