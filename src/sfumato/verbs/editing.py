"""The verb that changes what there is: edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from sfumato.verbs.words import Class, Folder

__all__ = ["edit"]


def edit(
    run: Folder,
    *,
    image: str,
    mask: str | None = None,
    strength: float | None = None,
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 4,
    class_: Class = None,
    prompt: str | None = None,
    guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    away: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    sampler: str | None = None,
    grid: str | None = None,
    ema: float | None = None,
    out: str | None = None,
    device: str | None = None,
) -> list[Path]:
    """Change a picture: more or less of it, or where a mask is white. What the mask keeps stays as it is.

    Args:
        run: folder of a trained run of pictures.
        image: the picture, PNG, JPEG, WebP or BMP; it is brought to the size of the run.
        mask: a picture of the same size, white where it shall be made anew; by default everywhere.
        strength: in [0, 1], share of the way back that is gone again: 0 returns the picture, 1 makes another; by
            default 0.6, and with a mask 1.
        n: how many answers.
        class_: what it shall become, as for sample; by default no class in particular.
        prompt: what it shall become, of a run trained with --text; by default nothing in particular.
        guidance: as for sample.
        interval: as for sample.
        rescale: as for sample.
        away: as for sample.
        steps: as for sample; with a mask 24.
        seed: of the noise.
        sampler: as for sample; with a mask ancestral, which forgets its errors.
        grid: as for sample.
        ema: as for sample.
        out: folder for the answers; by default one in the run.
        device: cpu, cuda or mps.

    Returns:
        The answers, and a picture of all after the one that was given.

    Raises:
        UserError: no such run, picture or class; a mask of another size; a strength outside [0, 1]; a student, a model
            of another family, or a run of points.
    """
    from sfumato.defaults import GRID, SAMPLER
    from sfumato.engine.edit import edit
    from sfumato.engine.generate import Wish
    from sfumato.engine.machine import device_of

    if mask is not None and steps is None:
        steps = 24
    if sampler is None:
        sampler = SAMPLER if mask is None else "ancestral"
    share = (0.6 if mask is None else 1.0) if strength is None else strength
    wish = Wish(
        seed, steps, sampler, GRID if grid is None else grid, ema, class_, guidance, interval, rescale, away, prompt
    )
    hidden, folder = (None if each is None else Path(each) for each in (mask, out))
    return edit(Path(run), Path(image), hidden, share, n, wish, folder, device_of(device)[0])
