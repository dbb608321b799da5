"""Bulk generation through crashes: what is done stays done, and the end is the same to the byte."""

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bulks import BATCH, DIGITS, MANY, members, random_run, result, sample
from commands import everything, fails, start
from sfumato.cli import main
from sfumato.engine import bulk as bulk_module
from sfumato.engine.progress import Plain


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return random_run(tmp_path_factory.mktemp("bulk") / "run", "digits", DIGITS)


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """The bulk of one worker that nobody disturbed, seven shards of one batch."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert sample(digits, "--shards", 7, "--format", "tar", "--out", out) == 0
    return result(out)


def wait(condition, longest):
    end = time.monotonic() + longest
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)


def marks(out):
    return {path.stem for path in out.glob("*.done")}


@pytest.mark.parametrize(
    ("form", "stride"), [("tar", 6), *(pytest.param(form, 1, marks=pytest.mark.slow) for form in ("tar", "png", "npz"))]
)
def test_killed_at_every_touch_of_the_disk(digits, tmp_path, form, stride):
    """Before each file that is opened, made, renamed or removed, once; the next start makes good what was lost."""
    few = ["sample", digits, "-n", 3, "--first", 255, "--steps", 1, "--shards", 2, "--format", form]
    assert main([str(word) for word in [*few, "--out", tmp_path / "whole"]]) == 0
    k, code = 1 - stride, -signal.SIGKILL
    while code == -signal.SIGKILL:
        k, out = k + stride, tmp_path / f"killed{k}"
        process = start([*few, "--out", out], doom=(out, k))
        process.join(60)
        code = process.exitcode
        kept = {path: path.stat().st_mtime_ns for path in out.glob("shard-*") if path.stem in marks(out)}
        assert len(kept) == 2 * len(marks(out))  # no mark without its shard
        assert main([str(word) for word in [*few, "--out", out]]) == 0
        assert result(out) == result(tmp_path / "whole")
        assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert code == 0
    assert k > 20


def killed(words, out, kills, longest):
    """Start a command again and again, kill it so many times while it works, and let it end."""
    rng, halves = random.Random(kills), []
    for _ in range(kills):
        desks, done = set(out.glob(".work-*")), marks(out)
        process = start(words)
        wait(lambda desks=desks: set(out.glob(".work-*")) - desks, 60)
        wait(lambda done=done: len(marks(out) - done) > 1, rng.uniform(0, longest))  # something must be left to kill
        assert process.exitcode is None
        process.kill()
        process.join()
        halves += out.glob(".work-*/shard-*")
    assert halves  # some were killed in the middle of a shard
    assert len(marks(out)) < 7
    process = start(words)
    process.join(300)
    assert process.exitcode == 0


def test_killed_three_times(digits, whole, tmp_path):
    out = tmp_path / "out"
    killed(["sample", digits, *MANY, "--shards", 7, "--format", "tar", "--out", out], out, 3, 0.3)
    assert result(out) == whole


def test_a_full_disk_leaves_what_is_done(capsys, digits, whole, tmp_path, monkeypatch):
    out, sync = tmp_path / "out", os.fsync

    def full(descriptor):
        if len(marks(out)) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        words = ["sample", digits, *MANY, "--shards", 7, "--format", "tar", "--out", out]
        fails(capsys, words, str(out), "No space left", "free space")
    left = result(out)
    assert {name for name in left if name.startswith("shard")} >= {"shard-00000.tar", "shard-00001.done"}
    assert len([name for name in left if name.endswith(".done")]) == 2
    assert {name: whole[name] for name in left} == left
    assert sample(digits, "--shards", 7, "--format", "tar", "--out", out) == 0
    assert result(out) == whole


def test_ctrl_c_keeps_whole_shards_and_says_how_to_go_on(capsys, digits, whole, tmp_path, monkeypatch):
    class Impatient(Plain):
        def update(self, done, total, text):
            if done > 2 * BATCH:
                os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "out"
    words = ("--shards", 7, "--format", "tar", "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr(bulk_module, "watch", lambda *_: Impatient())
        assert sample(digits, *words) == 130
    assert "the same command goes on" in capsys.readouterr().out
    left = result(out)
    assert 0 < len(left) < len(whole)
    assert {name: whole[name] for name in left} == left
    assert sample(digits, *words) == 0
    assert result(out) == whole


@pytest.mark.parametrize("form", ["tar", "png"])
def test_what_is_damaged_is_made_again_and_nothing_else(digits, tmp_path, form):
    out, words = tmp_path / "out", ("--shards", 7, "--format", form)
    assert sample(digits, *words, "--out", out) == 0
    good = result(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    shards = [path for path in sorted(out.iterdir()) if path.name.startswith("shard") and path.suffix != ".done"]
    for shard in shards[:2]:
        file = shard if form == "tar" else next(shard.iterdir())
        file.write_bytes(file.read_bytes()[:-1])
    (out / "shard-00003.done").write_bytes(b'{"shard": 3}')
    (out / "shard-00004.done").write_bytes(b"\xff[")
    (out / "shard-00005.done").unlink()
    assert sample(digits, *words, "--out", out) == 0
    assert result(out) == good
    again = {path.relative_to(out).parts[0][:11] for path, at in times.items() if path.stat().st_mtime_ns != at}
    assert again == {f"shard-0000{k}" for k in (0, 1, 3, 4, 5)}


# ── At length ─────────────────────────────────────────────────────────────────────────────────────────────────────────

TEN_THOUSAND = ["-n", 10_000, "--steps", 8]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network of the usual size, in the precision and with the threads that this machine chooses."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    process(["train", "digits", "--classes", "--steps", "30", "--out", folder])
    return folder


@pytest.fixture(scope="module")
def one_run(trained, tmp_path_factory):
    """The files of 10,000 samples without shards."""
    out = tmp_path_factory.mktemp("one") / "out"
    process(["sample", trained, *TEN_THOUSAND, "--out", out])
    return {path.name: content for path, content in everything(out).items() if path.name != "grid.png"}


def process(words, *runner):
    """Run a command as a user does, with nothing of this process about it."""
    words = [str(word) for word in (*runner, "-m", "sfumato", *words)]
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["png", "tar", "npz"])
def test_ten_thousand_in_seven_shards_killed_three_times_are_those_of_one_run(trained, one_run, tmp_path, form):
    out, words = tmp_path / "killed", ["sample", trained, *TEN_THOUSAND, "--shards", 7, "--format", form]
    killed([*words, "--out", out], out, 3, 10)
    found = result(out)
    assert len(marks(out)) == 7
    if form == "png":
        assert {name.partition("/")[2]: content for name, content in found.items() if "/" in name} == one_run
    elif form == "tar":
        assert {name: content for name, content in members(found) if name.endswith(".png")} == one_run
    else:
        process([*words, "--out", tmp_path / "straight"])
        assert found == result(tmp_path / "straight")


@pytest.mark.slow
def test_torchrun_draws_what_one_run_draws(trained, one_run, tmp_path):
    """torchrun sets OMP_NUM_THREADS=1; the run was trained with as many threads as there are cores."""
    words = ["sample", trained, "-n", 1000, "--steps", 8, "--shards", 4, "--format", "tar", "--out", tmp_path / "out"]
    process(words, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    found = {name: content for name, content in members(result(tmp_path / "out")) if name.endswith(".png")}
    assert len(found) == 1000
    assert found == {name: one_run[name] for name in found}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_memory_stays_flat(trained, tmp_path):
    out = tmp_path / "out"
    child = start(["sample", trained, "-n", 20_000, "--steps", 2, "--shards", 1, "--format", "npz", "--out", out])
    wait(lambda: list(out.glob(".work-*/*.npz")), 60)
    time.sleep(2)  # the first batches fill the allocator's pools
    pages = []
    while child.exitcode is None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pages.append(int(Path(f"/proc/{child.pid}/statm").read_text().split()[1]))
        time.sleep(0.05)
    assert child.exitcode == 0
    pages = [n for n in pages if n]  # a process that ends has none
    assert len(pages) > 20
    assert max(pages) <= 1.05 * pages[0]
