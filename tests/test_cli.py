"""The command line: wrong words and wrong data are one line, exit code 2, and nothing on disk is lost."""

import inspect
import io
import json
import re
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from commands import everything, fails
from pictures import png_bytes
from sfumato import cli, verbs
from sfumato.cli import main
from sfumato.defaults import SAMPLER
from sfumato.engine import checkpoint
from sfumato.engine.checkpoint import checkpoints
from sfumato.grid import GRIDS
from sfumato.sampler import SAMPLERS
from sfumato.verbs.words import Data

QUICK = ["--steps", "3", "--batch", "8", "--size", "tiny"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three steps on digits: everything a run has, in a second or two."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "digits", "--classes", *QUICK, "--out", str(folder)]) == 0
    return folder


def picture(path, size=(8, 8), colour=128):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, colour).save(path)


def truncated_jpeg():
    content = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(content, "JPEG")
    return content.getvalue()[: len(content.getvalue()) // 2]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.jpg", truncated_jpeg()),
        ("text.png", b"this is no picture\n"),
        ("empty.png", b""),
        ("huge.png", png_bytes(60_000, 60_000, 8, 2, b"")),
    ],
)
def test_a_bad_picture_among_good_ones(capsys, here, name, content):
    for i in range(4):
        picture(here / "photos" / f"{i}.png", colour=50 * i)
    (here / "photos" / name).write_bytes(content)
    before = everything(here / "photos")
    fails(capsys, ["train", "photos", *QUICK], name, "--skip-bad")
    assert not (here / "runs").exists()
    assert main(["inspect", "photos"]) == 0
    assert name in capsys.readouterr().out
    assert main(["train", "photos", *QUICK, "--skip-bad"]) == 0
    assert everything(here / "photos") == before


def test_bad_arrays_and_idx_files(capsys, here):
    bad = np.zeros((4, 8, 8), np.float32)
    bad[2, 3, 3] = np.nan
    np.save(here / "bad.npy", bad)
    fails(capsys, ["train", "bad.npy", *QUICK], "bad.npy", "NaN")
    (here / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 1234, 1, 8, 8) + bytes(64))
    fails(capsys, ["train", "t10k-images-idx3-ubyte", *QUICK], "t10k-images-idx3-ubyte")
    (here / "nothing").mkdir()
    fails(capsys, ["train", "nothing"], "nothing")
    fails(capsys, ["inspect", "nothing"], "nothing")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["train", "digit"], ["'digit'", "did you mean 'digits'"]),
        (["train", "digits", "--bach", "3"], ["--bach", "did you mean --batch"]),
        (["train", "digits", "--batch", "many"], ["--batch", "many"]),
        (["train", "digits", "--size", "huge"], ["--size", "huge", "tiny"]),
        (["train", "digits", "--schedule", "vpp"], ["vpp", "did you mean 'vp'"]),
        (["train", "digits", "--parameterisation", "noise"], ["noise", "eps"]),
        (["train", "digits", "--coupling", "imiscible"], ["'imiscible'", "did you mean 'immiscible'"]),
        (["train", "moons", "--mirror"], ["--mirror", "'moons' has none"]),
        (["train", "digits", "--schedule", "flow", "--parameterisation", "eps"], ["no signal", "use x0, v, flow"]),
        (["train", "digits", "--time", "soon"], ["'soon' is no time"]),
        (["train", "digits", "--time", "1m", "--steps", "3"], ["--time or --steps"]),
        (["train", "digits", "--steps", "0"], ["--steps", "at least 1"]),
        (["train", "digits", "--batch", "0"], ["batch", "above 0"]),
        (["train", "digits", "--accumulate", "0"], ["--accumulate", "at least 1"]),
        (["train", "digits", "--lr", "-1"], ["lr", "above 0"]),
        (["train", "digits", "--device", "cud"], ["cud", "did you mean 'cuda'"]),
        (["train", "digits", "--resolution", "2"], ["--resolution"]),
        (["trian", "digits"], ["'trian'", "did you mean 'train'"]),
        (["train"], ["DATA"]),
        ([], ["train", "sample"]),
        (["sample", "runs/none"], ["runs/none", "no such run"]),
        (["resume"], ["no run below", "sfumato train"]),
        (["resume", "runs/none"], ["runs/none"]),
        (["evaluate", "runs/none"], ["runs/none"]),
    ],
)
def test_wrong_words(capsys, here, words, parts):
    fails(capsys, words, *parts)
    assert not any(here.iterdir())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--class", "11"], ["'11'"]),
        (["--class", "cat"], ["'cat'"]),
        (["--sampler", "dpm+2m"], ["did you mean 'dpm++2m'"]),
        (["--grid", "karas"], ["did you mean 'karras'"]),
        (["--grid", "1,0.5,half"], ["1,0.5,half", "numbers parted by commas"]),
        (["--grid", "0,0.5,1"], ["falls strictly within [0, 1]"]),
        (["--steps", "0"], ["steps", "at least 1"]),
        (["-n", "0"], ["at least one sample"]),
        (["--first", "-1"], ["from index 0"]),
        (["--out", "."], ["not empty", "--out"]),
    ],
)
def test_wrong_samples(capsys, here, trained, words, parts):
    (here / "mine.txt").write_text("precious")
    before = everything(trained)
    fails(capsys, ["sample", trained, "-n", "4", *words], *parts)
    assert everything(trained) == before
    assert (here / "mine.txt").read_text() == "precious"


