"""A folder of PNG, JPEG, WebP or BMP files; the subfolders directly below it are the classes.

Subfolders train/ and test/ alone are no classes but the training and the held-out part; the classes are then the
subfolders of these. (Beside train/, one of validation/, val/ or valid/ is as good as test/.) For captions of the
pictures see captions.py.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sfumato.data.captions import Told, captions_of
from sfumato.data.decoding import SUFFIXES
from sfumato.data.source import Fault, Source, name_of
from sfumato.data.store import Names, Store, parts, printable, stored
from sfumato.errors import UserError

__all__ = ["open_path"]

_SHARDS = (".tar", ".parquet")


def open_path(path: Path) -> Source | None:
    """Open a folder of pictures; None if `path` is not a folder, or has tar or parquet files instead of pictures.

    Raises:
        UserError: there is no picture file in it, or it cannot be read.
    """
    if not path.is_dir():
        return None
    listing = _walk(path)
    names = listing.names
    if not len(names):
        if any(suffix in listing.others for suffix in _SHARDS):
            return None
        raise UserError(f"{path}: no PNG, JPEG, WebP or BMP files in this folder; give a folder that has some")
    tops = Counter(_parts(name, 1)[0] for name in names)
    notes = _ignored(listing)
    split = parts(tops)
    told, lost = dict[str, Told](), list[Fault]()
    if {".txt", ".jsonl", ".csv"} & {*listing.others}:
        told, lost = captions_of(path, ("", *(split or ())), [os.fsdecode(name) for name in names])
    faults = [*listing.faults, *lost]
    if split is None:
        store, mixed = _store(path, names, 0, faults, told)
        return stored(name_of(path), store, notes=[*notes, *mixed])
    train, held = (Names(name for name in names if _parts(name, 1)[0] == part) for part in split)
    (store, mixed), (test, _) = _store(path, train, 1, faults, told), _store(path, held, 1, (), told)
    others = [f"{part}/ ({n:,})" for part, n in sorted(tops.items()) if part not in split]
    notes += [f"{' and '.join(f'{part}/' for part in split)} are the training and the held-out part", *mixed]
    notes += [f"left out: {', '.join(others)}"] * bool(others)
    return stored(name_of(path), store, test, notes=notes)


def _parts(name: bytes, most: int) -> list[str]:
    """The first folders of a relative name, at most so many of them; "" last if it is a file in the root."""
    *folders, _ = name.split(b"/", most)
    return [printable(os.fsdecode(folder)) for folder in folders] or [""]


def _store(
    root: Path, names: Names, depth: int, faults: Sequence[Fault], told: Mapping[str, Told]
) -> tuple[Store, list[str]]:
    """The store of some files with what is told of them, and a note if not all of them lie in a class; classes are the
    folders at `depth`.
    """
    codes, classes = np.zeros(len(names), np.int32), dict[str, int]()
    flat = 0
    for index, name in enumerate(names):
        folders = _parts(name, depth + 1)
        if len(folders) == depth + 1 and folders[-1]:
            codes[index] = classes.setdefault(folders[-1], len(classes))
        else:
            flat += 1
    notes = ["pictures lie in the folder itself, so its subfolders are not taken as classes"] * bool(flat and classes)
    if flat:
        codes, classes = codes[:0], {}

    def located(index: int) -> Path:
        return root / os.fsdecode(names[index])

    def opened(index: int) -> BinaryIO:
        path = located(index)
        if not path.is_file():
            raise OSError("not a file (a broken link?)")
        if path.stat().st_size == 0:
            raise OSError("empty file")
        return path.open("rb")

    def size(index: int) -> int:
        try:
            return located(index).stat().st_size
        except OSError:  # its turn to be named comes when it is read
            return 0

    rows = [told.get(os.fsdecode(name), Told()) for name in names] if told else []
    others = dict.fromkeys(key for row in rows for key in row.columns)
    store = Store(
        sizes=np.fromiter(map(size, range(len(names))), np.int64, len(names)),
        name=lambda index: printable(os.fsdecode(names[index])),
        open=opened,
        identity=names.text,
        codes=codes,
        classes=tuple(classes),
        faults=tuple(faults),
        captions=tuple(row.caption for row in rows) if any(row.caption is not None for row in rows) else (),
        columns={key: tuple(row.columns.get(key) for row in rows) for key in others},
    )
    return store, notes


@dataclass(frozen=True)
class _Listing:
    names: Names
    faults: list[Fault]
    hidden: int
    others: Counter[str]


def _walk(root: Path) -> _Listing:
    """List picture files below `root`, links followed, no folder entered twice, in the order of their names' parts."""
    faults, others = list[Fault](), Counter[str]()
    inside: dict[str, tuple[Names, list[str]]] = {}  # pictures and folders of each folder
    hidden, seen = 0, set[str]()
    folders, links = [""], list[str]()
    while folders or links:
        # Links come last, so that a link to a folder that is here anyway is the copy that is passed over.
        folder = folders.pop() if folders else links.pop()
        real = os.path.realpath(root / folder)
        if real in seen:  # a link back to a folder above, or a second link to the same one
            continue
        seen.add(real)
        try:
            found = _look(root / folder)
        except OSError as error:
            if not folder:
                raise UserError(f"{root}: cannot be read ({error.strerror}); check its permissions") from error
            faults.append(Fault(printable(folder.rstrip("/")), error.strerror or str(error)))
            continue
        inside[folder] = Names(map(os.fsencode, sorted(found.pictures))), sorted(found.folders)
        for name in inside[folder][1]:
            (links if found.folders[name] else folders).append(f"{folder}{name}/")
        hidden += found.hidden
        others += found.others
    return _Listing(Names(_sorted(inside)), faults, hidden, others)


@dataclass
class _Found:
    pictures: list[str] = field(default_factory=list)
    folders: dict[str, bool] = field(default_factory=dict)  # whether it is a link
    hidden: int = 0
    others: Counter[str] = field(default_factory=Counter)


def _look(folder: Path) -> _Found:
    """What lies in one folder."""
    found = _Found()
    with os.scandir(folder) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a Path for each takes far longer
            if entry.name.startswith("."):
                found.hidden += 1
            elif _is_folder(entry):
                found.folders[entry.name] = entry.is_symlink()
            elif suffix in SUFFIXES:
                found.pictures.append(entry.name)
            else:
                found.others[suffix or "no suffix"] += 1
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _sorted(inside: dict[str, tuple[Names, list[str]]]) -> Iterator[bytes]:
    """All names in order: where a folder stands among files, all that is in it stands."""
    waiting: list[tuple[str, bool]] = [("", True)]
    while waiting:
        name, folder = waiting.pop()
        if not folder:
            yield os.fsencode(name)
        elif name in inside:
            files, folders = inside.pop(name)
            if not folders:
                yield from (os.fsencode(name) + file for file in files)
                continue
            here = [(os.fsdecode(file), False) for file in files] + [(f"{sub}/", True) for sub in folders]
            here.sort(key=lambda entry: entry[0].rstrip("/"), reverse=True)
            waiting += [(name + entry, deeper) for entry, deeper in here]


def _ignored(listing: _Listing) -> list[str]:
    notes = []
    if listing.hidden:
        notes.append(f"hidden files or folders ignored: {listing.hidden:,}")
    if listing.others:
        kinds = ", ".join(f"{suffix} {n:,}" for suffix, n in listing.others.most_common(5))
        notes.append(f"other files ignored: {listing.others.total():,} ({kinds})")
    return notes
