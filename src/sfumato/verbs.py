"""The verbs of sfumato: the functions of the Python API and, by the same names and defaults, of the command line.

The command line is made from these signatures and docstrings, so the two cannot differ. Heavy imports stay inside
the functions: ``sfumato --help`` must not wait for PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sfumato.defaults import GRID, SAMPLER, STEPS

if TYPE_CHECKING:
    from sfumato.data import Findings
    from sfumato.engine.evaluate import Evaluation
    from sfumato.engine.likelihood import Likelihood
    from sfumato.engine.plan import Plan
    from sfumato.models.diffusion import Diffusion
    from sfumato.view.catalogue import Catalogue
    from sfumato.view.page import Report

__all__ = [
    "evaluate",
    "inspect",
    "likelihood",
    "load",
    "plan",
    "report",
    "resume",
    "sample",
    "samplers",
    "show",
    "train",
]

Data = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DATA")]]
Others = tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="DATA")]]
Folder = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
Count = Annotated[int, tyro.conf.arg(aliases=["-n"])]
Class = Annotated[str | None, tyro.conf.arg(name="class")]


def inspect(data: Data) -> Findings:
    """Say what is in some data: count, sizes, channels, range, classes, bad files, duplicates. Changes nothing.

    Args:
        data: a name (digits, fashion-mnist, moons, ring8, grid25, spirals, checkerboard), a folder of pictures
            (classes = subfolders; train/ and test/ are two parts), of .tar or .parquet files, or such a file, a .npy,
            .npz, .csv or IDX file.

    Raises:
        UserError: there is no such data, or as a whole it cannot be read.
    """
    from sfumato.data import inspect

    return inspect(data)


def train(
    data: Data,
    *,
    time: str | None = None,
    steps: int | None = None,
    size: Literal["tiny", "small", "base"] | None = None,
    classes: bool = False,
    out: str | None = None,
    seed: int = 0,
    batch: int | None = None,
    accumulate: int = 1,
    lr: float | None = None,
    resolution: int | None = None,
    skip_bad: bool = False,
    stream: bool = False,
    schedule: str = "cosine",
    parameterisation: str = "edm",
    weighting: str | None = None,
    likelihood: bool = False,
    learn_variance: bool = False,
    precision: Literal["fp32", "bf16"] | None = None,
    compile: bool = False,
    device: str | None = None,
    shard: bool = False,
    save_every: float = 30.0,
    resume: bool = False,
    tensorboard: bool = False,
) -> Path:
    """Train a model on some data. What is not given is chosen, and each choice is printed with its reason.

    Started by `torchrun --nproc-per-node N -m sfumato train DATA`, N processes share each step's batch.

    Args:
        data: as for inspect.
        time: how long, such as 90s, 2m or 1h; the learning rate falls to 0 as it ends.
        steps: how long in steps, instead of a time.
        size: of the network.
        classes: learn the classes of the data, to sample one of them.
        out: folder of the run; by default runs/ and the name of the data.
        seed: of weights, data order and noise.
        batch: examples a step, over all processes; by default found by timing a few.
        accumulate: parts in which each process computes its share of a step, to save memory.
        lr: learning rate.
        resolution: longest side to which pictures are brought.
        skip_bad: leave unreadable files out instead of stopping at the first.
        stream: leave pictures on disk and read each when its turn comes; by default if memory is short for them.
        schedule: noise schedule: vp, cosine, subvp, ve, edm, flow or table.
        parameterisation: what the network predicts: x0, eps, score, v, flow or edm.
        weighting: what the loss weighs: elbo, sigmoid, min-snr, p2, learned, or as parameterisation; by default that.
        likelihood: train for a tight bound on log p(x), not for samples: weighting, noise levels and data for it.
        learn_variance: learn the noise of the way back too, for the sampler ancestral-learned.
        precision: of the arithmetic inside the network.
        compile: let torch.compile translate the network: minutes once, then faster steps; says what it costs.
        device: cpu, cuda or mps.
        shard: with torchrun, split the weights over the processes (FSDP2); by default each has all of them (DDP).
        save_every: seconds between checkpoints.
        resume: go on with the run if its folder exists, so that a scheduler may repeat the command.
        tensorboard: log for TensorBoard too, in the run's folder tensorboard/.

    Returns:
        The folder of the run.

    Raises:
        UserError: bad data, an impossible choice, or a folder that exists.
    """
    asked = dict(locals())
    from sfumato.engine.begin import begin
    from sfumato.engine.choices import Asked

    return begin(Asked(**asked))


def plan(
    data: Data,
    *,
    workers: int = 1,
    time: str | None = None,
    steps: int | None = None,
    size: Literal["tiny", "small", "base"] | None = None,
    classes: bool = False,
    batch: int | None = None,
    accumulate: int = 1,
    resolution: int | None = None,
    skip_bad: bool = False,
    stream: bool = False,
    likelihood: bool = False,
    learn_variance: bool = False,
    precision: Literal["fp32", "bf16"] | None = None,
    compile: bool = False,
    device: str | None = None,
    shard: bool = False,
    save_every: float = 30.0,
    out: str | None = None,
) -> Plan:
    """Say what a training run would take (time, memory, disk) from a few real steps, and keep nothing.

    Args:
        data: as for inspect.
        workers: processes that share the run; they are really started, here.
        time: as for train.
        steps: as for train.
        size: as for train.
        classes: as for train.
        batch: as for train.
        accumulate: as for train.
        resolution: as for train.
        skip_bad: as for train.
        stream: as for train.
        likelihood: as for train.
        learn_variance: as for train.
        precision: as for train.
        compile: as for train.
        device: as for train.
        shard: as for train.
        save_every: as for train.
        out: a JSON file for the figures.

    Raises:
        UserError: bad data, an impossible choice, or more workers than there is room for.
    """
    from time import perf_counter

    begun, asked = perf_counter(), dict(locals())
    from sfumato.engine.choices import Asked
    from sfumato.engine.plan import plan

    del asked["workers"], asked["out"], asked["perf_counter"]
    result = plan(Asked(**asked), workers, begun)
    if out is not None:
        result.write(Path(out))
    return result


def resume(run: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="RUN")]] = None) -> Path:
    """Go on with a run that was stopped or killed, exactly where its last checkpoint left it.

    Args:
        run: its folder; by default the one below runs/ that was written to last.

    Returns:
        The folder of the run.

    Raises:
        UserError: no such run, a damaged checkpoint, or the data have changed.
    """
    from sfumato.engine.begin import go_on

    return go_on(run)


def sample(
    run: Folder,
    *,
    n: Count = 64,
    steps: int = STEPS,
    seed: int = 0,
    class_: Class = None,
    sampler: str = SAMPLER,
    grid: str = GRID,
    first: int = 0,
    shards: int | None = None,
    format: Literal["png", "csv", "npz", "tar"] | None = None,
    threads: int | None = None,
    out: str | None = None,
    device: str | None = None,
) -> list[Path]:
    """Draw new examples: a file for each and a picture of all. Sample i depends on the weights, the seed and i alone.

    With shards, for many: the same command again makes the shards that are missing, and only those; started by
    torchrun, or with RANK and WORLD_SIZE in the environment, each worker makes its share of them.

    Args:
        run: folder of a trained run.
        n: how many.
        steps: steps of the sampler.
        seed: of the noise.
        class_: name or index of one class; by default every class in turn.
        sampler: its name; `sfumato samplers` lists them.
        grid: where the steps stop: uniform, logsnr, karras, trailing, or the times themselves, such as 1,0.5,0.
        first: index of the first sample, to make again one that was seen.
        shards: parts in which they are made, each of whole batches; those that are done survive any crash.
        format: of a shard: png or csv (a folder), npz (arrays), tar (WebDataset); by default a file for each.
        threads: of the CPU, on whose number the last bits may depend; by default as many as trained the run.
        out: folder for the files; by default one below the run whose name says how they were made.
        device: cpu, cuda or mps.

    Returns:
        The files or shards, the picture of all last, or in a bulk that is not complete its bulk.json.

    Raises:
        UserError: no such run, class, sampler or grid; a format that is not for the data; or ``out`` holds other files.
    """
    from sfumato.engine.bulk import bulk
    from sfumato.engine.choices import device_of
    from sfumato.engine.formats import format_of
    from sfumato.engine.generate import Way, drawing, generate

    way = Way(seed=seed, steps=steps, method=sampler, grid=grid)
    folder = None if out is None else Path(out)
    with drawing(Path(run), way, class_, device_of(device)[0], threads) as draws:
        indices = range(first, first + n)
        if shards is None and format in (None, format_of(draws.model.codec.kind)):
            return generate(draws, indices, folder)
        return bulk(draws, indices, 1 if shards is None else shards, format, folder)


def samplers() -> Catalogue:
    """List the samplers (order, network calls a step, noise, source) and the grids of the way back."""
    from sfumato.view.catalogue import catalogue

    return catalogue()


def evaluate(
    run: Folder,
    *,
    n: Count = 1000,
    steps: int = STEPS,
    seed: int = 0,
    sampler: str = SAMPLER,
    grid: str = GRID,
) -> Evaluation:
    """Compare samples of a run with held-out data: Frechet distance, copying, classes. Writes evaluation.json.

    Args:
        run: folder of a trained run.
        n: how many samples.
        steps: steps of the sampler.
        seed: of the noise.
        sampler: as for sample.
        grid: as for sample.

    Raises:
        UserError: no such run, or its data are gone or have no held-out part.
    """
    from sfumato.engine.evaluate import evaluate

    return evaluate(Path(run), n, seed, steps, sampler, grid)


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
    """Say how likely held-out data are: log p by the flow and bounds on it, in bits/dim, and the extreme examples.

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
    from sfumato.engine.choices import device_of
    from sfumato.engine.likelihood import How, likelihood
    from sfumato.view.extremes import extremes

    how = How(n, exact, probes, draws, vlb_calls, tolerance, seed)
    result = likelihood(Path(run), data, how, None if out is None else Path(out), device_of(device)[0])
    extremes(result)
    return result


def show(
    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN|DATA")]],
    *,
    gif: bool = False,
    schedule: str = "cosine",
    steps: int = STEPS,
    seed: int = 0,
    sampler: str = SAMPLER,
    grid: str = GRID,
    out: str | None = None,
) -> list[Path]:
    """Draw how data turn to noise and back: strips, schedules; for points paths, score and density too.

    Args:
        source: folder of a trained run, or data as for inspect (then only the way to noise is drawn).
        gif: draw an animation too.
        schedule: of the way to noise where there is no run.
        steps: steps of the way back.
        seed: of the noise.
        sampler: as for sample.
        grid: as for sample.
        out: folder for the pictures; by default show/ in the run, or show/ and the name of the data.

    Returns:
        The pictures.

    Raises:
        UserError: neither a run nor data.
    """
    from sfumato.view.show import show

    return show(source, gif=gif, schedule=schedule, steps=steps, seed=seed, method=sampler, grid=grid, out=out)


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


def load(run: str | Path) -> Diffusion:
    """Load a trained model, with its averaged weights.

    Args:
        run: folder of the run.

    Raises:
        UserError: no such run, or a damaged checkpoint.
    """
    from sfumato.engine.run import Run

    return Run.open(Path(run)).load()[0]
