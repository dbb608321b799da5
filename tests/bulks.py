"""Runs that cost next to nothing, and what a bulk of their samples has to be."""

import io
import tarfile

import torch

from commands import everything
from sfumato.cli import main
from sfumato.data import load as load_data
from sfumato.dist import stream
from sfumato.engine.config import Config
from sfumato.engine.run import Run
from sfumato.engine.trainer import Trainer
from sfumato.models.diffusion import DiffusionSpec

DIGITS = DiffusionSpec(network="unet", widths=(8,), blocks=1, attention=(False,), classes=10)
POINTS = DiffusionSpec(network="mlp", widths=(16,), blocks=1)
BATCH = 256
MANY = ["--first", 100, "-n", 1500, "--steps", 1]  # seven batches, the first and the last of them cut


def random_run(folder, data, spec):
    """A run whose weights are random, so that no two samples are alike, and cost next to nothing."""
    dataset = load_data(data)
    trainer = Trainer(Run.create(folder, Config(data=data, model=spec, steps=1, threads=1), dataset), dataset)
    with torch.no_grad():
        for k, parameter in enumerate(trainer.ema.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream(0, k)))
    trainer.save()
    return folder


def sample(run, *words):
    return main([str(word) for word in ("sample", run, *MANY, *words)])


def result(out):
    """What a bulk has to show, by name; nothing else may lie there."""
    files = {str(path.relative_to(out)): content for path, content in everything(out).items()}
    assert files.pop(".lock") == b""
    assert not [name for name in files if name.startswith(".")]
    return files


def members(files):
    """The files inside of tar shards, in the order of the shards."""
    for name in sorted(name for name in files if name.endswith(".tar")):
        with tarfile.open(fileobj=io.BytesIO(files[name])) as archive:
            for entry in archive:
                assert (entry.mtime, entry.uid, entry.gid, entry.uname, entry.mode) == (0, 0, 0, "", 0o644)
                yield entry.name, archive.extractfile(entry).read()