def test_a_run_that_exists_is_not_touched(capsys, trained):
    before = everything(trained)
    fails(capsys, ["train", "digits", *QUICK, "--out", trained], str(trained), "sfumato resume", "--out")
    assert everything(trained) == before


def test_a_checkpoint_cut_in_half(capsys, here, trained):
    """Whoever draws from the run is told; resume goes on from the checkpoint before it, to the same bits."""
    run = here / "damaged"
    shutil.copytree(trained, run)
    newest = checkpoints(run / "checkpoints")[-1]
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])
    before = everything(run)
    for verb in ("sample", "evaluate"):
        fails(capsys, [verb, run], newest.name, "damaged", "sfumato resume", "step-00000000")
    assert everything(run) == before
    assert main(["resume", str(run)]) == 0
    assert "is damaged" in capsys.readouterr().out
    ours, theirs = checkpoint.load(run / "checkpoints"), checkpoint.load(trained / "checkpoints")
    same = (
        torch.equal(ours.tensors[name].nan_to_num(), tensor.nan_to_num()) for name, tensor in theirs.tensors.items()
    )
    assert all(same)
    assert newest.with_suffix(".damaged").exists()


def test_a_run_on_points_that_has_no_classes_left(capsys, here):
    np.savetxt(here / "points.csv", np.random.default_rng(0).normal(size=(50, 2)), delimiter=",")
    fails(capsys, ["train", "points.csv", "--classes"], "no classes", "leave --classes out")
    assert main(["train", "points.csv", "--steps", "2", "--size", "tiny"]) == 0
    fails(capsys, ["sample", "runs/points", "--class", "1"], "without classes")
    fails(capsys, ["evaluate", "runs/points"], "no held-out part")


