"""A model that hears no classes, with a reader of its noisy states, can be asked for one: classifier guidance.

(1)  p(x_t | y) ~ p(x_t) p(y | x_t),   score(x_t | y) = score(x_t) + grad log p(y | x_t)
                                                                       (Dhariwal and Nichol 2105.05233, section 4.1)

Under a label this is what the model says, and under the null condition what it said before; so all that takes labels
takes this: guidance by a weight is (1) with the weight on its last term.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.condition import Condition
from sfumato.denoise import Denoiser
from sfumato.dist import randn_like
from sfumato.guide.toward import told
from sfumato.overheard import overheard
from sfumato.process import spread
from sfumato.rows import Estimate
from sfumato.schedule import Instant, Time

__all__ = ["Reading"]


class Reading(Denoiser):
    """A denoiser whose network hears no classes, with a reader of them.

    Args:
        network: as for ``Denoiser``; it tells its parts.
        process: as for ``Denoiser``.
        reader: from what the parts make of a state to (B, classes) logits.
        how: as for ``Denoiser``.
    """

    def __init__(self, network: nn.Module, process: Any, reader: nn.Module, **how: Any) -> None:
        super().__init__(network, process, **how)
        self.reader = reader

    def forward(self, x_t: Tensor, t: Time, cond: Condition | None = None, s: Time | None = None) -> Estimate:
        """Estimate the data behind ``x_t``, of a class if there is a label; equation (1)."""
        (label, rest), now = _parted(cond), self.process.schedule.at(t)
        blind = not bool(torch.as_tensor(now.alpha).all())  # the state says nothing, and so does its reader
        if blind or label is None or not bool((label >= 0).any()):
            return super().forward(x_t, t, rest, s)
        further = torch.is_grad_enabled() and x_t.requires_grad
        with torch.enable_grad():
            x = x_t if further else x_t.detach().requires_grad_()
            found, logits = self._read(x, now, rest)
            said = F.log_softmax(logits, 1).gather(1, label.clamp(min=0)[:, None])[:, 0]
            (rise,) = torch.autograd.grad(torch.where(label >= 0, said, 0.0).sum(), x, create_graph=further)
        moved = found.x0 + spread(now.sigma**2 / now.alpha, x_t) * rise
        return told(replace(found, x_t=x_t), moved if further else moved.detach())

    def loss(
        self, x_0: Tensor, cond: Condition | None = None, rng: torch.Generator | None = None, t: Tensor | None = None
    ) -> Tensor:
        """Return what the reader is taught by, -log p(y | x_t) at a random time, (B,).

        Args:
            x_0: (B, ...) data.
            cond: with the class of each example.
            rng: CPU generator for the times and the noise.
            t: (B,) times of a larger batch that was drawn as one; by default drawn here.

        Raises:
            ValueError: examples without classes.
        """
        label, rest = _parted(cond)
        if label is None:
            raise ValueError("a reader is taught by classes, and cond has no labels")
        t = self.times(len(x_0), rng) if t is None else t
        now = self.process.schedule.at(t)
        x_t = spread(now.alpha, x_0) * x_0 + spread(now.sigma, x_0) * randn_like(x_0, rng)
        return F.cross_entropy(self._read(x_t, now, rest)[1], label, reduction="none")

    def _read(self, x_t: Tensor, now: Instant, cond: Condition | None) -> tuple[Estimate, Tensor]:
        """Return what the model makes of a state that has no label, and logits of its class."""
        with overheard(self.network) as features:
            found = super().forward(x_t, now, cond)
        logits: Tensor = self.reader(features)
        return found, logits


def _parted(cond: Condition | None) -> tuple[Tensor | None, Condition | None]:
    """Return the label of a condition, and the rest of it."""
    if cond is None:
        return None, None
    rest = replace(cond, label=None)
    return cond.label, rest if rest.parts else None
