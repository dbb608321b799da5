"""What a run's samples are worth, against data the model never saw.

Every value stands beside its floor (real training against real held-out data) and a trivial baseline: examples whose
every value was drawn alone from the training set, so that the marginals are right and nothing else.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.codec import Dataset
from sfumato.engine.run import Run
from sfumato.errors import UserError
from sfumato.files import write_atomic
from sfumato.metrics.frechet import frechet
from sfumato.metrics.neighbours import nearest_distances
from sfumato.metrics.recognise import recogniser

__all__ = ["Evaluation", "Measure", "evaluate"]

MOST = 10_000
"""Training examples a distance is measured against at most."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Measure:
    """One value with what it takes to read it.

    Attributes:
        name: of the metric, its features in brackets.
        value: of the samples.
        real: the same of real data, train against held-out: the floor, or the ceiling of an accuracy.
        trivial: the same of examples drawn value by value.
        better: "low" or "high".
    """

    name: str
    value: float
    real: float
    trivial: float
    better: str

    @property
    def ratio(self) -> float:
        """value / real."""
        return self.value / self.real


@dataclass(frozen=True)
class Evaluation:
    """The values of one run.

    Attributes:
        run: its folder.
        weights: fingerprint of the weights.
        n: samples drawn.
        train: training examples.
        held_out: held-out examples.
        seed: of the samples.
        steps: network calls of each sample.
        sampler: its name.
        measures: the values.
    """

    run: str
    weights: str
    n: int
    train: int
    held_out: int
    seed: int
    steps: int
    sampler: str
    measures: tuple[Measure, ...]

    def lines(self) -> list[str]:
        """Return the report, a line for each value."""
        head = (
            f"{self.n:,} samples of {self.run} (seed {self.seed}, {self.sampler}, {self.steps} steps) "
            f"against {self.train:,} training and {self.held_out:,} held-out examples"
        )
        return [head] + [
            f"  {m.name:<34} {m.value:8.4g}   real {m.real:8.4g}   ratio {m.ratio:6.3f} ({m.better} is better)"
            f"   trivial {m.trivial:8.4g}"
            for m in self.measures
        ]


def evaluate(folder: Path, n: int, seed: int, steps: int, method: str, grid: str) -> Evaluation:
    """Draw samples of a run and compare them with its data; writes evaluation.json into the run.

    Args:
        folder: of the run.
        n: how many samples.
        seed: of their noise.
        steps: of the sampler.
        method: name of the sampler.
        grid: name of the grid.

    Raises:
        UserError: the run is none, or its data are gone or have no held-out part.
    """
    run = Run.open(folder)
    if n < 2:
        raise UserError(f"an evaluation needs at least 2 samples, got -n {n}")
    dataset = run.dataset().in_memory()
    if dataset.test is None:
        raise UserError(f"'{run.config.data}' has no held-out part to compare with")
    model, _ = run.load()
    samples = model.sample(n, seed=seed, steps=steps, method=method, grid=grid)
    labels = model.labels(range(n))
    measures = compare(dataset, dataset.test, samples, labels, seed)
    result = Evaluation(
        folder.name, model.fingerprint(), n, len(dataset.items), len(dataset.test.items), seed, steps, method,
        tuple(measures),
    )  # fmt: skip
    write_atomic(folder / "evaluation.json", json.dumps(asdict(result), indent=2).encode())
    return result


def compare(train: Dataset, test: Dataset, samples: Tensor, labels: Tensor | None, seed: int) -> list[Measure]:
    """Return the measures of samples with labels (n,), or None, against a data set and its held-out part."""

    def features(items: Tensor) -> Array:
        states: Array = train.codec.encode(items).flatten(1).numpy()
        return states

    rng = np.random.default_rng(seed)
    seen, unseen, drawn = features(train.items[:]), features(test.items[:]), features(samples)
    trivial = np.stack([rng.choice(column, len(drawn)) for column in seen.T], axis=1)
    kind = f"{seen.shape[1]} raw values"
    near = seen[rng.permutation(len(seen))[:MOST]]
    far, floor, none = (float(np.median(nearest_distances(rows, near))) for rows in (drawn, unseen, trivial))
    measures = [
        Measure(f"frechet[{kind}]", frechet(drawn, unseen), frechet(seen, unseen), frechet(trivial, unseen), "low"),
        Measure("median distance to nearest train", far, floor, none, "near 1"),
    ]
    if labels is not None and train.labels is not None and test.labels is not None:
        classifier = recogniser(seen, train.labels.numpy())
        hit, ceiling, chance = (
            float(classifier.score(rows, asked.numpy()))
            for rows, asked in ((drawn, labels), (unseen, test.labels), (trivial, labels))
        )
        measures.insert(0, Measure("recognised as asked[sklearn SVC]", hit, ceiling, chance, "high"))
    return measures
