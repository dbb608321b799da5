"""Parquet files as Hugging Face's `datasets` writes them: a column of pictures, perhaps of labels, captions and more.

A picture is bytes, or a struct whose "bytes" are the picture (its "path" is never followed). A label is a whole number,
named by the ClassLabel feature in the file if there is one, or a text. Captions are texts in a column of that name, or
of the name text. All other columns of texts and numbers are kept by their names.

Parquet is compressed in groups of rows and cannot be read at random. `datasets` (the extra `stream`) therefore writes
those columns once as Arrow into its cache (HF_DATASETS_CACHE says where), which is not compressed. Where each picture
lies in those files is put down, and there it is read; a mapping of them would count as resident memory, and grow.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sfumato.data.captions import COLUMNS, MOST_BYTES, Columns
from sfumato.data.source import Source, name_of
from sfumato.data.store import Store, part_of, parts, printable, stored, window
from sfumato.data.tar import shards
from sfumato.errors import UserError

__all__ = ["open_path"]

_PICTURES = ("image", "img", "picture", "pixels", "jpg", "png", "webp")
_LABELS = ("label", "labels", "class", "cls", "target", "y")


def open_path(path: Path) -> Source | None:
    """Open a .parquet file or a folder of them; None if `path` is neither.

    Raises:
        UserError: `datasets` is not installed, a file is damaged, there is no column of pictures, or the disk is full.
    """
    files = shards(path, ".parquet")
    if not files:
        return None
    by_part: dict[str, list[Path]] = {}
    for file in files:
        by_part.setdefault(part_of(file.relative_to(path).as_posix() if path.is_dir() else file.name), []).append(file)
    split = parts(by_part)
    if split is None:
        store, classes, notes = _store(path, files)
        return stored(name_of(path), store, classes=classes, notes=notes)
    (store, classes, notes), (held, _, _) = (_store(path, by_part[part]) for part in split)
    return stored(name_of(path), store, held, classes=classes, notes=notes)


def _store(path: Path, files: Sequence[Path]) -> tuple[Store, tuple[str, ...], list[str]]:
    """The store of some files, the order of its classes, and notes."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{path}: parquet needs the library datasets; pip install 'sfumato[stream]'") from error
    column, label, caption, others = _columns(files, Path(datasets.config.HF_DATASETS_CACHE))
    progress = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        wanted = [name for name in (column, label, caption) if name]
        rows = datasets.Dataset.from_parquet(
            [escape(str(file.absolute())) for file in files], columns=[*wanted, *others]
        )
    except Exception as error:  # DatasetGenerationError and what pyarrow, fsspec and the disk raise
        cause = str(error.__cause__ or error).split("\n")[0]
        raise UserError(f"{path}: cannot be read as parquet ({cause}); get the files again") from error
    finally:
        if progress:
            datasets.enable_progress_bars()
    if not len(rows):
        raise UserError(f"{path}: no rows in it; give parquet files of pictures")
    caches = [Path(file["filename"]) for file in rows.cache_files]
    places = [_places(cache, column) for cache in caches]
    number = np.repeat(np.arange(len(caches), dtype=np.int32), [len(start) for start, _ in places])
    starts, sizes = (np.concatenate(parts) for parts in zip(*places, strict=True))

    def opened(row: int) -> BinaryIO:
        if sizes[row] < 0:
            raise OSError("no bytes in this row")
        return window(caches[number[row]], int(starts[row]), int(sizes[row]))

    codes, classes, order = _codes(path, rows.data.column(label), rows.features[label]) if label else _NO_LABELS
    store = Store(
        sizes=sizes,
        name=lambda index: f"row {index}",
        open=opened,
        identity="\n".join(file.name for file in files).encode("utf-8", "surrogateescape"),
        codes=codes,
        classes=classes,
        captions=() if caption is None else tuple(map(_caption, rows.data.column(caption).to_pylist())),
        columns=_told(rows, others),
    )
    names = " and ".join(f"'{name}'" for name in wanted)
    return store, order, [f"column{'s' * (len(wanted) > 1)} {names}, unpacked into {caches[0].parent}"]


def _caption(text: str | None) -> str | None:
    return None if text is None else text.strip()[:MOST_BYTES]


def _told(rows: Any, names: Sequence[str]) -> dict[str, tuple[str | None, ...]]:
    """What some columns tell: texts, numbers, and classes by their names."""
    found = Columns()
    for name in names:
        classes = getattr(rows.features[name], "names", None) or ()
        for row, value in enumerate(rows.data.column(name).to_pylist()):
            if value not in (None, "") and value == value:  # not NaN
                known = classes and 0 <= value < len(classes)
                found.put(printable(name), row, classes[value] if known else str(value).strip())
    return found.whole(len(rows))


