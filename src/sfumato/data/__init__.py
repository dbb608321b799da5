"""The user's data, from a name or a path to tensors and back. Knows nothing of diffusion.

    inspect("photos")            what is there, what is wrong with it; changes nothing
    load("photos")               a Dataset, or a UserError that names the first bad file
    codec_from(record)           the codec that a run folder's data.json describes

One table says which file opens what. A new kind of data is one file (a codec, a `Kind`, a reader) and one line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

from sfumato.errors import UserError, nearest

if TYPE_CHECKING:
    from sfumato.data.codec import Codec, Dataset, Findings
    from sfumato.data.source import Source

__all__ = ["NAMES", "Codec", "Dataset", "Findings", "codec_from", "inspect", "load"]


class _Entry(NamedTuple):
    """What a file of this folder offers; it is imported (and with it torch) only when asked."""

    names: tuple[str, ...] = ()  # it has open_named(name) -> Source
    paths: bool = False  # it has open_path(path) -> Source | None
    kind: str | None = None  # it has codec(record) -> Codec


_FILES = {  # paths are offered from top to bottom; the first that does not say None has it
    "image": _Entry(kind="image"),
    "named": _Entry(names=("digits", "stacked-digits", "fashion-mnist")),
    "shapes": _Entry(names=("shapes",)),
    "emoji": _Entry(names=("emoji", "emoji64")),
    "pairs": _Entry(names=("emoji-pairs",)),
    "openclipart": _Entry(names=("openclipart",)),
    "toys": _Entry(names=("moons", "ring8", "grid25", "spirals", "checkerboard", "points")),
    "points": _Entry(kind="points", paths=True),
    "latents": _Entry(kind="latents"),
    "arrays": _Entry(paths=True),
    "idx": _Entry(paths=True),
    "folder": _Entry(paths=True),
    "tar": _Entry(paths=True),
    "parquet": _Entry(paths=True),
}

NAMES: tuple[str, ...] = tuple(name for entry in _FILES.values() for name in entry.names)
"""Sets that need no path; "points" is another name for "moons"."""

_RESOLUTIONS = range(4, 1025)
_HELD: WeakValueDictionary[str, Dataset] = WeakValueDictionary()


def inspect(source: str | Path, *, stream: bool | None = None) -> Findings:
    """Look at all of a source without changing anything.

    Args:
        source: one of `NAMES`, or the path of a folder of pictures, a .npy, .npz or .csv file, IDX files, or .tar or
            .parquet files or a folder of them. A name goes before a path: give the path of a folder called digits in
            full.
        stream: as for `load`; of what would be streamed all headers are read, and a sample is decoded.

    Returns:
        What was found; single bad files are listed in it.

    Raises:
        UserError: there is no such source, or as a whole it cannot be read.
    """
    from sfumato.data.glance import look
    from sfumato.data.source import survey

    opened = _open(source)
    seen = look(opened, None, stream)
    if seen is None:
        findings, held = survey(opened)
    else:
        findings, held = seen[0].findings, seen[1].findings if seen[1] else None
    return findings if held is None else replace(findings, bad=[*findings.bad, *held.bad])


def load(
    source: str | Path, *, resolution: int | None = None, skip_bad: bool = False, stream: bool | None = None
) -> Dataset:
    """Read a source into memory, or open it to be read from disk as it is asked for.

    A set of `NAMES`, which cannot change, is not read again while somebody holds it: a contest asks for it many times.

    Args:
        source: as for `inspect`.
        resolution: longest side of a picture, 4 to 1024; by default pictures of one size up to 64 stay as they
            are, and others are fitted to at most 64.
        skip_bad: leave unreadable files or rows out.
        stream: leave pictures on disk, see `sfumato.data.stream`; by default if decoded they would take more than a
            quarter of the free memory. A dataset tells by `streamed` what was done: the same set has other fingerprints
            in memory and streamed, so who wants it again must ask for the same.

    Raises:
        UserError: as for `inspect`; also a bad file or row (the first is named), a resolution out of range or
            for points, a set too large for memory, or one that cannot be streamed.
    """
    from sfumato.data.glance import build as build_stream
    from sfumato.data.glance import look
    from sfumato.data.source import build

    if resolution is not None and resolution not in _RESOLUTIONS:
        raise UserError(f"--resolution {resolution} is not between {_RESOLUTIONS[0]} and {_RESOLUTIONS[-1]}")
    usual = str(source) in NAMES and resolution is None and stream is None
    if usual and (held := _HELD.get(str(source))) is not None:
        return held
    opened = _open(source)
    seen = look(opened, resolution, stream)
    dataset = build(opened, resolution, skip_bad) if seen is None else build_stream(opened, seen, skip_bad)
    if usual:
        _HELD[str(source)] = dataset
    return dataset


def codec_from(record: Mapping[str, Any]) -> Codec:
    """Rebuild a codec from what its `to_dict` gave.

    Raises:
        UserError: the kind is not known, or the record is damaged.
    """
    files = {entry.kind: file for file, entry in _FILES.items() if entry.kind}
    kind = str(record.get("kind"))
    if kind not in files:
        raise UserError(f"unknown kind of data '{kind}'{nearest(kind, [str(key) for key in files])}")
    try:
        codec: Codec = _module(files[kind]).codec(record)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"damaged record of {kind} data ({error!r}); restore data.json") from error
    return codec


def _open(source: str | Path) -> Source:
    for file, entry in _FILES.items():
        if str(source) in entry.names:
            named: Source = _module(file).open_named(str(source))
            return named
    path = Path(source)
    try:
        exists = path.exists()
    except (OSError, ValueError):  # too long for a path, or with a null character
        exists = False
    if not exists:
        raise UserError(f"no data set or path '{source}'{nearest(str(source), NAMES)}")
    for file, entry in _FILES.items():
        opened: Source | None = _module(file).open_path(path) if entry.paths else None
        if opened is not None:
            return opened
    raise UserError(
        f"{path}: not data that can be read; give a folder of pictures, .tar, .parquet, .npy, .npz, .csv or IDX files"
    )


def _module(file: str) -> Any:
    return import_module(f"sfumato.data.{file}")


def __getattr__(name: str) -> Any:
    """The records, imported when first asked for: they need torch."""
    if name in ("Codec", "Dataset", "Findings"):
        return getattr(_module("codec"), name)
    raise AttributeError(f"module 'sfumato.data' has no attribute '{name}'")
