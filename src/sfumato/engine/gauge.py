"""What is measured while a run trains: the loss by noise level, and memory."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["EDGES", "ByLevel", "Levels", "Memory", "forget_peak", "memory"]

EDGES = (-2.5, -1.5, -0.5, 0.5, 1.5)
"""Where the bins of noise levels meet, in ln(sigma / (alpha sigma_data)): 0 is noise as strong as the data."""


class Levels(NamedTuple):
    """Losses by noise level, from little noise to much.

    Attributes:
        levels: mean in each of the six bins; None where no example fell.
        counts: of the examples in each.
    """

    levels: list[float | None]
    counts: list[int]


class ByLevel:
    """Mean loss by noise level: adding waits for no device, only reading does.

    Attributes:
        totals: (2, 6) sums and counts so far; to be added up over the processes of a distributed run.

    Args:
        device: on which the losses come.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        exact = torch.float32 if torch.device(device).type == "mps" else torch.float64  # MPS has no float64
        self.totals = torch.zeros(2, len(EDGES) + 1, dtype=exact, device=device)
        self._edges = torch.tensor(EDGES, dtype=exact, device=device)
        self._bins = torch.arange(len(EDGES) + 1, device=device)

    @torch.no_grad()
    def add(self, losses: Tensor, levels: Tensor) -> None:
        """Add the losses of examples, (B,), whose noise levels are ln(sigma / (alpha sigma_data)), (B,)."""
        levels = levels.to(self._edges, non_blocking=True)
        inside = torch.bucketize(levels, self._edges) == self._bins[:, None]
        # Sums over a mask come out the same every time, unlike a scattered addition on a GPU, and a loss that is not
        # finite stays in its bin.
        self.totals[0] += torch.where(inside, losses.detach().to(self.totals), 0.0).sum(1)
        self.totals[1] += inside.sum(1)

    def read(self) -> Levels:
        """Return what was added since the last reading."""
        sums, counts = self.totals.tolist()
        self.totals.zero_()
        return Levels([s / n if n else None for s, n in zip(sums, counts, strict=True)], [int(n) for n in counts])


class Memory(NamedTuple):
    """Memory of this process that is in RAM, in MB; None where the system does not say.

    Attributes:
        now: at present.
        peak: at most since the process began.
    """

    now: float | None
    peak: float | None


def memory() -> Memory:
    """Return the memory that this process takes; a few microseconds on Linux."""
    try:
        with Path("/proc/self/status").open("rb") as status:
            lines = dict(line.split(b":", 1) for line in status if line.startswith((b"VmRSS", b"VmHWM")))
        now, peak = (int(lines[key].split()[0]) / 1024 for key in (b"VmRSS", b"VmHWM"))
        return Memory(round(now, 1), round(peak, 1))
    except (OSError, KeyError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return Memory(None, None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Memory(None, round(peak / 1024 if sys.platform == "darwin" else peak, 1))  # bytes there, KB elsewhere


def forget_peak() -> None:
    """Let the peak of :func:`memory` begin anew, without what is freed but kept: on Linux with the GNU C library."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
