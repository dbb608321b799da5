"""The log of a run: what is written can be read, what is done again is dropped, and what cannot be written is said."""

import errno
import json
import math
import mmap
import os
import platform
import stat
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.engine import gauge, track
from sfumato.engine.gauge import EDGES, ByLevel, Levels, memory
from sfumato.engine.machine import pages_kept
from sfumato.engine.track import EVENTS, Track, read_log
from sfumato.errors import UserError

LEVELS = Levels([0.5, None, 0.25, math.nan, 1.0, 2.0], [3, 0, 2, 1, 4, 5])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the records of a log, and how many lines are broken."""
    found = list(read_log(path))
    records = [record for record in found if record is not None]
    return records, len(found) - len(records)


def begun(path: Path, numbers: int = 5) -> Track:
    """Return a track of a run that logged the steps 10, 20, ..., each with a loss of its own."""
    track = Track(path, 0)
    for k in range(1, numbers + 1):
        track.numbers(10 * k, k, loss=1 / k, lr=1e-3)
    return track


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read(path)[0]]


def test_what_is_written_can_be_read(path: Path) -> None:
    with_all = {"loss": 0.1 + 0.2, "lr": 1e-3 / 3, "norm": 1e300, "items_per_second": 1234.5}
    log = Track(path, 0)
    log.numbers(3, 1.23456, **with_all, levels=LEVELS)
    log.event(4, "rollback", 2.0, to=3, why='a "quoted"\nline\u2028 with ü', losses=[math.inf, 1.0])
    log.numbers(5, 3.0, loss=math.nan, lr=torch.tensor(0.5), norm=np.float32(math.inf))
    log.close()
    text = path.read_text("utf-8")
    assert text.isascii() and text.endswith("\n") and len(text.splitlines()) == 3
    for line in text.splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    (first, event, last), broken = read(path)
    assert broken == 0
    assert first.items() >= (with_all | {"step": 3, "seconds": 1.23}).items()
    assert first["levels"] == [0.5, None, 0.25, None, 1.0, 2.0] and first["counts"] == LEVELS.counts
    assert {"event", "clock", "step", "seconds", "to", "why", "losses"} == event.keys()
    assert event["why"] == 'a "quoted"\nline\u2028 with ü' and event["losses"] == [None, 1.0] and event["to"] == 3
    assert (last["loss"], last["norm"], last["lr"]) == (None, None, 0.5)
    assert "levels" not in last and "items_per_second" not in last  # not known is not there


def test_a_line_is_out_before_the_next_step(path: Path) -> None:
    log = begun(path, 1)
    assert steps(path) == [10]
    log.event(11, "skip", 1.0)
    assert steps(path) == [10, 11]
    log.close()


def test_steps_after_the_checkpoint_are_dropped_and_the_rest_is_left_byte_by_byte(path: Path) -> None:
    log = begun(path)
    for what in EVENTS:
        log.event(35, what, 3.5)
    log.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + b'{"step": 20, "loss"')  # killed in the middle of a line
    Track(path, 30).close()
    kept = [*lines[:3], *(line for line in lines if json.loads(line).get("event") in track.LASTING)]
    assert path.read_bytes() == b"".join(kept)
    assert {"resume", "rollback", "damaged"} <= set(track.LASTING)
    assert "skip" not in track.LASTING and "end" not in track.LASTING  # the steps done again will skip and end again


def test_an_unbroken_log_is_not_written_anew(path: Path) -> None:
    begun(path).close()
    before = path.stat()
    Track(path, 50).close()
    assert path.stat().st_ino == before.st_ino and path.stat().st_mtime_ns == before.st_mtime_ns


def test_resumed_log_is_that_of_an_unbroken_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "memory", lambda: gauge.Memory(1.0, 2.0))
    begun(path, 7).close()
    unbroken = path.read_bytes()
    log = Track(path, 30)
    for k in range(4, 8):
        log.numbers(10 * k, k, loss=1 / k, lr=1e-3)
    log.close()
    assert path.read_bytes() == unbroken


def test_rewinding_drops_numbers_and_keeps_events(path: Path) -> None:
    log = begun(path)
    log.event(51, "skip", 5.0, loss=math.nan)
    log.event(51, "rollback", 5.0, to=20)
    log.rewind(20)
    log.numbers(30, 6.0, loss=9.0, lr=1e-4)
    log.close()
    assert steps(path) == [10, 20, 51, 51, 30]
    assert read(path)[0][-1]["loss"] == 9.0


BROKEN = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'"step"',
    b'{"loss": 1.0}',
    b'{"step": null}',
    b'{"step": 1.5}',
    b'{"step": true}',
    b'{"step": -1}',
    b'{"step": 1e999}',
    b'{"step": ' + b"9" * 5000 + b"}",
    b'{"step": 10, "x": ' + b"[" * 60_000,
]


def test_broken_lines_are_counted_and_dropped(path: Path) -> None:
    begun(path).close()
    good = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join(line for k, bad in enumerate(BROKEN) for line in (bad, good[k % 5])) + b"\n")
    records, broken = read(path)
    assert broken == len(BROKEN) and len(records) == len(BROKEN)
    Track(path, 50).close()
    assert read(path) == (records, 0)


def test_a_line_without_end_takes_no_memory(path: Path) -> None:
    path.write_bytes(b'{"step": 1}\n' + b"x" * (3 * track.LONGEST + 5))
    records, broken = read(path)
    assert len(records) == 1 and broken == 3
    assert max(len(line) for _, line in track._scan(path)) == track.LONGEST


def test_the_line_that_is_being_written_is_no_fault(path: Path) -> None:
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    assert read(path) == ([{"step": 1}], 0)
    assert read(path.with_name("none")) == ([], 0)


@pytest.mark.parametrize("name", ["rested", "resme", ""])
def test_events_have_known_names(path: Path, name: str) -> None:
    log = Track(path, 0)
    with pytest.raises(ValueError, match="no event"):
        log.event(0, name, 0.0)
    with pytest.raises(ValueError, match="clock"):
        log.event(0, "skip", 0.0, clock="noon")
    log.close()
    assert path.read_bytes() == b""


class Full:
    """A file on a full disk, that takes a few bytes at a time before."""

    def __init__(self, file: object, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.file.write(data[: min(7, self.room)])
        self.room -= taken
        return taken

    def close(self) -> None:
        self.file.close()


def test_short_writes_are_gone_on_with_and_a_full_disk_is_one_line(path: Path) -> None:
    log = begun(path, 2)
    whole = path.read_bytes()
    log._file = Full(log._file, 200)
    log.event(21, "skip", 2.0)
    with pytest.raises(UserError, match=r"log\.jsonl: cannot be written \(No space left on device\)"):
        log.event(22, "skip", 2.0, why="x" * 100)
    log.close()
    assert steps(path) == [10, 20, 21]
    Track(path, 20).close()
    assert path.read_bytes() == whole


def test_a_log_that_cannot_be_opened_is_one_line(path: Path) -> None:
    path.mkdir()
    for step in (lambda: Track(path, 0), lambda: read(path)):
        with pytest.raises(UserError, match=r"log\.jsonl: cannot be read \(Is a directory\)"):
            step()
    with pytest.raises(UserError, match="cannot be written"):
        Track(path / "none" / "log.jsonl", 0)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_log_is_one_line(path: Path) -> None:
    begun(path).close()
    path.chmod(stat.S_IRUSR)
    with pytest.raises(UserError, match="Permission denied"):
        Track(path, 50)


def test_means_by_level_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    by_level = ByLevel()
    losses = rng.exponential(size=(20, 64)).astype(np.float32)
    levels = rng.normal(-0.5, 1.2, size=(20, 64))
    levels[0, :5] = EDGES  # a level on an edge belongs below
    levels[1, :2] = -40, 40
    for loss, level in zip(losses, levels, strict=True):
        by_level.add(torch.from_numpy(loss).requires_grad_(), torch.from_numpy(level))
    told = by_level.read()
    cells = [levels <= EDGES[0], *((levels > a) & (levels <= b) for a, b in pairwise(EDGES))]
    cells.append(levels > EDGES[-1])
    assert told.counts == [int(cell.sum()) for cell in cells] and min(told.counts) > 0
    np.testing.assert_allclose(told.levels, [losses[cell].astype(float).mean() for cell in cells], rtol=1e-12)
    assert by_level.read() == Levels([None] * 6, [0] * 6)  # reading begins anew


def test_parts_of_several_processes_add_up() -> None:
    rng = np.random.default_rng(1)
    losses, levels = (torch.from_numpy(rng.normal(size=200) * 2) for _ in range(2))
    whole, one, two = ByLevel(), ByLevel(), ByLevel()
    whole.add(losses, levels)
    one.add(losses[:13], levels[:13])
    two.add(losses[13:], levels[13:])
    one.totals += two.totals  # what all_reduce does
    told, wanted = one.read(), whole.read()
    assert told.counts == wanted.counts
    np.testing.assert_allclose(told.levels, wanted.levels, rtol=1e-12)


def test_a_loss_that_is_not_finite_stays_in_its_bin() -> None:
    by_level = ByLevel()
    by_level.add(torch.tensor([1.0, math.nan, 3.0]), torch.tensor([-3.0, 0.0, 2.0]))
    told = by_level.read().levels
    assert told[0] == 1.0 and math.isnan(told[3]) and told[-1] == 3.0 and told[1] is None


def test_memory_is_that_of_this_process() -> None:
    before = memory()
    with mmap.mmap(-1, 32 * 2**20) as held:
        held.write(b"x" * (32 * 2**20))
        after = memory()
    assert before.now is not None and before.peak is not None
    assert before.now + 24 < after.now < before.now + 96
    assert memory().now < after.now - 24
    assert memory().peak > after.now - 1  # Linux counts pages loosely


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only GNU's C library says what it keeps")
def test_what_is_freed_but_kept_is_no_peak_of_what_comes_after() -> None:
    pages_kept()
    gauge.forget_peak()
    before = memory()
    held = [torch.ones(500_000) for _ in range(100)]
    assert memory().peak > before.now + 150
    del held
    gauge.forget_peak()
    assert memory().peak < before.now + 50


def test_memory_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = memory().peak

    def missing(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(gauge.Path, "open", missing)
    told = memory()
    assert told.now is None and told.peak == pytest.approx(peak, rel=0.02)
    monkeypatch.setattr(gauge.sys, "platform", "darwin")  # where the same number is in bytes
    assert memory().peak == pytest.approx(peak / 1024, abs=0.1, rel=0.02)


def test_tensorboard_is_told_the_same(path: Path, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "step-20.png")
    log = Track(path, 0, tmp_path / "board")
    for step in (10, 20, 30):
        log.numbers(step, 1.0, loss=step, lr=0.1, norm=0.5, items_per_second=7.0, levels=LEVELS)
    log.preview(20, 1.0, tmp_path / "step-20.png")
    log.close()
    log = Track(path, 20, tmp_path / "board")  # the process was killed: step 30 comes again
    log.numbers(30, 2.0, loss=31.0, lr=0.1)
    log.rewind(20)
    log.numbers(30, 2.0, loss=32.0, lr=0.1)
    log.close()
    board = events.EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss")] == [(10, 10.0), (20, 20.0), (30, 32.0)]
    parts = {name for name in board.Tags()["scalars"] if name.startswith("loss by")}
    assert parts == {f"loss by noise level/{k} of 6" for k in (1, 3, 4, 5, 6)}
    assert {"norm", "lr", "items_per_second", "memory", "peak"} <= set(board.Tags()["scalars"])
    (image,) = board.Images("samples")
    assert (image.step, image.width, image.height) == (20, 8, 6)
    assert [record["event"] for record in read(path)[0] if "event" in record] == ["preview"]


def test_without_tensorboard_the_extra_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(track, "import_module", absent)
    with pytest.raises(UserError, match=r"sfumato\[track\]") as caught:
        Track(path, 0, path.parent / "board")
    assert "\n" not in str(caught.value)
