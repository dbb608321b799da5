"""Show how data turn to noise and back: which pictures are drawn of a run or of data, and into which files.

    schedule.png   alpha, sigma and logsnr against t, and the stops of the way back
    forward.png    the way to noise, and forward.gif
    reverse.png    the way back of a run's samples, state and estimate, and reverse.gif
    both.png       some of both ways in one picture
    score.png      the score field of a run on points
    paths.png      the ways of its particles

A state is drawn divided by sqrt(alpha^2 + sigma^2), its size if the data have variance 1; for variance preserving
schedules that is 1. All is a function of the weights and the seed. Of points that do not lie in a plane only the
schedule is drawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfumato import __version__
from sfumato.data import NAMES, Codec, Dataset
from sfumato.data import load as load_data
from sfumato.data.picture import WINDOW, Pixels, cloud
from sfumato.denoise import Given
from sfumato.dist import stream
from sfumato.engine.generate import Way
from sfumato.engine.run import Run
from sfumato.errors import UserError, choose, nearest
from sfumato.files import write_png
from sfumato.grid import times
from sfumato.models.diffusion import Diffusion
from sfumato.process import Gaussian, spread
from sfumato.report import plots
from sfumato.report.gif import write_gif
from sfumato.report.states import Stop, even_times, evenly, forward_path, way_back
from sfumato.rows import input_scale
from sfumato.sampler import sampler
from sfumato.schedule import SCHEDULES, as_time

__all__ = ["show"]

FRAMES = 40  # steps of the way to noise, and at least as many of an animated way back
STRIP, CLOUDS = 8, 5  # steps of a strip of pictures, and of a row of clouds; both divide FRAMES
PICTURES, BOTH, POINTS, PARTICLES = 8, 3, 20_000, 2048  # how many are drawn
LINES, TANGLES = 160, 12  # paths drawn, if smooth and if a stochastic sampler shakes them
VALUES = 230_000  # in a strip at most: noise cannot be compressed, and the file shall stay small
WIDE = 64  # what is wider is thinned to every second, third, ... pixel: averaging would take the noise away
CELL, CLOUD, SMALL_CELL, SMALL_CLOUD = 100, 200, 64, 280  # sides in pixels, the small ones of animations
LEVELS = (2.0, 0.8, 0.3, 0.1)  # sigma / alpha at which the score is drawn
ARROWS = 15  # along each side of the field
PICK, WALK, FIELD = range(3)  # what a stream is for
SLOW = ("paths.png", "reverse.gif")  # what is drawn in steps small enough for the eye


@dataclass(frozen=True)
class _Subject:
    """What is shown.

    Attributes:
        name: for the titles.
        codec: of the data.
        schedule: its name.
        way: how samples are drawn.
        dataset: the data; None if they are gone.
        model: None where data alone are shown.
        recipe: what every picture carries.
    """

    name: str
    codec: Codec
    schedule: str
    way: Way
    dataset: Dataset | None
    model: Diffusion | None
    recipe: dict[str, Any]

    @property
    def process(self) -> Gaussian:
        return Gaussian(SCHEDULES[self.schedule]())

    @property
    def points(self) -> bool:
        return self.codec.kind == "points"

    @property
    def start(self) -> str:
        """What the way to noise starts from."""
        return "data" if self.dataset is not None else "samples"

    @property
    def drawn(self) -> str:
        """A sentence to end a subtitle with where a state is not drawn as it is."""
        schedule, t = self.process.schedule, torch.linspace(0, 1, 11)
        preserving = bool((input_scale(schedule, as_time(t), 1.0) - 1).abs().max() < 1e-6)
        return "" if preserving else ".  Drawn: $x_t/\\sqrt{\\alpha_t^2+\\sigma_t^2}$"

    @property
    def slow_way(self) -> Way:
        """The way back in steps small enough for the eye."""
        return replace(self.way, steps=max(self.way.steps, FRAMES))

    @cached_property
    def stops(self) -> list[float]:
        """Times of the way to noise."""
        return even_times(self.process.schedule, FRAMES).tolist()

    @cached_property
    def forward(self) -> list[Tensor]:
        """States at ``stops``."""
        rng = stream(self.way.seed, WALK)
        start = self.states(POINTS if self.points else PICTURES)
        return forward_path(self.process, start, torch.tensor(self.stops, dtype=torch.float64), rng)

    @cached_property
    def slow(self) -> list[Stop]:
        """Stops of ``slow_way``."""
        return self.back(self.slow_way)

    def back(self, way: Way) -> list[Stop]:
        """Return the stops of a way back of as many samples as are drawn."""
        assert self.model is not None
        return way_back(self.model, PARTICLES if self.points else PICTURES, way)

    def states(self, n: int, label: int | None = None) -> Tensor:
        """Return up to n states at t = 0, of one class or spread over all; samples if the data are gone."""
        if self.dataset is None:
            assert self.model is not None
            how = asdict(replace(self.way, label=label))
            return torch.cat(list(self.model.states(min(n, PARTICLES), **how)))
        order = torch.randperm(len(self.dataset.items), generator=stream(self.way.seed, PICK))
        if self.dataset.labels is not None:
            labels = self.dataset.labels[order]
            order = order[labels.argsort(stable=True)] if label is None else order[labels == label]
        chosen = order[torch.linspace(0, len(order) - 1, min(n, len(order))).long()]
        return self.codec.encode(self.dataset.items[chosen])

    def scaled(self, x: Tensor, t: float) -> Tensor:
        """Return states as they are drawn."""
        return x / spread(input_scale(self.process.schedule, as_time(t), 1.0), x)

    def cell(self, x: Tensor, t: float, small: bool = False) -> Pixels:
        """Draw states (n, *dims) of one time: pictures below each other (two rows if small), or a cloud of points."""
        shown = self.scaled(x, t)
        if self.points:
            return cloud(shown.numpy(), SMALL_CLOUD if small else CLOUD)
        shown = shown[..., :: -(-x.shape[-2] // WIDE), :: -(-x.shape[-1] // WIDE)]
        columns = -(-len(x) // 2) if small else 1
        sheet = self.codec.picture(self.codec.decode(shown), columns)
        return plots.enlarged(sheet, (SMALL_CELL if small else CELL) * columns)

    def fit(self, x: Tensor, most: int, often: int) -> Tensor:
        """Return the first pictures, ``most`` or what a strip can hold if each is drawn so often; all points."""
        if self.points:
            return x
        channels, height, width = self.codec.dims
        return x[: min(most, max(VALUES // (channels * min(height, WIDE) * min(width, WIDE) * often), 1))]


def show(
    source: str, *, gif: bool, schedule: str, steps: int, seed: int, method: str, grid: str, out: str | None
) -> list[Path]:
    """Draw the pictures of a run or of data; see ``sfumato.verbs.show``.

    Args:
        source: folder of a run (it has a config.toml), or data as for ``sfumato.data.load``; a name known to that
            goes before a folder.
        gif: draw animations too.
        schedule: name of the schedule where there is no run.
        steps: steps of the way back.
        seed: of the noise, and of the choice of data.
        method: name of the sampler.
        grid: name of the grid.
        out: folder; by default show/ in the run, or show/ and the name of the data.

    Returns:
        The files.

    Raises:
        UserError: neither a run nor data, an unknown name, or a file of a picture's name that is not one of ours;
            nothing is written then.
    """
    way = Way(seed=seed, steps=steps, method=method, grid=grid)
    sampler(method)
    if _is_run(source):
        run = Run.open(Path(source))
        subject, folder = _of_run(run, way), run.folder / "show"
    else:
        if source not in NAMES and not _found(Path(source)):
            raise UserError(f"no run, data set or path '{source}'{nearest(source, NAMES)}")
        choose("schedule", schedule, SCHEDULES)
        subject = _of_data(load_data(source), schedule, way)
        folder = Path("show") / subject.name
    folder = folder if out is None else Path(out)
    drawers = _drawers(subject, gif)
    for name in drawers:
        _refuse_foreign(folder / name)
    drawn = {name: draw(subject) for name, draw in drawers.items()}
    written = []
    for name, picture in drawn.items():
        recipe = subject.recipe | asdict(subject.slow_way if name in SLOW else way) | {"picture": name}
        if isinstance(picture, list):
            written.append(write_gif(folder / name, picture, recipe))
        else:
            written.append(write_png(folder / name, picture, recipe))
    return written


def _is_run(source: str) -> bool:
    return source not in NAMES and _found(Path(source) / "config.toml")


def _found(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long for a path
        return False


def _of_run(run: Run, way: Way) -> _Subject:
    model, notes = run.load()
    dataset: Dataset | None
    try:
        dataset = run.dataset()
    except UserError:
        dataset = None
    if dataset is not None and dataset.fingerprint != run.data["fingerprint"]:
        dataset = None  # no longer what it was: as good as gone
    schedule = run.config.model.schedule
    start = "samples" if dataset is None else "data"
    recipe = run.recipe(model, notes) | {"schedule": schedule, "start": start}
    return _Subject(run.folder.name, model.codec, schedule, way, dataset, model, recipe)


def _of_data(dataset: Dataset, schedule: str, way: Way) -> _Subject:
    recipe = {"sfumato": __version__, "data": dataset.name, "fingerprint": dataset.fingerprint, "schedule": schedule}
    return _Subject(dataset.name, dataset.codec, schedule, way, dataset, None, recipe)


def _refuse_foreign(path: Path) -> None:
    """Raise a UserError unless there is no such file, or it is a picture that carries a recipe."""
    if not path.exists():
        return
    try:
        with Image.open(path) as picture:
            recipe = json.loads(picture.info.get("sfumato") or picture.info.get("comment") or "")
            if "sfumato" in recipe:
                return
    except (OSError, ValueError, TypeError):
        pass
    raise UserError(f"{path}: exists and is not a picture made by sfumato; move it, or choose another --out")


def _drawers(subject: _Subject, gif: bool) -> dict[str, Callable[[_Subject], Pixels | list[Pixels]]]:
    """Return what can be drawn of a subject, by file name; the last is the one to look at first."""
    drawers: dict[str, Callable[[_Subject], Pixels | list[Pixels]]] = {"schedule.png": _schedule}
    if subject.points and subject.codec.dims != (2,):
        return drawers
    if subject.points and subject.model is not None:
        drawers |= {"score.png": _score, "paths.png": _paths}
    drawers |= {"forward.png": _forward} | ({"forward.gif": _forward_frames} if gif else {})
    if subject.model is not None:
        drawers |= {"reverse.png": _reverse} | ({"reverse.gif": _reverse_frames} if gif else {})
        drawers |= {"both.png": _both}
    return drawers


def _schedule(subject: _Subject) -> Pixels:
    way, schedule = subject.way, subject.process.schedule
    stops = times(way.grid, way.steps, schedule)
    subtitle = f"Points: the {len(stops)} stops of the way back in {way.steps} steps on the {way.grid} grid"
    return plots.schedules(f"The {subject.schedule} schedule", subtitle, subject.schedule, stops.numpy())


def _forward(subject: _Subject, most: int = PICTURES) -> Pixels:
    stops, path = subject.stops, subject.forward
    every = FRAMES // (CLOUDS if subject.points else STRIP)
    shown = list(zip(stops, path, strict=True))[::every]
    cells = [subject.cell(subject.fit(x, most, len(shown)), t) for t, x in shown]
    return plots.table(
        f"{subject.name}: from {subject.start} to noise{'' if subject.dataset else ' (the data are gone)'}",
        f"One path of the Markov chain, step by step.  Below t: log SNR{subject.drawn}",
        [cells],
        [plots.when(subject.process.schedule, t) for t, _ in shown],
    )


def _reverse(subject: _Subject, most: int = PICTURES // 2) -> Pixels:
    way, stops = subject.way, subject.back(subject.way)
    shown = evenly(stops, subject.process.schedule, CLOUDS if subject.points else STRIP)
    rows = [[(stop.x, stop.t) for stop in shown], [(stop.x0, 0.0) for stop in shown]]
    return plots.table(
        f"{subject.name}: from noise to samples",
        f"{way.method}, {way.steps} steps, {way.grid} grid.  Above: the state; below: what the model sees in it"
        + subject.drawn,
        [[subject.cell(subject.fit(x, most, 2 * len(shown)), t) for x, t in row] for row in rows],
        [plots.when(subject.process.schedule, stop.t) for stop in shown],
        ["$x_t$", "$\\hat{x}_0$"],
    )


def _both(subject: _Subject) -> Pixels:
    return plots.stacked([_forward(subject, BOTH), _reverse(subject, BOTH)])


def _forward_frames(subject: _Subject) -> list[Pixels]:
    return [_frame(subject, t, {"": (x, t)}) for t, x in zip(subject.stops, subject.forward, strict=True)]


def _reverse_frames(subject: _Subject) -> list[Pixels]:
    return [
        _frame(subject, stop.t, {"state": (stop.x, stop.t), "estimate of the data": (stop.x0, 0.0)})
        for stop in subject.slow
    ]


def _frame(subject: _Subject, t: float, parts: dict[str, tuple[Tensor, float]]) -> Pixels:
    title, subtitle = plots.when(subject.process.schedule, t).split("\n")
    cells = [subject.cell(x, time, small=True) for x, time in parts.values()]
    return plots.table(title, f"log SNR {subtitle}", [cells], list(parts), least=0)


def _paths(subject: _Subject) -> Pixels:
    count = TANGLES if sampler(subject.way.method).stochastic else LINES
    states = np.stack([subject.scaled(stop.x[:count], stop.t).numpy() for stop in subject.slow])
    return plots.paths(
        f"{subject.name}: paths of {count} particles",
        f"from noise (pale) to samples (orange), over the density of the {subject.start}{subject.drawn}",
        subject.states(POINTS).numpy(),
        states,
    )


def _score(subject: _Subject) -> Pixels:
    """Draw the score at a few noise levels; of the first class, if the model has classes."""
    model = subject.model
    assert model is not None
    schedule = subject.process.schedule
    data = subject.states(POINTS, 0 if model.classes else None)
    axis = torch.linspace(-1, 1, ARROWS) * WINDOW * (1 - 1 / ARROWS)
    places = torch.cartesian_prod(axis, axis)
    given = Given(model.denoiser, torch.zeros(len(places), dtype=torch.long) if model.classes else None)
    panels = []
    for k, level in enumerate(LEVELS):
        t = float(schedule.time(-2 * math.log(level)))
        noisy = subject.process.marginal(data, t).sample(stream(subject.way.seed, FIELD, k))
        scale = input_scale(schedule, as_time(t), 1.0).float()
        with torch.no_grad():
            arrows = given(places * scale, t).score * schedule.sigma(t).float()
        head = plots.when(schedule, t)
        panels.append((head, subject.scaled(noisy, t).numpy(), places.numpy(), arrows.numpy()))
    of = f" of class {model.classes[0]}" if model.classes else ""
    return plots.field(
        f"{subject.name}: the score{of}",
        "Arrows: $\\nabla\\log\\,p(x_t)$ by the model, times $\\sigma_t$.  Blue: the density of noisy "
        f"{subject.start}.  Below t: log SNR{subject.drawn}",
        panels,
    )
