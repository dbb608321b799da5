"""From a source to findings or to a dataset: one reader serves both.

A *source* is opened, not yet decoded. Its *reader* hands every item to a function and yields what that returns, or
a `Fault` that says why the item cannot be read. Its *kind* (pictures, points) knows what to look at in an item, which
common shape to choose, and how to bring an item to that shape. Then

    survey = read all, look at each                          -> Findings   (this is `inspect`)
    build  = survey, choose, check memory, read all again    -> Dataset    (this is `load`)

Reading twice costs time but never memory: nothing is kept before the whole set is known to be good and to fit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.data.codec import Codec, Dataset, Findings
from sfumato.errors import UserError

__all__ = [
    "MAX_BYTES",
    "Array",
    "Fault",
    "Item",
    "Kind",
    "Look",
    "Reader",
    "Source",
    "admitted",
    "array_reader",
    "build",
    "check_bytes",
    "in_order",
    "name_of",
    "notes_of",
    "survey",
]

MAX_BYTES = 4 * 2**30
"""No array larger than this is made, whatever a header says."""

Array = NDArray[Any]
"""Any numpy array."""
T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """One decoded item.

    Attributes:
        name: file name within the source, or "#7" or "row 7".
        value: uint8 (H, W, C) with C = 1 grey, 2 grey+alpha, 3 colour, 4 colour+alpha; or float32 (D,).
        label: name of its class.
        caption: what it shows, in words.
        facts: what decoding did to it ("turned by ..."); counted in the notes.
        columns: entries by the name of their column.
    """

    name: str
    value: Array
    label: str | None = None
    facts: tuple[str, ...] = ()
    caption: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """An item that cannot be read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Look:
    """What a survey keeps of one item: its shape, kind of channels, lowest and highest value, and digest."""

    name: str
    label: str | None
    facts: tuple[str, ...]
    shape: tuple[int, ...]
    channels: str | None
    low: float
    high: float
    digest: bytes


class Reader(Protocol):
    """Reads all items, in the same order every time."""

    def __call__(self, use: Callable[[Item], T], /) -> Iterator[T | Fault]:
        """Yield `use(item)` or a `Fault` for each item; `use` may run in another thread."""


class Kind(Protocol):
    """What pictures, points, ... do differently."""

    @property
    def name(self) -> str:
        """Kind of its codec."""

    @property
    def unit(self) -> str:
        """Word for one item ("picture")."""

    @property
    def dtype(self) -> type[np.generic]:
        """Type of the numbers in a dataset."""

    def look(self, item: Item) -> Look:
        """Measure one item."""

    def choose(
        self, sizes: Mapping[tuple[int, ...], int], channels: Mapping[str, int], resolution: int | None
    ) -> tuple[tuple[int, ...], list[str]]:
        """The common shape of all items, and notes that give the reason.

        Args:
            sizes: how many items have each shape.
            channels: how many items have each kind of channels.
            resolution: longest side asked for, or None.
        """

    def fit(self, item: Item, dims: tuple[int, ...]) -> Array:
        """Bring one item to the common shape."""

    def codec(self, name: str, items: Array) -> Codec:
        """The codec for items (N, *dims); `name` is that of the source, for errors."""


@dataclass(frozen=True)
class Source:
    """Data that has been found and opened, but not decoded.

    Attributes:
        name: what it is called.
        kind: how its items are treated.
        read: its reader.
        classes: the order of the class names; () means sorted.
        notes: what opening it found.
        test: the held-out part.
    """

    name: str
    kind: Kind
    read: Reader
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    test: Source | None = None


def array_reader(
    values: Array,
    labels: Sequence[str] | None = None,
    convert: Callable[[Array], Array] = np.asarray,
    captions: Sequence[str] | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
) -> Reader:
    """Reader of the rows of an array.

    Args:
        values: (N, ...).
        labels: N class names, or None.
        convert: what each row is passed through when its turn comes.
        captions: N of them, or None.
        columns: by name N entries, or None.
    """

    def read(use: Callable[[Item], T]) -> Iterator[T | Fault]:
        for index, value in enumerate(values):
            label = None if labels is None else labels[index]
            caption = None if captions is None else captions[index]
            told = {name: entries[index] for name, entries in (columns or {}).items()}
            yield use(Item(f"#{index}", convert(value), label, caption=caption, columns=told))

    return read


