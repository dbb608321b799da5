"""Killed and resumed runs end with the bits of the run that nobody touched."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import safetensors
import torch

from sfumato.engine.checkpoint import checkpoints

WAYS = {
    "points": ["train", "points", "--steps", "1500"],
    "digits": ["train", "digits", "--classes", "--size", "tiny", "--batch", "16", "--steps", "60"],
}


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "sfumato", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def final(run):
    with safetensors.safe_open(checkpoints(run / "checkpoints")[-1], framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def kill_and_compare(way, tmp_path, kills):
    finish(start(*WAYS[way], "--out", tmp_path / "straight", "--save-every", 1e9))
    run = tmp_path / "killed"
    rng = random.Random(way)
    process = start(*WAYS[way], "--out", run, "--save-every", 0.05)
    killed = 0
    while killed < kills and process.poll() is None:
        before = checkpoints(run / "checkpoints")
        while process.poll() is None and checkpoints(run / "checkpoints") == before:
            time.sleep(0.01)  # at least one new checkpoint, or the run would never end
        time.sleep(rng.uniform(0, 0.3))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
            process = start("resume", run)
    finish(process)
    ours, theirs = final(tmp_path / "straight"), final(run)
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("ema.") for name in ours)
    for name, tensor in ours.items():
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), theirs[name].reshape(-1).view(torch.uint8)), name
    return killed


@pytest.mark.parametrize("way", WAYS)
def test_killed_three_times(way, tmp_path):
    assert kill_and_compare(way, tmp_path, 3) == 3


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_killed_twenty_times(way, tmp_path, monkeypatch):
    monkeypatch.setitem(WAYS, way, [*WAYS[way][:-1], str(8 * int(WAYS[way][-1]))])  # long enough to be killed so often
    assert kill_and_compare(way, tmp_path, 20) == 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_is_saved_and_goes_on(number, tmp_path):
    run = tmp_path / "run"
    process = start("train", "moons", "--steps", 100_000, "--out", run, "--save-every", 1e9)
    while not (run / "log.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(checkpoints(run / "checkpoints")) == 2  # the first, and the one that the signal asked for
