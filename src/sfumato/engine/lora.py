"""A run that learns from few examples on top of another's weights; nn/lora.py says how.

The weights of the other lie in its folder, and are what there is without what was learned. Its classes, its words and
its codec are the other's too.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from sfumato.data import Dataset
from sfumato.engine.config import Student
from sfumato.engine.lesson import Lesson, OwnLoss
from sfumato.engine.run import Run
from sfumato.models.diffusion import Diffusion
from sfumato.nn.lora import adapt
from sfumato.teaching import Method

__all__ = ["LORA", "Adaptation"]

LORA = "lora"
"""The method of such a run, in its config."""


class Adaptation(Lesson):
    """The lesson of a run that adapts another: the loss of that, by which only the change of its weights learns."""

    keeps_averages = False  # they are of the change, in names of their own

    def __init__(self, run: Run, model: Diffusion, device: torch.device) -> None:
        super().__init__(run, model, device)
        adapt(model, run.config.student.rank)

    @staticmethod
    def _first(student: Student) -> Method:
        return OwnLoss()

    def shown(self, dataset: Dataset) -> Dataset:
        """Return the run's data with the classes of the other run, by their names."""
        classes = self.teacher.classes
        if not classes or dataset.labels is None:
            return dataset
        places = torch.tensor([classes.index(name) for name in dataset.classes])
        return replace(dataset, labels=places[dataset.labels], classes=classes)
