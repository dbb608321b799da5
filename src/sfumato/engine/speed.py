"""How fast models draw, measured in one interleaved run: every round times all of them once, in a new order.

Times on a machine that others use drift by more than models differ; medians over rounds in which all took their turn do
not.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from torch.utils.flop_counter import FlopCounterMode

from sfumato.models.base import GenerativeModel

__all__ = ["Speed", "speeds"]

ROUNDS = 7


@dataclass(frozen=True)
class Speed:
    """How fast a model draws.

    Attributes:
        calls: of its network for a sample.
        flops: operations for a sample.
        alone: samples a second, one at a time.
        best: samples a second in the batch that gives most.
        batch: how many that is.
    """

    calls: int
    flops: float
    alone: float
    best: float
    batch: int


def speeds(models: Mapping[str, GenerativeModel]) -> dict[str, Speed]:
    """Return how fast each model draws by its usual way.

    Args:
        models: by name, on the device where they shall draw.
    """
    sizes = {name: sorted({1, max(1, model.batch // 8), model.batch}) for name, model in models.items()}
    ways = {name: model.way() for name, model in models.items()}
    took: dict[tuple[str, int], list[float]] = {(name, size): [] for name in models for size in sizes[name]}
    for name, size in took:
        models[name].draw(range(size), ways[name])  # the first call of each shape prepares kernels
    order = list(took)
    for _ in range(ROUNDS):
        random.shuffle(order)
        for name, size in order:
            begin = time.perf_counter()
            models[name].draw(range(size), ways[name]).cpu()  # waits for the device
            took[name, size].append(time.perf_counter() - begin)
    return {
        name: _speed(model, {size: median(took[name, size]) for size in sizes[name]}) for name, model in models.items()
    }


def _speed(model: GenerativeModel, seconds: Mapping[int, float]) -> Speed:
    batch = max(seconds, key=lambda size: size / seconds[size])
    with counted(model) as calls, FlopCounterMode(display=False) as counter:
        model.draw(range(model.batch), model.way())
    flops = counter.get_total_flops() / model.batch
    return Speed(len(calls), float(flops), 1 / seconds[1], batch / seconds[batch], batch)


@contextmanager
def counted(model: GenerativeModel) -> Iterator[list[None]]:
    """Collect one entry for every call of the network that draws."""
    calls: list[None] = []
    hook = model.network.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        hook.remove()
