"""How near a model's samples come to training examples: choices are made by that, held-out examples are for judging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sfumato.data import Dataset
from sfumato.engine.reference import reference
from sfumato.metrics.features import features_of
from sfumato.metrics.frechet import frechet
from sfumato.models.base import GenerativeModel

__all__ = ["Nearness"]

DRAWN = 2_000  # samples for each answer, of the same noise
SEED = 1  # of that noise: other than that of `sample` and `evaluate`


class Nearness:
    """The Frechet distance to the training examples of a data set, by the features that ``evaluate`` takes.

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
        distance = frechet(self.features(self.codec.encode(model.codec.decode(states))), self.known)
        self.say(f"{what}: frechet[{self.features.name}] to training examples {distance:.4g}")
        return distance
