"""What a run's samples are worth, against data the model never saw.

Every value stands beside its floor (as many real training examples against the same held-out ones) and a trivial
baseline: examples whose every value was drawn alone from the training set, so that the marginals are right and nothing
else. What is compared are features (metrics/features.py), named in brackets; copies are sought among the raw values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.codec import Dataset
from sfumato.engine.examples import foreign
from sfumato.engine.generate import Draws, Pace, Wish, drawing
from sfumato.engine.interrupt import Interrupt
from sfumato.engine.progress import watch
from sfumato.engine.reference import Reference, reference
from sfumato.engine.run import Run
from sfumato.errors import UserError
from sfumato.files import write_atomic
from sfumato.metrics.bootstrap import Figure, of_one, of_two
from sfumato.metrics.features import Features, features_of
from sfumato.metrics.frechet import frechet
from sfumato.metrics.kernel import kernel_distance
from sfumato.metrics.neighbours import manifolds, nearest
from sfumato.metrics.recognise import recogniser

__all__ = ["Evaluation", "Measure", "Real", "compare", "enough", "evaluate", "need_enough"]

LEAST = 20
"""Samples, and held-out examples, that are enough to tell anything."""
USUAL = 1000  # samples
SEARCHED = 60_000  # training examples among which copies are sought
ASKED = 2_000  # samples for which they are
CLOSE = 0.01  # share of held-out examples that are as close to a training example as a copy must be

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Measure:
    """One value with what it takes to read it.

    Attributes:
        name: of the metric, its features in brackets.
        value: of the samples.
        low: end of its 95% interval.
        high: the other.
        real: the same of real data, train against held-out: the floor, or the ceiling of an accuracy.
        trivial: the same of examples drawn value by value.
        better: "low", "high", or "near 1" where that of real data is the best.
    """

    name: str
    value: float
    low: float
    high: float
    real: float
    trivial: float
    better: str

    @property
    def ratio(self) -> float:
        """value / real; NaN where that is 0."""
        return self.value / self.real if self.real else math.nan


@dataclass(frozen=True)
class Evaluation:
    """The values of one run.

    Attributes:
        run: its folder.
        weights: fingerprint of the weights.
        data: what it was compared with.
        features: by which; their name.
        n: samples drawn.
        train: training examples.
        held_out: held-out examples.
        seed: of the samples.
        steps: of the sampler.
        sampler: its name.
        grid: its name.
        measures: the values.
        notes: what the reader should know.
    """

    run: str
    weights: str
    data: str
    features: str
    n: int
    train: int
    held_out: int
    seed: int
    steps: int
    sampler: str
    grid: str
    measures: tuple[Measure, ...]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the report, a line for each value."""
        head = (
            f"{self.n:,} samples of {self.run} (seed {self.seed}, {self.sampler}, {self.steps} steps) "
            f"against {self.train:,} training and {self.held_out:,} held-out examples of {self.data}"
        )
        wide = max((len(m.name) for m in self.measures), default=0)
        values = [
            f"  {m.name:<{wide}} {m.value:9.4g} ({m.low:.4g} to {m.high:.4g})   real {m.real:.4g}   "
            f"ratio {m.ratio:.3f} ({m.better} is better)   trivial {m.trivial:.4g}"
            for m in self.measures
        ]
        return [head, *values, *(f"  note: {note}" for note in self.notes)]


@dataclass(frozen=True)
class Real:
    """What samples are held against.

    Attributes:
        train: the data the model was trained on, in memory.
        held_out: examples it was not trained on.
        features: by which they are compared.
    """

    train: Dataset
    held_out: Dataset
    features: Features

    @staticmethod
    def of(data: Dataset, held_out: Dataset, features: str | None = None) -> tuple[Real, str]:
        """Return what samples of a model of some data are held against, and why by these features.

        Args:
            data: that it was trained on.
            held_out: examples to compare with.
            features: a key of ``sfumato.metrics.features.FEATURES``, or None to choose.

        Raises:
            UserError: the features are not for these data, or not installed; or too few examples are held out.
        """
        need_enough(held_out)
        kind, why = features_of(features, data.codec.dims)
        return Real(data.in_memory(), held_out.in_memory(), kind), why

    @property
    def labelled(self) -> bool:
        """Whether both parts have the same classes."""
        pair = (self.train, self.held_out)
        return all(part.labels is not None for part in pair) and self.train.classes == self.held_out.classes


