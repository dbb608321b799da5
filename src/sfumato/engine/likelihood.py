"""What a run's model thinks data are worth: log p of every example through the flow, and bounds on it by the chain; of
a VAE its bound.

With x the state of an item, d its numbers and V the codec's ``log_volume``, in nats:

(1)  log p(item) = log p(x) + V,      bits/dim = -log p(item) / (d ln 2)
(2)  log P(item) >= E_u log p(item + u)          u uniform in the bin of a level   (Theis et al. 1511.01844, eq. 4)
(3)  mean +- (t std / sqrt(n) + mean solver error)                  t: Student's 97.5% point of n - 1 examples
(4)  A = P(log p(own) > log p(other)), ties half                    the area under the ROC curve, over m n pairs
     SE^2(A) = (A(1 - A) + (m - 1)(A/(2 - A) - A^2) + (n - 1)(2A^2/(1 + A) - A^2)) / mn     (Hanley and McNeil 1982)
     its interval: all A' with |A' - A| <= 1.96 SE(A'), which has a width for A = 1 too     (Newcombe 2006)

Data of finitely many levels are dequantised: both sides of (2) are in the same bits/dim, and the flow and the bound
named "density" are of the same draws of u. The bound named "levels" is on P(item) itself. A model with classes gives
log p(item | its class). An example's noise is a function of the seed and of its place in the data, nothing else.

    examples.csv   one row for each example        summary.json   means, intervals, settings, recipe
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit
from sklearn.metrics import roc_auc_score
from torch import Tensor

from sfumato.data import Codec, Dataset
from sfumato.denoise import Given
from sfumato.density import Density, Discretised, flow_logp, vlb
from sfumato.engine.examples import Examples, alone, chosen, foreign, levels_of
from sfumato.engine.progress import duration, watch
from sfumato.engine.run import Run
from sfumato.errors import UserError
from sfumato.files import need_empty, write_atomic
from sfumato.models.diffusion import Diffusion, need_diffusion
from sfumato.models.vae import DRAWS, VAE

__all__ = ["How", "Likelihood", "Measured", "Value", "auroc", "likelihood", "mean"]

DEQUANTISE, PROBES, CHAIN, LEVELS = range(1, 5)  # what a stream is for; 0 is the choice of examples
FEW = 16  # numbers in an example whose exact trace costs no more than probes
VALUES = 16 * 28 * 28  # in a batch, or basis vectors times values: seconds to a minute between two signs of progress

Floats = NDArray[np.floating]
Tick = Callable[[int], None]


@dataclass(frozen=True)
class How:
    """How log p is measured: with the weights and the data, all that decides it.

    Attributes:
        n: examples of each data set, at most.
        exact: the exact trace, not probes.
        probes: random probes of the trace.
        draws: of u in (2).
        vlb_calls: network calls for the diffusion term of a bound.
        tolerance: of the solver, relative and absolute.
        seed: of all that is drawn.
    """

    n: int
    exact: bool
    probes: int
    draws: int
    vlb_calls: int
    tolerance: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("n", "probes", "draws", "vlb_calls"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.tolerance < 1:
            raise UserError(f"--tolerance lies between 0 and 1 (exclusive), got {self.tolerance}")


@dataclass(frozen=True)
class Value:
    """A value with the ends of its 95% interval; the ends are NaN where one example tells none."""

    value: float
    low: float
    high: float

    def line(self, what: str) -> str:
        """Return a line that says it."""
        ends = f"{self.low:.4f} to {self.high:.4f}" if math.isfinite(self.low) else "not known from one example"
        return f"  {what:<34} {self.value:8.4f}   95% interval {ends}"


@dataclass(frozen=True)
class Measured:
    """The examples of one data set and what was measured on them.

    Attributes:
        examples: they.
        columns: by name of the column in examples.csv, one number for each example.
        bits: mean bits/dim by "flow", "density" and, of data with levels, "levels"; of a VAE by "density" alone.
        trivial: the mean bits/dim of trivial models, by what they do.
    """

    examples: Examples
    columns: dict[str, Floats]
    bits: dict[str, Value]
    trivial: dict[str, float]

    @property
    def best(self) -> tuple[Floats, str]:
        """Bits/dim of each example by the best that the model tells, and what that is."""
        if "flow" in self.bits:
            return self.columns["bits_per_dim"], "the flow"
        return self.columns["density_bits_per_dim"], "the bound"


@dataclass(frozen=True)
class Likelihood:
    """What a run's model thinks its data, and perhaps others, are worth.

    Attributes:
        folder: of the files.
        recipe: what every output of the model carries, and all settings.
        how: the settings.
        codec: the model's.
        parts: the run's own data first.
        auroc: how well log p by "flow" and by "density" tells the run's own data from the others; {} without others.
        notes: what the reader should know.
        seconds: it took.
    """

    folder: Path
    recipe: dict[str, Any]
    how: How
    codec: Codec
    parts: tuple[Measured, ...]
    auroc: dict[str, Value]
    notes: tuple[str, ...]
    seconds: float

    def lines(self) -> list[str]:
        """Return the report, a line for each value."""
        how = self.how
        flow = all("flow" in part.bits for part in self.parts)
        trace = "exact trace" if how.exact else f"probes: {how.probes}"
        words = {
            "flow": f"flow ({trace}, draws: {how.draws})",
            "density": f"bound (calls: {how.vlb_calls})" if flow else f"bound (draws of the latents: {DRAWS})",
            "levels": f"bound on P(levels) (calls: {how.vlb_calls})",
        }
        lines = []
        for part in self.parts:
            told = part.examples
            lines.append(f"{told.name}: bits/dim of {len(told.index):,} of {told.of:,} examples ({told.part})")
            lines += [value.line(words[name]) for name, value in part.bits.items()]
            lines += [f"  {name:<34} {value:8.4f}" for name, value in part.trivial.items()]
        if self.auroc:
            own, other = (part.examples.name for part in self.parts)
            lines.append(f"AUROC: share of pairs in which {own} is more likely than {other}")
            lines += [v.line("by log p" if name == "flow" else "by the bound") for name, v in self.auroc.items()]
        return [*lines, *(f"note: {note}" for note in self.notes), f"{duration(self.seconds)}; see {self.folder}"]


def likelihood(folder: Path, data: str | None, how: How, out: Path | None, device: str) -> Likelihood:
    """Measure log p of a run's own data and of others; writes examples.csv and summary.json.

    Args:
        folder: of the run.
        data: others, as for ``sfumato.data.load``; None for the run's own alone.
        how: the settings.
        out: folder for the files, by default likelihood/ and the name of the data in the run.
        device: where to compute.

    Raises:
        UserError: no such run or data, a model that tells nothing of log p, data that cannot be brought to its shape or
            have other classes, data that are gone, or ``out`` holds other files.
    """
    started, run = time.monotonic(), Run.open(folder)
    need_empty(out)
    loaded, weights = run.load(device=device, precision="fp32")
    model = loaded if isinstance(loaded, VAE) else need_diffusion(loaded, "log p", "or a vae")
    own = run.dataset()
    datasets, notes = [own], _notes(run, own)
    if data is not None and data != run.config.data:
        other, how_brought = foreign(data, model)
        datasets, notes = [own, other], [*notes, *how_brought]
    parts = [chosen(dataset, model, how.n, how.seed) for dataset in datasets]
    notes += [f"{p.name} holds {p.of:,} examples, fewer than -n {how.n:,}" for p in parts if p.of < how.n]
    dims, levels = math.prod(model.codec.dims), levels_of(model.codec)
    how = replace(how, exact=how.exact or dims <= FEW, draws=how.draws if levels else 1)
    model.to(device)
    rounds = how.draws + bool(levels and isinstance(model, Diffusion))
    with _clock(sum(len(part.index) for part in parts) * rounds) as tick:
        measured = tuple(_measure(model, own, part, how, tick) for part in parts)
    result = Likelihood(
        folder=run.folder / "likelihood" / datasets[-1].name if out is None else out,
        recipe=run.recipe(model, weights) | {"asked": [part.name for part in parts]} | asdict(how),
        how=how,
        codec=model.codec,
        parts=measured,
        auroc=_auroc(*measured) if len(measured) > 1 else {},
        notes=tuple(notes),
        seconds=time.monotonic() - started,
    )
    _write(result)
    return result


def _notes(run: Run, own: Dataset) -> list[str]:
    """Return what the reader should know of the run and its data."""
    notes = []
    if run.config.model.precision != "fp32":
        notes.append(f"trained in {run.config.model.precision}, measured in fp32")
    if own.test is None:
        notes.append(f"{own.name} has no held-out part: the model was trained on these examples")
    if own.fingerprint != run.data["fingerprint"]:
        notes.append(f"{own.name} has changed since the run was trained on it")
    return notes


@contextmanager
def _clock(total: int) -> Iterator[Tick]:
    """Show how far the work is: give a function that is told how many more of ``total`` measurements are done."""
    show, start, done = watch(), time.monotonic(), 0

    def tick(more: int) -> None:
        nonlocal done
        done += more
        show.update(done, total, f"{duration((time.monotonic() - start) * (total - done) / done)} left")

    try:
        yield tick
    finally:
        show.close()


def _measure(model: Diffusion | VAE, own: Dataset, examples: Examples, how: How, tick: Tick) -> Measured:
    """Measure all examples; ``own`` is what the model was trained on."""
    dims, levels = math.prod(model.codec.dims), levels_of(model.codec)
    size = max(1, min(256, VALUES // (dims * (dims if how.exact else 1))))
    batches = [
        _batch(model, some, how, tick) if isinstance(model, Diffusion) else _bounds(model, some, how, tick)
        for some in examples.batches(size)
    ]
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    bits = {}
    if "bits_per_dim" in columns:
        bits["flow"] = mean(columns["bits_per_dim"], float(columns["solver_error"].mean()) / (dims * math.log(2)))
    bits |= {name: mean(columns[of]) for name in ("density", "levels") if (of := f"{name}_bits_per_dim") in columns}
    trivial = {"trivial: every value drawn alone": alone(own.in_memory().items[:], examples.items, levels)}
    if levels:
        trivial["trivial: all levels equally likely"] = math.log2(levels)
    return Measured(examples, columns, bits, trivial)


def _batch(model: Diffusion, some: Examples, how: How, tick: Tick) -> dict[str, Floats]:
    """Return the columns of one batch; equations (1) and (2)."""
    codec, levels, sigma_data = model.codec, levels_of(model.codec), model.denoiser.sigma_data
    given = Given(model.denoiser, None if some.cond is None else some.cond.to(model.device))
    states = codec.encode(some.items).to(model.device)
    x_0 = [some.spread(codec, some.streams(how.seed, DEQUANTISE, k)).to(model.device) for k in range(how.draws)]
    decoder = Density()  # the flow begins where it does: below its noise no network was trained, and v is rough
    flows, bounds = [], []
    for k, x in enumerate(x_0):
        flows.append(
            flow_logp(
                given, x, trace="exact" if how.exact else "hutchinson", probes=how.probes, rtol=how.tolerance,
                atol=how.tolerance, low=decoder.noise, rng=some.streams(how.seed, PROBES, k),
            )
        )  # fmt: skip
        rng = some.streams(how.seed, CHAIN, k)
        bounds.append(vlb(given, x, steps=None, calls=how.vlb_calls, decoder=decoder, sigma_data=sigma_data, rng=rng))
        tick(len(states))
    log_p = torch.stack([flow.value for flow in flows]).double() + codec.log_volume()
    columns = {
        "log_p": log_p.mean(0),
        "bits_per_dim": -log_p.mean(0) / (states[0].numel() * math.log(2)),
        "probe_error": _error_of_mean([flow.probe_error for flow in flows]),
        "draw_error": log_p.std(0) / math.sqrt(how.draws) if how.draws > 1 else torch.full_like(log_p[0], math.nan),
        "solver_error": torch.stack([flow.solver_error for flow in flows]).mean(0),
        "calls": torch.stack([flow.calls for flow in flows]).sum(0),
        "density_nats": torch.stack([bound.nats for bound in bounds]).mean(0) - codec.log_volume(),
        "density_bits_per_dim": torch.stack([b.bits_per_dim(codec.log_volume()) for b in bounds]).mean(0),
        "density_error": _error_of_mean([bound.error for bound in bounds]),
    }
    if levels:
        rng = some.streams(how.seed, LEVELS)
        bound = vlb(
            given, states, steps=None, calls=how.vlb_calls, decoder=Discretised(levels), sigma_data=sigma_data, rng=rng
        )
        tick(len(states))
        columns |= {"levels_nats": bound.nats, "levels_bits_per_dim": bound.bits_per_dim(), "levels_error": bound.error}
    return {name: column.cpu().double().numpy() for name, column in columns.items()}


def _bounds(model: VAE, some: Examples, how: How, tick: Tick) -> dict[str, Floats]:
    """Return the columns of one batch of a model that tells a bound alone; equation (2)."""
    bounds = []
    for k in range(how.draws):
        found = some.bounded(model, some.streams(how.seed, DEQUANTISE, k), some.streams(how.seed, CHAIN, k))
        assert found is not None, "a VAE tells a bound"
        bounds.append(found)
        tick(len(found))
    nats = torch.stack(bounds)
    spread = nats.std(0) / math.sqrt(how.draws) if how.draws > 1 else torch.full_like(nats[0], math.nan)
    columns = {"density_nats": nats.mean(0), "density_error": spread}
    columns["density_bits_per_dim"] = columns["density_nats"] / (math.prod(model.codec.dims) * math.log(2))
    return {name: column.cpu().double().numpy() for name, column in columns.items()}


def _error_of_mean(errors: list[Tensor]) -> Tensor:
    """Return the standard error of a mean from those of its independent parts."""
    return torch.stack(errors).square().sum(0).sqrt() / len(errors)


def mean(values: Floats, off: float = 0.0) -> Value:
    """Return the mean of values (n,) with its interval, widened at both ends by ``off``; equation (3)."""
    n, middle = len(values), float(values.mean())
    half = float(stdtrit(n - 1, 0.975) * values.std(ddof=1)) / math.sqrt(n) + off if n > 1 else math.nan
    return Value(middle, middle - half, middle + half)


def auroc(own: Floats, other: Floats) -> Value:
    """Return the share of pairs in which the value of ``own`` (m,) is above that of ``other`` (n,); equation (4)."""
    m, n = len(own), len(other)
    area = float(roc_auc_score([1] * m + [0] * n, np.concatenate([own, other])))
    a = np.linspace(0, 1, 10_001)
    var = a * (1 - a) + (m - 1) * (a / (2 - a) - a**2) + (n - 1) * (2 * a**2 / (1 + a) - a**2)
    plausible = a[np.abs(a - area) <= 1.96 * np.sqrt(var / (m * n)) + 1e-4]  # a step of the search to the outside
    return Value(area, float(plausible[0]), float(plausible[-1]))


def _auroc(own: Measured, other: Measured) -> dict[str, Value]:
    told = {"density": auroc(-own.columns["density_nats"], -other.columns["density_nats"])}
    if "flow" in own.bits:
        told = {"flow": auroc(own.columns["log_p"], other.columns["log_p"])} | told
    return told


def _write(result: Likelihood) -> None:
    """Write examples.csv and summary.json."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["data", "index", "class", *result.parts[0].columns])
    for part in result.parts:
        told, columns = part.examples, part.columns.values()
        names = [""] * len(told.index) if told.labels is None else [told.classes[k] for k in told.labels.tolist()]
        for index, name, *numbers in zip(told.index.tolist(), names, *columns, strict=True):
            rows.writerow([told.name, index, name, *(f"{v:.9g}" if math.isfinite(v) else "" for v in numbers)])
    write_atomic(result.folder / "examples.csv", table.getvalue().encode())
    parts = [
        {"data": p.examples.name, "part": p.examples.part, "n": len(p.examples.index), "of": p.examples.of}
        | {"bits_per_dim": {name: _record(value) for name, value in p.bits.items()}, "trivial": p.trivial}
        for p in result.parts
    ]
    summary = {
        "recipe": result.recipe,
        "parts": parts,
        "auroc": {name: _record(value) for name, value in result.auroc.items()},
        "notes": result.notes,
        "seconds": result.seconds,
    }
    write_atomic(result.folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False).encode())


def _record(value: Value) -> dict[str, float | None]:
    """Return a value for JSON, which has no NaN."""
    return {name: number if math.isfinite(number) else None for name, number in asdict(value).items()}
