"""Pictures of runs and data: the states that are drawn obey the laws of the process, and the files keep promises."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from sfumato.data import load
from sfumato.data import picture as clouds
from sfumato.dist import stream
from sfumato.engine.config import Config
from sfumato.engine.generate import Wish
from sfumato.engine.run import Run
from sfumato.engine.trainer import Trainer
from sfumato.errors import UserError
from sfumato.files import write_png
from sfumato.models.base import Way
from sfumato.models.diffusion import DiffusionSpec
from sfumato.process import Gaussian
from sfumato.schedule import SCHEDULES, Cosine
from sfumato.verbs import show
from sfumato.view import gif, plane, plots
from sfumato.view.gif import LIMIT, write_gif
from sfumato.view.states import even_times, evenly, forward_path, way_back
from sfumato.view.subject import of_run

HOW = {"gif": False, "schedule": "cosine", "steps": 3, "seed": 0, "sampler": "ddim", "grid": "logsnr", "out": None}
POINTS = DiffusionSpec("mlp", (8,), 1, sigma_data=1.0)
DIGITS = DiffusionSpec("unet", (8,), 1, (False,), classes=10, sigma_data=0.75)


def untrained(folder: Path, data: str, spec: DiffusionSpec) -> Path:
    dataset = load(data)
    Trainer(Run.create(folder, Config(data=data, model=spec, steps=1), dataset), dataset).save()
    return folder


@pytest.fixture(scope="module")
def moons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    np.savetxt(folder / "moons.csv", load("moons").items[:1000], delimiter=",")
    return untrained(folder / "moons", str(folder / "moons.csv"), POINTS)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("runs") / "digits", "digits", DIGITS)


def recipe(path: Path) -> dict[str, object]:
    with Image.open(path) as picture:
        picture.load()
        return json.loads(picture.info.get("sfumato") or picture.info["comment"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_times_turn_signal_into_noise_by_equal_angles(name: str) -> None:
    schedule = SCHEDULES[name]()
    t = even_times(schedule, 40)
    angle = torch.atan2(schedule.sigma(t), schedule.alpha(t))
    assert t[0] == 0 and t[-1] == 1 and bool((t.diff() > 0).all())
    torch.testing.assert_close(angle.diff(), angle[-1].expand(40) / 40, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_forward_path_is_a_markov_path_from_the_data_to_the_prior(name: str) -> None:
    q = Gaussian(SCHEDULES[name]())
    x_0 = torch.full((40_000, 1), 0.5)
    t = even_times(q.schedule, 6)
    path = forward_path(q, x_0, t, stream(0))
    assert path[0] is x_0
    torch.testing.assert_close(path[-1].std(), q.schedule.sigma(1.0).float(), rtol=0.02, atol=0)
    for k in range(6):
        law = q.transition(path[k], t[k], t[k + 1])
        z = (path[k + 1] - law.mean) / law.std  # the noise of this step alone: standard, and new
        assert abs(float(z.var()) - 1) < 0.03
        assert abs(float((z * (path[k] - path[k].mean())).mean() / path[-1].std())) < 0.02
        marginal = q.marginal(x_0, t[k + 1])
        assert abs(float((path[k + 1] - marginal.mean).std() / marginal.std) - 1) < 0.02


def test_way_back_pairs_a_state_with_the_estimate_made_from_it(moons: Path) -> None:
    model, _ = Run.open(moons).load()
    stops = way_back(model, 300, Way(seed=0, steps=4, method="ddim", grid="uniform"))  # 300: more than one batch
    assert [stop.t for stop in stops] == [1, 0.75, 0.5, 0.25, 0]
    for stop in stops[:-1]:
        with torch.no_grad():
            torch.testing.assert_close(stop.x0, model.denoiser(stop.x, stop.t).x0, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stops[-1].x, stops[-2].x0)
    assert torch.equal(stops[-1].x0, stops[-1].x)
    samples = torch.cat(list(model.states(256, seed=0, steps=4, method="ddim", grid="uniform")))
    assert torch.equal(stops[-1].x[:256], samples)


def test_evenly_keeps_the_ends_and_no_stop_twice(moons: Path) -> None:
    model, _ = Run.open(moons).load()
    stops = way_back(model, 1, Way(seed=0, steps=30, method="ddim", grid="logsnr"))
    few = evenly(stops, Cosine(), 6)
    assert few[0] is stops[0] and few[-1] is stops[-1] and len(few) == 7
    assert [stop.t for stop in evenly(stops[:1] + stops[-1:], Cosine(), 6)] == [1, 0]


def test_cloud_shows_the_density() -> None:
    points = torch.randn(200_000, 2, generator=stream(0)).numpy() * 0.5
    peak = 1 / (2 * math.pi * (0.25 + clouds.BLUR**2))
    ink = 1 - clouds.cloud(points, 61)[30, 30] / 255
    blue = np.array([0x1F, 0x4E, 0x79]) / 255
    np.testing.assert_allclose(ink, (1 - blue) * (1 - math.exp(-peak / clouds.DENSITY)), atol=0.02)
    corner = clouds.cloud(np.array([[2.0, 2.5]]), 61)
    assert corner[:10, 45:].min() < 200 and corner[30:].min() == 255  # y grows upwards


def test_enlarging_repeats_pixels() -> None:
    picture = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    large = plots.enlarged(picture, 100)
    assert large.shape == (99, 99, 3) and np.array_equal(large[16::33, 16::33], picture)


def test_table_holds_the_pictures_pixel_by_pixel() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 3, 37, 53, 3), np.uint8)
    drawn = plots.table("title", "subtitle", noise, ["a", "b\nc", "d"], ["$x_t$", ""])
    views = np.lib.stride_tricks.sliding_window_view(drawn, (37, 53, 3))[:, :, 0]
    for picture in noise.reshape(-1, 37, 53, 3):
        hits = np.argwhere(views[..., 0, 0, :].view() == picture[0, 0])
        assert any(np.array_equal(views[y, x], picture) for y, x, _ in hits)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_drawn_without_a_warning(name: str) -> None:
    stops = torch.linspace(1, 0, 5, dtype=torch.float64).numpy()
    assert plots.schedules(name, "", name, stops).std() > 0


def test_run_on_points(moons: Path, tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    written = show(str(moons), **HOW | {"out": str(tmp_path), "gif": True})
    assert [path.name for path in written] == [
        "schedule.png", "score.png", "density.png", "paths.png", "forward.png", "forward.gif", "reverse.png",
        "reverse.gif", "both.png",
    ]  # fmt: skip
    model, _ = Run.open(moons).load()
    for path in written:
        said = recipe(path)
        assert path.stat().st_size < (LIMIT if path.suffix == ".gif" else 300_000)
        assert said["weights"] == model.fingerprint() and said["run"] == "moons" and said["picture"] == path.name
        assert (said["step"], said["seed"], said["grid"]) == (0, 0, "logsnr")
        assert said["method"] == ("heun" if path.name == "density.png" else "ddim")
        assert said["start"] == "data"
        assert said["steps"] == (40 if path.name in ("density.png", "paths.png", "reverse.gif") else 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([other.name, *(path.name for path in written)])
    assert other.read_text() == "mine"


def test_same_call_same_bytes_and_new_seed_new_pictures(digits: Path) -> None:
    written = show(str(digits), **HOW | {"gif": True})
    assert [path.name for path in written] == [
        "schedule.png",
        "forward.png",
        "forward.gif",
        "reverse.png",
        "reverse.gif",
        "both.png",
    ]
    assert {path.parent for path in written} == {digits / "show"}
    first = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in show(str(digits), **HOW | {"gif": True})] == first
    last = show(str(digits), **HOW | {"seed": 1})[-1]
    assert recipe(last)["seed"] == 1 and last.read_bytes() != first[-1]


def test_gif_plays_for_ever_and_rests_on_the_last_frame(tmp_path: Path) -> None:
    frames = list(np.random.default_rng(0).integers(0, 255, (41, 20, 30, 3), np.uint8))
    for frame in frames:
        frame[:3] = 255
    path = write_gif(tmp_path / "a.gif", frames, {"sfumato": "1", "long": "x" * 400})
    assert recipe(path) == {"sfumato": "1", "long": "x" * 400}
    with Image.open(path) as picture:
        assert picture.n_frames == 41 and picture.info["loop"] == 0
        assert np.asarray(picture.convert("RGB"))[:3].min() == 255
        picture.seek(40)
        assert picture.info["duration"] == 2000


def test_gif_gives_up_colours_to_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = list(np.random.default_rng(0).integers(0, 256, (8, 50, 60, 3), np.uint8))
    rich = write_gif(tmp_path / "a.gif", frames, {}).stat().st_size
    monkeypatch.setattr(gif, "LIMIT", rich // 2)
    assert write_gif(tmp_path / "a.gif", frames, {}).stat().st_size < rich // 2


def test_data_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()  # a name known to data wins
    Path("digits", "config.toml").touch()
    written = show("digits", **HOW | {"schedule": "edm"})
    assert written == [Path("show/digits/schedule.png"), Path("show/digits/forward.png")]
    said = recipe(written[-1])
    assert (said["data"], said["schedule"], said["fingerprint"]) == ("digits", "edm", load("digits").fingerprint)


def test_points_outside_a_plane_have_a_schedule_only(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "cube.csv", np.random.default_rng(0).normal(size=(50, 3)), delimiter=",")
    written = show(str(tmp_path / "cube.csv"), **HOW | {"out": str(tmp_path / "out")})
    assert [path.name for path in written] == ["schedule.png"]


def test_run_whose_data_are_gone_or_changed_starts_from_samples(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(50, 2))
    data = tmp_path / "set.csv"
    np.savetxt(data, points, delimiter=",")
    run = untrained(tmp_path / "run", str(data), replace(POINTS, schedule="vp"))
    np.savetxt(data, points[:30], delimiter=",")
    assert recipe(show(str(run), **HOW)[-1])["start"] == "samples"
    data.unlink()
    last = show(str(run), **HOW)[-1]
    assert recipe(last)["start"] == "samples" and recipe(last)["schedule"] == "vp"


def test_large_pictures_stay_small_files(tmp_path: Path) -> None:
    for name in ("china", "flower"):
        Image.fromarray(load_sample_image(f"{name}.jpg")[:400, :400]).save(tmp_path / f"{name}.png")
    written = show(str(tmp_path), **HOW | {"out": str(tmp_path / "out"), "gif": True})
    assert all(path.stat().st_size < (LIMIT if path.suffix == ".gif" else 300_000) for path in written)


@pytest.mark.parametrize(
    "wrong",
    [{"source": "nowhere"}, {"source": "x" * 5000}, {"source": "a\0b"}, {"schedule": "cosinus"}, {"grid": "lognsr"},
     {"sampler": "ddmi"}, {"steps": 0}],
)  # fmt: skip
def test_what_cannot_be_shown_is_one_line_and_nothing_is_written(wrong: dict[str, object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError) as caught:
        show(**{"source": "moons"} | HOW | {"out": str(out)} | wrong)
    assert "\n" not in str(caught.value) and not out.exists()


def test_a_picture_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    foreign = tmp_path / "forward.png"
    Image.new("RGB", (4, 4)).save(foreign)
    before = foreign.read_bytes()
    with pytest.raises(UserError, match=r"forward\.png"):
        show("moons", **HOW | {"out": str(tmp_path)})
    assert list(tmp_path.iterdir()) == [foreign] and foreign.read_bytes() == before
    write_png(foreign, np.zeros((4, 4), np.uint8), {"sfumato": "0"})
    assert foreign in show("digits", **HOW | {"out": str(tmp_path)})


def test_score_of_a_gaussian_points_home(moons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained, the edm denoiser is the best linear one, so the score drawn is that of N(0, 1): minus the place."""
    seen: list[tuple] = []
    monkeypatch.setattr(
        plots, "field", lambda title, subtitle, panels: seen.extend(panels) or np.zeros((2, 2, 3), np.uint8)
    )
    show(str(moons), **HOW | {"out": str(tmp_path)})
    sigma = [float(Cosine().sigma(Cosine().time(-2 * math.log(level)))) for level in (2.0, 0.8, 0.3, 0.1)]
    for (_, _, places, arrows), s in zip(seen, sigma, strict=True):
        np.testing.assert_allclose(arrows, -places * s, atol=1e-4)