def evaluate(
    folder: Path, data: str | None, n: int | None, features: str | None, wish: Wish, device: str
) -> Evaluation:
    """Draw samples of a run and compare them with real data; writes evaluation.json into the run.

    Args:
        folder: of the run.
        data: to compare with, as for ``sfumato.data.load``; by default the held-out part of the run's own.
        n: how many samples; by default enough for the features.
        features: a key of ``sfumato.metrics.features.FEATURES``, or None to choose.
        wish: how they are drawn.
        device: where.

    Raises:
        UserError: the run is none; there are no held-out data of its shape; or the features are not for them or need
            more samples.
    """
    show = watch("evaluate", "sample")
    try:
        with Interrupt() as stop, drawing(folder, wish, device, None) as draws:
            run = Run.open(folder)
            real, notes = _real(run, draws, data, features)
            count = enough(n, real.features)
            for note in notes:
                show.say(f"  {note}")
            pace = Pace(show, stop, count)
            drawn = torch.cat([batch.items for batch in draws.part(range(count), pace).batches])
            rows = draws.model.requests(range(count))
            asked = torch.tensor([row.label for row in rows]) if draws.model.classes else None
            found, more = compare(real, drawn, asked, wish.seed)
            weights, way = draws.recipe["weights"], draws.way
    finally:
        show.close()
    result = Evaluation(
        run.folder.name, weights, real.held_out.name, real.features.name, count, len(real.train.items),
        len(real.held_out.items), way.seed, way.steps, way.method, way.grid, tuple(found), (*notes, *more),
    )  # fmt: skip
    write_atomic(run.folder / "evaluation.json", json.dumps(asdict(result), indent=2).encode())
    return result


def _real(run: Run, draws: Draws, data: str | None, features: str | None) -> tuple[Real, list[str]]:
    """Return what to compare with, and what was chosen for it."""
    own, notes = run.dataset(), []
    if own.fingerprint != run.data["fingerprint"]:
        notes.append(f"{own.name} has changed since the run was trained on it")
    held = own.test
    if data is not None:
        other, how_brought = foreign(data, draws.model)
        held, notes = other.test or other, [*notes, *how_brought]
    if held is None:
        raise UserError(
            f"'{run.config.data}' has no held-out part to compare with: name some, 'sfumato evaluate {run.folder} DATA'"
        )
    real, why = Real.of(own, held, features)
    return real, [*notes, f"features: {real.features.name} ({why})"]


def need_enough(held_out: Dataset) -> None:
    """Refuse held-out examples that are too few to tell anything.

    Args:
        held_out: examples to compare with.

    Raises:
        UserError: they are fewer than LEAST.
    """
    if len(held_out.items) < LEAST:
        raise UserError(
            f"{held_out.name}: {len(held_out.items)} held-out examples are too few to compare with: name others, "
            f"or hold out {LEAST} or more"
        )


def enough(n: int | None, features: Features) -> int:
    """Return how many samples to draw.

    Args:
        n: as asked for, or None.
        features: by which they are judged.

    Raises:
        UserError: too few were asked for.
    """
    if n is None:
        return max(USUAL, 2 * features.dim)
    if n < LEAST:
        raise UserError(f"an evaluation needs at least {LEAST} samples, got -n {n}")
    if n <= features.dim:
        raise UserError(
            f"a Frechet distance on {features.dim} features needs more samples than features, else their covariance is "
            f"singular: got -n {n}; draw {2 * features.dim}, or choose other --features"
        )
    return n


def compare(real: Real, drawn: Tensor, labels: Tensor | None, seed: int) -> tuple[list[Measure], list[str]]:
    """Return the measures of samples, and what could not be measured.

    Args:
        real: what they are held against.
        drawn: (n, *raw) items.
        labels: (n,) classes that were asked for, or None.
        seed: of the bootstrap and the baseline.
    """
    states = real.train.codec.encode(drawn)
    rng = np.random.default_rng(seed)
    seen: Array = real.train.codec.encode(real.train.items[:]).flatten(1).numpy()
    columns = [torch.from_numpy(rng.choice(column, len(drawn))) for column in seen.T]
    trivial = torch.stack(columns, 1).view(-1, *states.shape[1:])
    known = reference(real.train, real.held_out, real.features)
    rows = _Rows(real.features(states), known.train[: len(drawn)], real.features(trivial), known, seed)
    measures = [] if labels is None or not real.labelled else [*_by_class(real, rows, labels)]
    measures += _distances(rows, real.features.name)
    measures += _manifold(rows, real.features.name)
    measures += _copies(real, seen, states, trivial, rng, seed)
    short = len(known.held_out) <= real.features.dim
    why = f"no Frechet distance: {len(known.held_out)} held-out examples are too few for {real.features.dim} features"
    return measures, [why] * short


