"""Checkpoints: everything a run needs to go on exactly, in one safetensors file, written atomically.

Names: step-00001234.safetensors. The newest two are kept, so that one survives a damaged disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.files import write_atomic

__all__ = ["checkpoints", "load", "save"]

KEEP = 2


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in ``folder``, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> Path:
    """Write a checkpoint, then remove all but the newest two.

    Args:
        folder: of the checkpoints.
        step: steps done.
        tensors: by name, on any device.
        notes: short texts to keep with them.

    Raises:
        UserError: the folder cannot be written.
    """
    content = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(notes)
    )
    path = write_atomic(folder / f"step-{step:08d}.safetensors", content)
    for old in checkpoints(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and notes of the newest checkpoint.

    Raises:
        UserError: there is none, or it is damaged; the line names an older one if there is one.
    """
    found = checkpoints(folder)
    if not found:
        raise UserError(f"{folder}: holds no checkpoint; train again, or give another run")
    path = found[-1]
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        way = f"delete it, and {found[-2].name} is used" if len(found) > 1 else "delete it and train again"
        raise UserError(f"{path}: damaged checkpoint ({error}); {way}") from error
