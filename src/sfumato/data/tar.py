"""Tar shards after WebDataset's convention: one .tar file or a folder of them, pictures with what is said of them.

    0001.png 0001.cls 0001.txt 0002.jpg 0002.json ...

Members that follow each other and have the same name up to the first dot of its last part are one sample: a picture
(png, jpg, webp, bmp) and, if it has one, its class: the text of `key.cls`, or "label" in `key.json`; and its caption:
the text of `key.txt`, or "text" or "caption" in `key.json`, whose other texts and numbers are columns by their names.
Shards are never unpacked: their headers are read once, and then each picture where it lies. They are untrusted: links,
devices, sparse files and names that point outside are ignored, and sizes are held against a limit and against the
shard's own.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sfumato.data.captions import MOST_BYTES, Columns, Told, entries, said
from sfumato.data.decoding import SUFFIXES
from sfumato.data.source import Fault, Source, name_of
from sfumato.data.store import Names, Store, part_of, parts, printable, stored, window
from sfumato.errors import UserError

__all__ = ["open_path", "shards"]

MAX_MEMBER = 2**29
"""A picture with more bytes is ignored."""
MAX_NOTE = 2**16  # bytes of a .cls, .txt or .json member
MAX_NAME = 2**13  # bytes of a name in a header, and of what tar says beside it
_NOTES = ("cls", "txt", "json")  # an earlier one is believed


def open_path(path: Path) -> Source | None:
    """Open a .tar file or a folder of them; None if `path` is neither.

    Raises:
        UserError: a shard is compressed or damaged from its beginning, or there is no picture in any.
    """
    files = shards(path, ".tar")
    if not files:
        return None
    root = path if path.is_dir() else path.parent
    by_part: dict[str, list[str]] = {}
    for file in files:
        name = file.relative_to(root).as_posix()
        by_part.setdefault(part_of(name), []).append(name)
    split = parts(by_part)
    if split is None:
        store, notes = _index(path, root, sorted(file.relative_to(root).as_posix() for file in files))
        return stored(name_of(path), store, notes=notes)
    (store, notes), (held, _) = (_index(path, root, by_part[part]) for part in split)
    return stored(name_of(path), store, held, notes=notes)


def shards(path: Path, suffix: str) -> list[Path]:
    """The visible files at or below `path` that end in a suffix, sorted."""
    if path.is_file():
        return [path] if path.suffix.lower() == suffix else []
    found = (file for file in path.rglob("*") if file.suffix.lower() == suffix and file.is_file())
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts))


@dataclass
class _Index:
    """What the headers of all shards say, in numbers side by side."""

    shard: array[int] = field(default_factory=lambda: array("i"))
    start: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("q"))
    code: array[int] = field(default_factory=lambda: array("i"))
    captions: list[str | None] = field(default_factory=list)
    columns: Columns = field(default_factory=Columns)
    classes: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def _index(path: Path, root: Path, files: list[str]) -> tuple[Store, list[str]]:
    """The store of some shards, and notes."""
    index = _Index()
    names = Names(name for number, file in enumerate(files) for name in _pictures(root, file, number, index))
    if not len(names):
        reason = f" ({index.faults[0].reason})" if index.faults else ""
        raise UserError(f"{path}: no PNG, JPEG, WebP or BMP pictures in these tar files{reason}; give some that have")
    shard, start, size = (np.array(column, np.int64) for column in (index.shard, index.start, index.size))

    store = Store(
        sizes=size,
        name=lambda row: printable(f"{files[shard[row]]}/{os.fsdecode(names[row])}"),
        open=lambda row: window(root / files[shard[row]], int(start[row]), int(size[row])),
        identity="\n".join(files).encode("utf-8", "surrogateescape") + names.text,
        codes=np.array(index.code if index.classes else (), np.int32),
        classes=tuple(index.classes),
        captions=tuple(index.captions) if any(text is not None for text in index.captions) else (),
        columns=index.columns.whole(len(size)),
        faults=tuple(index.faults),
    )
    return store, [f"tar members ignored: {what} ({n:,})" for what, n in index.ignored.most_common()]


def _pictures(root: Path, file: str, number: int, index: _Index) -> Iterator[bytes]:
    """Yield the name of each picture of a shard, and put down in `index` where it lies and what is said of it."""
    sample = _Sample(("", ""))
    with (root / file).open("rb") as stream:
        end = os.fstat(stream.fileno()).st_size
        for member in _members(root / file, file, stream, end, index):
            if (why := _unwanted(member, end)) is not None:
                index.ignored[why] += 1
                continue
            folder, _, base = member.name.rpartition("/")
            stem, _, kind = base.partition(".")
            if sample.key != (folder, stem):
                sample = _Sample((folder, stem))
            kind = kind.lower()
            if f".{kind.rpartition('.')[2]}" in SUFFIXES:
                if sample.row >= 0:
                    index.ignored["further pictures of one sample (a name counts up to its first dot)"] += 1
                    continue
                sample.row = len(index.size)
                index.shard.append(number)
                index.start.append(member.offset_data)
                index.size.append(member.size)
                index.code.append(-1)
                index.captions.append(None)
                sample.tell(index)
                yield os.fsencode(member.name)
            elif kind in _NOTES:
                sample.hear(kind, _note(stream, member))
                sample.tell(index)
            else:
                index.ignored[f".{printable(kind)}"[:20]] += 1


@dataclass
class _Sample:
    """Members that come one after another: the name, the row once the picture is seen, and what is said of it."""

    key: tuple[str, str]
    row: int = -1
    words: dict[str, tuple[int, str]] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)

    def hear(self, kind: str, text: str | None) -> None:
        """Take what a member says, if none said it that is believed more."""
        name, told = (None, Told()) if text is None else _said(kind, text)
        for what, found in {"class": name, "caption": told.caption}.items():
            if found is not None:
                self.words[what] = min(self.words.get(what, (len(_NOTES), "")), (_NOTES.index(kind), found))
        self.columns |= told.columns

    def tell(self, index: _Index) -> None:
        """Put down what is said, if the picture is seen."""
        if self.row >= 0 and "class" in self.words:
            name = printable(self.words["class"][1])[:200]
            index.code[self.row] = index.classes.setdefault(name, len(index.classes))
        if self.row >= 0 and "caption" in self.words:
            index.captions[self.row] = self.words["caption"][1]
        for key, entry in self.columns.items() if self.row >= 0 else ():
            index.columns.put(printable(key), self.row, entry)


def _members(path: Path, file: str, stream: BinaryIO, end: int, index: _Index) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a shard; where it is damaged they end, which is put down as a fault."""
    try:
        with tarfile.open(fileobj=_Headers(stream.fileno(), closefd=False), mode="r:") as tar:
            at = -1
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                if tar.offset <= at:
                    raise tarfile.ReadError("a member of negative size")
                at = tar.offset
                yield member
            rest = os.pread(stream.fileno(), 512, tar.offset)
            if rest.strip(b"\0"):
                index.faults.append(Fault(printable(file), f"damaged at byte {tar.offset:,}: what follows is lost"))
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        if not len(index.size):
            raise UserError(f"{path}: not a plain tar file ({error}); unpack it if it is compressed") from error
        index.faults.append(Fault(printable(file), f"damaged: {error}"))


