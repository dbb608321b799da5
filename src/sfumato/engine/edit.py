"""Pictures of somebody's, changed by a run and written beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.condition import short
from sfumato.data.image import ImageCodec, Pictures
from sfumato.data.source import Item
from sfumato.defaults import GRID, SAMPLER
from sfumato.engine.generate import Draws, Wish, drawing
from sfumato.engine.given import digest, fitted, pictures, pixels
from sfumato.engine.run import Run
from sfumato.errors import UserError
from sfumato.files import need_empty, write_png
from sfumato.guide.operators import Blur, Grey, Operator, Smaller
from sfumato.models.diffusion import Diffusion, need_diffusion
from sfumato.models.edit import Own, edited, interpolated, restored, usual_fill

__all__ = ["Change", "Damage", "edit", "interpolate", "restore"]

PLAIN = (None, SAMPLER)
"""Steps and sampler of a change unless others are asked for; None for the model's own."""
FORGETS = (24, "ancestral")
"""Under a mask of which the network was never shown any: its errors are forgotten on the way."""
OWN = (25, "heun")
"""For a picture's own noise: 50 network calls each way, of order 2."""


@dataclass(frozen=True)
class Change:
    """What is done to a picture.

    Attributes:
        mask: file of a picture of the same size, white where it is made anew; None for everywhere.
        fill: how that is made, a key of ``sfumato.models.edit.FILLS``; None for what is usual with the model.
        strength: share of the way back that is gone again.
        own: whether from the picture's own noise.
        was: class or sentence that the picture is, to find that noise; None for nothing in particular.
    """

    mask: Path | None
    fill: str | None
    strength: float
    own: bool = False
    was: str | None = None

    @property
    def slug(self) -> str:
        """Part of the name of a folder."""
        parts = [f"{self.strength:g}"]
        parts += [] if self.mask is None else [str(self.fill), self.mask.stem, digest(self.mask)[:8]]
        parts += ["own"] * self.own + ([] if self.was is None else [short(self.was)])
        return "-".join(parts)


def edit(folder: Path, image: Path, change: Change, n: int, wish: Wish, out: Path | None, device: str) -> list[Path]:
    """Change a picture; see ``sfumato.verbs.edit``.

    Args:
        folder: of the run.
        image: the picture's file.
        change: what is done.
        n: how many answers.
        wish: how to draw.
        out: folder for the answers.
        device: where to compute.
    """
    if n < 1:
        raise UserError(f"ask for at least one answer, got -n {n}")
    if change.own and n > 1:
        raise UserError(f"a picture's own noise leads to one answer, got -n {n}")
    if change.was is not None and not change.own:
        raise UserError("--was says what to find a picture's own noise with: add --noise own")
    if change.mask is not None and change.fill is None:
        change = replace(change, fill=usual_fill(need_diffusion(Run.open(folder).config.model, "editing").masks))
    with _opened(folder, _usual(wish, change), device, exact=change.own) as (draws, model, codec):
        found = pixels(image)
        item = fitted(image, found, codec)
        kept = None if change.mask is None else _mask(change.mask, found.shape[:2], codec)
        own = Own(None if change.was is None else model.request(change.was)) if change.own else None
        recipe: dict[str, Any] = {"image": digest(image), "strength": change.strength}
        recipe |= {} if change.mask is None else {"mask": digest(change.mask), "fill": change.fill}
        recipe |= {"noise": "own", "was": change.was} if change.own else {}
        need_empty(out)
        made = [
            edited(model, item.expand(len(some), *item.shape[1:]), draws.way, change.strength, kept, some, own,
                   change.fill)
            for some in _batches(n, model.batch)
        ]  # fmt: skip
        place = f"edit-{image.stem}-{change.slug}"
        return _written(draws, codec, place if out is None else out, item, torch.cat(made), recipe)


def interpolate(
    folder: Path, images: tuple[Path, Path], n: int, wish: Wish, out: Path | None, device: str
) -> list[Path]:
    """Go from one picture to another; see ``sfumato.verbs.interpolate``.

    Args:
        folder: of the run.
        images: the files of both.
        n: pictures on the way, both ends among them.
        wish: how to draw.
        out: folder for them.
        device: where to compute.
    """
    with _opened(folder, wish, device, exact=True) as (draws, model, codec):
        ends = torch.cat([fitted(image, pixels(image), codec) for image in images])
        need_empty(out)
        made = interpolated(model, ends, n, draws.way)
        place = "-".join(["between", *(image.stem for image in images)])
        recipe = {"images": [digest(image) for image in images]}
        return _written(draws, codec, place if out is None else out, ends[:0], made, recipe)


