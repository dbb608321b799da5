"""What a contest of models is, and how it is told: its terms, its entrants, and a table of them.

The contract: the same data and split, the same time of training, as many parameters within TOLERANCE, the same number
of samples judged by the same features, the weights of each averaged, as many trials before. Medians are told
with the least and the most of the seeds, and what failed is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sfumato.engine.course import SPIKE, Recovery, Waypoint
from sfumato.engine.evaluate import Measure
from sfumato.engine.speed import Speed

__all__ = ["COLLAPSED", "MODELS", "TOLERANCE", "TRIAL_SHARE", "Contest", "Entrant", "Terms", "Trial", "best"]

MODELS = ("diffusion", "student", "gan", "vae", "ladder", "plain-gan", "dcgan")
"""What may enter: what ``train`` knows, and a student for one call of the diffusion model of the same seed."""
TOLERANCE = 0.05
"""By which numbers of parameters may differ."""
TRIAL_SHARE = 0.2
"""Of the time of training, that each trial takes."""
COLLAPSED = 0.05
"""Recall of a generator that shows next to nothing of what there is."""


@dataclass(frozen=True)
class Terms:
    """What all entrants share.

    Attributes:
        data: name or path.
        time: of training, such as 10m; a student has its teacher's before its own. "" for runs as they are.
        seeds: how many, from 0 on.
        models: of ``MODELS``, or names of runs.
        classes: whether they learn the classes of the data.
        n: samples judged; None for as many as the features want.
        trials: learning rates that were tried for each model.
    """

    data: str
    time: str
    seeds: int
    models: tuple[str, ...]
    classes: bool = False
    n: int | None = None
    trials: int = 0


@dataclass(frozen=True)
class Trial:
    """A learning rate that was tried for a model.

    Attributes:
        model: which of ``Terms.models``.
        lr: its learning rate.
        distance: of samples to training examples; None if weights or samples were not finite.
    """

    model: str
    lr: float
    distance: float | None


def best(trials: Sequence[Trial]) -> float | None:
    """Return the learning rate whose samples came nearest; None if none was tried or all failed.

    Args:
        trials: of one model.
    """
    found = [(each.distance, each.lr) for each in trials if each.distance is not None]
    return min(found)[1] if found else None


@dataclass(frozen=True)
class Entrant:
    """One run of a contest, judged.

    Attributes:
        model: which of ``Terms.models``.
        seed: of its training.
        run: its folder.
        weights: fingerprint of the averaged weights; "" if it failed.
        parameters: numbers learned, of all its networks.
        steps: of training.
        seconds: of training, a teacher's not counted.
        memory: MB of the process at most while it trained; 0 if unknown.
        measures: what ``evaluate`` found.
        bits: at most so many bits/dim are the held-out data worth to it; None if it cannot say.
        failed: why there are none; "" if there are.
        abilities: what it can give but a sample.
        course: what it was worth on its way; of the first seed.
        recovery: how it takes a spike of its learning rate; of the first seed.
    """

    model: str
    seed: int
    run: str
    weights: str = ""
    parameters: int = 0
    steps: int = 0
    seconds: float = 0.0
    memory: float = 0.0
    measures: tuple[Measure, ...] = ()
    bits: float | None = None
    failed: str = ""
    abilities: tuple[str, ...] = ()
    course: tuple[Waypoint, ...] = ()
    recovery: Recovery | None = None

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Entrant:
        """Rebuild from what ``dataclasses.asdict`` gave."""
        told = record["recovery"]
        parts: dict[str, Any] = {"recovery": told and Recovery(**told), "abilities": tuple(record["abilities"])}
        parts["measures"] = tuple(Measure(**each) for each in record["measures"])
        parts["course"] = tuple(Waypoint(**each) for each in record["course"])
        return Entrant(**record | parts)


@dataclass(frozen=True)
class Contest:
    """What came of it.

    Attributes:
        folder: where it lies.
        terms: of all.
        entrants: in the order of their training.
        speeds: by model, of its first seed that did not fail.
        notes: what the reader should know.
        trials: that were held before.
    """

    folder: Path
    terms: Terms
    entrants: tuple[Entrant, ...]
    speeds: dict[str, Speed]
    notes: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()

    def of(self, model: str) -> list[Entrant]:
        """Return the entrants of a model that did not fail."""
        return [each for each in self.entrants if each.model == model and not each.failed]

    def values(self, model: str, name: str) -> list[float]:
        """Return a measure of a model, seed by seed.

        Args:
            model: which of ``MODELS``.
            name: of the measure.
        """
        return [m.value for each in self.of(model) for m in each.measures if m.name == name]

    def contract(self) -> list[str]:
        """Return what is the same for all, a line each."""
        if not self.terms.time:
            return [
                f"{self.terms.data}: {', '.join(self.terms.models)}, runs as they are.",
                "The same held-out data, number of samples and features; each trained as its config.toml says.",
            ]
        terms, seeds = self.terms, f"{self.terms.seeds} seeds" if self.terms.seeds > 1 else "one seed"
        return [
            f"{terms.data}: {', '.join(terms.models)}; {terms.time} of training each, {seeds}, in {self.folder}.",
            "Contract: the same data and split, time of training, samples and features, weights averaged; "
            f"{terms.trials or 'no'} trials of each by this command; parameters within {TOLERANCE:.0%}, unless a note "
            "says otherwise.",
            "Recipes are the usual ones of sfumato: the same learning rates were tried for each (bench/rates.py), "
            "other words of that of diffusion more often.",
            *self._tried(),
            "Told are medians of the seeds (least to most).",
        ]

    def _tried(self) -> Iterator[str]:
        """Yield what was tried, and what came of it."""
        if not self.trials:
            return
        yield (
            f"Tried: {self.terms.trials} learning rates of each, {TRIAL_SHARE:.0%} of the time for each; told is the "
            "distance of samples to training examples."
        )
        for model in dict.fromkeys(each.model for each in self.trials):
            of = [each for each in self.trials if each.model == model]
            told = (f"{each.lr:g}: " + ("lost" if each.distance is None else f"{each.distance:.4g}") for each in of)
            chosen = best(of)
            yield f"{model}: {', '.join(told)}; " + ("the usual one" if chosen is None else f"{chosen:g}") + " trains."

    def table(self) -> list[list[str]]:
        """Return a table with a column for each model, its heads first: measures, costs, what a model can do."""
        judged = [each for each in self.entrants if not each.failed]
        real = {m.name: f"{m.real:.4g}" for m in judged[0].measures} if judged else {}
        rows = [["", *self.terms.models, "real data"]]
        rows += [[name, *(_spread(self.values(m, name)) for m in self.terms.models), real[name]] for name in real]
        bits = {m: [each.bits for each in self.of(m) if each.bits is not None] for m in self.terms.models}
        rows.append(["bits/dim, at most", *(_spread(bits[m]) for m in self.terms.models), ""])
        rows += [[what, *map(cell, self.terms.models), ""] for what, cell in self._costs().items()]
        can = {m: next((each.abilities for each in self.of(m)), ()) for m in self.terms.models}
        every = dict.fromkeys(ability for abilities in can.values() for ability in abilities)
        rows += [[f"can give {each}", *("yes" if each in can[m] else "-" for m in can), ""] for each in every]
        return rows

    def lines(self) -> list[str]:
        """Return the contract, the table, and notes."""
        rows = self.table()
        wide = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        table = ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in rows]
        return [*self.contract(), *table, *(f"  note: {note}" for note in self.notes)]

    def _costs(self) -> dict[str, Callable[[str], str]]:
        """Return what is told beside the measures of samples: for each name, from a model to its cell."""

        def middle(name: str, form: str, unit: float = 1.0) -> Callable[[str], str]:
            def cell(model: str) -> str:
                found = [getattr(each, name) / unit for each in self.of(model)]
                return format(median(found), form) if found else "-"

            return cell

        def speed(say: Callable[[Speed], str]) -> Callable[[str], str]:
            return lambda model: say(self.speeds[model]) if model in self.speeds else "-"

        return {
            "parameters": middle("parameters", ",.0f"),
            "steps of training": middle("steps", ",.0f"),
            "minutes of training": middle("seconds", ".1f", 60),
            "MB of memory in training": middle("memory", ",.0f"),
            "network calls a sample": speed(lambda s: f"{s.calls}"),
            "million FLOPs a sample": speed(lambda s: f"{s.flops / 1e6:,.1f}"),
            "samples/s one by one": speed(lambda s: f"{s.alone:,.1f}"),
            "samples/s at best": speed(lambda s: f"{s.best:,.0f} ({s.batch} at a time)"),
            f"distance after {SPIKE:g}x the lr (at once)": self._spiked,
            f"collapsed (recall at most {COLLAPSED})": lambda m: f"{self._collapsed(m)} of {self.terms.seeds}",
            "failed": lambda m: f"{sum(e.model == m and bool(e.failed) for e in self.entrants)} of {self.terms.seeds}",
        }

    def _spiked(self, model: str) -> str:
        """Return the distance to the data after a spike, and at its end, over that before."""
        told = next((each.recovery for each in self.of(model) if each.recovery is not None), None)
        if told is None:
            return "-"
        hit, after = ("lost" if far is None else f"{far / told.before:.3g}x" for far in (told.hit, told.after))
        return f"{after} ({hit})"

    def _collapsed(self, model: str) -> int:
        of = [m.value for each in self.of(model) for m in each.measures if m.name.startswith("recall")]
        return sum(value <= COLLAPSED for value in of)


def _spread(values: Sequence[float]) -> str:
    """Return the median, and of several values the least and the most."""
    if not values:
        return "-"
    ends = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
    return f"{median(values):.3g}{ends}"
