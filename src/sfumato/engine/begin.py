"""Beginning and resuming runs, alone or with the processes that torchrun has started.

Rank 0 looks at the data, chooses what was left open and makes the folder; the others open it.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sfumato.data import Dataset
from sfumato.data import load as load_data
from sfumato.engine.asked import Asked, Choices
from sfumato.engine.choices import configure
from sfumato.engine.distributed import Workers, joined, restarted, world
from sfumato.engine.latent import autoencoder
from sfumato.engine.machine import device_of, tuned
from sfumato.engine.progress import Watch, duration, watch
from sfumato.engine.run import Run, latest
from sfumato.engine.session import Session
from sfumato.engine.trainer import Trainer
from sfumato.engine.worker import sole
from sfumato.errors import UserError
from sfumato.models.latent import LatentCodec

__all__ = ["RUNS", "begin", "go_on", "train_run"]

RUNS = Path("runs")
"""Where runs lie unless asked otherwise."""


def begin(asked: Asked) -> Path:
    """Start a run and train it to its end; see ``sfumato.verbs.train``."""
    device, _ = device_of(asked.device)
    if asked.latent and asked.codec is None:
        place = RUNS / Path(asked.data).stem if asked.out is None else Path(asked.out)
        with joined(device) as workers, workers.together():
            if workers.leads:
                _refuse(asked)
        asked = replace(asked, codec=str(begin(autoencoder(asked, place.with_name(f"{place.name}-codec")))))
    with joined(device) as workers:
        show = watch(leads=workers.leads)
        with workers.together():
            folder, dataset = _prepare(asked, show) if workers.leads else (Path(), None)
        run = Run.open(Path(workers.tell(str(folder))))
        return train_run(run, workers, show, dataset)


def _goes_on(asked: Asked, folder: Path) -> bool:
    return (asked.resume or restarted()) and folder.exists()


def _load(asked: Asked) -> Dataset:
    return load_data(asked.data, resolution=asked.resolution, skip_bad=asked.skip_bad, stream=asked.stream or None)


def _folder(asked: Asked, dataset: Dataset) -> Path:
    if asked.out is not None:
        return Path(asked.out)
    return RUNS / (Path(asked.data).stem if Path(asked.data).is_file() else dataset.name)


def _refuse(asked: Asked) -> None:
    """Raise what a run of latents would raise, before its autoencoder takes its time."""
    dataset = _load(asked)
    folder = _folder(asked, dataset)
    if not _goes_on(asked, folder):
        Run.refuse(folder)
        configure(dataset, replace(asked, batch=asked.batch or 1), Choices(), world())


def _prepare(asked: Asked, show: Watch) -> tuple[Path, Dataset]:
    """Make the folder of a run, or find the one that is to go on, and return it with its data."""
    dataset = _load(asked)
    folder = _folder(asked, dataset)
    if _goes_on(asked, folder):
        show.say(f"{folder}: exists, and goes on with what its config.toml says")
        return folder, dataset
    Run.refuse(folder)
    choices, latents = Choices(), None
    if asked.codec is not None:
        latents = _latents(asked.codec, dataset)
        show.say(f"{dataset.name}: to latents by {asked.codec}")
        dataset = latents.encoded(dataset)
    config = configure(dataset, asked, choices, world())
    shape = "x".join(map(str, dataset.codec.dims))
    show.say(f"{dataset.name}: {len(dataset.items):,} examples of {shape}, {len(dataset.classes)} classes -> {folder}")
    for line in (*(f"  note       {note}" for note in dataset.notes), *choices.lines):
        show.say(line)
    Run.create(folder, config, dataset, latents=latents)
    return folder, dataset


def _latents(codec: str, dataset: Dataset) -> LatentCodec:
    """Return the latents of a trained autoencoder, of pictures of the shape of some data."""
    found = Run.open(Path(codec)).latents()
    if found.pixel != dataset.codec:
        ours, theirs = (each.to_dict() for each in (dataset.codec, found.pixel))
        raise UserError(f"{codec}: an autoencoder of {theirs}, and the data are {ours}: train one on them")
    return found


def go_on(run: str | None) -> Path:
    """Resume a run; see ``sfumato.verbs.resume``."""
    folder = latest(RUNS) if run is None else Path(run)
    if folder is None:
        raise UserError(f"no run below {RUNS}/ to go on with; name its folder, or begin with 'sfumato train DATA'")
    opened = Run.open(folder)
    with joined(opened.config.device) as workers:
        return train_run(opened, workers, watch(leads=workers.leads))


def train_run(run: Run, workers: Workers, show: Watch, dataset: Dataset | None = None) -> Path:
    """Train a run to its end with the number of threads it began with.

    Args:
        run: its folder.
        workers: the processes that share it.
        show: who is told.
        dataset: its data, if they are loaded.

    Returns:
        The folder.

    Raises:
        UserError: the data are gone, are other data, or the run cannot go on.
    """
    with ExitStack() as stack:
        with workers.together():
            if workers.leads:
                stack.enter_context(sole(run.folder))
        stack.enter_context(tuned(run.config.threads, run.config.device))
        try:
            trainer = Trainer(run, run.dataset() if dataset is None else dataset, workers)
            if trainer.finished:
                show.say(f"{run.folder}: finished before, at step {trainer.step}")
                return run.folder
            if run.precision(run.config.device) != run.config.model.precision:
                show.say("  note       computes in fp32: config.toml says bf16, which would be imitated here")
            if trainer.step:
                show.say(f"{run.folder}: going on at step {trainer.step} of {trainer.total}")
            if not Session(trainer, show).run():
                show.say(f"go on with: sfumato resume {run.folder}")
                raise KeyboardInterrupt
        finally:
            show.close()
    show.say(f"{run.folder}: {trainer.step} steps in {duration(trainer.seconds)}")
    return run.folder