def captioned(name: str, kind: Kind, drawn: Sequence[tuple[str, Array]], held: Source | None) -> Source:
    """Return a source of pictures that are drawn already, each with its caption.

    Args:
        name: what it is called.
        kind: of pictures.
        drawn: captions and pictures of one size.
        held: the held-out part.
    """
    captions = [caption for caption, _ in drawn]
    pixels: Array = np.stack([picture for _, picture in drawn])
    return Source(name, kind, array_reader(pixels, captions=captions), test=held)


def name_of(path: Path) -> str:
    """What a source at `path` is called: its last part, resolved first so that "." has a name too."""
    return path.resolve().name or str(path)


def in_order(names: set[str]) -> tuple[str, ...]:
    """Sort class names: as numbers if all are numbers, else as words."""
    words = sorted(names)
    try:
        numbers = {name: float(name) for name in words}
    except ValueError:
        return tuple(words)
    # "nan" has no place among numbers.
    return tuple(words if any(map(math.isnan, numbers.values())) else sorted(words, key=numbers.__getitem__))


def check_bytes(what: str, shape: Sequence[int], itemsize: int, way_out: str) -> None:
    """Refuse an array that is too large, before it is made.

    Args:
        what: the array, for the error.
        shape: of the array.
        itemsize: bytes of one number.
        way_out: what the user can do.

    Raises:
        UserError: it would take more than `MAX_BYTES`.
    """
    size = math.prod(shape) * itemsize
    if size > MAX_BYTES:
        limit = f"{MAX_BYTES / 2**30:.3g} GB"
        raise UserError(f"{what}: {size / 2**30:.3g} GB decoded is over the limit of {limit}; {way_out}")


def survey(source: Source, resolution: int | None = None) -> tuple[Findings, Findings | None]:
    """Read everything once and report on the source and on its held-out part.

    Raises:
        UserError: the source as a whole cannot be read, or `resolution` does not apply. Bad items are only listed.
    """
    findings = _survey(source, resolution)
    if source.test is None:
        return findings, None
    held = _survey(source.test, None)
    note = f"held-out: {held.count} of {findings.count + held.count}"
    return replace(findings, notes=[*findings.notes, note]), held


def _survey(source: Source, resolution: int | None) -> Findings:
    sizes: Counter[tuple[int, ...]] = Counter()
    channels: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    facts: Counter[str] = Counter()
    names_of: dict[bytes, list[str]] = {}
    bad: list[tuple[str, str]] = []
    low, high, told = math.inf, -math.inf, 0
    for got in source.read(lambda item: (source.kind.look(item), item.caption is not None)):
        if isinstance(got, Fault):
            bad.append((got.name, got.reason))
            continue
        seen, captioned = got
        told += captioned
        sizes[seen.shape] += 1
        channels.update([seen.channels] if seen.channels else [])
        classes.update([seen.label] if seen.label is not None else [])
        facts.update(seen.facts)
        names_of.setdefault(seen.digest, []).append(seen.name)
        low, high = min(low, seen.low), max(high, seen.high)

    unit = source.kind.unit
    notes = [*source.notes, *(f"{n:,} {unit}{'s' * (n > 1)} {fact}" for fact, n in facts.most_common())]
    count = sizes.total()
    dims: tuple[int, ...] = ()
    if count:
        dims, reasons = source.kind.choose(sizes, channels, resolution)
        notes += reasons
    notes += [f"captions: {told:,} of {count:,} {unit}s have one"] * bool(told)
    return Findings(
        name=source.name,
        kind=source.kind.name,
        count=count,
        sizes={"x".join(map(str, shape)): n for shape, n in sizes.most_common()},
        channels=dict(channels.most_common()),
        range=(low, high) if count else (0.0, 0.0),
        classes={name: classes[name] for name in source.classes or in_order(set(classes)) if classes[name]},
        bad=bad,
        duplicates=[group for group in names_of.values() if len(group) > 1],
        notes=notes,
        dims=dims,
    )


