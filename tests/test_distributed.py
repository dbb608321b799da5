"""Many processes follow the law of one: same losses, same checkpoints, whoever computes which part."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import sfumato
from sfumato.data import load as load_data
from sfumato.engine import checkpoint
from sfumato.engine.config import Config, read_config
from sfumato.engine.distributed import Workers, parts_of
from sfumato.engine.run import Run
from sfumato.engine.trainer import Trainer
from sfumato.errors import UserError
from sfumato.models.diffusion import DiffusionSpec

SPEC = DiffusionSpec(network="unet", widths=(8, 16), blocks=1, attention=(False, True), classes=10)
CONFIG = Config(data="digits", model=SPEC, batch=32, parts=4, steps=200, seed=3)
STEPS = 50
SCRIPT = """
import json, sys, torch
from pathlib import Path
from sfumato.data import load
from sfumato.engine.distributed import joined, leave
from sfumato.engine.run import Run
from sfumato.engine.trainer import Trainer
torch.set_num_threads(1)
data = load("digits")
with joined("cpu") as workers:
    for folder in sys.argv[2:]:
        trainer = Trainer(Run.open(Path(folder)), data, workers)
        losses = [float(workers.sum(trainer.advance())) for _ in range(int(sys.argv[1]))]
        trainer.save()
        trainer.finish()
        if workers.leads:
            (Path(folder) / "losses.json").write_text(json.dumps([losses, trainer.ema.denoiser.mmse.tolist()]))
