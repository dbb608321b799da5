"""Data changed by a diffusion model instead of made from nothing.

(1)  x_t = alpha x_0 + sigma eps at a time t, then the way back from there     (Meng et al. 2108.01073, SDEdit, eq. 4)

A strength u in [0, 1] is the share of the way back that is gone again: at 1 all of it, which is a fresh sample, bit for
bit; at 0 nothing, which is the input. Between the stops of a grid it begins between them.

(2)  x_t = the noise that leads to x_0, by the way back run forwards      (Song et al. 2010.02502, sec. 5.4)

instead of fresh noise returns the input if it is asked for what it was, and keeps more of it if for something else.
Between two inputs, whose noise is z and z' with an angle w between them,

(3)  z_u = (sin((1-u) w) z + sin(u w) z') / sin w,    0 <= u <= 1        (Song et al. 2010.02502, eq. 67)

(4)  of a picture of which a mask shows a part, p(x_0 | known part): inpainting, and outpainting where the known part
     lies inside. What is known is kept as it is. By the network itself if it was trained with masks (known.py), else as
     guide/measured.py has it, or by RePaint (sampler/climbing.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.condition import NULL, Condition, Row
from sfumato.denoise import need_mean
from sfumato.dist import stream
from sfumato.errors import UserError, choose
from sfumato.guide import Measured
from sfumato.guide.measured import METHODS
from sfumato.guide.operators import Known, Operator
from sfumato.models.base import Way
from sfumato.models.diffusion import Diffusion
from sfumato.sampler import RePaint, encode, generate, sampler

__all__ = ["FILLS", "Own", "arc", "edited", "interpolated", "remaining", "restored", "usual_fill"]

EXACT = 0.02
"""Noise of what a mask shows: less than a level or two of 256, more than a network's own error."""
CORRECTIONS = 2
"""Of the noise that is found; see ``sfumato.sampler.encode``."""
SAME = 1e-4
"""Angle between two noises, in radians, below which (3) is a straight line."""
FILLS = {
    "trained": "the network, which was trained with masks",
    **METHODS,
    "repaint": "every step gone over, with what is known put in",
}
"""How what a mask hides is made."""


@dataclass(frozen=True)
class Own:
    """The noise that leads to the input, instead of fresh noise; equation (2).

    Attributes:
        was: what the input is, a class index or the words of a sentence; None for nothing in particular.
    """

    was: Row | None = None


def edited(
    model: Diffusion,
    items: Tensor,
    way: Way,
    strength: float,
    mask: Tensor | None = None,
    indices: Sequence[int] | None = None,
    own: Own | None = None,
    fill: str | None = None,
) -> Tensor:
    """Return items changed by a model, (n, *raw); equations (1), (2) and (4).

    Args:
        model: whose estimates are means.
        items: (n, *raw) as its codec takes them.
        way: how to draw; where nothing is asked for, the null condition, if the model knows it.
        strength: in [0, 1].
        mask: (H, W), or (n, 1, H, W) with one for each, true where an item is kept and false where it is made anew;
            None for no such place.
        indices: (n,) of the samples, on which their noise depends; by default 0, 1, ...
        own: for the input's own noise; by default it is fresh.
        fill: a key of :data:`FILLS`, for what a mask hides; by default :func:`usual_fill`.

    Raises:
        UserError: a strength outside [0, 1], a mask of another size, own noise under a mask or by a stochastic sampler,
            classes of which none is asked for, "trained" of a model without masks, or a way that this model does not
            draw in.
    """
    fill = usual_fill(model.denoiser.masks) if fill is None else fill
    choose("way to fill a mask", fill, FILLS)
    if mask is not None and fill == "trained" and not model.denoiser.masks:
        raise UserError("this run was trained without --masks: fill what a mask hides by mmps, pigdm, dps or repaint")
    if not 0 <= strength <= 1:
        raise UserError(f"strength is a share of the way back, in [0, 1], got {strength:g}")
    if mask is not None and mask.shape[-2:] != items.shape[-2:]:
        sizes = ("x".join(map(str, each.shape[-2:])) for each in (mask, items))
        raise UserError("a mask of {} does not fit pictures of {}".format(*sizes))
    if mask is not None and model.codec.dims[1:] != items.shape[2:]:
        raise UserError("a model of latents has no pixels to keep: fill a mask by a run without --latent")
    if own is not None and mask is not None:
        raise UserError("what a mask hides has no noise of its own: leave out the mask, or take fresh noise")
    if not strength or (mask is not None and bool(mask.all())):
        return items
    need_mean(model.denoiser, "editing")
    index = range(len(items)) if indices is None else indices
    rng = [stream(way.seed, i) for i in index]
    cond, x_0 = _cond(model, len(items), way), model.codec.encode(items).to(model.device)
    if mask is not None and fill == "trained":
        cond = model.denoiser.shown(x_0, mask.to(x_0), cond)
    asked = model.asked(cond, way.guidance)
    stops, method = remaining(model.stops_of(way), strength), sampler(way.method)
    if mask is not None and fill != "trained":
        seen = Known(mask.to(x_0))
        shown = seen(x_0)
        if fill == "repaint":
            method = RePaint(method, shown, mask.to(x_0.device))
        else:
            asked = Measured(asked, shown, seen, EXACT, fill, sigma_data=model.denoiser.sigma_data)
    with model.resting():
        if own is not None:
            start = _noise(model, x_0, way, stops, own)
        else:
            fresh = asked.process.prior if strength == 1 else asked.process.marginal
            start = fresh(x_0, float(stops[0])).sample(rng)
        found = model.codec.decode(generate(asked, method, start, stops, rng=rng)).cpu()
    return found if mask is None else torch.where(mask, items, found)


