"""Pictures that stay on disk: read and decoded when they are asked for, any of them in any order.

A `Stream` stands where else a tensor of all items would: `items[index]` reads those items, in a few threads, and
`items.prefetch(index)` begins to read what will be asked for next. So the order of the data, exact resumption and many
workers are the same for both, and memory holds one batch and the one that comes.

Damage behind a good header is met only when the picture is read. The order must not change then, so the next good
picture of the same class takes the place of the bad one, which is named in `Stream.faults`; too many are an error.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.decoding import hush
from sfumato.data.image import Pictures
from sfumato.data.source import Array, Fault
from sfumato.data.store import THREADS, Store, item
from sfumato.errors import UserError

__all__ = ["Rows", "Stream"]

FEW_BAD, BAD = 10, 0.01  # a run stops at more bad pictures than so many, and more than this share
_CHUNK = 4  # pictures that one thread takes at a time

Rows = NDArray[np.int64]
"""Indices into a store."""


class Stream:
    """Pictures uint8 (N, C, H, W) on disk, to be had by index like a tensor of this shape.

    Attributes:
        shape: (N, C, H, W).
        faults: pictures that turned out to be bad, as they were met; each is named once.
    """

    dtype = torch.uint8

    def __init__(self, name: str, store: Store, rows: Rows, dims: tuple[int, ...]) -> None:
        self.shape = torch.Size((len(rows), *dims))
        self.faults: list[Fault] = []
        self._name, self._store, self._rows = name, store, rows
        self._bad: set[int] = set()
        self._lock = Lock()
        self._next: _Batch | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any, /) -> Tensor:
        """Read and decode items.

        Args:
            index: a tensor of numbers or of truth values, a slice, or one number.

        Raises:
            UserError: too many items are bad.
        """
        rows = self._chosen(index)
        batch, self._next = self._next, None
        if batch is None or not np.array_equal(batch.rows, rows):
            batch = self._begin(rows)
        items = batch.result()
        return items if rows.ndim else items[0]

    def prefetch(self, index: Any) -> None:
        """Begin to read what will be asked for next as `self[index]`; only the batch begun last is kept."""
        if self._next is not None:
            self._next.cancel()
        self._next = self._begin(self._chosen(index))

    def _chosen(self, index: Any) -> Rows:
        rows: Rows = np.asarray(self._rows[index.cpu().numpy() if isinstance(index, Tensor) else index])
        return rows

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(THREADS, "sfumato-data")

    def _begin(self, rows: Rows) -> _Batch:
        hush()
        flat = rows.reshape(-1)
        items = np.empty((len(flat), *self.shape[1:]), np.uint8)

        def fill(start: int) -> None:
            for at, row in enumerate(flat[start : start + _CHUNK].tolist(), start):
                items[at] = self._item(row)

        return _Batch(rows, items, [self._pool.submit(fill, start) for start in range(0, len(flat), _CHUNK)])

    def _item(self, row: int) -> Array:
        """The item in a row, or if that is bad the next good one of its class: a function of what is on disk alone."""
        got = self._read(row)
        if got is not None:
            return got
        rows, codes = self._rows, self._store.codes
        if len(codes):
            rows = rows[codes[rows] == codes[row]]
        at = int(np.searchsorted(rows, row))
        for other in chain(rows[at + 1 :].tolist(), rows[:at].tolist()):
            if (got := self._read(other)) is not None:
                return got
        raise UserError(f"{self._name}: {self._store.name(row)} is bad, and so is all that could stand in for it")

    def _read(self, row: int) -> Array | None:
        got = item(self._store, row)
        if not isinstance(got, Fault):
            return Pictures().fit(got, self.shape[1:])
        with self._lock:
            if row not in self._bad:
                self._bad.add(row)
                self.faults.append(got)
            if len(self._bad) > max(FEW_BAD, BAD * len(self)):
                raise UserError(
                    f"{self._name}: {len(self._bad):,} of {len(self):,} pictures turned out to be bad, the last "
                    f"{got.name}: {got.reason}; mend the data, or begin again with --skip-bad and without --stream"
                )
        return None


@dataclass(frozen=True)
class _Batch:
    """Items that are being read."""

    rows: Rows
    items: NDArray[np.uint8]
    work: list[Future[None]]

    def result(self) -> Tensor:
        """The items, when all are there."""
        try:
            for part in self.work:
                part.result()
        except BaseException:
            self.cancel()
            raise
        return torch.from_numpy(self.items)

    def cancel(self) -> None:
        """Read no more of them."""
        for part in self.work:
            part.cancel()
