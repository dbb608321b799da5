"""sfumato likelihood: bits/dim of laws that are known, intervals that cover, data told apart, and files that add up."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import sfumato
from sfumato.cli import main
from sfumato.condition import Condition
from sfumato.data import load
from sfumato.data.image import ImageCodec
from sfumato.denoise import Given
from sfumato.density import Density, flow_logp
from sfumato.engine import examples as module
from sfumato.engine.config import Config
from sfumato.engine.examples import alone, foreign
from sfumato.engine.likelihood import auroc, mean
from sfumato.engine.run import Run
from sfumato.engine.trainer import Trainer
from sfumato.errors import UserError
from sfumato.models.diffusion import DiffusionSpec

POINTS = DiffusionSpec("mlp", (8,), 1, sigma_data=0.8)
DIGITS = DiffusionSpec("unet", (8,), 1, (False,), sigma_data=0.75)
CLASSES = DiffusionSpec("unet", (8,), 1, (False,), classes=10, sigma_data=0.75)
QUICK = {"n": 6, "vlb_calls": 8}


def untrained(folder: Path, data: str, spec: DiffusionSpec, stir: float = 0.0) -> Path:
    """A run whose model is N(0, sigma_data^2), as an untrained edm network is; ``stir`` moves its weights."""
    dataset = load(data)
    trainer = Trainer(Run.create(folder, Config(data=data, model=spec, steps=1), dataset), dataset)
    rng = torch.Generator().manual_seed(0)
    for weights in trainer.ema.denoiser.network.parameters():
        weights.data += stir * torch.randn(weights.shape, generator=rng)
    trainer.save()
    return folder


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("points")
    values = 5 + 3 * np.random.default_rng(0).normal(size=(200, 2))
    np.savetxt(folder / "cloud.csv", values, delimiter=",")
    return untrained(folder / "run", str(folder / "cloud.csv"), POINTS)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("digits") / "run", "digits", DIGITS)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("classes") / "run", "digits", CLASSES, stir=0.1)


def rows(folder: Path) -> dict[str, np.ndarray]:
    """The columns of examples.csv."""
    with (folder / "examples.csv").open() as file:
        table = list(csv.DictReader(file))
    columns = {key: [row[key] for row in table] for key in table[0]}
    words = ("data", "class")
    return {k: np.array(v) if k in words else np.array([float(x or "nan") for x in v]) for k, v in columns.items()}


def level_bound(x: np.ndarray, sd: float, width: float) -> np.ndarray:
    """The bound on -log P(level) that N(0, sd^2) gives in continuous time, exactly but for a quadrature.

    With r = width / 6 the noise where the decoder takes over, KL(q(y | x) || p(y)) - E log P(level | y), y = x + r z.
    """
    r = width / 6
    var = sd**2 + r**2
    kl = 0.5 * (r**2 / var + x**2 / var - 1 - math.log(r**2 / var))
    z, weights = np.polynomial.hermite_e.hermegauss(40)
    estimate = (x[..., None] + r * z) * sd**2 / var
    low, high = x - width / 2, x + width / 2
    low[x < -1 + 1e-6], high[x > 1 - 1e-6] = -np.inf, np.inf
    law = stats.norm(estimate, r)
    log_p = np.log(np.maximum(law.cdf(high[..., None]) - law.cdf(low[..., None]), 1e-300))  # 0 only where z = 10
    return (kl - log_p @ weights / weights.sum()).sum(1)


# ── Laws that are known ───────────────────────────────────────────────────────────────────────────────────────────────


def test_points_of_a_gaussian(points: Path, tmp_path: Path) -> None:
    """In the user's units the law is N(mean, (scale sigma_data)^2): the flow to solver error, the bound to its own."""
    result = sfumato.likelihood(points, n=40, tolerance=1e-6, out=str(tmp_path / "out"))
    codec, data = sfumato.load(points).codec, load(str(points.parent / "cloud.csv"))
    seen = rows(tmp_path / "out")
    index = seen["index"].astype(int)
    true = (
        stats.norm(codec.mean, codec.scale * math.hypot(0.8, Density().noise)).logpdf(data.items[index].numpy()).sum(1)
    )
    np.testing.assert_allclose(seen["log_p"], true, atol=1e-3)
    np.testing.assert_allclose(seen["bits_per_dim"], -true / (2 * math.log(2)), atol=1e-3)
    assert np.abs((seen["density_nats"] + true) / seen["density_error"]).mean() < 2
    np.testing.assert_allclose(seen["density_bits_per_dim"], seen["density_nats"] / (2 * math.log(2)), rtol=1e-6)
    assert result.how.exact and result.how.draws == 1 and "levels_nats" not in seen
    assert (seen["probe_error"] == 0).all() and np.isnan(seen["draw_error"]).all()
    flow, density = result.parts[0].bits["flow"], result.parts[0].bits["density"]
    assert flow.low < -true.mean() / (2 * math.log(2)) < flow.high and set(result.parts[0].bits) == {"flow", "density"}
    assert abs(density.value - flow.value) < 5 * seen["density_error"].mean() / (2 * math.log(2)) / math.sqrt(40)


