"""One session of training: from where the run stands to its end, or until it is asked to stop.

The steps are the Trainer's. What happens between them (logging, saving, previews, the plan of a timed run) depends on
the clock, so rank 0 decides it and tells the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sfumato.data.stream import Stream
from sfumato.engine.average import KEPT
from sfumato.engine.clock import Clock
from sfumato.engine.interrupt import Interrupt
from sfumato.engine.preview import preview
from sfumato.engine.progress import Watch, duration
from sfumato.engine.track import Track
from sfumato.engine.trainer import PATIENCE, RETURNS, Trainer
from sfumato.errors import Diverged
from sfumato.teaching import Method

__all__ = ["Session", "between_previews"]

FIRST_PREVIEW = 10.0  # seconds: early, so that a mistake shows
PREVIEWS = 8  # after it in a long run, and one at its end
SETTLED = 20  # steps after which a student's number of steps is fixed


def between_previews(seconds: float) -> float:
    """Return how many seconds lie between two previews of a run of so many seconds, after the first."""
    return max(FIRST_PREVIEW, seconds / PREVIEWS)


@dataclass(frozen=True)
class _Due:
    """What rank 0 decided after a step."""

    total: float
    log: float
    show: float
    save: float
    keep: float
    stop: float


class Session:
    """Trains a run to its end.

    Args:
        trainer: of the run.
        watch: who is told.
    """

    def __init__(self, trainer: Trainer, watch: Watch) -> None:
        self.trainer, self.watch = trainer, watch
        self.config, self.workers = trainer.config, trainer.workers
        self.track: Track | None = None
        self.clock = Clock(trainer.seconds)
        self.saved = self.logged = self.clock.now
        self.next_preview = self.clock.now + FIRST_PREVIEW
        self.reported = trainer.step  # up to which losses are logged
        self.faults = 0  # of the data, told so far
        self.kept = self._due_averages  # so far

    def run(self) -> bool:
        """Train, saving, logging and showing samples on the way.

        Returns:
            False if a signal (Ctrl-C, SIGTERM) asked to stop; the run is saved then.

        Raises:
            Diverged: steps go on not being finite.
            UserError: the disk cannot be written.
        """
        if self.workers.leads:
            run = self.trainer.run
            folder = run.folder / "tensorboard" if self.config.tensorboard else None
            self.track = Track(run.log, self.trainer.step, folder)
        try:
            with Interrupt() as interrupt:
                return self._run(interrupt)
        finally:
            if self.track is not None:
                self.track.close()

    def _run(self, interrupt: Interrupt) -> bool:
        trainer = self.trainer
        self._event("resume" if trainer.step else "begin", workers=self.workers.size)
        for path, reason in trainer.damaged:
            self._event("damaged", file=path.name, reason=reason)
            self.watch.say(f"{path.name} is damaged ({reason}): set aside, going on from the one before")
        if not trainer.step:
            self._save()  # a run that fails at once has a place to go back to, and a full disk shows now
        if self.config.compile and trainer.step < trainer.total:
            self._compile()
        while trainer.step < trainer.total:
            trainer.advance()
            self._tell_method()
            due = self._decide(interrupt)
            trainer.total = int(due.total)
            self._tell_plan()
            if due.log or trainer.reads_every_step:
                self._judge()
            if due.log:
                self._log()
            last = trainer.step == trainer.total  # a checkpoint of it says that all is done, and what follows is not
            if due.save and not trainer.in_row and not last:  # a place to go back to lies before what fails
                self._save()
            if due.keep:
                trainer.keep_averages()
            if due.show:
                self._preview()
            if due.stop and not last:
                return self._stop()
        trainer.finish(self.watch.say)
        self._save()
        self._preview()
        self._event("end")
        return True

    def _compile(self) -> None:
        """Do the first step, which waits for torch.compile, and say what that cost."""
        begin = self.clock.now
        float(self.trainer.advance())
        took = duration(self.clock.now - begin)
        self.watch.say(f"torch.compile: the first step took {took}; the speed below tells whether it pays")

    def _decide(self, interrupt: Interrupt) -> _Due:
        """Look at the clock, on rank 0, and tell the others."""
        trainer, now = self.trainer, self.clock.now
        trainer.seconds = now
        if trainer.lesson is not None and trainer.step == trainer.lesson.steady:
            self.clock.anew()
        pace = self.clock.pace(trainer.step)
        total = self._plan(pace)
        ends = trainer.step >= total
        show = not ends and now >= self.next_preview
        save = not ends and (now - self.saved >= self.config.save_every or self._settles)
        keep, self.kept = ends or self._due_averages > self.kept, self._due_averages
        log = now - self.logged >= 1 or ends or show or save or bool(interrupt)
        return _Due(*self.workers.decide([total, log, show, save, keep, bool(interrupt) and not ends]))

    def _plan(self, pace: float | None) -> int:
        """Return the total of a run that was given a time, while nothing in training depends on it yet.

        The learning rate does in the cool-down. A student's loss does from the beginning: its total is fixed, and
        saved, as soon as the pace is known, and once more where another method begins, whose steps take another time.
        """
        trainer, lesson, steady = self.trainer, self.trainer.lesson, 1 - self.config.cool_down
        last = steady * trainer.total if lesson is None else lesson.steady + SETTLED
        if not self.config.seconds or not pace or trainer.step > last:
            return trainer.total
        least = trainer.step if lesson is not None and lesson.begun else math.ceil(trainer.step / steady)
        return max(math.ceil(trainer.step + (self.config.seconds - trainer.seconds) / pace), least)

    @property
    def _due_averages(self) -> int:
        """How many of the averages that a run keeps lie behind: by time where that is given, for the total wavers."""
        trainer, seconds = self.trainer, self.config.seconds
        return int(KEPT * (trainer.seconds / seconds if seconds else trainer.step / trainer.total))

    @property
    def _settles(self) -> bool:
        lesson = self.trainer.lesson
        return lesson is not None and self.trainer.step == lesson.steady + SETTLED

    def _seconds_in_all(self) -> float:
        left = (self.trainer.total - self.trainer.step) * (self.clock.pace_so_far or 0.0)
        return self.config.seconds or self.clock.now + left

    # ── What is not finite ────────────────────────────────────────────────────────────────────────────────────────────

    def _judge(self) -> None:
        """Count and name the steps that were skipped; go back if there were too many in a row.

        The norm of the gradient is the same on all ranks, and so is what follows from it.
        """
        for step, share, norm in self.trainer.unread():
            if math.isfinite(norm):
                self.trainer.in_row = 0
                continue
            self.trainer.skipped += 1
            self.trainer.in_row += 1
            cause = self._cause(step, share)
            self._event("skip", at=step, cause=cause, skipped=self.trainer.skipped)
            self.watch.say(f"step {step} skipped: {cause} ({self.trainer.skipped} skipped so far)")
            if self.trainer.in_row == PATIENCE:
                self._go_back(f"{PATIENCE} steps in a row up to {step} were not finite: {cause}")
                return

    def _cause(self, step: int, share: Tensor) -> str:
        """Say what of a step is not finite: the data, the loss or the gradient."""
        if math.isfinite(float(self.workers.sum(share))):
            return "the gradient is not finite"
        broken = self.trainer.broken_examples(step)
        return f"example {broken[0]} of the data is not finite" if broken else "the loss is not finite"

    def _go_back(self, cause: str) -> None:
        trainer = self.trainer
        if trainer.returns == RETURNS:
            self._event("stop", cause=cause)
            raise Diverged(
                f"{trainer.run.folder}: {cause}, after {RETURNS} returns to a checkpoint, the last at a learning rate "
                f"of {trainer.config.lr / 2**RETURNS:g}; its last checkpoint is kept: train again with a lower --lr"
            )
        failed = trainer.step
        trainer.go_back()
        if self.track is not None:
            self.track.rewind(trainer.step)
        self.reported = trainer.step
        lr = trainer.config.lr / 2**trainer.returns
        self._event("rollback", cause=cause, failed=failed, lr=lr)
        self.watch.say(f"{cause}; back to step {trainer.step} with learning rate {lr:g}")

    # ── What is written ───────────────────────────────────────────────────────────────────────────────────────────────

    def _event(self, what: str, **facts: object) -> None:
        if self.track is not None:
            self.track.event(self.trainer.step, what, self.clock.now, **facts)

    def _log(self) -> None:
        """Log means since the last record, over all ranks."""
        trainer = self.trainer
        self.logged = self.clock.now
        loss, norm, levels = trainer.read()
        steps, self.reported = trainer.step - self.reported, trainer.step
        if steps <= 0:
            return
        self._tell_faults()
        pace = self.clock.pace_so_far
        speed = self.config.batch / pace if pace else None
        if self.track is not None:
            self.track.numbers(
                trainer.step, self.clock.now, loss=loss, lr=trainer.rate(trainer.step), norm=norm,
                items_per_second=speed, levels=levels,
            )  # fmt: skip
        if speed and pace:
            left = duration((trainer.total - trainer.step) * pace)
            self.watch.update(trainer.step, trainer.total, f"loss {loss:.4f}  {speed:,.0f} items/s  {left} left")

    def _tell_method(self) -> None:
        """Say with the first step of another method why the loss is not what it was."""
        lesson = self.trainer.lesson
        if lesson is not None and 0 < lesson.begun == self.trainer.step - 1:
            name = _name(lesson.method)
            self.watch.say(f"step {self.trainer.step}: from here on by {name}, whose loss is another")

    def _tell_plan(self) -> None:
        """Say, once it is known, where a student's time is too short for the method that would end its training."""
        lesson, total, pace = self.trainer.lesson, self.trainer.total, self.clock.pace_so_far
        if lesson is None or lesson.begun or not self._settles:
            return
        if not self.config.seconds or not pace or total >= lesson.enough:
            return
        *_, last = lesson.methods
        self.watch.say(
            f"{total} steps fit into the time: too few for {_name(last)}, which ends the training, and betters the "
            f"student, from {lesson.enough} steps on: --time {duration(lesson.enough * pace)} here"
        )

    def _tell_faults(self) -> None:
        """Name the pictures that turned out to be bad when their turn came, once each."""
        items = self.trainer.shown.items
        if isinstance(items, Stream):
            for fault in items.faults[self.faults :]:
                self._event("replaced", file=fault.name, reason=fault.reason)
                self.watch.say(f"{fault.name} is bad ({fault.reason}): the next good one takes its place")
            self.faults = len(items.faults)

    def _save(self) -> None:
        self.saved = self.clock.now
        if not self.trainer.healthy():
            self._go_back(f"weights are not finite at step {self.trainer.step}")
            return
        path = self.trainer.save()
        if path is not None:
            self._event("save", file=path.name)
        self.saved = self.clock.now

    def _stop(self) -> bool:
        self._save()
        self._event("stop", cause="asked to")
        self.watch.say(f"stopped at step {self.trainer.step}, saved in {self.trainer.run.checkpoints}")
        return False

    def _preview(self) -> None:
        """Draw the same samples from the averaged and the raw weights, so that a bad average shows as such."""
        trainer = self.trainer
        path = preview(trainer.run, {"average": trainer.ema, "raw": trainer.model}, trainer.step, self.workers)
        if path is not None and self.track is not None:
            self.track.preview(trainer.step, self.clock.now, path)
            self.watch.say(f"step {trainer.step}: samples in {path} (left: averaged weights, right: raw)")
        self.next_preview = self.clock.now + between_previews(self._seconds_in_all())


def _name(method: Method) -> str:
    return type(method).__name__.lower()
