"""What is told of pictures in a folder, as many tools keep it: a .txt beside each, or a table of all.

    a.png, a.txt          one picture's caption, the whole file
    metadata.jsonl        {"file_name": "a.png", "text": "a red circle"}, one line each   (the imagefolder convention)
    metadata.csv          file_name,text

Other columns of a table, such as colour or price, are kept by their names; a table needs a text or any such column.

A table lies in the folder that is given or in its train/ and test/, and its names are relative to where it lies. Text
files are captions if any of them has the name of a picture; else they are nothing of ours.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfumato.data.source import Fault
from sfumato.errors import UserError

__all__ = ["COLUMNS", "MOST_BYTES", "Columns", "Told", "captions_of", "entries", "said"]

MOST_BYTES = 2**14
"""Of one caption; a longer file is none."""
TABLES = ("metadata.jsonl", "metadata.csv")
MOST_LETTERS = 2**8
"""Of an entry of a column in shards; nobody could ask for a longer one."""
MOST_TEXTS = 10_000
"""Different texts in a column of shards; one with more (addresses, digests) tells nothing that could be learnt."""
COLUMNS = ("text", "caption")
"""Names of the column with the captions; the first that is there is taken."""
NAME = "file_name"
"""Name of the column with the names of the pictures."""


@dataclass(frozen=True)
class Told:
    """What is told of one picture.

    Attributes:
        caption: in words; None if there is none.
        columns: entries of other columns by their names.
    """

    caption: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


class Columns:
    """Columns of very many pictures, gathered entry by entry; equal texts are kept once."""

    def __init__(self) -> None:
        self._found: dict[str, list[str | None]] = {}
        self._texts: dict[str, dict[str, str]] = {}

    def put(self, name: str, row: int, entry: str) -> None:
        """Take one entry.

        Args:
            name: of its column.
            row: of its picture; never less than that of an entry before.
            entry: a text or a number.
        """
        texts = self._texts.setdefault(name, {})
        if len(texts) > MOST_TEXTS or len(entry) > MOST_LETTERS:
            return
        column = self._found.setdefault(name, [])
        column += [None] * (row + 1 - len(column))
        column[row] = entry if _is_number(entry) else texts.setdefault(entry, entry)
        if len(texts) > MOST_TEXTS:
            del self._found[name]

    def whole(self, count: int) -> dict[str, tuple[str | None, ...]]:
        """Return the columns by name, as long as there are pictures."""
        return {name: (*column, *[None] * (count - len(column))) for name, column in self._found.items()}


def captions_of(root: Path, folders: Sequence[str], names: Sequence[str]) -> tuple[dict[str, Told], list[Fault]]:
    """Return what is told of pictures by their names, and what is told of none.

    Args:
        root: of the names.
        folders: where tables may lie, relative to ``root``.
        names: of all pictures, relative to ``root``.

    Raises:
        UserError: a table that cannot be read.
    """
    known = set(names)
    told, lost = dict[str, Told](), list[Fault]()
    for folder in folders:
        for table in (root / folder / name for name in TABLES):
            for name, row in _rows(table) if table.is_file() else ():
                if (full := os.path.normpath(f"{folder}/{name}" if folder else name)) in known:
                    told[full] = row
                else:
                    lost.append(Fault(f"{table.name}: {name}", "a caption without its picture"))
    beside = {os.path.splitext(name)[0]: name for name in names}  # noqa: PTH122 - a Path for each takes far longer
    texts = {
        path: beside.get(path.relative_to(root).with_suffix("").as_posix()) for path in sorted(root.rglob("*.txt"))
    }
    if any(texts.values()):
        for path, picture in texts.items():
            caption = _read(path)
            if picture is None or caption is None:
                why = "a caption without its picture" if picture is None else f"no caption: over {MOST_BYTES} bytes"
                lost.append(Fault(path.relative_to(root).as_posix(), why))
            else:
                told[picture] = Told(caption, told[picture].columns if picture in told else {})
    return told, lost


def said(row: Mapping[str, Any]) -> str | None:
    """Return the caption in a row of a table or a record; None if it has none."""
    text = next((row[column] for column in COLUMNS if row.get(column) is not None), None)
    return None if text is None else str(text).strip()[:MOST_BYTES]


def entries(row: Mapping[str, Any], others: Sequence[str]) -> dict[str, str]:
    """Return what else a row of a table or a record tells, by the names of its columns: texts and numbers.

    Args:
        row: of the table.
        others: names of columns that are not meant, beside those of captions.
    """
    found = {str(key): str(value).strip()[:MOST_BYTES] for key, value in row.items()
             if key not in (*others, *COLUMNS) and isinstance(value, str | int | float)}  # fmt: skip
    return {key: value for key, value in found.items() if value}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _read(path: Path) -> str | None:
    with path.open("rb") as file:
        found = file.read(MOST_BYTES + 1)
    return None if len(found) > MOST_BYTES else found.decode("utf-8", "replace").strip()


def _rows(table: Path) -> Iterator[tuple[str, Told]]:
    """Yield the name of every row of a table, and what it tells."""
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = map(json.loads, filter(str.strip, file)) if table.suffix == ".jsonl" else csv.DictReader(file)
            for row in rows:
                text, name, rest = said(row), str(row[NAME]), entries(row, (NAME,))
                if text is None and not rest:
                    raise KeyError("text")
                yield name, Told(text, rest)
    except KeyError as error:
        raise UserError(f"{table}: a row has no {error}; give each a file_name and a text") from error
    except (OSError, ValueError, AttributeError, csv.Error) as error:
        raise UserError(f"{table}: cannot be read ({error}); mend it, or take it away") from error