def test_digits_of_a_gaussian(digits: Path, tmp_path: Path) -> None:
    """(2): the mean over u of a Gaussian's log p is known, and so is its probability of every level."""
    result = sfumato.likelihood(digits, n=40, draws=4, out=str(tmp_path / "out"))
    codec, data = sfumato.load(digits).codec, load("digits")
    assert data.test is not None
    seen, sd, width = rows(tmp_path / "out"), 0.75, codec.level_width
    x = codec.encode(data.test.items[seen["index"].astype(int)]).flatten(1).double().numpy()
    true = -((x**2 + width**2 / 12) / (2 * sd**2) + 0.5 * math.log(2 * math.pi * sd**2)).sum(1) + codec.log_volume()
    spread = (x**2 * width**2 / 12 + width**4 / 720).sum(1) / sd**4 / 4  # variance over u, of the mean of 4 draws
    assert abs((seen["log_p"] - true).mean()) < 4 * math.sqrt(spread.mean() / 40)
    assert (seen["draw_error"] ** 2).mean() == pytest.approx(spread.mean(), rel=0.4)  # 3 sd of chi squared, 120 dof
    np.testing.assert_allclose(-seen["bits_per_dim"] * 64 * math.log(2), seen["log_p"], rtol=1e-6)
    assert np.abs((seen["density_nats"] + seen["log_p"]) / seen["density_error"]).mean() < 1.5
    true = level_bound(x, sd, width)
    assert abs(((seen["levels_nats"] - true) / seen["levels_error"]).mean()) < 0.5
    assert result.parts[0].trivial["trivial: all levels equally likely"] == math.log2(17)


def test_an_example_is_given_its_own_class(classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "rand", lambda x, rng: torch.full_like(x, 0.5))  # u = 0
    out = sfumato.likelihood(classes, n=3, exact=True, draws=1, vlb_calls=2, out=str(tmp_path / "out")).folder
    seen, model, data = rows(out), sfumato.load(classes), load("digits").test
    assert data is not None and data.labels is not None
    index = torch.from_numpy(seen["index"].astype(int))
    x, labels = model.codec.encode(data.items[index]), data.labels[index]
    assert seen["class"].tolist() == [data.classes[k] for k in labels]

    def log_p(labels: torch.Tensor) -> np.ndarray:
        flow = flow_logp(Given(model.denoiser, Condition(labels)), x, rtol=1e-4, atol=1e-4, low=Density().noise)
        return (flow.value.double() + model.codec.log_volume()).numpy()

    np.testing.assert_allclose(seen["log_p"], log_p(labels), rtol=1e-5)
    assert np.abs(seen["log_p"] - log_p((labels + 1) % 10)).min() > 0.01


def test_bf16_is_measured_in_fp32(classes: Path, tmp_path: Path) -> None:
    rough = shutil.copytree(classes, tmp_path / "run")
    text = (rough / "config.toml").read_text()
    assert 'precision = "fp32"' in text
    (rough / "config.toml").write_text(text.replace('precision = "fp32"', 'precision = "bf16"'))
    results = [sfumato.likelihood(run, **QUICK, out=str(tmp_path / run.parent.name)) for run in (classes, rough)]
    one, two = (rows(result.folder) for result in results)
    np.testing.assert_array_equal(one["log_p"], two["log_p"])
    assert any("bf16" in note and "fp32" in note for note in results[1].notes) and not results[0].notes


# ── Intervals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(2, 1, 20)
    got = mean(values, off=0.1)
    low, high = stats.t.interval(0.95, 19, values.mean(), stats.sem(values))
    np.testing.assert_allclose([got.value, got.low, got.high], [values.mean(), low - 0.1, high + 0.1])
    assert math.isnan(mean(values[:1]).low) and "one example" in mean(values[:1]).line("")


def test_auroc_is_the_share_of_pairs_and_its_interval_covers() -> None:
    rng = np.random.default_rng(0)
    own, other = rng.integers(0, 5, 30), rng.integers(-1, 4, 20)
    got = auroc(own.astype(float), other.astype(float))
    pairs = own[:, None] - other
    assert got.value == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert auroc(np.arange(10.0), np.arange(10.0)).value == 0.5
    apart = auroc(np.arange(10.0) + 20, np.arange(10.0))
    assert apart.value == apart.high == 1 and 0.6 < apart.low < 0.95
    for shift in (0.0, 1.0, 2.5):
        true, hits = stats.norm.cdf(shift / math.sqrt(2)), 0
        for _ in range(200):
            got = auroc(rng.normal(shift, 1, 30), rng.normal(0, 1, 40))
            hits += got.low <= true <= got.high
        assert hits / 200 > 0.91, shift


