"""Bulk generation: the same bytes whatever the shards and the workers, and what is refused."""

import fcntl
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from bulks import BATCH, DIGITS, MANY, POINTS, members, random_run, result, sample
from commands import everything, fails, start
from sfumato.cli import main
from sfumato.engine.bulk import shared_out
from sfumato.engine.generate import Wish, drawing


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return random_run(tmp_path_factory.mktemp("bulk") / "run", "digits", DIGITS)


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    return random_run(tmp_path_factory.mktemp("bulk") / "run", "moons", POINTS)


@pytest.fixture(scope="module")
def plain(digits, tmp_path_factory):
    """The samples of one run without shards, by name."""
    out = tmp_path_factory.mktemp("plain") / "out"
    assert sample(digits, "--out", out) == 0
    files = {path.name: content for path, content in everything(out).items()}
    assert len(set(files.values())) == len(files) == 1501
    return files


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """The bulk of one worker that nobody disturbed, seven shards of one batch."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert sample(digits, "--shards", 7, "--format", "tar", "--out", out) == 0
    return result(out)


# ── Where shards begin ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("first", [0, 1, 255, 256, 700])
@pytest.mark.parametrize("n", [1, 255, 256, 257, 10_000])
@pytest.mark.parametrize("shards", [1, 2, 7, 39, 1000])
def test_shards_hold_every_sample_once_and_cut_no_batch(first, n, shards):
    plan = shared_out(range(first, first + n), shards, BATCH)
    assert [i for shard in plan for i in shard.indices] == list(range(first, first + n))
    assert [shard.number for shard in plan] == list(range(len(plan)))
    assert all(shard.indices.start % BATCH == 0 for shard in plan[1:])
    batches = [len({i // BATCH for i in shard.indices}) for shard in plan]
    assert len(plan) == min(shards, sum(batches))
    assert max(batches) - min(batches) <= 1


# ── The same bytes ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_png_shards_hold_the_files_of_one_run(digits, plain, tmp_path):
    assert sample(digits, "--shards", 3, "--out", tmp_path / "out") == 0
    files = result(tmp_path / "out")
    pictures = {name.partition("/")[2]: content for name, content in files.items() if "/" in name}
    assert {**pictures, "grid.png": plain["grid.png"]} == plain
    assert {name.partition("/")[0] for name in files if "/" in name} == {f"shard-0000{k}" for k in range(3)}


def test_tar_shards_hold_the_files_of_one_run_and_what_they_are(plain, whole):
    found = list(members(whole))
    assert [name for name, _ in found[:4]] == ["000100.png", "000100.json", "000100.cls", "000101.png"]
    files = dict(found)
    assert len(files) == len(found) == 3 * 1500
    for name, content in plain.items():
        if name != "grid.png":
            key, recipe = name[:-4], json.loads(Image.open(io.BytesIO(content)).text["sfumato"])
            assert files[name] == content
            assert json.loads(files[f"{key}.json"]) == recipe
            assert files[f"{key}.cls"].decode() == recipe["class"]


def test_the_number_of_shards_changes_where_samples_lie_and_nothing_else(digits, whole, tmp_path):
    assert sample(digits, "--shards", 2, "--format", "tar", "--out", tmp_path / "out") == 0
    files = result(tmp_path / "out")
    assert list(members(files)) == list(members(whole))
    assert files["grid.png"] == whole["grid.png"]


def test_npz_shards_are_arrays_without_pickle_and_the_same_each_time(digits, tmp_path):
    for name in ("a", "b"):
        assert sample(digits, "--shards", 3, "--format", "npz", "--out", tmp_path / name) == 0
    files = result(tmp_path / "a")
    assert files == result(tmp_path / "b")
    model = sfumato.load(digits)
    expected, first = model.sample(1500, first=100, steps=1), 100
    for k in range(3):
        entries = zipfile.ZipFile(io.BytesIO(files[f"shard-0000{k}.npz"])).infolist()
        assert {(entry.date_time, entry.create_system) for entry in entries} == {((1980, 1, 1, 0, 0, 0), 3)}
        with np.load(io.BytesIO(files[f"shard-0000{k}.npz"]), allow_pickle=False) as arrays:
            index, recipe = arrays["index"], json.loads(str(arrays["recipe"]))
            assert np.array_equal(index, np.arange(first, first + len(index)))
            assert np.array_equal(arrays["samples"], expected[index - 100])
            assert np.array_equal(arrays["labels"], index % 10)
            assert {"weights": model.fingerprint(), "first": first, "n": len(index)}.items() <= recipe.items()
            assert recipe["classes"] == [str(k) for k in range(10)]
            assert recipe["codec"] == model.codec.to_dict()
        first += len(index)
    assert first == 1600


def test_points_come_as_tables_or_arrays_and_not_as_pictures(capsys, moons, tmp_path):
    for form in ("csv", "npz"):
        assert sample(moons, "--shards", 3, "--format", form, "--out", tmp_path / form) == 0
    assert sample(moons, "--out", tmp_path / "plain") == 0
    rows = (tmp_path / "plain" / "points.csv").read_text().splitlines()[2:]
    assert len(set(rows)) == 1500
    shards = [(tmp_path / "csv" / f"shard-0000{k}" / "points.csv").read_text().splitlines()[2:] for k in range(3)]
    assert [row for shard in shards for row in shard] == rows
    arrays = [np.load(tmp_path / "npz" / f"shard-0000{k}.npz", allow_pickle=False) for k in range(3)]
    assert np.array_equal(np.concatenate([a["samples"] for a in arrays]), np.loadtxt(rows, np.float32, delimiter=","))
    assert all("labels" not in a for a in arrays)
    for form in ("png", "tar"):
        fails(capsys, ["sample", moons, "--format", form, "--out", tmp_path / "no"], form, "'points'", "csv or npz")
    assert not (tmp_path / "no").exists()


def test_fewer_samples_than_shards(capsys, digits, tmp_path):
    """A batch is never cut: 300 samples from index 100 on are two batches, so two shards."""
    assert main(["sample", str(digits), "-n", "300", "--first", "100", "--steps", "1", "--shards", "7", "--out",
                 str(tmp_path / "out")]) == 0  # fmt: skip
    assert "2 shards instead of 7" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out").glob("*.done")) == ["shard-00000.done", "shard-00001.done"]


def test_as_many_threads_draw_as_trained(digits, moons):
    """torchrun sets one thread for each worker; a plain run has as many as there are cores."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for asked, count in ((None, 1), (2, 2)):
            with drawing(digits, Wish(0, 1, "ddim", "logsnr"), "cpu", asked) as draws:
                assert torch.get_num_threads() == draws.threads == count
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# ── Many workers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_workers_take_turns_and_the_last_draws_the_picture(digits, whole, tmp_path, monkeypatch):
    """Their number may change from start to start, and so may their order."""
    out = tmp_path / "out"
    marks = {0: {1, 4}, 1: {0, 2, 4, 6}, 2: {0, 1, 2, 3, 4, 5, 6}}
    for k, (rank, world) in enumerate([(1, 3), (0, 2), (1, 2)]):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        assert sample(digits, "--shards", 7, "--format", "tar", "--out", out) == 0
        done = {int(path.stem[-5:]) for path in out.glob("*.done")}
        assert done == (marks[k] | marks[0] if k else marks[0])
        assert (out / "grid.png").exists() == (k == 2)
    assert result(out) == whole


