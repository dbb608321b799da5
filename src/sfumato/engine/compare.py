"""Training and judging what enters a contest; contest.py says what that is.

Every entrant is a run like any other, in the contest's folder, trained by ``enter`` and judged by ``evaluate``.
compare.json is written after each, and what stands there or lies on disk is not done again: the same command goes on
where it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from sfumato.data import Dataset
from sfumato.data import load as load_data
from sfumato.engine.asked import seconds_of
from sfumato.engine.begin import RUNS
from sfumato.engine.contest import MODELS, TOLERANCE, Contest, Entrant, Terms, Trial, best
from sfumato.engine.course import course, recovery
from sfumato.engine.entry import enter
from sfumato.engine.evaluate import Real, enough, evaluate, need_enough
from sfumato.engine.examples import chosen
from sfumato.engine.gauge import forget_peak
from sfumato.engine.generate import Wish
from sfumato.engine.machine import pages_kept, threaded
from sfumato.engine.progress import Watch, duration, watch
from sfumato.engine.run import Run
from sfumato.engine.speed import Speed, speeds
from sfumato.engine.track import read_log
from sfumato.engine.trials import FOLDER, hold
from sfumato.errors import Diverged, UserError, choose
from sfumato.files import write_atomic
from sfumato.models.base import GenerativeModel

__all__ = ["compare", "compare_runs"]

FILE = "compare.json"
BITS, DEQUANTISE = 500, 1  # held-out examples for a bound on log p, and what a stream is for


@dataclass
class Standing:
    """How far a contest has come: what compare.json tells.

    Attributes:
        folder: of the contest.
        terms: of all.
        entrants: that were judged, or failed, by model and seed.
        trials: that were held.
    """

    folder: Path
    terms: Terms
    entrants: dict[tuple[str, int], Entrant] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)

    @staticmethod
    def of(folder: Path, terms: Terms) -> Standing:
        """Return what is known, under the same terms but for which models and how many seeds."""
        path = folder / FILE
        if not path.exists():
            if not _begun(folder):
                _refuse_foreign(folder)
            return Standing(folder, terms)
        try:
            told = json.loads(path.read_text("utf-8"))
            before = Terms(**told["terms"] | {"models": tuple(told["terms"]["models"])})
            entrants = [Entrant.from_dict(record) for record in told["entrants"]]
            trials = [Trial(**record) for record in told.get("trials", [])]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: damaged ({error}); remove it: runs that are done are only judged again"
            ) from error
        if replace(before, seeds=terms.seeds, models=terms.models) != terms:
            raise UserError(
                f"{folder}: compares {before.data}, {before.time} each, under other terms; choose another --out"
            )
        return Standing(folder, terms, {(each.model, each.seed): each for each in entrants}, trials)

    def keep(self, found: dict[str, Speed] | None = None, notes: tuple[str, ...] = ()) -> None:
        """Write compare.json."""
        record: dict[str, Any] = {"terms": asdict(self.terms)}
        record |= {"entrants": [asdict(each) for each in self.entrants.values()]}
        record |= {"trials": [asdict(each) for each in self.trials]}
        record |= {"speeds": {name: asdict(speed) for name, speed in (found or {}).items()}, "notes": notes}
        write_atomic(self.folder / FILE, json.dumps(record, indent=1).encode())

    def run(self, model: str, seed: int) -> Path:
        """Return the folder of an entrant."""
        return self.folder / f"{model}-{seed}"

    def concluded(self, device: str) -> Contest:
        """Measure the speeds of those who are judged, and write all down."""
        entrants = tuple(self.entrants[model, seed] for seed in range(self.terms.seeds) for model in self.terms.models)
        found, notes = _speeds(entrants, device), tuple(_notes(entrants, self.terms))
        self.keep(found, notes)
        return Contest(self.folder, self.terms, entrants, found, notes, tuple(self.trials))


def compare(terms: Terms, out: Path | None, device: str) -> Contest:
    """Hold a contest; see ``sfumato.verbs.compare``.

    Args:
        terms: what all entrants share.
        out: its folder.
        device: where to compute.
    """
    _refuse(terms)
    dataset = load_data(terms.data)
    if dataset.test is None:
        raise UserError(f"'{terms.data}' has no held-out part by which models could be compared")
    need_enough(dataset.test)
    if terms.classes and not dataset.classes:
        raise UserError(f"'{terms.data}' has no classes; leave --classes out")
    folder = RUNS / f"compare-{dataset.name}" if out is None else out
    standing = Standing.of(folder, terms)
    teacher_first = sorted(terms.models, key=lambda model: model != "diffusion")
    show = watch("compare")
    try:
        for seed, model in product(range(terms.seeds), teacher_first):
            if (model, seed) not in standing.entrants:
                standing.entrants[model, seed] = _entrant(model, seed, standing, dataset, device, show)
                standing.keep()
        return standing.concluded(device)
    finally:
        show.close()


def compare_runs(folders: Sequence[Path], n: int | None, out: Path | None, device: str) -> Contest:
    """Compare runs as they are; see ``sfumato.verbs.compare``.

    Args:
        folders: of two or more runs of the same data, by different names.
        n: samples to judge; None for as many as the features want.
        out: folder for compare.json.
        device: where to compute.
    """
    runs = [Run.open(folder) for folder in folders]
    names = tuple(run.folder.name for run in runs)
    if len(set(names)) < max(2, len(names)):
        raise UserError(f"name two or more runs by different names, got {', '.join(names)}")
    for run in runs[1:]:
        _refuse_other_data(runs[0], run)
    folder = RUNS / f"compare-{'-'.join(names)}" if out is None else out
    terms = Terms(runs[0].config.data, "", 1, names, bool(runs[0].data["classes"]), n)
    _refuse_foreign(folder)
    show = watch("compare")
    try:
        judged = {
            (name, 0): _judged(name, 0, run.folder, terms, device, show) for name, run in zip(names, runs, strict=True)
        }
        return Standing(folder, terms, judged).concluded(device)
    finally:
        show.close()


def _refuse_other_data(one: Run, other: Run) -> None:
    """Raise a UserError if two runs were not trained on the same data in the same shape."""
    for what, of in (("on data", "name"), ("in the shape", "codec"), ("on the data", "fingerprint")):
        ours, theirs = one.data[of], other.data[of]
        if ours != theirs:
            raise UserError(f"{one.folder} and {other.folder} cannot be compared: trained {what} {ours} and {theirs}")


def _refuse(terms: Terms) -> None:
    """Raise a UserError for terms under which nothing can be compared."""
    seconds_of(terms.time)
    if terms.seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {terms.seeds}")
    if len(set(terms.models)) < 2 or len(set(terms.models)) < len(terms.models):
        raise UserError(f"--models must name two or more of {', '.join(MODELS)}, each once, with commas between")
    for model in terms.models:
        choose("model", model, dict.fromkeys(MODELS))
    if terms.trials < 0 or terms.trials == 1:
        raise UserError(f"--trials must be 2 or more, or 0 for the usual learning rates, got {terms.trials}")
    if "student" in terms.models and "diffusion" not in terms.models:
        raise UserError("a student needs its teacher in the contest: add diffusion to --models")


def _begun(folder: Path) -> bool:
    """Return whether a folder holds nothing but runs of a contest that was stopped before the first was judged."""
    return folder.is_dir() and all(
        path.is_dir() and (path.name == FOLDER or path.name.rpartition("-")[0] in MODELS) for path in folder.iterdir()
    )


def _refuse_foreign(folder: Path) -> None:
    """Raise a UserError if a path is no folder, or holds anything but a contest."""
    if folder.exists() and not (folder / FILE).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is no comparison of ours; choose another --out")


def _entrant(model: str, seed: int, standing: Standing, dataset: Dataset, device: str, show: Watch) -> Entrant:
    """Train a run, or go on with it, and judge it; one that diverges is told, not repeated."""
    run, terms, teacher = standing.run(model, seed), standing.terms, standing.run("diffusion", seed)
    if model == "student" and standing.entrants["diffusion", seed].failed:
        return Entrant(model, seed, str(run), failed="its teacher failed")
    while len(tried := [each for each in standing.trials if each.model == model]) < terms.trials:
        standing.trials.append(hold(model, tried, standing.folder, teacher, terms, dataset, device, show.say))
        standing.keep()
    show.say(f"{model}, seed {seed}: {run}")
    forget_peak()
    try:
        enter(model, run, teacher, terms, time=terms.time, seed=seed, lr=best(tried), device=device)
    except Diverged as error:
        return Entrant(model, seed, str(run), failed=str(error))
    return _judged(model, seed, run, terms, device, show)


def _judged(model: str, seed: int, run: Path, terms: Terms, device: str, show: Watch) -> Entrant:
    """Judge a run that is trained."""
    judged = evaluate(run, None, terms.n, None, Wish(), device)
    for line in judged.lines():
        show.say(line)
    opened = Run.open(run)
    dataset = opened.dataset()
    trained, notes = opened.load(device=device)
    more: dict[str, Any] = {}
    if seed == 0 and dataset.test is not None:
        real, _ = Real.of(dataset, dataset.test)
        count = enough(terms.n, real.features)
        show.say("what it was worth on its way, and how it takes a leap of its learning rate")
        more["course"] = course(opened, real, count, device)
        more["recovery"] = recovery(opened, real, count) if terms.time else None
    return Entrant(
        model,
        seed,
        str(run),
        weights=judged.weights,
        parameters=sum(parameter.numel() for parameter in trained.parameters()),
        steps=int(notes["step"]),
        seconds=float(notes["seconds"]),
        memory=_peak(run),
        measures=judged.measures,
        bits=_bits(trained.to(device), dataset),
        abilities=trained.abilities,
        **more,
    )


def _bits(model: GenerativeModel, dataset: Dataset) -> float | None:
    """Return at most how many bits/dim held-out examples are worth to a model, spread over their bins."""
    nats = 0.0
    asked = chosen(dataset, model, BITS, 0)
    for some in asked.batches(model.batch):
        rng = some.streams(0, DEQUANTISE)
        found = some.bounded(model, rng, rng)
        if found is None:
            return None
        nats += float(found.sum())
    return nats / (len(asked.index) * math.prod(model.codec.dims) * math.log(2))


def _peak(run: Path) -> float:
    peaks = (record.get("peak") for record in read_log(run / "log.jsonl") if record is not None)
    return max((float(peak) for peak in peaks if isinstance(peak, int | float)), default=0.0)


def _speeds(entrants: tuple[Entrant, ...], device: str) -> dict[str, Speed]:
    """Return how fast each model draws, by its first seed, all in turns."""
    first: dict[str, Entrant] = {}
    for each in entrants:
        if not each.failed:
            first.setdefault(each.model, each)
    models = {name: Run.open(Path(each.run)).load(device=device)[0].to(device) for name, each in first.items()}
    pages_kept()
    with threaded(torch.get_num_threads()):
        return speeds(models)


def _notes(entrants: tuple[Entrant, ...], terms: Terms) -> Iterator[str]:
    """Yield where the contract could not be kept, and what failed."""
    sizes = {each.model: each.parameters for each in entrants if not each.failed}
    if sizes and max(sizes.values()) > (1 + TOLERANCE) * min(sizes.values()):
        yield "parameters differ by more: " + ", ".join(f"{name} {count:,}" for name, count in sizes.items())
    if terms.time and "student" in sizes:
        yield f"a student learns from the diffusion model of its seed, {terms.time} after that one's {terms.time}"
    if not terms.time and len({(each.steps, each.seconds) for each in entrants}) > 1:
        yield "trained for " + ", ".join(f"{each.model} {duration(each.seconds)}" for each in entrants)
    if terms.seeds == 1:
        yield "one seed: nothing can be said of the spread"
    yield from (f"{each.model}, seed {each.seed}, failed: {each.failed}" for each in entrants if each.failed)
