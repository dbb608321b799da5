"""What a model's own samples would teach it is where not to go.

(1)  theta_s    theta, trained a little more on samples that it drew itself, by the loss it was trained with
(2)  theta* = theta + w (theta - theta_s)                      (Neon; Alemohammad et al. 2510.03597, alg. 1)

Self-training moves a model towards what it draws too often; its opposite brings back what it draws too seldom. The w of
WEIGHTS is taken whose samples have the least Frechet distance to *training* examples: held-out ones are for judging.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sfumato.data import Dataset
from sfumato.engine.checkpoint import read_weights
from sfumato.engine.config import Student
from sfumato.engine.lesson import Examples, Lesson, OwnLoss
from sfumato.engine.nearness import Nearness
from sfumato.models.base import GenerativeModel
from sfumato.teaching import Method

__all__ = ["NEON", "WEIGHTS", "Correction", "corrected"]

NEON = "neon"
"""The method of a run that corrects itself, in its config."""

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
"""The w of (2) that are tried; 0 leaves the model as it was."""


class Correction(Lesson):
    """The lesson of a run that corrects itself: it is shown what its teacher drew, which lies in its folder."""

    keeps_averages = False  # they would be of (1), not of (2)

    @staticmethod
    def _first(student: Student) -> Method:
        return OwnLoss()

    def shown(self, dataset: Dataset) -> Dataset:
        drawn = read_weights(self.run.drawn, self.run.config.student.weights)
        seen = replace(dataset, items=drawn["items"], labels=drawn.get("label"))
        if self.teacher.vocabulary is not None:
            seen = replace(seen, captions=tuple(self.teacher.vocabulary.told(row) for row in drawn["words"].tolist()))
        if (facts := self.teacher.facts) is not None:
            told = [facts.told(row) for row in drawn["facts"].tolist()]
            columns = {fact.name: tuple(row.get(fact.name) for row in told) for fact in facts.columns}
            seen = replace(seen, columns=columns)
        return seen

    def conclude(
        self, average: GenerativeModel, dataset: Dataset, examples: Examples, say: Callable[[str], None]
    ) -> None:
        weight = corrected(average, self.teacher, dataset, say)
        say(f"corrected by {weight:g} times what its own samples changed" if weight else "nothing to correct")


def corrected(
    average: GenerativeModel, teacher: GenerativeModel, dataset: Dataset, say: Callable[[str], None]
) -> float:
    """Move a model that was trained by (1) to where (2) says, and return w.

    Args:
        average: theta_s; becomes theta*.
        teacher: theta.
        dataset: real examples.
        say: told what each weight gives.
    """
    near = Nearness(dataset, say)
    away = {name: tensor.clone() for name, tensor in average.named_parameters()}
    distances = {}
    for weight in WEIGHTS:
        _place(average, teacher, away, weight)
        distances[weight] = near(f"weight {weight:g}", average)
    best = min(distances, key=distances.__getitem__)
    _place(average, teacher, away, best)
    return best


@torch.no_grad()
def _place(average: GenerativeModel, teacher: GenerativeModel, away: dict[str, Tensor], weight: float) -> None:
    theirs = dict(teacher.named_parameters())
    for name, parameter in average.named_parameters():
        parameter.copy_(torch.lerp(theirs[name], away[name], -weight))