@pytest.mark.parametrize("schedule", ["cosine", "ve", "flow"])
def test_density_and_flow_of_a_gaussian(schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained, the law is N(0, 1): its density is known with the blur, and drawn to scale its flow stands still."""
    points = np.random.default_rng(0).normal(size=(50, 2))
    np.savetxt(tmp_path / "set.csv", points, delimiter=",")
    run = untrained(tmp_path / "run", str(tmp_path / "set.csv"), replace(POINTS, schedule=schedule))
    seen: list[tuple] = []
    monkeypatch.setattr(plots, "density", lambda *what: seen.append(what))
    plane.density(of_run(Run.open(run), Wish(seed=0, steps=3, method="ancestral", grid="logsnr")))
    ((_, _, _, background, log_p, lines, window),) = seen
    n, var = len(log_p), 1 + clouds.BLUR**2
    axis = (2 * np.arange(n) + 1 - n) / n * window
    r2 = axis[:, None] ** 2 + axis**2
    np.testing.assert_allclose(log_p, -r2 / (2 * var) - math.log(2 * math.pi * var), atol=5e-3)
    assert background.shape == points.shape
    np.testing.assert_allclose(lines, np.broadcast_to(lines[0], lines.shape), atol=0.03)  # three pixels
    radii = np.sort((lines[0] ** 2).sum(1))  # the prior's, one at the middle of each of equal shares
    np.testing.assert_allclose(np.exp(-radii / 2)[::-1], (np.arange(len(radii)) + 0.5) / len(radii), atol=5e-4)
    assert np.abs(lines[0].mean(0)).max() < 0.02


def test_density_is_drawn_where_it_is() -> None:
    """A narrow Gaussian at (1, -0.5), given by log p on cells, lands on the same pixels as its cloud of points."""
    axis = (2 * np.arange(80) + 1 - 80) / 80 * 2.6
    points = np.random.default_rng(0).normal(size=(400_000, 2)) * 0.2 + [1.0, -0.5]
    var = 0.2**2 + clouds.BLUR**2
    r2 = (axis[:, None] - 1.0) ** 2 + (axis + 0.5) ** 2
    log_p = -r2 / (2 * var) - math.log(2 * math.pi * var)
    drawn = plots.density("", "", ["", "", ""], points, log_p, np.full((2, 1, 2), 9.0), 2.6).astype(int)
    data, model = (drawn[-436:-36, x : x + 400] for x in (36, 446))
    assert data.min() < 100 and np.abs(data - model).max() < 16
