"""The order of the examples: a function of the seed and the epoch, equation (2) of trainer.py."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.dist import stream

__all__ = ["Order"]


class Order:
    """An endless row of shuffled epochs, cut into batches; one may hold the end of an epoch and the start of the next.

    Args:
        seed: of the run, and what the stream is for.
        count: of examples.
        batch: examples a step.
    """

    def __init__(self, seed: tuple[int, int], count: int, batch: int) -> None:
        self.seed, self.count, self.batch = seed, count, batch
        self._epoch: tuple[int, Tensor] = (-1, torch.empty(0))

    def __call__(self, step: int) -> Tensor:
        """Return the indices of the examples of a step, (batch,)."""
        places = torch.arange(step * self.batch, (step + 1) * self.batch)
        first, last = int(places[0]) // self.count, int(places[-1]) // self.count
        parts = [
            self._shuffled(epoch)[places[places // self.count == epoch] % self.count]
            for epoch in range(first, last + 1)
        ]
        return torch.cat(parts)

    def _shuffled(self, epoch: int) -> Tensor:
        if self._epoch[0] != epoch:
            self._epoch = epoch, torch.randperm(self.count, generator=stream(*self.seed, epoch))
        return self._epoch[1]