def test_values_drawn_alone() -> None:
    train = torch.tensor([[0, 1], [0, 1], [0, 0], [2, 1]], dtype=torch.uint8)
    bits = -np.log2([(3 + 1) / (4 + 3), (0 + 1) / (4 + 3)]).mean()
    assert alone(train, torch.tensor([[0, 2]], dtype=torch.uint8), 3) == pytest.approx(bits)
    values = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) * 3
    true = -stats.norm(values.mean(0), values.std(0, correction=0)).logpdf(values[:7]).mean() / math.log(2)
    assert alone(values, values[:7], 0) == pytest.approx(true, rel=1e-5)


# ── Other data ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_other_data_are_told_apart(points: Path, tmp_path: Path) -> None:
    values = np.loadtxt(points.parent / "cloud.csv", delimiter=",")
    np.savetxt(tmp_path / "same.csv", values[::-1], delimiter=",")
    np.savetxt(tmp_path / "far.csv", values + 100, delimiter=",")
    same, far = (
        sfumato.likelihood(points, str(tmp_path / f"{name}.csv"), n=200, vlb_calls=4) for name in ("same", "far")
    )
    assert same.folder == points / "likelihood" / "same.csv"
    assert all(v.low < 0.5 < v.high and v.value == pytest.approx(0.5, abs=0.05) for v in same.auroc.values())
    assert same.auroc["flow"].value == pytest.approx(0.5, abs=1e-3)  # the same points, in another order
    assert [v.value for v in far.auroc.values()] == [1.0, 1.0] and far.auroc["flow"].low < 1
    seen = rows(far.folder)
    assert (seen["data"] == "far.csv").sum() == 200
    text = "\n".join(far.lines())
    assert "AUROC: share of pairs in which cloud.csv is more likely than far.csv" in text


def test_pictures_are_brought_to_the_models_shape_and_levels(digits: Path, tmp_path: Path) -> None:
    for k, colour in enumerate([(255, 255, 255), (0, 0, 0), (255, 0, 0)]):
        (tmp_path / "wide").mkdir(exist_ok=True)
        Image.new("RGB", (30, 20), colour).save(tmp_path / "wide" / f"{k}.png")
    model = sfumato.load(digits)
    dataset, notes = foreign(str(tmp_path / "wide"), model)
    assert dataset.codec == model.codec == ImageCodec(1, 8, 8, 17) and dataset.items.shape == (3, 1, 8, 8)
    assert dataset.items[:, 0, 3, 3].tolist() == [16, 0, 5]  # red is 76 of 255 in grey
    assert len(notes) == 1 and all(part in notes[0] for part in ("wide", "1x8x8", "17 levels", "256 levels", "Lanczos"))
    result = sfumato.likelihood(digits, str(tmp_path / "wide"), n=20, vlb_calls=4, draws=1)
    # The law is N(0, 0.75^2): white and black, at +-1, are the least likely pictures there are, red is in between.
    bits = result.parts[1].columns["bits_per_dim"]
    assert bits[2] < bits[:2].min() and any("3 examples" in note for note in result.notes)
    same, notes = foreign("digits", model)
    assert same.fingerprint == load("digits").fingerprint and not notes


# ── Files, words and wrong input ──────────────────────────────────────────────────────────────────────────────────────


