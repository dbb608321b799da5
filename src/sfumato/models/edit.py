"""Data changed by a diffusion model instead of made from nothing.

(1)  x_t = alpha x_0 + sigma eps at a time t, then the way back from there     (Meng et al. 2108.01073, SDEdit, eq. 4)

A strength u in [0, 1] is the share of the way back that is gone again: at 1 all of it, which is a fresh sample, bit for
bit; at 0 nothing, which is the input. Between the stops of a grid it begins between them.

(2)  of a picture of which a mask shows a part, p(x_0 | known part), as guide/measured.py has it: inpainting, and
     outpainting where the known part lies inside. What is known is kept as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.condition import null
from sfumato.denoise import need_mean
from sfumato.dist import stream
from sfumato.errors import UserError
from sfumato.guide import Measured
from sfumato.guide.operators import Known
from sfumato.models.base import Way
from sfumato.models.diffusion import Diffusion
from sfumato.sampler import generate, sampler

__all__ = ["edited", "remaining"]

EXACT = 0.02
"""Noise of what a mask shows: less than a level or two of 256, more than a network's own error."""


def edited(
    model: Diffusion,
    items: Tensor,
    way: Way,
    strength: float,
    mask: Tensor | None = None,
    indices: Sequence[int] | None = None,
) -> Tensor:
    """Return items changed by a model, (n, *raw); equations (1) and (2).

    Args:
        model: whose estimates are means.
        items: (n, *raw) as its codec takes them.
        way: how to draw; where nothing is asked for, the null condition, if the model knows it.
        strength: in [0, 1].
        mask: (H, W), true where an item is kept and false where it is made anew; None for no such place.
        indices: (n,) of the samples, on which their noise depends; by default 0, 1, ...

    Raises:
        UserError: a strength outside [0, 1], a mask of another size, classes of which none is asked for, or a way that
            this model does not draw in.
    """
    if not 0 <= strength <= 1:
        raise UserError(f"strength is a share of the way back, in [0, 1], got {strength:g}")
    if mask is not None and mask.shape != items.shape[-2:]:
        sizes = ("x".join(map(str, each.shape[-2:])) for each in (mask, items))
        raise UserError("a mask of {} does not fit pictures of {}".format(*sizes))
    if not strength or (mask is not None and bool(mask.all())):
        return items
    need_mean(model.denoiser, "editing")
    index = range(len(items)) if indices is None else indices
    rng = [stream(way.seed, i) for i in index]
    asked, x_0 = model.asked(_cond(model, len(items), way), way.guidance), model.codec.encode(items).to(model.device)
    if mask is not None:
        seen = Known(mask.to(x_0))
        x_0 = seen(x_0)
        asked = Measured(asked, x_0, seen, EXACT, sigma_data=model.denoiser.sigma_data)
    stops = remaining(model.stops_of(way), strength)
    process = asked.process
    fresh = strength == 1 and mask is None
    start = (process.prior(x_0, float(stops[0])) if fresh else process.marginal(x_0, float(stops[0]))).sample(rng)
    with model.resting():
        found = model.codec.decode(generate(asked, sampler(way.method), start, stops, rng=rng)).cpu()
    return found if mask is None else torch.where(mask, items, found)


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


def _cond(model: Diffusion, n: int, way: Way) -> Tensor | None:
    """Return what is asked for, of nothing in particular the null condition."""
    usual = model.conditions(range(n), way.cond)
    if usual is None or way.cond is not None:
        return None if usual is None else usual.to(model.device)
    if not model.knows_null:
        raise UserError("this run was trained with classes and has no answer to no class: name one with --class")
    return null(usual).to(model.device)