def test_two_workers_at_once(digits, whole, tmp_path):
    out = tmp_path / "out"
    words = ["sample", digits, *MANY, "--shards", 7, "--format", "tar", "--out", out]
    workers = [start(words, {"RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}) for rank in (0, 1)]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert result(out) == whole


def test_what_a_living_worker_writes_is_not_swept(digits, whole, tmp_path):
    out = tmp_path / "out"
    for name in (".work-living", ".work-dead", ".work-half-swept"):
        (out / name).mkdir(parents=True)
        (out / name / "shard-00000.tar").write_bytes(b"half")
    (out / ".work-dead" / "alive").touch()
    with (out / ".work-living" / "alive").open("wb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        assert sample(digits, "--shards", 7, "--format", "tar", "--out", out) == 0
        assert [path.name for path in out.glob(".work-*")] == [".work-living"]
        assert (out / ".work-living" / "shard-00000.tar").read_bytes() == b"half"
    assert sample(digits, "--shards", 7, "--format", "tar", "--out", out) == 0
    assert result(out) == whole


# ── What is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (["--seed", 1], ["seed = 0 where 1 is asked"]),
        (["--shards", 5], ["shards = 7 where 5"]),
        (["-n", 1501], ["n = 1500 where 1501"]),
        (["--format", "npz"], ["format = tar where npz"]),
        (["--threads", 2], ["threads = 1 where 2"]),
        (["--class", 3], ["asked for = None where 3"]),
    ],
)
def test_another_bulk_does_not_go_into_the_same_folder(capsys, digits, tmp_path, change, parts):
    words = ["sample", digits, *MANY, "--shards", 7, "--format", "tar", "--out", tmp_path / "out"]
    first = dict(zip(words[2::2], words[3::2], strict=True)) | {"-n": 1500}
    assert first["--shards"] == 7
    assert main([str(word) for word in words]) == 0
    before = everything(tmp_path)
    fails(capsys, [*words, *change], *parts, "choose another --out")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b" " * (2 << 20)])
