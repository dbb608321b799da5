"""How a student is taught: by which method, by whom, on what, and how far the lesson is.

The teacher's weights lie in the student's folder, so that a run needs no other to go on. A method of several stages
replaces them on the way by the student's average, which then is part of a checkpoint, as a critic is that learns beside
the student. A run that corrects itself is shown what its teacher drew, which lies there too; see neon.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from sfumato.data import Dataset
from sfumato.denoise import Denoiser
from sfumato.engine.checkpoint import read_weights
from sfumato.engine.distributed import whole
from sfumato.engine.neon import SelfTraining, corrected
from sfumato.engine.run import Run, restore
from sfumato.errors import choose
from sfumato.models.diffusion import Diffusion
from sfumato.teaching import METHODS, Task

__all__ = ["Lesson", "Objective"]


class Lesson:
    """The method, the teacher, the critic, and the stage.

    Args:
        run: of the student.
        model: of the student, which takes the teacher's weights.
        device: where to compute.

    Raises:
        UserError: an unknown method, or a file of the teacher's weights that is not whole.
    """

    def __init__(self, run: Run, model: Diffusion, device: torch.device) -> None:
        student = run.config.student
        self.method = choose("method", student.method, METHODS | {"neon": lambda calls: SelfTraining()})(student.calls)
        weights = read_weights(run.teacher, student.weights)
        self.teacher = replace(run.config.model, gives="mean").build(model.codec, model.classes)
        restore(self.teacher, weights, "", run.teacher)
        self.critic = copy.deepcopy(self.teacher).to(device) if self.method.critic else None
        self.teacher.to(device).requires_grad_(False).eval()
        model.load_state_dict(weights, strict=False)  # what hears a step's end is the student's own
        self.run, self.stage, self.done = run, 0, 0.0
        self.corrects = isinstance(self.method, SelfTraining)

    def shown(self, dataset: Dataset) -> Dataset:
        """Return what the student is shown: the run's data, or what the teacher drew."""
        if not self.corrects:
            return dataset
        drawn = read_weights(self.run.drawn, self.run.config.student.weights)
        return replace(dataset, items=drawn["items"], labels=drawn.get("labels"))

    def conclude(self, average: Diffusion, dataset: Dataset, say: Callable[[str], None]) -> None:
        """Do what is left after the last step.

        Args:
            average: of the student.
            dataset: the run's data.
            say: told what is done.
        """
        if self.corrects:
            weight = corrected(average, self.teacher, dataset, say)
            say(f"corrected by {weight:g} times what its own samples changed" if weight else "nothing to correct")

    def go_on(self, done: float, average: Diffusion) -> None:
        """Take note of the share that is done; where a stage begins, the student's average becomes the teacher.

        Args:
            done: share of the training, in [0, 1).
            average: of the student.
        """
        self.done = done
        if int(done * self.method.stages) > self.stage:
            self.stage += 1
            weights = {name: whole(tensor) for name, tensor in average.state_dict().items()}
            restore(self.teacher, weights, "", self.run.folder)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold of the teacher and the critic."""
        kept = self._changing()
        return {f"{who}.{name}": tensor for who, model in kept.items() for name, tensor in model.state_dict().items()}

    def restore(self, tensors: Mapping[str, Tensor], stage: int) -> None:
        """Take up the lesson where a checkpoint left it.

        Args:
            tensors: of the checkpoint.
            stage: that it tells.
        """
        self.stage = stage
        for who, model in self._changing().items():
            restore(model, dict(tensors), f"{who}.", self.run.checkpoints)

    def _changing(self) -> dict[str, Diffusion]:
        """Return the networks beside the student that are not what they were at first."""
        teacher = {"teacher": self.teacher} if self.method.stages > 1 else {}
        return teacher if self.critic is None else teacher | {"critic": self.critic}


class Objective(nn.Module):
    """The loss as the forward pass of a module, whose parameters are all that learns: DDP joins what is called.

    Args:
        denoiser: that is trained.
        lesson: of a student.
    """

    def __init__(self, denoiser: Denoiser, lesson: Lesson | None) -> None:
        super().__init__()
        self.denoiser, self.lesson = denoiser, lesson
        self.critic = None if lesson is None or lesson.critic is None else lesson.critic.denoiser

    def paces(self) -> dict[nn.Module, float]:
        """Return what learns, each with its share of the learning rate."""
        pace = 1.0 if self.lesson is None else self.lesson.method.pace
        student: dict[nn.Module, float] = {self.denoiser: pace}
        return student if self.critic is None else student | {self.critic: 1.0}

    def forward(self, x_0: Tensor, cond: Tensor | None, rng: torch.Generator, t: Tensor) -> Tensor:
        """Return the loss of each example, (B,); arguments as for ``Denoiser.loss``."""
        if self.lesson is None:
            return self.denoiser.loss(x_0, cond, rng, t)
        teacher, done = self.lesson.teacher.denoiser, self.lesson.done
        return self.lesson.method.loss(self.denoiser, teacher, Task(x_0, cond, rng, t, done, self.critic))
