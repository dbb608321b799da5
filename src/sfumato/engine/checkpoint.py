"""Checkpoints: everything a run needs to go on exactly, in one safetensors file whose name tells its own checksum.

Names: step-00001234-<first 16 hexadecimal digits of the file's sha256>.safetensors. A file is read once: the bytes that
were checked are the bytes that are used. The order of writing makes a crash at any moment harmless:

(1)  the new checkpoint, under another name, down to the disk;  then renamed;  then the name of it into ``latest``
(2)  only then all but the newest two are removed, so that one survives a damaged disk

Reading tries the one that ``latest`` names, then the others from the newest to the oldest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from sfumato.errors import UserError
from sfumato.files import sweep, write_atomic

__all__ = ["Checkpoint", "checkpoints", "load", "read_weights", "save", "set_aside", "write_weights"]

KEEP = 2
NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found whole.

    Attributes:
        path: of the file.
        tensors: by name.
        notes: short texts that were saved with them.
        damaged: newer ones that were found damaged, each with the reason.
    """

    path: Path
    tensors: dict[str, Tensor]
    notes: dict[str, str]
    damaged: tuple[tuple[Path, str], ...] = ()


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in ``folder``, oldest first."""
    named = [(int(match[1]), path) for path in folder.glob("step-*") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(named, key=lambda found: (found[0], _written(found[1])))]


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> Path:
    """Write a checkpoint, then remove all but the newest two; order (1) and (2).

    Args:
        folder: of the checkpoints.
        step: steps done.
        tensors: by name, on any device.
        notes: short texts to keep with them.

    Raises:
        UserError: the folder cannot be written; those that were there stay.
    """
    content = to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(notes))
    sweep(folder)
    path = write_atomic(folder / f"step-{step:08d}-{_checksum(content)}.safetensors", content)
    write_atomic(folder / "latest", path.name.encode())
    for old in checkpoints(folder)[:-KEEP]:
        if old != path:
            old.unlink(missing_ok=True)
    return path


def load(folder: Path) -> Checkpoint:
    """Return the newest checkpoint that is whole.

    Raises:
        UserError: there is none, or every one is damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for path in _newest_first(folder):
        try:
            return Checkpoint(path, *_read(path), tuple(damaged))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            damaged.append((path, str(error)))
    if not damaged:
        raise UserError(f"{folder}: holds no checkpoint; train again, or give another run")
    told = "; ".join(f"{path.name}: {why}" for path, why in damaged)
    raise UserError(f"{folder}: every checkpoint is damaged ({told}); restore one from a backup, or train again")


def write_weights(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> Path:
    """Write the weights of a model alone.

    Args:
        path: of the file.
        tensors: by name, on any device.
        notes: short texts to keep with them.
    """
    return write_atomic(path, to_bytes({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, dict(notes)))


def read_weights(path: Path, expected: str) -> dict[str, Tensor]:
    """Return what ``write_weights`` wrote, in float32 where it was shortened.

    Args:
        path: of the file.
        expected: fingerprint of the weights that are wanted, among the file's notes.

    Raises:
        UserError: the file is missing, damaged, or of other weights.
    """
    try:
        content = path.read_bytes()
        tensors, notes = from_bytes(content), _notes(content)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); restore it from a backup") from error
    if notes.get("weights") != expected:
        raise UserError(f"{path}: holds other weights than '{expected}'; restore it from a backup")
    return {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}


def set_aside(checkpoint: Checkpoint) -> None:
    """Rename the damaged files that reading passed over, so that none is taken for the newest again."""
    for path, _ in checkpoint.damaged:
        try:
            path.rename(path.with_suffix(".damaged"))
        except OSError as error:
            raise UserError(f"{path}: is damaged and cannot be renamed ({error.strerror}); remove it") from error


def _newest_first(folder: Path) -> list[Path]:
    found = checkpoints(folder)[::-1]
    try:
        named = folder / (folder / "latest").read_text("utf-8")
    except (OSError, ValueError):
        return found
    return sorted(found, key=lambda path: path != named)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read, check and parse one file; whatever is wrong with it is a ValueError that says so."""
    content = path.read_bytes()
    expected = path.stem.rpartition("-")[2]
    if _checksum(content) != expected:
        raise ValueError(f"checksum is {_checksum(content)}")
    return from_bytes(content), _notes(content)


def _notes(content: bytes) -> dict[str, str]:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    notes: dict[str, str] = header.get("__metadata__", {})
    return notes


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # a run that goes on has just removed it
        return 0


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