_NO_LABELS: tuple[NDArray[np.int32], tuple[str, ...], tuple[str, ...]] = (np.zeros(0, np.int32), (), ())


def _places(cache: Path, column: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First byte and number of bytes of each picture in an Arrow file; -1 bytes where there is none."""
    import pyarrow as pa

    starts, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    with pa.memory_map(str(cache)) as mapped:
        whole = mapped.read_buffer()
        for batch in pa.ipc.open_stream(whole):
            pictures = batch.column(column)
            values = pictures.field("bytes") if pa.types.is_struct(pictures.type) else pictures
            _, offsets, content = values.buffers()
            wide = np.int64 if pa.types.is_large_binary(values.type) else np.int32
            ends = np.frombuffer(offsets, wide)[values.offset : values.offset + len(values) + 1].astype(np.int64)
            there = np.asarray(pictures.is_valid()) & np.asarray(values.is_valid())
            starts.append(ends[:-1] + (content.address - whole.address if content else 0))
            sizes.append(np.where(there, np.diff(ends), -1))
    return np.concatenate(starts), np.concatenate(sizes)


def _columns(files: Sequence[Path], cache: Path) -> tuple[str, str | None, str | None, list[str]]:
    """The names of the columns of pictures, labels, captions and what else is told, from the footers; also held
    against the free disk.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    needed = 0
    schemas = []
    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                schemas.append(opened.schema_arrow)
                groups = (opened.metadata.row_group(group) for group in range(opened.metadata.num_row_groups))
                needed += sum(group.total_byte_size for group in groups)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{file}: not a parquet file, or damaged ({error}); get it again") from error
    first = schemas[0]
    column = _picked(first, [*_PICTURES, *_featured(first, "Image")], _is_picture)
    if column is None:
        raise UserError(f"{files[0]}: no column of pictures among {', '.join(first.names) or 'none'}; name it 'image'")
    classes = [*_LABELS, *_featured(first, "ClassLabel")]
    label = _picked(first, classes, lambda kind: pa.types.is_integer(kind) or _is_text(kind))
    label = label if label in classes else None
    caption = next((name for name in COLUMNS if name in first.names and _is_text(first.field(name).type)), None)
    for file, schema in zip(files, schemas, strict=True):
        missing = [name for name in (column, label, caption) if name and name not in schema.names]
        if missing:
            raise UserError(f"{file}: no column '{missing[0]}', which {files[0].name} has; give files that are alike")
    at = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(at).free
    if needed > free:
        raise UserError(
            f"{files[0].parent}: unpacked {needed / 2**30:.3g} GB where {at} has {free / 2**30:.3g} GB free; "
            "set HF_DATASETS_CACHE to a folder with more"
        )
    shared = set.intersection(*(set(schema.names) for schema in schemas)) - {column, label, caption}
    return column, label, caption, [name for name in first.names if name in shared and _tells(first.field(name).type)]


def _featured(schema: Any, kind: str) -> list[str]:
    """The columns that `datasets` has marked as of a kind."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [name for name, feature in features.items() if feature.get("_type") == kind]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return []


def _picked(schema: Any, names: Sequence[str], fits: Any) -> str | None:
    """The column with the first of some names, else the first of a type that fits."""
    fitting = [field.name for field in schema if fits(field.type)]
    return next((name for name in names if name in fitting), fitting[0] if fitting else None)


def _is_picture(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_picture(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _tells(kind: Any) -> bool:
    import pyarrow as pa

    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return _is_text(kind) or any(fits(kind) for fits in numbers)


def _codes(path: Path, column: Any, feature: Any) -> tuple[NDArray[np.int32], tuple[str, ...], tuple[str, ...]]:
    """Class of each row, -1 where there is none; the names of the classes; their order if the file gives one."""
    import pyarrow.compute as pc

    given: Mapping[int, str] = dict(enumerate(getattr(feature, "names", None) or ()))
    table = pc.dictionary_encode(column).combine_chunks()
    codes = pc.fill_null(table.indices, -1).to_numpy().astype(np.int32)
    values = table.dictionary.to_pylist()
    if not given:
        return codes, tuple(printable(str(value)) for value in values), ()
    unknown = [value for value in values if value not in given and value != -1]
    if unknown:
        raise UserError(f"{path}: label {unknown[0]} is not one of the {len(given)} classes that the file names")
    if -1 in values:  # what `datasets` writes for a row without a label
        codes[codes == values.index(-1)] = -1
    names = tuple(printable(given[value]) if value != -1 else "" for value in values)
    return codes, names, tuple(printable(name) for name in given.values())
