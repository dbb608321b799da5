"""Pictures of somebody's, changed by a run and written beside it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.data.decoding import decode
from sfumato.data.image import ImageCodec, Pictures
from sfumato.data.source import Array, Item
from sfumato.engine.generate import Wish, drawing
from sfumato.errors import UserError
from sfumato.files import need_empty, write_png
from sfumato.models.diffusion import need_diffusion
from sfumato.models.edit import edited

__all__ = ["edit"]


def edit(
    folder: Path, image: Path, mask: Path | None, strength: float, n: int, wish: Wish, out: Path | None, device: str
) -> list[Path]:
    """Change a picture; see ``sfumato.verbs.edit``.

    Args:
        folder: of the run.
        image: the picture's file.
        mask: file of a picture of the same size, white where it is made anew; None for everywhere.
        strength: share of the way back that is gone again.
        n: how many answers.
        wish: how to draw.
        out: folder for the answers.
        device: where to compute.
    """
    if n < 1:
        raise UserError(f"ask for at least one answer, got -n {n}")
    with drawing(folder, wish, device, None) as draws:
        model = need_diffusion(draws.model, "editing")
        codec = model.codec
        if not isinstance(codec, ImageCodec):
            raise UserError(f"{folder}: a run of points, and pictures alone can be edited")
        pixels = _pixels(image)
        item = _fitted(image, pixels, codec)
        kept = None if mask is None else _mask(mask, pixels.shape[:2], codec)
        place = draws.folder.with_name(f"edit-{image.stem}-{strength:g}-{draws.folder.name}") if out is None else out
        need_empty(out)
        recipe: dict[str, Any] = draws.recipe | {"image": _digest(image), "strength": strength}
        recipe |= {} if mask is None else {"mask": _digest(mask)}
        parts = [
            edited(model, item.expand(len(some), *item.shape[1:]), draws.way, strength, kept, some)
            for some in (range(k, min(k + model.batch, n)) for k in range(0, n, model.batch))
        ]
        made = torch.cat(parts)
        names = [f"{k:06d}" for k in range(n)]
        files = codec.save(made, place, names, [recipe | {"index": k} for k in range(n)])
        sheet = codec.picture(torch.cat([item, made]))
        return [*files, write_png(place / "grid.png", sheet, recipe | {"first": "the picture that was given"})]


def _fitted(path: Path, pixels: Array, codec: ImageCodec) -> Tensor:
    """Bring a picture to the shape and levels of a codec, (1, C, H, W)."""
    fitted = torch.tensor(Pictures().fit(Item(path.name, pixels), codec.dims))[None]
    return codec.decode(replace(codec, levels=256).encode(fitted))


def _mask(path: Path, size: tuple[int, ...], codec: ImageCodec) -> Tensor:
    """Read a mask for a picture of some height and width, true where it is kept, (H, W)."""
    pixels = _pixels(path)
    if pixels.shape[:2] != size:
        ours, theirs = ("x".join(map(str, each)) for each in (pixels.shape[:2], size))
        raise UserError(f"{path}: a mask of {ours} for a picture of {theirs}; give one of the same size")
    fitted = Pictures().fit(Item(path.name, pixels), (1, codec.height, codec.width))
    return torch.from_numpy(fitted[0] < 128)


def _pixels(path: Path) -> Array:
    found = decode(lambda: path.open("rb"))
    if isinstance(found, str):
        raise UserError(f"{path}: {found}")
    return found[0]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
