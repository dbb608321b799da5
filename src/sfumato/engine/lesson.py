"""How a student is taught: by which methods, by whom, on what, and how far the lesson is.

The teacher's weights lie in the student's folder, so that a run needs no other to go on. A method of several stages
replaces them on the way by the student's average, which then is part of a checkpoint, as is what learns beside the
student. A method may leave the end of the training to another, which begins anew: with its own law of noise, and an
optimiser that has seen nothing yet. For a run that corrects itself see neon.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sfumato.condition import Condition
from sfumato.data import Dataset
from sfumato.denoise import Denoiser
from sfumato.dist import stream
from sfumato.engine.checkpoint import read_weights
from sfumato.engine.config import Student
from sfumato.engine.distributed import whole
from sfumato.engine.run import Run, restore
from sfumato.errors import choose
from sfumato.models.base import GenerativeModel
from sfumato.models.diffusion import Diffusion, need_diffusion
from sfumato.teaching import METHODS, Method, Task, set_gain
from sfumato.weighting import LogNormal

__all__ = ["Examples", "Lesson", "Objective", "OwnLoss"]

CONTRASTED, CONTRASTED_VALUES = 10_000, 2**26  # examples, fewer where they are large: the gain is told to .003
CONTRAST = 6  # what a stream is for, after those of trainer.py
Examples = Callable[[Tensor, torch.Generator], tuple[Tensor, Condition | None]]
"""Gives the states and conditions of the examples of an index, (b,)."""


class OwnLoss(Method):
    """The loss that the teacher was trained by, which teaches nothing here."""

    gives = "mean"

    def loss(self, student: Denoiser, teacher: Denoiser, task: Task) -> Tensor:
        return student.loss(task.x_0, task.cond, task.rng, task.t)


class Lesson:
    """The methods, the teacher, what learns beside the student, and the stage.

    Args:
        run: of the student.
        model: of the student, which takes the teacher's weights.
        device: where to compute.

    Raises:
        UserError: an unknown method, or a file of the teacher's weights that is not whole.
    """

    keeps_averages = True
    """Whether another average of the weights may be made afterwards."""
    base: ClassVar[dict[str, Any]] = {"gives": "mean"}
    """What the teacher's model has that the run's may have otherwise."""

    def __init__(self, run: Run, model: Diffusion, device: torch.device) -> None:
        first = self._first(run.config.student)
        weights = read_weights(run.teacher, run.config.student.weights)
        self.teacher = need_diffusion(run.build(device, **self.base), "teaching")
        restore(self.teacher, weights, "", run.teacher)
        last = first.finish(need_diffusion(run.config.model, "teaching").stops)
        methods = (first,) if last is None else (first, last)
        self.methods = {method: method.beside(self.teacher.denoiser) for method in methods}
        self.beside = nn.ModuleDict({k: v for own in self.methods.values() for k, v in own.items()}).to(device)
        self.teacher.to(device).requires_grad_(False).eval()
        model.load_state_dict(weights, strict=False)  # what hears a step's end is the student's own
        self.run, self.student, self.law = run, model.denoiser, model.denoiser.law
        self.stage, self.begun, self.step, self.done = 0, 0, 0, 0.0

    @staticmethod
    def _first(student: Student) -> Method:
        return choose("method", student.method, METHODS)(student.calls)

    @property
    def method(self) -> Method:
        """The one that teaches now."""
        return list(self.methods)[self.begun > 0]

    @property
    def steady(self) -> int:
        """Step after which all take about the same time, until another method begins."""
        return self.begun + self.method.lead

    @property
    def enough(self) -> int:
        """Steps from which on every method has its share of the training."""
        *_, last = self.methods
        return math.ceil(last.after / (1 - last.share)) if last.after else 0

    @property
    def learning(self) -> list[nn.Module]:
        """What learns beside the student now."""
        return list(self.methods[self.method].values())

    def shown(self, dataset: Dataset) -> Dataset:
        """Return what the student is shown instead of the run's data, if it is."""
        return dataset

    def conclude(
        self, average: GenerativeModel, dataset: Dataset, examples: Examples, say: Callable[[str], None]
    ) -> None:
        """Do what is left after the last step: nothing, or what teaching/contrast.py tells.

        Args:
            average: of the student.
            dataset: the run's data.
            examples: gives the states of some of them, and what they are.
            say: told what is done.
        """
        if not self.method.contrast:
            return
        model = need_diffusion(average, "contrast")
        most = max(2, min(len(dataset.items), CONTRASTED, CONTRASTED_VALUES // math.prod(model.codec.dims)))
        say(f"contrast: {most:,} samples are compared with data")
        rng = stream(self.run.config.seed, CONTRAST)
        index = torch.randperm(len(dataset.items), generator=rng)[:most]
        batches = [examples(index[start : start + model.batch], rng) for start in range(0, most, model.batch)]
        found = set_gain(model.denoiser, model.stops, batches, rng)
        if found == 1:
            say("contrast: samples differ as much as the data do")
        else:  # "as": more than contrast.MOST is not mended
            differ = "less" if found > 1 else "more"
            say(f"contrast: all that the student says times {found:.4g}, as samples differ {differ} than the data")

    def go_on(self, step: int, total: int, average: GenerativeModel) -> bool:
        """Take note of the step to come; where a stage begins, the student's average becomes the teacher.

        Args:
            step: its number, from 0.
            total: steps of the training.
            average: of the student.

        Returns:
            Whether another method begins with this step.
        """
        self.step, self.done = step, step / total
        *_, last = self.methods
        if last is not self.method and 1 - self.done <= last.share and step >= last.after:
            self._begin(step)
            return True
        if int(self.done * self.method.stages) > self.stage:
            self.stage += 1
            weights = {name: whole(tensor) for name, tensor in average.state_dict().items()}
            restore(self.teacher, weights, "", self.run.folder)
        return False

    def _begin(self, step: int) -> None:
        """Let the other method teach, from a step on; from 0 on, the first one again."""
        self.begun = step
        self.student.law = LogNormal(*self.method.law) if step and self.method.law else self.law

    def notes(self) -> dict[str, str]:
        """Return what a checkpoint must tell of how far the lesson is."""
        return {"stage": str(self.stage), "begun": str(self.begun)}

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold of what is not as it was at first."""
        kept = self._changing()
        return {f"{who}.{name}": tensor for who, model in kept.items() for name, tensor in model.state_dict().items()}

    def restore(self, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
        """Take up the lesson where a checkpoint left it; arguments as it holds them."""
        self.stage = int(notes["stage"])
        self._begin(int(notes["begun"]))
        for who, model in self._changing().items():
            restore(model, dict(tensors), f"{who}.", self.run.checkpoints)

    def _changing(self) -> dict[str, nn.Module]:
        teacher = {"teacher": self.teacher} if self.method.stages > 1 else {}
        return teacher | dict(self.beside.items())


class Objective(nn.Module):
    """The loss as the forward pass of a module, whose parameters are all that learns: DDP joins what is called.

    Args:
        model: that is trained.
        lesson: of a student.
    """

    def __init__(self, model: GenerativeModel, lesson: Lesson | None) -> None:
        super().__init__()
        self.learner: Any = model.learner
        self.lesson = lesson
        self.beside = nn.ModuleDict() if lesson is None else lesson.beside

    def paces(self) -> dict[nn.Module, float]:
        """Return what learns now, each with its share of the learning rate."""
        if self.lesson is None:
            return {self.learner: 1.0}
        return {self.learner: self.lesson.method.pace} | dict.fromkeys(
            self.lesson.learning, self.lesson.method.pace_beside
        )

    def forward(self, x_0: Tensor, cond: Condition | None, rng: torch.Generator, t: Tensor) -> Tensor:
        """Return the loss of each example, (B,); arguments as for ``Learner.loss``."""
        if self.lesson is None:
            loss: Tensor = self.learner.loss(x_0, cond, rng, t)
            return loss
        task = Task(
            x_0, cond, rng, t, self.lesson.done, dict(self.beside.items()), self.lesson.step - self.lesson.begun
        )
        return self.lesson.method.loss(self.learner, self.lesson.teacher.denoiser, task)
