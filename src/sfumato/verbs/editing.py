"""The verbs that change what there is: edit, interpolate and restore."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from sfumato.verbs.words import Class, Count, Folder

__all__ = ["edit", "interpolate", "restore"]


def edit(
    run: Folder,
    *,
    image: str,
    mask: str | None = None,
    fill: Literal["trained", "mmps", "pigdm", "dps", "repaint"] | None = None,
    strength: float | None = None,
    noise: Literal["fresh", "own"] = "fresh",
    was: str | None = None,
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None,
    class_: Class = None,
    prompt: str | None = None,
    where: tuple[str, ...] = (),
    guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    away: str | None = None,
    also: tuple[str, ...] = (),
    worse: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    sampler: str | None = None,
    grid: str | None = None,
    ema: float | None = None,
    lora: float = 1.0,
    out: str | None = None,
    device: str | None = None,
) -> list[Path]:
    """Change a picture: more or less of it, or where a mask is white. What the mask keeps stays as it is.

    Where nothing is asked for, the answers are variations of the picture.

    Args:
        run: folder of a trained run of pictures.
        image: the picture, PNG, JPEG, WebP or BMP; it is brought to the size of the run.
        mask: a picture of the same size, white where it shall be made anew; by default everywhere.
        fill: how what is white is made: trained, by the network itself, of a run that was trained with --masks; mmps,
            pigdm or dps, by what the network implies of it; repaint, by going over every step, which takes five times
            as many. By default trained where the run can do it, and else mmps.
        strength: in [0, 1], share of the way back that is gone again: 0 returns the picture, 1 makes another; by
            default 0.6; with a mask, or the picture's own noise, 1.
        noise: fresh, or the picture's own, found by going its way back in reverse: asked for nothing else it leads to
            the picture again, and asked for something else it keeps more of it.
        was: class or sentence that the picture is, to find its own noise; by default nothing in particular.
        n: how many answers; by default 4, and 1 of the picture's own noise.
        class_: what it shall become, as for sample; by default no class in particular.
        prompt: what it shall become, of a run trained with --text; by default nothing in particular.
        where: as for sample.
        guidance: as for sample.
        interval: as for sample.
        rescale: as for sample.
        away: as for sample.
        also: as for sample.
        worse: as for sample.
        steps: as for sample; for the picture's own noise 25, and with a mask 24, unless the run was trained with some.
        seed: of the noise.
        sampler: as for sample; for the picture's own noise heun, and with a mask ancestral, which forgets its errors,
            unless the run was trained with some.
        grid: as for sample.
        ema: as for sample.
        lora: as for sample.
        out: folder for the answers; by default one in the run.
        device: cpu, cuda or mps.

    Returns:
        The answers, and a picture of all after the one that was given.

    Raises:
        UserError: no such run, picture or class; a mask of another size; a strength outside [0, 1]; own noise with a
            mask, a stochastic sampler or several answers; a student, a model of another family, or a run of points.
    """
    from sfumato.engine.edit import Change, edit
    from sfumato.engine.generate import Wish
    from sfumato.engine.machine import device_of

    own = noise == "own"
    wish = Wish(
        seed, steps, sampler, grid, ema, class_, guidance, interval, rescale, away, prompt, where, also, worse, lora
    )  # fmt: skip
    hidden, folder = (None if each is None else Path(each) for each in (mask, out))
    share = (1.0 if own or mask is not None else 0.6) if strength is None else strength
    answers = (1 if own else 4) if n is None else n
    change = Change(hidden, fill, share, own, was)
    return edit(Path(run), Path(image), change, answers, wish, folder, device_of(device)[0])


def interpolate(
    run: Folder,
    *,
    image: str,
    to: str,
    n: Count = 8,
    class_: Class = None,
    prompt: str | None = None,
    steps: int = 25,
    sampler: str = "heun",
    grid: str | None = None,
    ema: float | None = None,
    out: str | None = None,
    device: str | None = None,
) -> list[Path]:
    """Go from one picture to another over pictures that might be data, by the noise that leads to each.

    Args:
        run: folder of a trained run of pictures.
        image: the first picture, PNG, JPEG, WebP or BMP; both are brought to the size of the run.
        to: the last.
        n: pictures on the way, both ends among them.
        class_: what all are, as for sample; by default no class in particular.
        prompt: what all are, of a run trained with --text; by default nothing in particular.
        steps: as for sample.
        sampler: as for sample, a deterministic one.
        grid: as for sample.
        ema: as for sample.
        out: folder for the pictures; by default one in the run.
        device: cpu, cuda or mps.

    Returns:
        The pictures, and one of all.

    Raises:
        UserError: no such run, picture or class; n < 2; a stochastic sampler; a student, a model of another family, or
            a run of points.
    """
    from sfumato.defaults import GRID
    from sfumato.engine.edit import interpolate
    from sfumato.engine.generate import Wish
    from sfumato.engine.machine import device_of

    way = Wish(0, steps, sampler, GRID if grid is None else grid, ema, class_, prompt=prompt)
    folder = None if out is None else Path(out)
    return interpolate(Path(run), (Path(image), Path(to)), n, way, folder, device_of(device)[0])


def restore(
    run: Folder,
    *,
    image: str,
    damage: Literal["small", "blurred", "grey"] = "small",
    factor: int = 4,
    radius: float = 1.5,
    noise: float = 0.02,
    method: Literal["mmps", "pigdm", "dps"] = "mmps",
    n: Count = 4,
    class_: Class = None,
    prompt: str | None = None,
    where: tuple[str, ...] = (),
    steps: int = 24,
    seed: int = 0,
    sampler: str = "ancestral",
    grid: str | None = None,
    ema: float | None = None,
    out: str | None = None,
    device: str | None = None,
) -> list[Path]:
    """Mend a damaged picture: what it may have been, by a run that knows what such pictures look like.

    Args:
        run: folder of a trained run of pictures.
        image: what is left of the picture, PNG, JPEG, WebP or BMP.
        damage: what was done to it: small (means of squares of pixels), blurred (by a Gaussian), or grey (means of the
            colours).
        factor: of a small picture, how many times smaller than those of the run.
        radius: of a blurred one, the standard deviation in pixels.
        noise: standard deviation of the noise in it, in [-1, 1]; more trusts it less.
        method: mmps (by the covariance that the network implies, the best found), pigdm or dps.
        n: how many answers.
        class_: what it is, as for sample; by default no class in particular.
        prompt: what it is, of a run trained with --text; by default nothing in particular.
        where: as for sample.
        steps: as for sample.
        seed: of the noise.
        sampler: as for sample; ancestral forgets its errors.
        grid: as for sample.
        ema: as for sample.
        out: folder for the answers; by default one in the run.
        device: cpu, cuda or mps.

    Returns:
        The answers, and a picture of all after the one that was given.

    Raises:
        UserError: no such run, picture or class; damage that the run's pictures cannot have; a student, a model of
            another family, or a run of points or latents.
    """
    from sfumato.defaults import GRID
    from sfumato.engine.edit import Damage, restore
    from sfumato.engine.generate import Wish
    from sfumato.engine.machine import device_of

    way = Wish(seed, steps, sampler, GRID if grid is None else grid, ema, class_, prompt=prompt, where=where)
    done = Damage(damage, factor, radius, noise, method)
    folder = None if out is None else Path(out)
    return restore(Path(run), Path(image), done, n, way, folder, device_of(device)[0])