@dataclass(frozen=True)
class Damage:
    """What was done to a picture.

    Attributes:
        kind: "small", "blurred" or "grey".
        factor: how many times smaller it is.
        radius: of the blur, in pixels of the whole picture.
        noise: standard deviation of the noise in it, in [-1, 1].
        method: by which it is answered, a key of ``sfumato.guide.measured.METHODS``.
    """

    kind: str
    factor: int
    radius: float
    noise: float
    method: str

    def seen(self, codec: ImageCodec) -> tuple[Operator, ImageCodec]:
        """Return the operator, and the codec of what is left of a picture."""
        if self.kind == "blurred":
            if not self.radius > 0:
                raise UserError(f"a blur has a radius above 0, got {self.radius:g}")
            return Blur(self.radius), codec
        if self.kind == "grey":
            if codec.channels != 3:
                raise UserError("pictures get their colour back from a run of coloured ones, and this one's are not")
            return Grey(), replace(codec, channels=1)
        if self.factor < 2 or codec.height % self.factor or codec.width % self.factor:
            sides = f"{codec.height} and {codec.width}"
            raise UserError(f"--factor must be 2 or more and divide {sides}, got {self.factor}")
        height, width = codec.height // self.factor, codec.width // self.factor
        return Smaller(self.factor), replace(codec, height=height, width=width)


def restore(folder: Path, image: Path, damage: Damage, n: int, wish: Wish, out: Path | None, device: str) -> list[Path]:
    """Mend a damaged picture; see ``sfumato.verbs.restore``.

    Args:
        folder: of the run.
        image: the picture's file.
        damage: what was done to it.
        n: how many answers.
        wish: how to draw.
        out: folder for the answers.
        device: where to compute.
    """
    if n < 1:
        raise UserError(f"ask for at least one answer, got -n {n}")
    with _opened(folder, wish, device) as (draws, model, codec):
        if model.codec.dims != codec.dims:
            raise UserError("a model of latents sees no pixels: mend pictures by a run without --latent")
        operator, left = damage.seen(replace(codec, levels=256))
        y = left.encode(fitted(image, pixels(image), left))
        need_empty(out)
        made = [
            restored(model, y, operator, draws.way, damage.noise, damage.method, some)
            for some in _batches(n, model.batch)
        ]
        recipe = {"image": digest(image), "damage": asdict(damage)}
        place = f"mended-{image.stem}-{damage.kind}-{damage.method}"
        shown = codec.decode(F.interpolate(y.expand(-1, codec.channels, -1, -1), codec.dims[1:]))
        return _written(draws, codec, place if out is None else out, shown, torch.cat(made), recipe)


def _batches(n: int, size: int) -> Iterator[range]:
    """Yield the indices of n answers, batch by batch."""
    return (range(first, min(first + size, n)) for first in range(0, n, size))


def _usual(wish: Wish, change: Change) -> Wish:
    """Return a wish with the steps and the sampler that suit a change, where none are asked for."""
    steps, method = OWN if change.own else FORGETS if change.mask is not None and change.fill != "trained" else PLAIN
    return replace(
        wish,
        steps=steps if wish.steps is None else wish.steps,
        method=method if wish.method is None else wish.method,
        grid=GRID if wish.grid is None else wish.grid,
    )


@contextmanager
def _opened(
    folder: Path, wish: Wish, device: str, exact: bool = False
) -> Iterator[tuple[Draws, Diffusion, ImageCodec]]:
    """Open a run of pictures to change some; exactly where a way is gone forth and back: bf16 is too rough for that."""
    with drawing(folder, wish, device, None, exact) as draws:
        model = need_diffusion(draws.model, "editing")
        yield draws, model, pictures(model.codec)


def _written(
    draws: Draws, codec: ImageCodec, place: str | Path, given: Tensor, made: Tensor, more: dict[str, Any]
) -> list[Path]:
    """Write answers, and one picture of all after what was given; ``place`` is a folder, or a name for one."""
    folder = place if isinstance(place, Path) else draws.folder.with_name(f"{place}-{draws.folder.name}")
    recipe = draws.recipe | more
    names = [f"{k:06d}" for k in range(len(made))]
    files = codec.save(made, folder, names, [recipe | {"index": k} for k in range(len(made))])
    told = recipe | ({"first": "the picture that was given"} if len(given) else {})
    return [*files, write_png(folder / "grid.png", codec.picture(torch.cat([given, made])), told)]


def _mask(path: Path, size: tuple[int, ...], codec: ImageCodec) -> Tensor:
    """Read a mask for a picture of some height and width, true where it is kept, (H, W)."""
    found = pixels(path)
    if found.shape[:2] != size:
        ours, theirs = ("x".join(map(str, each)) for each in (found.shape[:2], size))
        raise UserError(f"{path}: a mask of {ours} for a picture of {theirs}; give one of the same size")
    fitted = Pictures().fit(Item(path.name, found), (1, codec.height, codec.width))
    return torch.from_numpy(fitted[0] < 128)
