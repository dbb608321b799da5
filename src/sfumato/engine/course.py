"""What a run was worth on its way, and what becomes of it if its learning rate leaps once.

The averages that a run keeps (average.py) are drawn from and held against held-out data, so the curve is that of one
run: its learning rate falls at the end alone. The leap begins where the run ended: SPIKE times the learning rate for a
SHARE of its steps, then it falls from the usual one to 0, so that the weights themselves are worth drawing from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sfumato.engine.average import on_the_way, put
from sfumato.engine.evaluate import Real
from sfumato.engine.machine import tuned
from sfumato.engine.nearness import distance
from sfumato.engine.reference import reference
from sfumato.engine.run import Run
from sfumato.engine.track import read_log
from sfumato.engine.trainer import Trainer
from sfumato.metrics.neighbours import recalled
from sfumato.models.base import GenerativeModel

__all__ = ["SPIKE", "Recovery", "Waypoint", "course", "recovery"]

SPIKE = 10.0
"""Times the usual learning rate."""
SHARE, REST = 0.02, 0.06  # of the run's steps: under the spike, and after it


@dataclass(frozen=True)
class Waypoint:
    """A place on the way of a run.

    Attributes:
        seconds: of training until there.
        distance: of samples to held-out data: Frechet, or kernel where those are too few.
        recall: of samples.
    """

    seconds: float
    distance: float
    recall: float


@dataclass(frozen=True)
class Recovery:
    """Distances of samples to held-out data around a spike; see :class:`Waypoint`.

    Attributes:
        before: of the run as it ended.
        hit: at the end of the spike; None if the weights are not finite.
        after: when it has trained on as usual; None if the weights are not finite.
    """

    before: float
    hit: float | None
    after: float | None


def course(run: Run, real: Real, n: int, device: str) -> tuple[Waypoint, ...]:
    """Return what the averages that a run has kept are worth, in the order of their steps.

    Args:
        run: that ended.
        real: what samples are held against.
        n: samples of each.
        device: where to draw.
    """
    model, notes = run.load(device=device)
    model = model.to(device)
    times = _seconds(run.log)
    found = []
    for before, tensors in on_the_way(run.averages):
        put(model, tensors)
        last = max((at for at in times if at <= int(notes["step"]) - before), default=None)
        if last is not None:
            found.append(Waypoint(times[last], *_worth(model, real, n)))
    return tuple(found)


def recovery(run: Run, real: Real, n: int) -> Recovery | None:
    """Return how a run that ended takes a spike of its learning rate; None for a student, who has no usual one.

    Args:
        run: that ended; nothing of it is changed.
        real: what samples are held against, with the data of the run.
        n: samples of each.
    """
    with tuned(run.config.threads, run.config.device):
        trainer = _Spiked(run, real.train)
        if trainer.lesson is not None:
            return None
        before, _ = _worth(trainer.ema, real, n)
        hit, after = (trainer.trained(share, real, n) for share in (SHARE, REST))
    return Recovery(before, hit, after)


class _Spiked(Trainer):
    """A run that goes on after its end, with a spike."""

    def rate(self, step: int) -> float:
        gone = step - self.total - self._steps(SHARE)
        usual = self.config.lr / 2**self.returns
        return SPIKE * usual if gone <= 0 else usual * max(0.0, 1 - (gone - 1) / self._steps(REST))

    def trained(self, share: float, real: Real, n: int) -> float | None:
        """Train on for a share of the run, and return the distance of samples of the weights as they are."""
        for _ in range(self._steps(share)):
            self.advance()
        return _worth(self.model, real, n)[0] if self.healthy() else None

    def _steps(self, share: float) -> int:
        return max(1, round(share * self.total))


def _worth(model: GenerativeModel, real: Real, n: int) -> tuple[float, float]:
    """Return the distance and the recall of samples."""
    held = reference(real.train, real.held_out, real.features).held_out
    drawn = real.features(torch.cat(list(model.states(n))))
    return distance(drawn, held), float(recalled(drawn, held).mean())


def _seconds(log: Path) -> dict[int, float]:
    """Return the seconds of training after each step that a log tells of."""
    records = (record for record in read_log(log) if record is not None and "seconds" in record)
    return {int(record["step"]): float(record["seconds"]) for record in records}
