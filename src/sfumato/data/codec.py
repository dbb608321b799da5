"""The records every kind of data shares: what a codec can do, what was loaded, what was found.

A *codec* is the bridge between a user's items (pictures with 256 levels, points in their own units) and the float
states a model works on. Because the bridge stretches space, it also owns the offset between the two densities:

    log p(item) = log p(state) + log |d state / d item|                                            (1)

where the last term is `Codec.log_volume`, in nats and summed over all dimensions. For pictures an item is the
continuous value v in the bin [v - 1/2, v + 1/2] of one level, so (1) is the log density per bin, and
-log p(item) / (dims ln 2) is the usual bits per dimension.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Codec", "Dataset", "Findings", "Items", "evenly"]

_IN_MEMORY = 10_000  # items of a stream
_SAMPLE_BYTES = 2**28


class Codec(Protocol):
    """A user's items <-> float32 states. It is a value: equal ones do the same."""

    def __hash__(self) -> int: ...

    kind: ClassVar[str]
    """Registry key, written into data.json ("image", "points")."""

    @property
    def dims(self) -> tuple[int, ...]:
        """Shape of one state: (C, H, W) for images, (D,) for points."""

    @property
    def level_width(self) -> float:
        """Distance between neighbouring levels of a state; 0 for items that vary continuously."""

    def encode(self, items: Tensor) -> Tensor:
        """Items (N, *raw) -> float32 states (N, *dims)."""

    def decode(self, states: Tensor) -> Tensor:
        """States (N, *dims) -> items (N, *raw), rounded and clipped where the items are bounded.

        Raises:
            ValueError: a state is not finite.
        """

    def save(
        self, items: Tensor, folder: Path, names: Sequence[str], recipes: Sequence[Mapping[str, Any]]
    ) -> list[Path]:
        """Write items (N, *raw) in the user's format, each with the recipe it was made by.

        Args:
            items: what `decode` returns.
            folder: made if it is missing.
            names: N file names without suffix.
            recipes: N JSON-able mappings.

        Returns:
            The files written.

        Raises:
            UserError: the folder cannot be written.
        """

    def picture(self, items: Tensor, columns: int | None = None) -> NDArray[np.uint8]:
        """Draw many items as one picture, RGB (h, w, 3).

        Args:
            items: (N, *raw).
            columns: items in a row, where items stand in rows.
        """

    def log_volume(self) -> float:
        """log |d state / d item| summed over dims, in nats: equation (1) of this module."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able record from which `sfumato.data.codec_from` rebuilds the codec."""


class Items(Protocol):
    """Items to be had by index: a tensor in memory, or a `Stream` on disk, which has a `prefetch(index)` too."""

    @property
    def shape(self) -> torch.Size:
        """(N, *raw)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Tensor: ...


def evenly(count: int, n: int) -> Tensor:
    """Return at most n of the numbers 0 to count - 1, evenly spread, ascending."""
    n = min(n, count)
    return torch.arange(n) * count // max(n, 1)


@dataclass(frozen=True)
class Dataset:
    """Data decoded once and held in memory, or left on disk and decoded when asked for.

    Attributes:
        name: what it is called.
        items: uint8 (N, C, H, W) for images, float32 (N, D) for points; a tensor unless `streamed`.
        labels: int64 (N,), indices into `classes`; None when there are no classes.
        classes: class names; () when there are none.
        codec: the way to states and back.
        test: the held-out part, read by the same codec; None when the source has none.
        fingerprint: sha256 hex of the bytes of items, labels and captions; of a stream, of names, sizes, labels,
            captions and a sample.
        notes: what was done to the data on the way, to tell the user.
        captions: N of them, None where an item has none; () if none has one.
        columns: by name N entries of what else is told, None where an item has none.
    """

    name: str
    items: Items
    labels: Tensor | None
    classes: tuple[str, ...]
    codec: Codec
    test: Dataset | None
    fingerprint: str
    notes: tuple[str, ...] = ()
    captions: tuple[str | None, ...] = ()
    columns: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)

    @property
    def streamed(self) -> bool:
        """Whether the items are on disk."""
        return not isinstance(self.items, Tensor)

    def sample(self, n: int) -> Tensor:
        """At most n items, evenly spread; fewer if they are large, so that they fit in memory in any case."""
        return self.items[self._evenly(n)]

    def in_memory(self) -> Dataset:
        """This dataset, or of one that is streamed a `sample` with all that belongs to it, held in memory."""
        if not self.streamed:
            return self
        test = None if self.test is None else self.test.in_memory()
        return replace(self.part(self._evenly(_IN_MEMORY)), test=test)

    def part(self, index: Tensor) -> Dataset:
        """The examples of these indices, in memory, with all that belongs to them; the held-out part stays."""
        rows = index.tolist()
        return replace(
            self,
            items=self.items[index],
            labels=None if self.labels is None else self.labels[index],
            captions=tuple(self.captions[k] for k in rows) if self.captions else (),
            columns={name: tuple(column[k] for k in rows) for name, column in self.columns.items()},
        )

    def _evenly(self, n: int) -> Tensor:
        return evenly(len(self.items), min(n, max(1, _SAMPLE_BYTES // math.prod(self.items.shape[1:]))))


@dataclass(frozen=True)
class Findings:
    """What a look at a source tells; nothing on disk is changed.

    Attributes:
        name: what the source is called.
        kind: "image" or "points".
        count: readable items of the training part.
        sizes: how many items have each shape ("28x28" for images, "2" for points).
        channels: how many pictures are "grey", "grey+alpha", "colour", "colour+alpha" in content; {} for points.
        range: lowest and highest raw value.
        classes: items per class, in class order.
        bad: (item name, reason) of everything that cannot be read.
        duplicates: groups of names whose decoded content is the same.
        notes: what reading does to the data.
        dims: shape of one item as `load` returns it; () when nothing is readable.
    """

    name: str
    kind: str
    count: int
    sizes: Mapping[str, int]
    channels: Mapping[str, int]
    range: tuple[float, float]
    classes: Mapping[str, int]
    bad: Sequence[tuple[str, str]]
    duplicates: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=list)
    dims: tuple[int, ...] = ()

    def lines(self) -> list[str]:
        """The report, one line per finding; long lists are cut."""
        out = [f"{self.name}: {self.count:,} {self.kind.removesuffix('s')}s"]
        if self.count:
            out.append(f"  size: {_counts(self.sizes)}; loaded as {'x'.join(map(str, self.dims))}")
            out.append(f"  values: {self.range[0]:g} to {self.range[1]:g}")
        if self.channels:
            out.append(f"  channels: {_counts(self.channels)}")
        if self.classes:
            out.append(f"  classes: {len(self.classes)}: {_counts(self.classes)}")
        out += [f"  note: {note}" for note in self.notes]
        if self.duplicates:
            copies = sum(len(group) - 1 for group in self.duplicates)
            out.append(f"  duplicates: {copies:,} in {len(self.duplicates):,} groups")
            out += [f"    {' = '.join(group[:4])}{' = ...' * (len(group) > 4)}" for group in self.duplicates[:5]]
        if self.bad:
            out.append(f"  bad: {len(self.bad):,}")
            out += [f"    {name}: {reason}" for name, reason in self.bad[:20]]
            out += [f"    and {len(self.bad) - 20:,} more"] * (len(self.bad) > 20)
        return out


def _counts(table: Mapping[str, int], most: int = 12) -> str:
    shown = ", ".join(f"{name} ({n:,})" for name, n in list(table.items())[:most])
    return f"{shown}, and {len(table) - most:,} more" if len(table) > most else shown