def restored(
    model: Diffusion, y: Tensor, damage: Operator, way: Way, noise: float, method: str, indices: Sequence[int]
) -> Tensor:
    """Return what a damaged picture may have been, (n, *raw); guide/measured.py, equation (2).

    Args:
        model: whose estimates are means.
        y: (1, ...) what is left of it, as states that the damage leaves.
        damage: what was done to it, a linear operator.
        way: how to draw; where nothing is asked for, the null condition, if the model knows it.
        noise: standard deviation of the noise in ``y``, above 0.
        method: a key of ``sfumato.guide.measured.METHODS``.
        indices: (n,) of the answers, on which their noise depends.

    Raises:
        UserError: an unknown method, no noise, or classes of which none is asked for.
    """
    n, stops = len(indices), model.stops_of(way)
    asked, seen = model.asked(_cond(model, n, way), way.guidance), y.to(model.device).expand(n, *y.shape[1:])
    found = Measured(asked, seen, damage, noise, method, sigma_data=model.denoiser.sigma_data)
    rng = [stream(way.seed, i) for i in indices]
    with model.resting():
        like = torch.zeros(n, *model.codec.dims, device=model.device)
        start = asked.process.prior(like, float(stops[0])).sample(rng)
        return model.codec.decode(generate(found, sampler(way.method), start, stops, rng=rng)).cpu()


def usual_fill(masks: bool) -> str:
    """Return how what a mask hides is made unless another way is asked for.

    Args:
        masks: whether the model was trained with some.
    """
    return "trained" if masks else "mmps"


def interpolated(model: Diffusion, ends: Tensor, n: int, way: Way) -> Tensor:
    """Return n items on the way from one to another, (n, *raw), both ends included; equation (3).

    Args:
        model: whose estimates are means.
        ends: (2, *raw) as its codec takes them.
        n: how many, at least 2.
        way: how to draw, by a deterministic sampler; where nothing is asked for, the null condition.

    Raises:
        UserError: n < 2, a stochastic sampler, or classes of which none is asked for.
    """
    if n < 2:
        raise UserError(f"a way from one picture to another has at least its 2 ends, got -n {n}")
    need_mean(model.denoiser, "interpolating")
    stops, states = model.stops_of(way), model.codec.encode(ends).to(model.device)
    with model.resting():
        a, b = _noise(model, states, way, stops, Own(way.cond))
        between = arc(a, b, n)
        parts = [
            generate(model.asked(_cond(model, len(some), way), way.guidance), sampler(way.method), some, stops)
            for some in (between[k : k + model.batch] for k in range(0, n, model.batch))
        ]
    return model.codec.decode(torch.cat(parts)).cpu()


def arc(a: Tensor, b: Tensor, n: int) -> Tensor:
    """Return the states on the arc from one to another; equation (3).

    Args:
        a: (*dims), the first.
        b: (*dims), the last.
        n: how many, both included.

    Returns:
        (n, *dims).
    """
    one, other = a / a.norm(), b / b.norm()
    w = 2 * torch.atan2((one - other).norm(), (one + other).norm())  # rounded, the cosine of no angle can be above 1
    u = torch.linspace(0, 1, n, device=a.device).view(-1, *[1] * a.ndim)
    between = ((1 - u) * w).sin() / w.sin() * a + (u * w).sin() / w.sin() * b
    return torch.where(w < SAME, torch.lerp(a, b, u), between)


def _noise(model: Diffusion, x_0: Tensor, way: Way, stops: Tensor, own: Own) -> Tensor:
    """Return the states at the first of some stops that lead to data, without guidance; equation (2)."""
    known = model.asked(_cond(model, len(x_0), replace(way, cond=own.was)))
    return encode(known, sampler(way.method), x_0, stops, corrections=CORRECTIONS)


def remaining(stops: Tensor, strength: float) -> Tensor:
    """Return the last of some stops, for a share of the steps between them.

    Args:
        stops: (n + 1,) falling times.
        strength: share, in (0, 1]; a part of a step begins in it, by the share of its time.
    """
    gone = round((1 - strength) * (len(stops) - 1), 9)  # 1 - 0.8 is a little less than 0.2
    first = int(gone)
    begin = torch.lerp(stops[first], stops[first + 1], gone - first)
    return torch.cat([begin[None], stops[first + 1 :]])


def _cond(model: Diffusion, n: int, way: Way) -> Condition | None:
    """Return what is asked for, of nothing in particular the null condition."""
    usual = model.conditions(range(n), way.cond)
    if usual is None or way.cond is not None:
        return None if usual is None else usual.to(model.device)
    if not model.knows_null:
        raise UserError("this run was trained with classes and has no answer to no class: name one with --class")
    return usual.asking(NULL).to(model.device)
