"""Unmasking: reveal as many tokens as the process would on average, for good, a few at each step.

With n_0 tokens masked at the start, at t_0:

(1)  n_s = round( n_0 (1 - alpha_s) / (1 - alpha_t0) )   stay masked at s     (Chang et al. 2202.04200, sec. 3.2)
(2)  x_0 ~ p_theta(x_0 | x_t) at n_t - n_s of the masked places: "random" ones, or those of highest
     "confidence" max_k p_theta(x_0 = k | x_t)

At most one place at a time makes (2) exact for an exact model, whichever the order: each token is then drawn given all
those known. Places are chosen by their law alone; MaskGIT's choice by the token that was drawn favours likely tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato.denoise import Model
from sfumato.dist import Categorical, Rng, rand
from sfumato.errors import UserError, choose
from sfumato.mixing import Guess, Mixing
from sfumato.sampler.base import Sampler
from sfumato.schedule import Instant

__all__ = ["Order", "Unmask"]

Order = Literal["random", "confidence"]
"""Names of equation (2)."""

SOURCES = {"random": "Hoogeboom et al. 2110.02037, alg. 1", "confidence": "Chang et al. 2202.04200, sec. 3.2"}
"""The orders, and where they come from."""


@dataclass(frozen=True)
class Unmask(Sampler):
    """The way back of masked tokens by numbers instead of chances; equations (1) and (2).

    Attributes:
        places: which masked places come first, "random" or "confidence".
    """

    places: Order = "random"
    order = 1
    stochastic = True

    def __post_init__(self) -> None:
        choose("order of unmasking", self.places, SOURCES)

    @property
    def source(self) -> str:  # type: ignore[override]
        """Paper and equation."""
        return SOURCES[self.places]

    def init(self, model: Model, x: Tensor, stops: Sequence[Instant]) -> Tensor:
        """Return n_0 / (1 - alpha_t0) of equation (1), float64 (B,)."""
        masked = (x == self._mask(model)).flatten(1).sum(1)
        return masked.double() / float(1 - stops[0].alpha)

    def step(
        self, model: Model, x: Tensor, t: Instant, s: Instant, memory: Tensor, rng: Rng
    ) -> tuple[Tensor, Guess, Tensor]:
        estimate: Any = model(x, t)
        masked = (x == self._mask(model)).flatten(1)
        stay = (memory * (1 - s.alpha)).round().long()
        draw = Categorical(estimate.log_p).sample(rng)
        score = rand(x, rng) if self.places == "random" else estimate.log_p.amax(-1)
        score = score.flatten(1).masked_fill(~masked, -torch.inf)
        rank = score.argsort(stable=True, dim=1, descending=True).argsort(1)
        reveal = masked & (rank < (masked.sum(1) - stay)[:, None])
        return torch.where(reveal.view_as(x), draw, x), estimate, memory

    def _mask(self, model: Model) -> int:
        process: Any = model.process
        if not isinstance(process, Mixing) or process.mask is None:
            raise UserError(f"unmasking needs the process Mixing.absorbing, not {process}: use ancestral sampling")
        return process.mask
