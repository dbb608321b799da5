"""A checkpoint that was changed is never loaded, and whatever a disk does during a write, a good one stays."""

import errno
import hashlib
import json
import os
import random

import pytest
import torch

from sfumato import files
from sfumato.engine import checkpoint
from sfumato.errors import UserError

NOTES = {"step": "7", "total": "100"}


def tensors(step):
    return {
        "model.a": torch.arange(12.0).view(3, 4) + step,
        "ema.a": torch.full((3, 4), step),
        "optimizer.0.step": torch.tensor(step),
    }


def save(folder, step):
    return checkpoint.save(folder, step, tensors(float(step)), NOTES | {"step": str(step)})


def loads(folder):
    """The step of the checkpoint that loads, after a look at all that it holds."""
    found = checkpoint.load(folder)
    step = int(found.notes["step"])
    expected = tensors(float(step))
    assert found.notes == NOTES | {"step": str(step)}
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[name], expected[name]) for name in expected)
    return step


def test_the_newest_two_are_kept_and_latest_names_the_last(tmp_path):
    for step in (1, 2, 3):
        path = save(tmp_path, step)
        assert (tmp_path / "latest").read_text() == path.name
        assert loads(tmp_path) == step
        assert path.stem.rpartition("-")[2] == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert [path.name[:13] for path in checkpoint.checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.load(tmp_path / "nothing")


def test_a_damaged_one_is_told_set_aside_and_the_one_before_is_used(tmp_path):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    newer.write_bytes(newer.read_bytes()[:-1])
    found = checkpoint.load(tmp_path)
    assert [path for path, _ in found.damaged] == [newer]
    assert loads(tmp_path) == 1
    checkpoint.set_aside(found)
    assert checkpoint.checkpoints(tmp_path) == [older]
    assert newer.with_suffix(".damaged").exists()
    third = save(tmp_path, 2)
    assert checkpoint.checkpoints(tmp_path) == [older, third]
    for path in (older, third):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"every checkpoint is damaged.*step-00000002.*checksum.*step-00000001"):
        checkpoint.load(tmp_path)


def test_latest_that_lies_does_no_harm(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    for content in (b"", b"\xff\xfe", b"step-00000009-0123456789abcdef.safetensors", b"../../etc/passwd", b"\0"):
        (tmp_path / "latest").write_bytes(content)
        assert loads(tmp_path) == 2


def changed(content, rng):
    """A damaged copy: bits flipped, cut, zeroed, lengthened, moved, or another header."""
    kind, at = rng.randrange(8), rng.randrange(len(content))
    damaged = bytearray(content)
    if kind == 0:
        damaged[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        damaged = damaged[:at]
    elif kind == 2:
        span = slice(at, at + rng.randrange(1, 64))
        damaged[span] = bytes(len(damaged[span]))
    elif kind == 3:
        damaged += rng.randbytes(rng.randrange(1, 64))
    elif kind == 4:
        damaged = damaged[at:] + damaged[:at]
    elif kind == 5:
        damaged[:8] = rng.randbytes(8)
    elif kind == 6:
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        header["__metadata__"]["step"] = str(rng.randrange(1000, 9999))
        text = json.dumps(header).encode()
        damaged = len(text).to_bytes(8, "little") + text + content[end:]
    else:
        damaged = bytearray(rng.randbytes(rng.randrange(200)))
    return bytes(damaged)


@pytest.mark.parametrize("renamed", [False, True], ids=["as named", "checksum renamed"])
def test_a_thousand_damaged_files_are_refused_in_one_line(tmp_path, renamed):
    """Twice 1,000 variants. One whose name was changed to match is what its name says: it loads, or is refused."""
    rng = random.Random(renamed)
    good = save(tmp_path, 7)
    content = good.read_bytes()
    good.unlink()
    (tmp_path / "latest").unlink()
    for _ in range(1000):
        damaged = changed(content, rng)
        if damaged == content:
            continue
        path = tmp_path / good.name
        if renamed:
            path = tmp_path / f"step-00000007-{hashlib.sha256(damaged).hexdigest()[:16]}.safetensors"
        path.write_bytes(damaged)
        if renamed:
            try:
                checkpoint.load(tmp_path)
            except UserError as error:
                assert "\n" not in str(error)
        else:
            with pytest.raises(UserError, match="every checkpoint is damaged"):
                checkpoint.load(tmp_path)
        path.unlink()


FAULTS = {
    "full": OSError(errno.ENOSPC, "No space left on device"),
    "broken": OSError(errno.EIO, "Input/output error"),
    "read-only": OSError(errno.EROFS, "Read-only file system"),
}
CALLS = ("open", "write", "fsync", "close", "replace")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", CALLS)
def test_whatever_call_fails_a_good_checkpoint_loads(tmp_path, monkeypatch, call, fault):
    """Every time that a save makes the call, it fails once there; the third checkpoint of three is being written."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    reached, step = True, 3
    while reached and step < 20:
        reached = False
        count = step - 3
        whole = getattr(os, call)
        with monkeypatch.context() as patch:

            def broken(*words, whole=whole, **named):
                nonlocal count, reached
                count -= 1
                if count == -1:
                    reached = True
                    if call == "close":
                        whole(*words)
                    raise FAULTS[fault]
                return whole(*words, **named)

            patch.setattr(files.os, call, broken)
            if call == "replace":
                patch.setattr(files.Path, "replace", lambda self, target: broken(self, target))
            try:
                save(tmp_path, step)
            except UserError as error:
                assert FAULTS[fault].strerror in str(error)
                assert "\n" not in str(error)
            else:
                assert not reached
        assert loads(tmp_path) in (step - 1, step)
        assert not list(tmp_path.glob(".*.tmp"))
        save(tmp_path, step)
        step += 1
    assert step > 4  # the call was made, and failed, at least once


def test_short_writes_are_gone_on_with(tmp_path, monkeypatch):
    whole = os.write
    monkeypatch.setattr(files.os, "write", lambda file, content: whole(file, bytes(content[:13])))
    save(tmp_path, 5)
    assert loads(tmp_path) == 5


def test_what_a_killed_process_left_is_swept(tmp_path):
    (tmp_path / ".step-00000001.safetensors.123.tmp").write_bytes(b"half")
    save(tmp_path, 1)
    assert not list(tmp_path.glob(".*.tmp"))
