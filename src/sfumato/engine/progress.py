"""What long work says while it runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

__all__ = ["Live", "Plain", "Silent", "Watch", "duration", "watch"]


class Watch(Protocol):
    """Who is told how the work goes."""

    def update(self, done: int, total: int, text: str) -> None:
        """Show how far the work is.

        Args:
            done: steps done.
            total: steps in all.
            text: what else there is to say, such as the time left.
        """

    def say(self, line: str) -> None:
        """Print one line that stays."""

    def close(self) -> None:
        """End the display."""


class Live:
    """A progress line that is redrawn.

    Args:
        console: where.
        what: is being done, at the beginning of the line.
    """

    def __init__(self, console: Console, what: str = "train") -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
            console=console,
        )  # fmt: skip
        self._task = self._progress.add_task(what, total=None, text="")
        self._progress.start()

    def update(self, done: int, total: int, text: str) -> None:
        """Redraw the line."""
        self._progress.update(self._task, completed=done, total=total, text=text)

    def say(self, line: str) -> None:
        """Print a line above the progress line."""
        self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the last state of the line on the screen."""
        self._progress.stop()


class Plain:
    """Lines for logs and pipes: the first, the last, and one every ``every`` seconds.

    Args:
        every: so many seconds.
        unit: what is counted, at the beginning of each line.
    """

    def __init__(self, every: float = 10.0, unit: str = "step") -> None:
        self.every, self.unit = every, unit
        self._last = -every

    def update(self, done: int, total: int, text: str) -> None:
        """Print a line if it is time for one."""
        now = time.monotonic()
        if now - self._last >= self.every or done == total:
            self._last = now
            self.say(f"{self.unit} {done}/{total}  {text}")

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, flush=True)

    def close(self) -> None:
        """Do nothing: every line is out."""


class Silent:
    """Nothing: what the processes show that do not lead."""

    def update(self, done: int, total: int, text: str) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Do nothing."""


def watch(what: str = "train", unit: str = "step", leads: bool = True) -> Watch:
    """Return the display that fits where standard output goes.

    Args:
        what: name of the work.
        unit: in which it is counted.
        leads: whether this process speaks; of several, one does.
    """
    if not leads:
        return Silent()
    console = Console()
    return Live(console, what) if console.is_terminal else Plain(unit=unit)


def duration(seconds: float) -> str:
    """Return a time a person reads at a glance: "45s", "2m05s", "1h02m"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