def test_samples_carry_their_recipe_and_can_be_made_again(capsys, here, trained):
    """Sample i is a function of (weights, seed, i): alone, among others, or asked for later, bit by bit."""
    assert main(["sample", str(trained), "-n", "12", "--steps", "4", "--out", "many"]) == 0
    assert main(["sample", str(trained), "-n", "1", "--first", "7", "--steps", "4", "--out", "one"]) == 0
    assert main(["sample", str(trained), "-n", "300", "--steps", "4", "--out", "more"]) == 0
    many, one, more = (Image.open(here / d / "000007.png") for d in ("many", "one", "more"))
    assert many.mode == "L"
    assert many.size == (8, 8)
    assert np.array_equal(many, one)
    assert np.array_equal(many, more)
    recipe = json.loads(many.text["sfumato"])
    assert {"seed": 0, "index": 7, "steps": 4, "method": SAMPLER, "class": "7", "step": 3}.items() <= recipe.items()
    model = sfumato.load(trained)
    assert recipe["weights"] == model.fingerprint()
    again = model.sample(1, first=7, seed=0, steps=4)
    assert np.array_equal(many, (again[0, 0].float() * 255 / 16).round().to(torch.uint8))
    grid = Image.open(here / "many" / "grid.png")
    assert json.loads(grid.text["sfumato"])["n"] == 12


def test_a_grid_may_be_given_by_its_times(capsys, here, trained):
    """0.5 and 0 are where the uniform grid of two steps stops, so the samples are the same to the bit."""
    assert main(["sample", str(trained), "-n", "2", "--grid", "uniform", "--steps", "2", "--out", "named"]) == 0
    assert main(["sample", str(trained), "-n", "2", "--grid", "1, 0.5,0", "--out", "listed"]) == 0
    named, listed = (Image.open(here / d / "000001.png") for d in ("named", "listed"))
    assert np.array_equal(named, listed)
    assert json.loads(listed.text["sfumato"])["grid"] == "1, 0.5,0"


def test_every_sampler_and_grid_is_listed(capsys):
    assert main(["samplers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line}
    table = sfumato.samplers()
    assert lines == table.lines()
    assert [entry.name for entry in table.samplers] == [*SAMPLERS]
    assert {*SAMPLERS, *GRIDS} <= rows.keys()
    for name, make in SAMPLERS.items():
        way = make()
        noise = "drawn" if way.stochastic else "none"
        assert rows[name].split(maxsplit=4) == [name, str(way.order), str(way.calls), noise, way.source]
    assert all(entry.stops for entry in table.grids)
    assert not table.samplers[[*SAMPLERS].index("ddim")].stochastic
    assert max(map(len, lines)) <= 120


def test_python_has_the_verbs_of_the_command_line(here):
    assert {"train", "resume", "sample", "load", "samplers", "show", "inspect", "evaluate"} <= set(dir(sfumato))
    for verb in cli.VERBS:
        function = getattr(verbs, verb.replace("-", "_"))
        assert getattr(sfumato, verb.replace("-", "_")) is function
        text = subprocess.run(
            [sys.executable, "-m", "sfumato", verb, "--help"], capture_output=True, text=True, check=True
        ).stdout.partition("options ─")[2]
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                option = f"--{name.rstrip('_').replace('_', '-')}"
                assert option in text
                if isinstance(parameter.default, int | float | str) and not isinstance(parameter.default, bool):
                    begin = re.search(rf"{option}(?![\w-])", text)  # --n is no beginning of --noise
                    entry = text[begin.start() :].partition("\n│ --")[0]
                    told = re.sub(r"[\s│]", "", entry)  # whose lines break anywhere
                    assert f"default:{parameter.default})".replace(" ", "") in told


def test_the_same_call_in_python(here):
    run = sfumato.train("ring8", steps=3, size="tiny", out="run")
    files = sfumato.sample(run, n=5, steps=2)
    assert files[0].name == "points.csv"
    assert len(sfumato.load("run").sample(7)) == 7
    assert sfumato.inspect("ring8").count == 20_000
    assert {m.name for m in sfumato.evaluate("run", n=50).measures} >= {"frechet[2 raw values]"}
    assert sfumato.resume("run") == run


def test_faults_of_ours_keep_their_traceback(monkeypatch):
    def broken(data):
        raise RuntimeError("a bug")

    broken.__annotations__ = {"data": Data}
    monkeypatch.setattr(verbs, "inspect", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["inspect", "digits"])
