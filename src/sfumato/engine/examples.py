"""Which examples a model is asked about, in the shape it knows, and what trivial models make of them.

(1)  P(v_d = k) = (count_dk + 1) / (N + levels)          every value drawn alone, from what N training examples hold
(2)  p(v_d) = N(v_d; mean_d, var_d)                      the same for values without levels
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sfumato.condition import Condition
from sfumato.data import Codec, Dataset
from sfumato.data import load as load_data
from sfumato.data.image import ImageCodec, Pictures
from sfumato.data.source import Item
from sfumato.dist import Rng, rand, stream
from sfumato.errors import UserError
from sfumato.models.base import GenerativeModel

__all__ = ["Examples", "alone", "chosen", "foreign", "levels_of"]

PICK = 0  # what a stream is for


@dataclass(frozen=True)
class Examples:
    """Some examples of one data set.

    Attributes:
        name: of the data.
        items: (n, *raw) as the model's codec takes them.
        labels: (n,) indices into ``classes``; None if there are none.
        classes: names of the classes, the model's own if it has any.
        index: (n,) places in the part that they were chosen from.
        part: which part that is, in words.
        of: how many examples it holds.
        cond: what a model is told of each; None of one that cannot be told.
    """

    name: str
    items: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    index: Tensor
    part: str
    of: int
    cond: Condition | None = None

    def batches(self, size: int) -> Iterator[Examples]:
        """Yield all, at most ``size`` at a time."""
        for some in torch.split(torch.arange(len(self.index)), size):
            labels = None if self.labels is None else self.labels[some]
            cond = None if self.cond is None else self.cond[some]
            yield replace(self, items=self.items[some], labels=labels, index=self.index[some], cond=cond)

    def spread(self, codec: Codec, rng: Rng) -> Tensor:
        """Return the states of all, every value drawn evenly over the bin of its level, (n, *dims).

        Args:
            codec: of the model.
            rng: for the places in the bins.
        """
        states = codec.encode(self.items)
        return states + (codec.level_width * (rand(states, rng) - 0.5)).to(states.dtype)

    def bounded(self, model: GenerativeModel, spread: Rng, rng: Rng) -> Tensor | None:
        """Return at most how many nats a model takes for each, (n,) float64; None if it tells none.

        Args:
            model: that tells a bound on log p.
            spread: as for :meth:`spread`.
            rng: for the bound.
        """
        x = self.spread(model.codec, spread).to(model.device)
        bound = model.bound(x, None if self.cond is None else self.cond.to(model.device), rng)
        return None if bound is None else -bound - model.codec.log_volume()

    def streams(self, *keys: int) -> list[torch.Generator]:
        """Return a generator for each example, a function of the keys and its index."""
        return [stream(*keys, int(i)) for i in self.index]


def chosen(dataset: Dataset, model: GenerativeModel, n: int, seed: int) -> Examples:
    """Choose held-out examples, or of data without such any; fewer are the first of more.

    Args:
        dataset: of the model's shape.
        model: with classes, it needs the examples' own.
        n: how many at most.
        seed: of the choice.

    Raises:
        UserError: the model has classes, and the data have none or others.
    """
    held, part = (dataset, "all") if dataset.test is None else (dataset.test, "held out")
    index = torch.randperm(len(held.items), generator=stream(seed, PICK))[:n].sort().values
    labels, classes = held.labels, held.classes
    if model.classes:
        labels, classes = _labels(held, model, dataset.name), model.classes
    labels = None if labels is None else labels[index]
    cond = model.conditions_of(held, index)
    if model.classes:
        cond = replace(cond or Condition(), label=labels)
    return Examples(dataset.name, held.items[index], labels, classes, index, part, len(held.items), cond)


def _labels(dataset: Dataset, model: GenerativeModel, name: str) -> Tensor:
    """Return the index of each example's class in the model's classes, (N,)."""
    strange = sorted({*dataset.classes} - {*model.classes})
    if dataset.labels is None or strange:
        what = f"class '{strange[0]}', which the model does not know" if strange else "no classes"
        raise UserError(
            f"{name} has {what}: the model was trained with --classes and says log p of an example given its class; "
            "give data of the same classes, or a run without --classes"
        )
    return torch.tensor([model.classes.index(each) for each in dataset.classes])[dataset.labels]


def foreign(data: str, model: GenerativeModel) -> tuple[Dataset, list[str]]:
    """Load data that the model was not trained on, bring them to its shape and levels, and say how.

    Args:
        data: as for ``sfumato.data.load``.
        model: to whose shape they are brought.

    Raises:
        UserError: there are no such data, they are of another kind, or points of other dimensions.
    """
    dataset = load_data(data)
    codec, own = dataset.codec, model.codec
    if not (isinstance(codec, ImageCodec) and isinstance(own, ImageCodec)):
        if codec.kind != own.kind or codec.dims != own.dims:
            raise UserError(
                f"{data} are {_kind(codec)} and the run is of {_kind(own)}: give data of its kind and shape"
            )
        return dataset, []
    if (codec.dims, codec.levels) == (own.dims, own.levels):
        return dataset, []
    if codec.dims != own.dims:
        side = max(own.height, own.width)
        dataset = load_data(data, resolution=side) if side >= 4 else dataset
    dataset = dataset.in_memory()
    note = f"{dataset.name}: {_kind(codec)} brought to {_kind(own)}"
    if codec.dims[1:] != own.dims[1:]:
        note += " (resized to cover by Lanczos, centre-cropped)"
    test = None if dataset.test is None else _brought(dataset.test, own)
    return replace(_brought(dataset, own), test=test), [note]


def _kind(codec: Codec) -> str:
    levels = f", {levels_of(codec)} levels" if levels_of(codec) else ""
    return f"{codec.kind.removesuffix('s')}s {'x'.join(map(str, codec.dims))}{levels}"


def _brought(dataset: Dataset, own: ImageCodec) -> Dataset:
    """Bring pictures to the shape and the levels of another codec."""
    levels, items = levels_of(dataset.codec), dataset.items[:]
    if items.shape[1:] != own.dims:
        kind = Pictures(levels)
        pictures = (kind.fit(Item("", picture), own.dims) for picture in items.permute(0, 2, 3, 1).numpy())
        items = torch.from_numpy(np.stack(list(pictures)))
    if levels != own.levels:
        items = own.decode(dataset.codec.encode(items))
    return replace(dataset, items=items, codec=own)


def levels_of(codec: Codec) -> int:
    """Return how many levels a value of the data can take, spread over states in [-1, 1]; 0 for continuous data."""
    return round(2 / codec.level_width) + 1 if codec.level_width else 0


def alone(train: Tensor, items: Tensor, levels: int) -> float:
    """Return the mean bits/dim of items under a model that draws every value alone; equations (1) and (2).

    Args:
        train: (N, *raw) what the model is made of.
        items: (n, *raw) what it is asked about.
        levels: that a value can take; 0 for continuous values.
    """
    nats = []
    for seen, new in zip(train.flatten(1).T.numpy(), items.flatten(1).T.numpy(), strict=True):
        if levels:
            nats.append(-np.log((np.bincount(seen, minlength=levels) + 1) / (len(seen) + levels))[new].mean())
        else:
            mean, var = seen.mean(dtype=float), seen.var(dtype=float)
            nats.append(((new - mean) ** 2 / var + math.log(2 * math.pi * var)).mean() / 2)
    return float(np.mean(nats)) / math.log(2)