def build(source: Source, resolution: int | None = None, skip_bad: bool = False) -> Dataset:
    """Load a source and its held-out part.

    Args:
        source: what to read.
        resolution: longest side of a picture; None lets the kind choose.
        skip_bad: leave bad items out instead of refusing.

    Raises:
        UserError: an item is bad, nothing is left, or the result does not fit the memory bound.
    """
    findings, held = survey(source, resolution)
    train = _part(source, findings, skip_bad, findings.dims, tuple(findings.classes))
    if source.test is None or held is None:
        return train
    # The held-out part takes the shape, the classes and the codec of the training part.
    test = _part(source.test, held, skip_bad, findings.dims, train.classes, train.codec)
    return replace(train, test=test)


def _part(
    source: Source,
    findings: Findings,
    skip_bad: bool,
    dims: tuple[int, ...],
    classes: tuple[str, ...],
    codec: Codec | None = None,
) -> Dataset:
    """One part of a dataset, with its own codec unless one is given."""
    classes = admitted(findings, skip_bad, classes)
    items, labels, captions, columns = _fill(source, findings, dims, classes)
    digest = hashlib.sha256(items.data)
    digest.update(labels.data)
    digest.update(json.dumps(captions).encode() if captions else b"")
    digest.update(json.dumps(columns).encode() if columns else b"")
    copies = sum(len(group) - 1 for group in findings.duplicates)
    notes = [
        *notes_of(findings),
        *([f"{copies:,} of {findings.count:,} are exact copies of another"] if copies else []),
    ]
    return Dataset(
        name=source.name,
        items=torch.from_numpy(items),
        labels=torch.from_numpy(labels) if classes else None,
        classes=classes,
        codec=codec or source.kind.codec(source.name, items),
        test=None,
        fingerprint=digest.hexdigest(),
        notes=tuple(notes),
        captions=captions,
        columns=columns,
    )


def notes_of(findings: Findings) -> list[str]:
    """What to tell the user of a part that is loaded."""
    bad = findings.bad
    return [*findings.notes, *([f"{len(bad):,} bad left out; the first is {bad[0][0]}"] if bad else [])]


def admitted(findings: Findings, skip_bad: bool, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Let a part of a dataset pass or refuse it.

    Args:
        findings: what is in it.
        skip_bad: whether bad items are left out.
        classes: of the training part.

    Returns:
        `classes`, or () if this part has none.

    Raises:
        UserError: it has bad items that are not to be skipped, nothing else, or a class that training has not.
    """
    if findings.bad and not skip_bad:
        name, reason = findings.bad[0]
        more = f" (and {len(findings.bad) - 1:,} more bad)" if len(findings.bad) > 1 else ""
        raise UserError(f"{findings.name}: {name}: {reason}{more}; remove or mend it, or pass --skip-bad")
    if not findings.count:
        raise UserError(f"{findings.name}: nothing readable in it; `sfumato inspect` lists why")
    strange = sorted(set(findings.classes) - set(classes))
    if strange:
        raise UserError(f"{findings.name}: class '{strange[0]}' has no training example; remove it or add some")
    return classes if findings.classes else ()


def _fill(
    source: Source, findings: Findings, dims: tuple[int, ...], classes: tuple[str, ...]
) -> tuple[Array, NDArray[np.int64], tuple[str | None, ...], dict[str, tuple[str | None, ...]]]:
    """Read again, now into one array (N, *dims), its labels (N,), N captions and columns of N; no labels without
    classes, and no captions where no item has one.
    """
    kind, count = source.kind, findings.count
    check_bytes(source.name, (count, *dims), np.dtype(kind.dtype).itemsize, "use fewer items or a smaller --resolution")
    items = np.empty((count, *dims), dtype=kind.dtype)
    labels = np.empty(count if classes else 0, dtype=np.int64)
    index_of = {name: index for index, name in enumerate(classes)}
    captions: list[str | None] = []
    told: list[Mapping[str, str]] = []
    filled = 0
    for got in source.read(lambda item: (kind.fit(item, dims), item.label, item.caption, item.columns)):
        if isinstance(got, Fault):
            continue
        if filled < count:
            items[filled] = got[0]
            if classes and got[1] is not None:
                labels[filled] = index_of[got[1]]
            captions.append(got[2])
            told.append(got[3])
        filled += 1
    if filled != count:
        raise UserError(f"{source.name}: changed while it was read ({count:,} items, then {filled:,}); try again")
    columns = {name: tuple(row.get(name) for row in told) for name in dict.fromkeys(key for row in told for key in row)}
    return items, labels, tuple(captions) if any(each is not None for each in captions) else (), columns
