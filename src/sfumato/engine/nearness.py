"""How near samples come to real examples. Choices are made by training ones: held-out examples are for judging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sfumato.data import Dataset
from sfumato.engine.reference import Rows, reference
from sfumato.metrics.features import features_of
from sfumato.metrics.frechet import frechet
from sfumato.metrics.kernel import kernel_distance
from sfumato.models.base import GenerativeModel

__all__ = ["Nearness", "distance"]

DRAWN = 2_000  # samples for each answer, of the same noise
SEED = 1  # of that noise: other than that of `sample` and `evaluate`


def distance(drawn: Rows, real: Rows) -> float:
    """Return the Frechet distance of samples to real examples, or the kernel distance where those are too few for it.

    Args:
        drawn: (n, d) features of samples.
        real: (m, d) of real examples.
    """
    return float(frechet(drawn, real)) if len(real) > real.shape[1] else kernel_distance(drawn, real).value


class Nearness:
    """The distance to the training examples of a data set, by the features that ``evaluate`` takes.

    Args:
        dataset: with training and, if it has them, held-out examples.
        say: told every distance.
    """

    def __init__(self, dataset: Dataset, say: Callable[[str], None]) -> None:
        self.codec = dataset.codec
        self.features, _ = features_of(None, self.codec.dims)
        held = dataset if dataset.test is None else dataset.test
        self.known = reference(dataset.in_memory(), held.in_memory(), self.features).train
        self.say = say

    def __call__(self, what: str, model: GenerativeModel, **way: Any) -> float:
        """Return the distance of samples.

        Args:
            what: is asked about, for ``say``.
            model: that draws.
            way: as for ``GenerativeModel.states``.
        """
        states = torch.cat(list(model.states(max(DRAWN, 2 * self.features.dim), seed=SEED, **way)))
        far = distance(self.features(self.codec.encode(model.codec.decode(states))), self.known)
        self.say(f"{what}: distance[{self.features.name}] to training examples {far:.4g}")
        return far
