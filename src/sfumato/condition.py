"""What a sample may be asked for, and the condition that asks for nothing.

(1)  in training cond <- null, for a share p of the examples       (Ho and Salimans 2207.12598, alg. 1)

A network that has learned both p(x | cond) and p(x) can be guided from one to the other; see guide/toward.py. The null
condition is a value like any other, so networks, samplers and files need to know no second way to be asked.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["NULL", "dropped", "null"]

NULL = -1
"""The label that asks for no class."""


def null(cond: Tensor) -> Tensor:
    """Return the null condition for as many examples, (B,)."""
    return torch.full_like(cond, NULL)


def dropped(cond: Tensor | None, share: float, rng: torch.Generator | None = None) -> Tensor | None:
    """Return conditions of which a share is replaced by the null condition; equation (1).

    Args:
        cond: (B,) labels; None without classes.
        share: in [0, 1]; nothing is drawn for 0.
        rng: CPU generator.
    """
    if cond is None or not share:
        return cond
    return torch.where(torch.rand(len(cond), generator=rng).to(cond.device) < share, null(cond), cond)