def test_files_lines_and_python_agree(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["likelihood", str(digits), "-n", "6", "--vlb-calls", "8", "--out", str(tmp_path / "cli")]
    assert main(words) == 0
    said = capsys.readouterr().out
    for _ in range(2):  # the second time the folder likelihood/ is imported, which must not hide the verb
        shutil.rmtree(tmp_path / "py", ignore_errors=True)
        result = sfumato.likelihood(digits, **QUICK, out=str(tmp_path / "py"))
    assert (tmp_path / "cli" / "examples.csv").read_bytes() == (tmp_path / "py" / "examples.csv").read_bytes()
    for line in result.lines()[:-1]:
        assert line in said
    assert sorted(path.name for path in result.folder.iterdir()) == ["examples.csv", "extremes.png", "summary.json"]
    seen, summary = rows(result.folder), json.loads((result.folder / "summary.json").read_text())
    assert len(seen["index"]) == 6 and {"class", "calls", "solver_error", "probe_error", "levels_error"} <= seen.keys()
    assert seen["data"].tolist() == ["digits"] * 6 and set(seen["class"]) <= set("0123456789")
    (part,) = summary["parts"]
    assert part["n"] == 6 and part["of"] == 360 and part["part"] == "held out"
    assert part["bits_per_dim"]["flow"]["value"] == pytest.approx(seen["bits_per_dim"].mean(), rel=1e-6)
    assert {"weights": sfumato.load(digits).fingerprint(), "probes": 2, "seed": 0}.items() <= summary["recipe"].items()
    with Image.open(result.folder / "extremes.png") as picture:
        picture.load()
        assert json.loads(picture.info["sfumato"]) == summary["recipe"]


def test_an_example_does_not_depend_on_how_many_are_measured(digits: Path, tmp_path: Path) -> None:
    few, many = (rows(sfumato.likelihood(digits, n=n, vlb_calls=4, out=str(tmp_path / str(n))).folder) for n in (3, 9))
    both = np.isin(many["index"], few["index"])
    assert both.sum() == 3
    for name in ("log_p", "density_nats", "levels_nats", "draw_error"):
        np.testing.assert_allclose(many[name][both], few[name], rtol=1e-3)


def test_the_extremes_are_the_extremes(points: Path, digits: Path, tmp_path: Path, monkeypatch) -> None:
    """Which pictures are drawn, and that points have clouds."""
    from sfumato.view import extremes, plots

    drawn: list[tuple] = []
    table = plots.table
    monkeypatch.setattr(extremes.plots, "table", lambda *what: drawn.append(what) or table(*what))
    result = sfumato.likelihood(digits, n=9, vlb_calls=2, draws=1, out=str(tmp_path / "d"))
    bits = np.sort(result.parts[0].columns["bits_per_dim"])
    assert drawn[0][3] == [f"{b:.3f}" for b in bits[:8]] and drawn[1][3] == [f"{b:.3f}" for b in bits[::-1][:8]]
    best = int(result.parts[0].columns["bits_per_dim"].argmin())
    picture = result.codec.picture(result.parts[0].examples.items[best : best + 1], 1)
    np.testing.assert_array_equal(drawn[0][2][0][0], plots.enlarged(picture, 100))
    drawn.clear()
    sfumato.likelihood(points, n=40, vlb_calls=2, out=str(tmp_path / "p"))
    assert drawn[0][3][1].startswith("the 10 most likely") and len(drawn[0][2][0]) == 3


def test_what_the_reader_should_know(points: Path, tmp_path: Path) -> None:
    run = shutil.copytree(points, tmp_path / "run")
    record = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps(record | {"fingerprint": "0"}))
    notes = "\n".join(sfumato.likelihood(run, n=500, vlb_calls=2).notes)
    assert all(words in notes for words in ("200 examples, fewer than -n 500", "no held-out part", "has changed"))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["-n", "0"], ["-n", "at least 1"]),
        (["--probes", "0"], ["--probes", "at least 1"]),
        (["--draws", "0"], ["--draws", "at least 1"]),
        (["--vlb-calls", "0"], ["--vlb-calls", "at least 1"]),
        (["--tolerance", "0"], ["--tolerance", "between 0 and 1"]),
        (["--device", "cud"], ["did you mean 'cuda'"]),
        (["digit"], ["'digit'", "did you mean 'digits'"]),
        (["moons"], ["points 2", "images 1x8x8"]),
        (["letters.npz"], ["class 'a'", "without --classes"]),
        (["plain.npy"], ["no classes", "without --classes"]),
        (["--out", "."], ["not empty", "--out"]),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(words, parts, classes, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("plain.npy", np.zeros((4, 8, 8), np.uint8))
    for name in "ab":
        (tmp_path / "letters.npz").mkdir(exist_ok=True)
        (tmp_path / "letters.npz" / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / "letters.npz" / name / "0.png")
    before = sorted(tmp_path.rglob("*")), sorted(classes.rglob("*"))
    assert main(["likelihood", str(classes), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(part in error for part in parts), error
    assert before == (sorted(tmp_path.rglob("*")), sorted(classes.rglob("*")))


def test_one_example_is_enough(points: Path, tmp_path: Path) -> None:
    folder = sfumato.likelihood(points, n=1, vlb_calls=1, out=str(tmp_path / "out")).folder
    value = json.loads((folder / "summary.json").read_text())["parts"][0]["bits_per_dim"]["flow"]
    assert value["value"] == pytest.approx(rows(folder)["bits_per_dim"][0]) and value["low"] is value["high"] is None


def test_points_of_other_dimensions_and_no_run(points: Path, tmp_path: Path) -> None:
    np.savetxt(tmp_path / "three.csv", np.random.default_rng(0).normal(size=(9, 3)), delimiter=",")
    with pytest.raises(UserError, match=r"points 3 .* points 2"):
        sfumato.likelihood(points, str(tmp_path / "three.csv"))
    with pytest.raises(UserError, match="no such run"):
        sfumato.likelihood(tmp_path / "nothing")
