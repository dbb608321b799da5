"""What a run is taught that learns on top of another's weights: by the loss of that, from few examples or for little.

    lora       a change of its weights of low rank; nn/lora.py
    control    a branch that follows hints, beside weights that rest; nn/control.py
    reader     heads that read the class of a noisy state from what resting weights make of it; guide/reader.py

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
from sfumato.errors import UserError
from sfumato.guide.reader import Reading
from sfumato.models.diffusion import Diffusion
from sfumato.nn import UNet
from sfumato.nn.lora import adapt
from sfumato.teaching import Method

__all__ = ["ADAPTATIONS", "CONTROL", "LORA", "READER"]

LORA, CONTROL, READER = "lora", "control", "reader"
"""The methods of such runs, in their configs."""


class Adaptation(Lesson):
    """What both kinds share."""

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


class LowRank(Adaptation):
    """The weights change by low rank."""

    keeps_averages = False  # they are of the change, in names of their own

    def __init__(self, run: Run, model: Diffusion, device: torch.device) -> None:
        super().__init__(run, model, device)
        adapt(model, run.config.student.rank)


class Following(Adaptation):
    """The branch alone learns."""

    base = Adaptation.base | {"hint": ""}

    def __init__(self, run: Run, model: Diffusion, device: torch.device) -> None:
        super().__init__(run, model, device)
        network = model.network
        if not isinstance(network, UNet) or network.control is None:
            raise UserError(f"{run.folder}: config.toml names no hint to follow; was it changed by hand?")
        network.control.begin(network.down, network.shrink, network.film)
        model.requires_grad_(False)
        network.control.requires_grad_(True)


class Read(Adaptation):
    """The reader alone learns."""

    base = Adaptation.base | {"reads": 0}

    def __init__(self, run: Run, model: Diffusion, device: torch.device) -> None:
        super().__init__(run, model, device)
        if not isinstance(model.denoiser, Reading):
            raise UserError(f"{run.folder}: config.toml names no classes to read; was it changed by hand?")
        model.requires_grad_(False)
        model.denoiser.reader.requires_grad_(True)


ADAPTATIONS: dict[str, type[Lesson]] = {LORA: LowRank, CONTROL: Following, READER: Read}
"""By their method."""