@dataclass(frozen=True)
class _Rows:
    """Features of what is measured: samples, as many training examples, and the trivial baseline."""

    drawn: Array
    floor: Array
    trivial: Array
    known: Reference
    seed: int

    def low(self, name: str, of: Callable[[Array], Figure], quick: Callable[[Array], float]) -> Measure:
        """Return a measure that is better low: ``of`` gives value and interval, ``quick`` a value alone."""
        return Measure(name, *of(self.drawn), quick(self.floor), quick(self.trivial), "low")


def _by_class(real: Real, rows: _Rows, labels: Tensor) -> Iterator[Measure]:
    """How often a classifier of real training data sees the class that was asked for, and how much a class varies."""
    known, asked, kind = rows.known, labels.numpy(), real.features.name
    seen, unseen = (
        np.asarray(part.labels)[index.numpy()]
        for part, index in ((real.train, known.train_index), (real.held_out, known.held_out_index))
    )
    classifier = recogniser(known.train, seen)
    hit = of_one((classifier.predict(rows.drawn) == asked).astype(float), rows.seed)
    ceiling, chance = classifier.score(known.held_out, unseen), classifier.score(rows.trivial, asked)
    yield Measure(f"recognised as asked[SVC, {kind}]", *hit, float(ceiling), float(chance), "high")
    of_drawn = of_one(from_centre(rows.drawn, asked), rows.seed)
    floor, trivial = from_centre(rows.floor, seen[: len(rows.floor)]), from_centre(rows.trivial, asked)
    yield Measure(f"spread within a class[{kind}]", *of_drawn, float(floor.mean()), float(trivial.mean()), "near 1")


def from_centre(rows: Array, labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return how far each example lies from the mean of its class, (n,).

    Args:
        rows: (n, d) features.
        labels: (n,).
    """
    found = np.zeros(len(rows))
    for label in np.unique(labels):
        mine = labels == label
        found[mine] = np.linalg.norm(rows[mine] - rows[mine].mean(0, dtype=np.float64), axis=1)
    return found


def _distances(rows: _Rows, kind: str) -> list[Measure]:
    held = rows.known.held_out
    measures = []
    if len(held) > held.shape[1]:
        name = f"frechet[{kind}]"
        measures.append(rows.low(name, lambda a: of_two(a, held, rows.seed, frechet), lambda a: frechet(a, held)))
    if len(held) >= LEAST and len(rows.floor) >= LEAST:
        name = f"kernel[{kind}]"
        measures.append(rows.low(name, lambda a: kernel_distance(a, held), lambda a: kernel_distance(a, held).value))
    return measures


def _manifold(rows: _Rows, kind: str) -> list[Measure]:
    """Precision, density, recall and coverage: one pass over all distances for each of the three."""
    drawn, floor, trivial = (manifolds(each, rows.known.held_out) for each in (rows.drawn, rows.floor, rows.trivial))
    return [
        Measure(
            f"{name}[{kind}]",
            *of_one(getattr(drawn, name), rows.seed),
            float(getattr(floor, name).mean()),
            float(getattr(trivial, name).mean()),
            "high",
        )
        for name in ("precision", "recall", "density", "coverage")
    ]


def _copies(
    real: Real, seen: Array, states: Tensor, trivial: Tensor, rng: np.random.Generator, seed: int
) -> list[Measure]:
    """How near samples are to training examples, and how many nearer than all but 1% of held-out ones."""
    near = seen[rng.permutation(len(seen))[:SEARCHED]]
    unseen = real.held_out.codec.encode(real.held_out.items[:ASKED])
    far, floor, none = (nearest(each[:ASKED].flatten(1).numpy(), near)[0] for each in (states, unseen, trivial))
    close = float(np.quantile(floor, CLOSE))
    kind = f"{seen.shape[1]} raw values"
    return [
        Measure(
            f"median distance to nearest train[{kind}]", *of_one(far, seed, np.median), float(np.median(floor)),
            float(np.median(none)), "near 1",
        ),
        Measure(
            f"near copies[{kind}]", *of_one((far < close).astype(float), seed), float((floor < close).mean()),
            float((none < close).mean()), "low",
        ),
    ]  # fmt: skip
