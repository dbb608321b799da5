"""Ctrl-C and SIGTERM as a question that is asked between two steps, never in the middle of one.

The same wish often comes twice: torchrun passes on what a scheduler or a terminal sent to all processes, and Linux
tells of a dead parent once for each of its threads. So a second SIGTERM changes nothing, and a second Ctrl-C only
counts if somebody can have pressed it.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

__all__ = ["Interrupt"]

ECHO = 0.5  # seconds in which a second Ctrl-C is the first one, passed on


class Interrupt:
    """False until a first Ctrl-C or SIGTERM; a second Ctrl-C, half a second later or more, stops at once.

    Outside of the main thread signals cannot be caught, and this stays False.
    """

    def __init__(self) -> None:
        self._asked: float | None = None
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self._asked is not None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked is None:
            self._asked = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._asked > ECHO:
            raise KeyboardInterrupt
