"""Seconds of training, over all sessions of a run, and the pace of this one."""

from __future__ import annotations

import time

__all__ = ["Clock"]


class Clock:
    """Seconds of training, those before a resume included, and the pace of this session.

    Args:
        before: seconds that earlier sessions took.

    Attributes:
        pace_so_far: what ``pace`` said last.
    """

    def __init__(self, before: float) -> None:
        self._before, self._start = before, time.monotonic()
        self.pace_so_far: float | None = None
        self.anew()

    @property
    def now(self) -> float:
        """Seconds of training so far."""
        return self._before + time.monotonic() - self._start

    def anew(self) -> None:
        """Forget the pace's past: steps are others from here on."""
        self._calls, self._origin = 0, (time.monotonic(), 0)

    def pace(self, step: int) -> float | None:
        """Return seconds a step, all that happens between steps included; call it after every step.

        The first steps of a process are slower by far and do not count: before ten steps this is None.
        """
        self._calls += 1
        if self._calls == 3:
            self._origin = time.monotonic(), step
        if self._calls >= 10 and step > self._origin[1]:
            self.pace_so_far = max(time.monotonic() - self._origin[0], 1e-6) / (step - self._origin[1])
        return self.pace_so_far
