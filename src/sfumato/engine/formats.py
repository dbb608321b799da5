"""The forms in which samples lie on disk: files of their own, .npz arrays, WebDataset tar.

The bytes of each are a function of the samples and their recipes: no time, owner or order of work gets in. A writer
takes batches as they are drawn, so memory does not grow with the number of samples.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor

from sfumato.data import Codec
from sfumato.data.image import ImageCodec
from sfumato.errors import UserError, choose
from sfumato.files import png_bytes

__all__ = ["FORMATS", "Batch", "Format", "Part", "digest", "format_of", "size"]


@dataclass(frozen=True)
class Batch:
    """Some samples in a row.

    Attributes:
        index: of each.
        items: (b, *raw) as the codec decodes them.
        labels: (b,) indices of classes; None without classes.
        recipes: of each.
    """

    index: range
    items: Tensor
    labels: Tensor | None
    recipes: list[dict[str, Any]]

    @property
    def names(self) -> list[str]:
        """File names without suffix: the index in six digits or more."""
        return [f"{i:06d}" for i in self.index]


@dataclass(frozen=True)
class Part:
    """Samples to be written together, drawn batch by batch while they are.

    Attributes:
        codec: of the items.
        classes: names of them, to which labels point; () without classes.
        indices: of the samples.
        recipe: what all of them share.
        batches: the samples; can be gone through once.
    """

    codec: Codec
    classes: tuple[str, ...]
    indices: range
    recipe: dict[str, Any]
    batches: Iterator[Batch]


@dataclass(frozen=True)
class Format:
    """One form on disk.

    Attributes:
        suffix: of a file; empty if a part becomes a folder of files.
        kinds: of data that can have this form.
        write: writes a part to a path, safe on the disk when it returns, and returns the files.
    """

    suffix: str
    kinds: tuple[str, ...]
    write: Callable[[Path, Part], list[Path]]


def _files(folder: Path, part: Part) -> list[Path]:
    """Write a file for each sample."""
    return [
        path
        for batch in part.batches
        for path in part.codec.save(batch.items, folder, batch.names, batch.recipes)
    ]  # fmt: skip


def _table(folder: Path, part: Part) -> list[Path]:
    """Write all samples as rows of one file, for which they must be in memory together."""
    batches = list(part.batches)
    items = torch.cat([batch.items for batch in batches])
    names = [name for batch in batches for name in batch.names]
    return part.codec.save(items, folder, names, [recipe for batch in batches for recipe in batch.recipes])


def _arrays(path: Path, part: Part) -> list[Path]:
    """Write samples, index, recipe and, with classes, labels as .npz; the samples stream, the rest is small."""
    labels = []
    shared = part.recipe | {"first": part.indices.start, "n": len(part.indices)}
    shared |= {"codec": part.codec.to_dict(), "classes": list(part.classes)}
    with path.open("wb") as stream:
        with zipfile.ZipFile(stream, "w") as archive:
            with archive.open(_entry("samples"), "w", force_zip64=True) as out:
                for k, batch in enumerate(part.batches):
                    items = batch.items.numpy()
                    if k == 0:
                        head = np.lib.format.header_data_from_array_1_0(items)
                        shape = (len(part.indices), *items.shape[1:])
                        np.lib.format.write_array_header_1_0(out, head | {"shape": shape, "fortran_order": False})
                    out.write(items.tobytes())
                    labels += [] if batch.labels is None else [batch.labels.numpy()]
            rest = {"index": np.arange(part.indices.start, part.indices.stop), "recipe": np.array(json.dumps(shared))}
            for name, array in (rest | ({"labels": np.concatenate(labels)} if labels else {})).items():
                with archive.open(_entry(name), "w") as out:
                    np.lib.format.write_array(out, array, allow_pickle=False)
        _sync(stream)
    return [path]


def _entry(name: str) -> zipfile.ZipInfo:
    """Return the record of an array in an .npz, the same on every day and system."""
    entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    return entry


def _tar(path: Path, part: Part) -> list[Path]:
    """Write a WebDataset shard: 000123.png, 000123.json (recipe) and, what was asked for, 000123.cls or .txt,
    sample by sample.
    """
    codec = cast(ImageCodec, part.codec)  # Format.kinds lets no other in
    with path.open("wb") as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for batch in part.batches:
                pixels = codec.pixels(batch.items)
                for k, (name, recipe) in enumerate(zip(batch.names, batch.recipes, strict=True)):
                    files = {"png": png_bytes(pixels[k], recipe), "json": json.dumps(recipe).encode()}
                    if batch.labels is not None:
                        files["cls"] = str(int(batch.labels[k])).encode()
                    if "prompt" in recipe:
                        files["txt"] = str(recipe["prompt"]).encode()
                    for suffix, content in files.items():
                        entry = tarfile.TarInfo(f"{name}.{suffix}")  # time, owner and group are 0 unless set
                        entry.size = len(content)
                        archive.addfile(entry, io.BytesIO(content))
        _sync(stream)
    return [path]


def _sync(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


FORMATS = {
    "png": Format("", ("image",), _files),
    "csv": Format("", ("points",), _table),
    "npz": Format(".npz", ("image", "points"), _arrays),
    "tar": Format(".tar", ("image",), _tar),
}
"""Forms by name; the first that takes a kind of data is its own, used unless another is asked for."""


def format_of(kind: str, asked: str | None = None) -> str:
    """Return the name of the format for data of this kind: the one asked for, or its own.

    Raises:
        UserError: no such format, or not for this kind.
    """
    fit = [name for name, form in FORMATS.items() if kind in form.kinds]
    if asked is not None and kind not in choose("format", asked, FORMATS).kinds:
        raise UserError(f"--format {asked} does not hold data of kind '{kind}'; choose {' or '.join(fit)}")
    return asked or fit[0]


def digest(path: Path) -> str:
    """Return the sha256 of a file, or of the sorted names and digests of the files in a folder, in hexadecimal."""
    if path.is_dir():
        lines = (f"{digest(file)}  {file.name}\n" for file in sorted(path.iterdir()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else (path,)))