leave(0)
"""


def torchrun(processes, *words, **environment):
    source = str(Path(sfumato.__file__).parents[1])
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
        *map(str, words),
    ], {
        "env": os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": source} | environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }  # fmt: skip


def finished(processes, *words, timeout=180, **environment):
    command, how = torchrun(processes, *words, **environment)
    done = subprocess.run(command, timeout=timeout, check=False, **how)
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def together(tmp_path_factory, digits, well_measured):
    """(losses, mmse, checkpoint) of 50 steps of one config: alone; by 2 processes, DDP and FSDP2; by 4, DDP."""
    folder = tmp_path_factory.mktemp("together")
    script = folder / "train.py"
    script.write_text(SCRIPT)
    trainer = Trainer(Run.create(folder / "alone", CONFIG, digits), digits)
    losses = [float(trainer.advance()) for _ in range(STEPS)]
    trainer.save()
    trainer.finish()
    mmse = trainer.ema.denoiser.mmse.tolist()
    results = {"alone": (losses, mmse, checkpoint.load(folder / "alone" / "checkpoints").tensors)}
    for processes, names in ((2, ["ddp-2", "fsdp-2"]), (4, ["ddp-4"])):
        runs = [folder / name for name in names]
        for run in runs:
            Run.create(run, dataclasses.replace(CONFIG, shard=run.name.startswith("fsdp")), digits)
        code, said = finished(processes, script, STEPS, *runs)
        assert code == 0, said
        for run in runs:
            losses, mmse = json.loads((run / "losses.json").read_text())
            results[run.name] = losses, mmse, checkpoint.load(run / "checkpoints").tensors
    return results


@pytest.mark.parametrize("name", ["ddp-2", "fsdp-2", "ddp-4"])
def test_processes_follow_the_law_of_one(together, name):
    """Equal losses to 1e-5 for 50 steps, and whole checkpoints alike: weights, average, moments of the optimiser."""
    alone, shared = together["alone"], together[name]
    assert len(alone[0]) == STEPS
    assert alone[0][-1] < alone[0][0]
    assert shared[0] == pytest.approx(alone[0], abs=1e-5)
    assert shared[1] == pytest.approx(alone[1], rel=0.1)  # other noise: measured by each on its share
    assert shared[2].keys() == alone[2].keys()
    for key, tensor in alone[2].items():
        assert shared[2][key].shape == tensor.shape
        if key.endswith("step"):
            assert torch.equal(shared[2][key], tensor)
        elif not key.endswith("mmse"):  # measured later
            assert torch.allclose(shared[2][key], tensor, rtol=0, atol=1e-4), key


def test_parts_add_up_to_the_batch(tmp_path, digits):
    """Three workers for four parts: their shares of loss and gradient add up to those of one worker."""
    alone = Trainer(Run.of(tmp_path, CONFIG, digits), digits)
    loss = float(alone.advance())
    gradient = [p.grad.clone() for p in alone.parameters]
    sums = [torch.zeros_like(p) for p in gradient]
    shares = 0.0
    for rank in range(3):  # two calls each, two of the six without weight
        trainer = Trainer(Run.of(tmp_path, CONFIG, digits), digits)
        trainer.parts = parts_of(4, Workers(rank, 3))
        assert len(trainer.parts) == 2
        with_norm, torch.nn.utils.clip_grad_norm_ = torch.nn.utils.clip_grad_norm_, lambda p, c: torch.tensor(1.0)
        try:
            shares += float(trainer.advance())
        finally:
            torch.nn.utils.clip_grad_norm_ = with_norm
        for total, p in zip(sums, trainer.parameters, strict=True):
            total += p.grad
    assert shares == pytest.approx(loss, abs=1e-6)
    norm = torch.stack([g.norm() for g in sums]).norm()
    for total, one in zip(sums, gradient, strict=True):
        assert torch.allclose(total / max(float(norm), 1.0), one, atol=1e-6)


@pytest.mark.parametrize(("parts", "size"), [(1, 1), (4, 1), (4, 2), (4, 3), (5, 4), (7, 7)])
def test_every_part_counts_once_and_all_make_as_many_calls(parts, size):
    shared = [parts_of(parts, Workers(rank, size)) for rank in range(size)]
    assert sorted(part for own in shared for part, counts in own if counts) == list(range(parts))
    assert len({len(own) for own in shared}) == 1


def test_more_processes_than_parts_are_refused():
    with pytest.raises(UserError, match=r"2 parts: at most as many processes .* not 3"):
        parts_of(2, Workers(0, 3))


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(UserError, match="batch of 10 cannot be split into 4"):
        dataclasses.replace(CONFIG, batch=10)


WORDS = ("-m", "sfumato", "train", "digits", "--size", "tiny", "--batch", 16, "--steps", 40)


def test_one_process_of_two_is_killed_and_torchrun_starts_both_again(tmp_path):
    """Elastic restart: the run ends with the bits of one that nobody touched."""
    code, said = finished(2, *WORDS, "--out", tmp_path / "straight")
    assert code == 0, said
    assert said.count("next: sfumato sample") == 1  # one of the two speaks
    run = tmp_path / "killed"
    command, how = torchrun(2, *WORDS, "--out", run, "--save-every", 0.05)
    with subprocess.Popen([*command[:6], "--max-restarts", "2", *command[6:]], **how) as process:
        while len(checkpoint.checkpoints(run / "checkpoints")) < 2 and process.poll() is None:
            time.sleep(0.02)
        workers = children(process.pid)
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert "goes on with" in said
    ours, theirs = (checkpoint.load(path / "checkpoints").tensors for path in (tmp_path / "straight", run))
    assert all(torch.equal(ours[name].nan_to_num(), theirs[name].nan_to_num()) for name in ours)
    assert read_config(run / "config.toml").parts == 2


def children(parent):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def test_a_mistake_is_one_line_and_nobody_waits(tmp_path):
    (tmp_path / "run").mkdir()
    code, said = finished(2, *WORDS, "--out", tmp_path / "run", timeout=60)
    assert code != 0
    assert said.count("exists; go on with") == 1
    assert "sfumato/engine" not in said  # no traceback of ours


def test_shards_need_processes(tmp_path):
    with pytest.raises(UserError, match="start them with torchrun"):
        sfumato.train("digits", steps=1, shard=True, out=str(tmp_path / "run"))