def _unwanted(member: tarfile.TarInfo, end: int) -> str | None:
    """Why a member is not looked at, or None."""
    if member.isdir():
        return "folders"
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
        return "links, devices or sparse files"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "names that point outside"
    if member.name.rpartition("/")[2].startswith("."):
        return "hidden files"
    if member.size > MAX_MEMBER:
        return f"over {MAX_MEMBER // 2**20} MB"
    return None if 0 <= member.size <= end - member.offset_data else "cut off"


def _note(stream: BinaryIO, member: tarfile.TarInfo) -> str | None:
    """The text of a member, None if it is none."""
    if member.size > MAX_NOTE:
        return None
    try:
        return os.pread(stream.fileno(), member.size, member.offset_data).decode().strip()
    except ValueError:
        return None


def _said(kind: str, text: str) -> tuple[str | None, Told]:
    """The class that a member names, None if it does not, and what else it tells."""
    if kind == "cls":
        return text or None, Told()
    if kind == "txt":
        return None, Told(text if len(text.encode()) <= MOST_BYTES else None)
    try:
        record: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None, Told()
    if not isinstance(record, dict):
        return None, Told()
    label = record.get("label")
    name = str(label) if label != "" and isinstance(label, (str, int)) else None
    return name, Told(said(record), entries(record, ("label",)))


class _Headers(io.FileIO):
    """A file of which only headers are read: a header that asks for more than a name can need is damage."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_NAME:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)
