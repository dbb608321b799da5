"""Rivalry: what the student draws shall not be told from data, by what the teacher's network makes of both in noise.

(1)  d(x_t)  = sum over the network's parts of the mean over places of h(f_k, label),  h small networks, "heads"
(2)  gap     = d(x_t) - d(x_t'),     x_t of data, x_t' the student's
(3)  heads   : softplus(-gap) + gap^2 / 10,     student: softplus(gap)

The f_k of overheard.py are the teacher's own and stay as they are, at all noise levels (Sauer et al. 2403.12015,
section 3). Pairs have the same label and level; that each is judged beside the other keeps all of the data in sight
(Jolicoeur-Martineau 1807.00734, section 4). A student of several calls learns through all of them: judged by its
single steps it came no nearer (measured).

Heads and student take turns, the heads first and for a while alone, and neither may have momentum: it would go on
against what the other has become. At once, or with momentum, the student falls apart (measured). The square keeps the
heads from being so sure that the student meets nothing but steep slopes.

It is no beginning: it mends what a student of another method has already come near to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.condition import Condition
from sfumato.denoise import Denoiser, Given
from sfumato.dist import randn_like
from sfumato.overheard import heard
from sfumato.sampler import Consistency
from sfumato.teaching.base import Method, Task, noisy, still

__all__ = ["Adversary", "Rivalry"]

WIDTH = 64
SLOPE = 0.2
CALM = 0.1  # of the square in (3): with 0.3 or none a student came no nearer


@dataclass(frozen=True)
class Rivalry(Method):
    """Equation (3).

    Attributes:
        way: times of the student's way back, falling to 0.
        share: see Method.
        after: see Method.
    """

    way: tuple[float, ...]
    gives = "end"
    share: float = 0.7
    after: int = 0
    ema = 0.125  # rivals go in circles, and what comes nearest to the data is the middle
    law = (-1.5, 1.0)
    pace = 0.1
    pace_beside = 10.0  # heads that fall behind let the student leave parts of the data out
    momentum = False
    contrast = True
    lead = 40  # steps in which the heads learn and the student waits

    def loss(self, student: Denoiser, teacher: Denoiser, task: Task) -> Tensor:
        x_0, cond, rng, t, *_ = task
        learns = task.step >= self.lead and task.step % 2 == 1
        with torch.set_grad_enabled(learns):
            x = drawn_by(student, self.way, x_0, cond, rng)
        now = student.process.schedule.at(t)
        with torch.no_grad():
            data = heard(teacher, noisy(x_0, randn_like(x_0, rng), now), now, cond)
        drawn = heard(teacher, noisy(x, randn_like(x, rng), now), now, cond)
        heads = task.beside["adversary"]
        if learns:
            return F.softplus(still(heads, data, cond) - still(heads, drawn, cond))
        gap = heads(data, cond) - heads(drawn, cond)
        return F.softplus(-gap) + CALM * gap.square()

    def beside(self, teacher: Denoiser) -> dict[str, nn.Module]:
        network: Any = teacher.network
        return {"adversary": Adversary([width for _, width in network.parts], network.conditioning.classes)}


def drawn_by(
    student: Denoiser, stops: Sequence[float], like: Tensor, cond: Condition | None, rng: torch.Generator
) -> Tensor:
    """Return what a student draws in all its calls, (B, ...), with its gradient through all of them.

    Args:
        student: that gives the end.
        stops: times of its way back, falling to 0.
        like: (B, ...) of the shape that is wanted.
        cond: of each example.
        rng: for all that is random.
    """
    x = student.process.prior(like, stops[0]).sample(rng)
    for t, s in pairwise(student.process.schedule.instants(torch.tensor(stops, dtype=torch.float64))):
        x, _, _ = Consistency().step(Given(student, cond), x, t, s, None, rng)
    return x


class Adversary(nn.Module):
    """The heads of equation (1).

    Args:
        widths: channels of the features, for each part of the network.
        classes: number of class labels; 0 means there are none.
    """

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(width, classes) for width in widths)

    def forward(self, features: Sequence[Tensor], cond: Condition | None) -> Tensor:
        """Features (B, places, C) of every part and conditions to d, (B,)."""
        said = [head(each, cond) for head, each in zip(self.heads, features, strict=True)]
        return torch.stack(said).sum(0)


class Head(nn.Module):
    """Two hidden layers at every place, and what a label adds: its inner product with the last of them."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.inlet, self.hidden = nn.Linear(width, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.outlet = nn.Linear(WIDTH, 1)
        self.label = nn.Embedding(classes, WIDTH) if classes else None

    def forward(self, features: Tensor, cond: Condition | None) -> Tensor:
        """Features (B, places, C) and conditions to (B,)."""
        h = F.leaky_relu(self.hidden(F.leaky_relu(self.inlet(features), SLOPE)), SLOPE).mean(1)
        said: Tensor = self.outlet(h)[:, 0]
        return said if self.label is None or cond is None else said + (self.label(cond.label) * h).mean(1)
