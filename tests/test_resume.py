"""Killed and resumed runs end with the bits of the run that nobody touched."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch

from sfumato.engine import interrupt
from sfumato.engine.checkpoint import checkpoints, load
from sfumato.engine.interrupt import Interrupt

WAYS = {
    "points": ["train", "points", "--steps", "600"],
    "digits": ["train", "digits", "--classes", "--size", "tiny", "--batch", "16", "--steps", "60"],
    "together": ["train", "digits", "--size", "tiny", "--batch", "16", "--steps", "60"],
}
"""Runs of one process and, the last, of two."""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(way, *words):
    before = TORCHRUN if way == "together" else []
    return subprocess.Popen(
        [sys.executable, *before, "-m", "sfumato", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def kill(process):
    """Kill a process and those that it started, if it is torchrun: first it, or it would start them again."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, check=False)
    process.kill()
    for pid in map(int, listed.stdout.split()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def kill_and_compare(way, tmp_path, kills):
    """Kill a run so many times, at any moment after its first new checkpoint, and resume it; return how often."""
    finish(start(way, *WAYS[way], "--out", tmp_path / "straight", "--save-every", 1e9))
    run = tmp_path / "killed"
    rng = random.Random(way)
    process = start(way, *WAYS[way], "--out", run, "--save-every", 0.05)
    killed = 0
    while killed < kills and process.poll() is None:
        before = checkpoints(run / "checkpoints")
        while process.poll() is None and checkpoints(run / "checkpoints") == before:
            time.sleep(0.01)  # at least one new checkpoint, or the run would never end
        time.sleep(rng.uniform(0, 0.3))
        if process.poll() is None:
            kill(process)
            killed += 1
            process = start(way, "resume", run)
    finish(process)
    ours, theirs = load(tmp_path / "straight" / "checkpoints"), load(run / "checkpoints")
    assert ours.notes["step"] == theirs.notes["step"] == WAYS[way][-1]  # and so the same next batch, a function of it
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert {name.split(".")[0] for name in ours.tensors} == {"model", "ema", "short", "optimizer"}
    for name, tensor in ours.tensors.items():
        bits = (each.reshape(-1).view(torch.uint8) for each in (tensor, theirs.tensors[name]))
        assert torch.equal(*bits), name
    return killed


@pytest.mark.parametrize(("way", "kills"), [("points", 4), ("digits", 3), ("together", 3)])
def test_killed_a_few_times(way, kills, tmp_path):
    assert kill_and_compare(way, tmp_path, kills) == kills


@pytest.mark.slow
@pytest.mark.parametrize(("way", "kills", "steps"), [("points", 70, 4000), ("digits", 65, 600), ("together", 65, 400)])
def test_killed_two_hundred_times_in_all(way, kills, steps, tmp_path, monkeypatch):
    """Runs about three times as long as it takes to be killed so often: what is left is saved at every step, too."""
    monkeypatch.setitem(WAYS, way, [*WAYS[way][:-1], str(steps)])
    assert kill_and_compare(way, tmp_path, kills) == kills


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_is_saved_and_goes_on(number, tmp_path):
    run = tmp_path / "run"
    process = start("points", "train", "moons", "--steps", 100_000, "--out", run, "--save-every", 1e9)
    while not (run / "log.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(checkpoints(run / "checkpoints")) == 2  # the first, and the one that the signal asked for


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_wish_that_comes_twice_is_one(number):
    """torchrun passes on what a terminal or a scheduler sent to all, and a parent's death is told once a thread."""
    with Interrupt() as asked:
        assert not asked
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert asked


def test_a_second_ctrl_c_stops_at_once(monkeypatch):
    with Interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(interrupt, "ECHO", -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_is_trained_by_one_at_a_time(tmp_path):
    run = tmp_path / "run"
    first = start("points", "train", "moons", "--steps", 100_000, "--out", run)
    while not checkpoints(run / "checkpoints"):
        time.sleep(0.05)
    second = start("points", "resume", run)
    assert b"another process is training it" in second.communicate(timeout=60)[1]
    assert second.returncode == 2
    assert first.poll() is None
    kill(first)


def test_processes_without_their_torchrun_stop_and_save(tmp_path):
    """Killed alone, torchrun leaves its processes behind: they must not go on unseen beside those of the next start."""
    run = tmp_path / "run"
    process = start("together", *WAYS["together"][:-1], 100_000, "--out", run, "--save-every", 1e9)
    while not (run / "checkpoints" / "latest").exists():
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)  # ends when they do: they hold its standard error
    assert '"stop"' in (run / "log.jsonl").read_text()
    assert len(checkpoints(run / "checkpoints")) == 2