def test_a_damaged_manifest_is_refused(capsys, digits, tmp_path, content):
    (tmp_path / "bulk.json").write_bytes(content)
    fails(capsys, ["sample", digits, *MANY, "--shards", 2, "--out", tmp_path], "bulk.json: damaged", "--out")
    assert everything(tmp_path) == {tmp_path / "bulk.json": content}


def test_folders_of_others_are_refused(capsys, digits, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    words = ["sample", digits, *MANY, "--shards", 2, "--out"]
    fails(capsys, [*words, tmp_path], "no bulk of samples", "--out")
    fails(capsys, [*words, tmp_path / "mine.txt"], "is a file", "--out")
    (tmp_path / "bulk.json").write_text('{"n": 3}')
    fails(capsys, [*words, tmp_path], "holds other samples", "--out")
    assert {path.name for path in everything(tmp_path)} == {"mine.txt", "bulk.json"}


@pytest.mark.parametrize(
    ("words", "environment", "parts"),
    [
        (["--shards", 0], {}, ["--shards must be at least 1, got 0"]),
        (["--shards", 2, "-n", 0], {}, ["at least one sample"]),
        (["--shards", 2, "--first", -1], {}, ["from index 0"]),
        (["--shards", 2, "--threads", 0], {}, ["--threads must be at least 1"]),
        (["--shards", 2, "--sampler", "ddmi"], {}, ["did you mean 'ddim'"]),
        (["--shards", 2, "--sampler", "ancestral-learned"], {}, ["not trained to predict its variance"]),
        (["--shards", 2, "--grid", "0,1"], {}, ["falls strictly"]),
        (["--shards", 2, "--format", "csv"], {}, ["csv", "png or npz or tar"]),
        (["--shards", 2, "--format", "zip"], {}, ["zip", "npz"]),
        ([], {"RANK": "1", "WORLD_SIZE": "2"}, ["add --shards"]),
        (["--shards", 2], {"RANK": "2", "WORLD_SIZE": "2"}, ["RANK=2 and WORLD_SIZE=2"]),
        (["--shards", 2], {"RANK": "one", "WORLD_SIZE": "2"}, ["RANK=one"]),
        (["--shards", 2], {"RANK": "1"}, ["RANK=1 and WORLD_SIZE=1"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    capsys, digits, tmp_path, monkeypatch, words, environment, parts
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fails(capsys, ["sample", digits, "--steps", 1, "-n", 10, "--out", tmp_path / "out", *words], *parts)
    assert not (tmp_path / "out").exists()
