"""A run that begins with the weights of another: what it may be asked, its config, and its folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from sfumato.data import Dataset
from sfumato.engine.asked import Choices, length
from sfumato.engine.checkpoint import write_weights
from sfumato.engine.config import Config, Student
from sfumato.engine.machine import device_of
from sfumato.engine.run import Run
from sfumato.models.base import GenerativeModel

__all__ = ["Sequel", "Usual", "create"]


class Usual(NamedTuple):
    """What a kind of sequel does where nothing else is asked, each with its reason."""

    time: tuple[str, str]
    lr: tuple[float, str]
    batch: tuple[int, str] = (64, "as judged")


@dataclass(frozen=True, kw_only=True)
class Sequel:
    """The arguments that all sequels share, with their defaults; None where the choice is ours."""

    time: str | None = None
    steps: int | None = None
    seed: int = 0
    batch: int | None = None
    lr: float | None = None
    device: str | None = None
    save_every: float = 30.0

    def config(self, base: Config, usual: Usual, choices: Choices) -> Config:
        """Return the config of the run before with what was asked and what is usual.

        Args:
            base: of that run.
            usual: of this kind of sequel.
            choices: collects what is chosen.
        """
        device = choices.take("device", self.device, *device_of(self.device))
        steps, seconds = length(self.time, self.steps, *usual.time, choices)
        return replace(
            base,
            seed=self.seed,
            batch=choices.take("batch", self.batch, *usual.batch),
            cool_down=Config.cool_down,
            ema=Config.ema,
            parts=1,
            lr=choices.take("lr", self.lr, *usual.lr),
            steps=steps,
            seconds=seconds,
            save_every=self.save_every,
            device=device,
            shard=False,
            compile=False,
        )


def create(folder: Path, config: Config, dataset: Dataset, before: GenerativeModel, student: Student) -> Run:
    """Make the folder of a sequel, with the weights before in it.

    Args:
        folder: that is made.
        config: of the sequel.
        dataset: that it learns.
        before: the averaged model of the run before, whose classes, words and codec it keeps.
        student: what the sequel is taught; the fingerprint of the weights is filled in here.
    """
    weights = before.fingerprint()
    run = Run.create(folder, replace(config, student=replace(student, weights=weights)), dataset, before)
    write_weights(run.teacher, before.state_dict(), {"weights": weights})
    return run
