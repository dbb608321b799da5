"""Encoded pictures on disk, any of them to be had by its index: what folders, tar shards and parquet files share.

A million pictures are a few arrays and one string of bytes here, not a million objects. Read from first to last a store
is a `Reader`, for data held in memory; read in any order it is what a `Stream` decodes from.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from sfumato.data.decoding import decode, hush
from sfumato.data.image import Pictures
from sfumato.data.source import Array, Fault, Item, Reader, Source

__all__ = ["THREADS", "Names", "Store", "Stored", "item", "mapped", "part_of", "parts", "printable", "stored", "window"]

THREADS = min(4, os.cpu_count() or 1)
"""Pictures are decoded in this many threads."""

HELD_OUT = ("test", "validation", "val", "valid")  # the first that is there is taken
SPLIT = ("train", *HELD_OUT)
_TOGETHER = 64

T = TypeVar("T")


class Names:
    """Many names in one string of bytes: 8 bytes more for each than its letters."""

    def __init__(self, names: Iterable[bytes]) -> None:
        text, ends = bytearray(), [np.zeros(1, np.int64)]
        block: list[int] = []
        for name in names:
            text += name
            block.append(len(text))
            if len(block) == 2**16:
                ends.append(np.array(block, np.int64))
                block.clear()
        self.text = bytes(text)
        self._ends = np.concatenate([*ends, np.array(block, np.int64)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> bytes:
        return self.text[self._ends[index] : self._ends[index + 1]]


@dataclass(frozen=True)
class Store:
    """Encoded pictures on disk.

    Attributes:
        sizes: int64 (N,), bytes of each.
        name: what item i is called, printable.
        open: opens item i for reading and seeking; raises OSError. May be called in several threads.
        identity: bytes that stand for the names of all items, for the fingerprint.
        codes: int32 (N,), index of each item's class in `classes`, -1 where it is missing; (0,) without classes.
        classes: names of the classes.
        faults: what could not be opened to begin with.
        captions: N of them, None where there is none; () if there are none at all.
        columns: by name what else is told of each, None where it is not.
    """

    sizes: NDArray[np.int64]
    name: Callable[[int], str]
    open: Callable[[int], BinaryIO]
    identity: bytes
    codes: NDArray[np.int32]
    classes: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    captions: tuple[str | None, ...] = ()
    columns: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True)
class Stored(Source):
    """A source of pictures that need not be held in memory.

    Attributes:
        store: the pictures.
        held: the store of the held-out part.
    """

    store: Store = field(kw_only=True)
    held: Store | None = field(kw_only=True, default=None)


def stored(
    name: str, store: Store, held: Store | None = None, *, classes: Sequence[str] = (), notes: Iterable[str] = ()
) -> Stored:
    """Make a source of a store.

    Args:
        name: what it is called.
        store: of the training part.
        held: of the held-out part.
        classes: order of the class names; () means sorted.
        notes: what opening it found.
    """
    order = tuple(classes)
    test = None if held is None else Source(f"{name} (held out)", Pictures(), _reader(held), order)
    return Stored(name, Pictures(), _reader(store), order, tuple(notes), test, store=store, held=held)


def item(store: Store, index: int) -> Item | Fault:
    """Read and decode one item."""
    got = decode(partial(store.open, index))
    if isinstance(got, str):
        return Fault(store.name(index), got)
    code = store.codes[index] if len(store.codes) else None
    if code is not None and code < 0:
        return Fault(store.name(index), "no label")
    caption = store.captions[index] if store.captions else None
    told = {name: entry for name, column in store.columns.items() if (entry := column[index]) is not None}
    return Item(store.name(index), got[0], None if code is None else store.classes[code], got[1], caption, told)


def mapped(work: Callable[[int], T], indices: Array) -> Iterator[T]:
    """Yield `work(i)` for each index, in order; the work is done in threads, a few ahead."""
    hush()
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(indices), _TOGETHER):
            yield from list(pool.map(work, indices[start : start + _TOGETHER].tolist()))


def _reader(store: Store) -> Reader:
    def read(use: Callable[[Item], T]) -> Iterator[T | Fault]:
        def work(index: int) -> T | Fault:
            got = item(store, index)
            return got if isinstance(got, Fault) else use(got)

        yield from store.faults
        yield from mapped(work, np.arange(len(store)))

    return read


def printable(name: str) -> str:
    """A name as text for one line: what cannot be printed, or is not UTF-8, is written out."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def part_of(name: str) -> str:
    """Which part of a split a file belongs to by its name: train/0.tar, data/train-0.tar; "" if that does not say."""
    starts = (re.match(rf"({'|'.join(SPLIT)})(?=[-_.]|$)", piece) for piece in name.split("/"))
    return next((start[1] for start in starts if start), "")


def parts(found: Iterable[str]) -> tuple[str, str] | None:
    """The names of the training and of the held-out part, if parts are all that is found and both are there.

    Args:
        found: first folders, or what `part_of` gave.
    """
    names = set(found)
    held = next((part for part in HELD_OUT if part in names), None)
    return ("train", held) if held and "train" in names and names <= set(SPLIT) else None


def window(path: Path, start: int, size: int) -> BinaryIO:
    """Open a part of a file as a file; OSError if the file cannot be read.

    Args:
        path: the file.
        start: its first byte.
        size: how many bytes.
    """
    return io.BufferedReader(_Window(path, start, size))


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        super().__init__()
        self._file, self._start, self._size, self._at = os.open(path, os.O_RDONLY), start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        wanted = min(len(buffer), max(0, self._size - self._at))
        got = os.pread(self._file, wanted, self._start + self._at)
        buffer[: len(got)] = got
        self._at += len(got)
        return len(got)

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()
