"""Tar shards: what a sample is, and that nothing in a hostile archive does more than be ignored or named."""

from __future__ import annotations

import gzip
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato.data as data
from pictures import GREY, png
from sfumato.errors import UserError
from shards import add


def picture(level: int, folder: Path) -> bytes:
    return png(folder / "one.png", np.full((8, 8), level, np.uint8)).read_bytes()


@pytest.fixture
def pack(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a tar of (name, level or content) members into a folder of its own."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def write(members: Sequence[tuple[str, int | bytes]], name: str = "a.tar") -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(tmp_path / name, "w") as out:
            for member, content in members:
                add(out, member, picture(content, elsewhere) if isinstance(content, int) else content)
        return tmp_path / name

    return write


def levels(loaded: data.Dataset) -> list[int]:
    return loaded.items[:][:, 0, 0, 0].tolist()


def named(loaded: data.Dataset) -> list[str]:
    assert loaded.labels is not None
    return [loaded.classes[label] for label in loaded.labels.tolist()]


def said(loaded: data.Dataset, text: str) -> bool:
    return any(text in note for note in loaded.notes)


def test_labels(pack: Callable[..., Path]) -> None:
    members = [("a.png", 1), ("a.cls", b"10\n"), ("b.json", b'{"label": 9}'), ("b.png", 2), ("c.json", b'{"label": 0}')]
    members += [("c.cls", b"9"), ("c.png", 3)]
    members += [("d.png", 4), ("d.cls", b"9"), ("d.json", b'{"label": "z"}'), ("d.dat", b"x")]
    path = pack(members)
    loaded = data.load(path, stream=True)
    assert levels(loaded) == [1, 2, 3, 4] and named(loaded) == ["10", "9", "9", "9"]
    assert loaded.classes == ("9", "10")  # sorted as numbers; what .cls overruled is no class
    assert said(loaded, "ignored: .dat (1)")


@pytest.mark.parametrize("stream", [True, False])
def test_captions(pack: Callable[..., Path], stream: bool) -> None:
    """A .txt is believed before a .json, whichever comes first; what is too long or no text is none."""
    members = [("a.png", 1), ("a.txt", b" a red circle\n"), ("b.json", b'{"text": "two", "more": 1}'), ("b.png", 2)]
    members += [
        ("c.json", b'{"caption": "no"}'),
        ("c.txt", b"yes"),
        ("c.png", 3),
        ("d.png", 4),
        ("d.txt", b"x" * 20_000),
    ]
    members += [("e.png", 5), ("e.txt", b"\xff\xfe")]
    loaded = data.load(pack(members), stream=stream)
    assert loaded.captions == ("a red circle", "two", "yes", None, None)
    assert data.load(pack([("a.png", 1), ("b.png", 2)], "b.tar")).captions == ()


@pytest.mark.parametrize("stream", [True, False])
def test_no_label_among_labels_is_a_fault(pack: Callable[..., Path], stream: bool) -> None:
    members = [
        ("a.png", 1),
        ("a.cls", b"x"),
        ("b.png", 2),
        ("c.png", 3),
        ("c.cls", b" "),
        ("d.json", b"{["),
        ("d.png", 4),
    ]
    members += [("e.json", b'["label"]'), ("e.png", 5), ("f.cls", b"\xff"), ("f.png", 6)]
    members += [("g.cls", b"x" * 70_000), ("g.png", 7)]
    path = pack(members)
    with pytest.raises(UserError, match=r"a\.tar/b\.png: no label \(and 5 more bad\)"):
        data.load(path, stream=stream)
    assert levels(data.load(path, stream=stream, skip_bad=True)) == [1]


def test_a_sample_ends_where_its_name_does(pack: Callable[..., Path]) -> None:
    """The name up to the first dot counts, and only while it lasts."""
    path = pack(
        [
            ("x/a.png", 1),
            ("x/a.mask.png", 9),
            ("y/a.png", 2),
            ("y/a.cls", b"y"),
            ("x/a.cls", b"x"),
            ("x/a.thumb.PNG", 3),
        ]
    )
    loaded = data.load(path, stream=True, skip_bad=True)
    assert levels(loaded) == [2, 3] and named(loaded) == ["y", "x"]  # the first has no label
    assert said(loaded, "further pictures of one sample (a name counts up to its first dot) (1)")


@pytest.mark.parametrize("stream", [True, False])
def test_hostile_members_are_ignored(tmp_path: Path, pack: Callable[..., Path], stream: bool) -> None:
    path = pack([("good.png", 7)])
    secret = png(tmp_path / "secret" / "s.png", GREY)
    kinds = {
        "link.png": {"type": tarfile.SYMTYPE, "linkname": str(secret)},
        "hard.png": {"type": tarfile.LNKTYPE, "linkname": "good.png"},
        "device.png": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3},
        "block.png": {"type": tarfile.BLKTYPE},
        "pipe.png": {"type": tarfile.FIFOTYPE},
        "odd.png": {"type": tarfile.CONTTYPE},
        "sparse.png": {"pax_headers": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}},
    }
    with tarfile.open(path, "a") as out:
        for name, what in kinds.items():
            add(out, name, b"" if name != "sparse.png" else b"1\n0\n4\n".ljust(512, b"\0"), **what)
        for name in ("../up.png", "/abs.png", "a/../../b.png", ".hidden.png", "folder/._resource.png"):
            add(out, name, secret.read_bytes())
        add(out, "folder", b"", type=tarfile.DIRTYPE)
    loaded = data.load(path, stream=stream)
    assert levels(loaded) == [7]
    expected = ["links, devices or sparse files (7)", "names that point outside (3)", "hidden files (2)", "folders (1)"]
    assert all(said(loaded, text) for text in expected), loaded.notes
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tar", "secret"]  # nothing unpacked


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A header made by hand, so that it can say what no library writes."""
    block = bytearray(512)
    block[: len(name)], block[124:136], block[156:157], block[257:263] = name, size, kind, b"ustar\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


LIES = {
    "negative": b"\xff" * 10 + b"\xfc\x00",  # -1024: a reader that believes it goes back for ever
    "huge": b"\x80" + b"\x7f" * 11,
    "beyond": b"%011o\0" % 2**33,
}


@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"g", b"S"])
@pytest.mark.parametrize("lie", LIES)
def test_sizes_that_lie_are_found_out(pack: Callable[..., Path], lie: str, kind: bytes) -> None:
    path = pack([("good.png", 7)])
    whole = path.read_bytes()
    end = 512 + -(-int(whole[124:135], 8) // 512) * 512
    path.write_bytes(whole[:end] + header(b"lie.png", LIES[lie], kind) + whole[end:])
    loaded = data.load(path, stream=True, skip_bad=True)
    assert set(levels(loaded)) == {7}


def test_what_is_cut_off_or_damaged_is_named(pack: Callable[..., Path]) -> None:
    path = pack([("a.png", 1), ("b.png", 2), ("c.png", 3)])
    whole = path.read_bytes()
    for damaged, reason in (
        (whole[:2600], "cut off|unexpected end"),
        (whole[:2048] + b"?" * 512 + whole[2560:], "what follows"),
    ):
        path.write_bytes(damaged)
        findings = data.inspect(path, stream=True)
        told = [*findings.notes, *(f"{name}: {why}" for name, why in findings.bad)]
        assert findings.count < 3 and any(word in line for line in told for word in reason.split("|")), told
    with pytest.raises(UserError, match=r"a\.tar: damaged at byte 2,048"):
        data.load(path)


def test_a_compressed_tar_is_refused(tmp_path: Path, pack: Callable[..., Path]) -> None:
    path = pack([("a.png", 1)])
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match=r"a\.tar: not a plain tar file.*compressed"):
        data.load(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.tar"):
        data.load(path)
    pack([("a.txt", b"x")])
    with pytest.raises(UserError, match=r"a\.tar: no PNG"):
        data.load(path)


def test_flipped_bytes_never_raise_anything_else(pack: Callable[..., Path]) -> None:
    path = pack([(f"{'deep/' * 40}{k}.{end}", 5 if end == "png" else b"x") for k in range(3) for end in ("png", "cls")])
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 6)] = rng.integers(0, 256, 6)
        path.write_bytes(damaged.tobytes())
        try:
            assert set(levels(data.load(path, stream=True, skip_bad=True))) <= set(range(256))
        except UserError as error:
            assert "\n" not in str(error)


def test_shards_named_after_parts(pack: Callable[..., Path], tmp_path: Path) -> None:
    pack([("a.png", 1), ("a.cls", b"x")], "train-00.tar")
    pack([("a.png", 2), ("a.cls", b"y")], "train-01.tar")
    pack([("a.png", 3), ("a.cls", b"y")], "test-00.tar")
    (tmp_path / "readme.txt").write_text("shards")
    loaded = data.load(tmp_path, stream=True)
    assert loaded.test is not None and (levels(loaded), levels(loaded.test)) == ([1, 2], [3])
    assert named(loaded.test) == ["y"]
    (tmp_path / "train").mkdir()
    (tmp_path / "test-00.tar").rename(tmp_path / "other.tar")
    assert levels(data.load(tmp_path, stream=True)) == [3, 1, 2]  # not all say a part: one set


def test_pictures_win_over_tars(pack: Callable[..., Path], tmp_path: Path) -> None:
    pack([("a.png", 1)])
    png(tmp_path / "b.png", GREY)
    assert torch.equal(data.load(tmp_path).items[0][0], torch.from_numpy(GREY))


def test_odd_names_can_be_printed(pack: Callable[..., Path]) -> None:
    path = pack([("a\x1b[31m\n.png", b"no picture"), (os.fsdecode(b"\xe9.png"), 1)])
    with pytest.raises(UserError, match=r"a\.tar/a\\x1b\[31m\\n\.png: not a PNG"):
        data.load(path)
    assert levels(data.load(path, stream=True, skip_bad=True)) == [1]
