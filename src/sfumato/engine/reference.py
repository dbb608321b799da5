"""The real side of an evaluation: features of training and held-out examples, computed once and kept on disk.

They lie in the user's cache folder (XDG_CACHE_HOME, by default ~/.cache, then sfumato/features), one file for a data
set and kind of features; what cannot be read there is made anew.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from sfumato.data import Dataset
from sfumato.dist import stream
from sfumato.errors import UserError
from sfumato.files import write_atomic
from sfumato.metrics.features import Features

__all__ = ["Reference", "Rows", "reference"]

MOST = 10_000
"""Examples of each part at most."""
PICK = 0  # what a stream is for

Rows = NDArray[np.float32]
"""(n, d) features of examples."""


@dataclass(frozen=True)
class Reference:
    """Features of real data, in random order.

    Attributes:
        train: (n, d) of training examples.
        held_out: (m, d) of examples that no model was trained on.
        train_index: (n,) which they are.
        held_out_index: (m,) which they are.
    """

    train: Rows
    held_out: Rows
    train_index: Tensor
    held_out_index: Tensor


def reference(dataset: Dataset, held_out: Dataset, features: Features) -> Reference:
    """Return the features of a data set, from the cache if they are there.

    Args:
        dataset: the training part, in memory.
        held_out: what to compare with.
        features: of what.
    """
    index = [torch.randperm(len(part.items), generator=stream(PICK))[:MOST] for part in (dataset, held_out)]
    names = (dataset.fingerprint[:16], held_out.fingerprint[:16], features.key)
    path = _cache() / f"{'-'.join(names)}.safetensors"
    shapes = [(len(some), features.dim) for some in index]
    found = _read(path, shapes)
    if found is None:
        found = [features(p.codec.encode(p.items[i])) for p, i in zip((dataset, held_out), index, strict=True)]
        tensors = {name: torch.from_numpy(rows) for name, rows in zip(("train", "held_out"), found, strict=True)}
        with suppress(UserError):  # a cache that cannot be written is none
            write_atomic(path, to_bytes(tensors))
    return Reference(found[0], found[1], index[0], index[1])


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfumato" / "features"


def _read(path: Path, shapes: list[tuple[int, int]]) -> list[Rows] | None:
    """Return what the file holds if it is of these shapes."""
    try:
        if path.stat().st_size > 8 * sum(n * d for n, d in shapes) + 10_000:
            return None
        tensors = from_bytes(path.read_bytes())
        rows = [tensors["train"].numpy(), tensors["held_out"].numpy()]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None
    return rows if [r.shape for r in rows] == shapes and all(np.isfinite(r).all() for r in rows) else None
