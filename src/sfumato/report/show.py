"""Show how data turn to noise and back: which states are drawn, and into which files.

The way to noise is a real path of the Markov chain, each state drawn from the one before it:

(1)  x at t_{k+1} ~ q(x_{t_{k+1}} | x_{t_k}),    0 = t_0 < t_1 < ... < t_K = 1

Its times advance the angle whose tangent is the noise level in equal steps,

(2)  tan(angle_k) = sigma(t_k) / alpha(t_k),    angle_k = k/K angle_K

because x_t / sqrt(alpha^2 + sigma^2) = cos(angle) x_0 + sin(angle) eps: every step changes as much of what is seen,
whatever the schedule. (Equal steps of logsnr would spend most of them where the eye sees data or noise alone.) That
quotient is also what is drawn; for variance preserving schedules it is x_t itself.

All is a function of the weights and the seed. For points that do not lie in a plane only the schedule is drawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfumato import __version__
from sfumato.data import NAMES, Codec, Dataset
from sfumato.data import load as load_data
from sfumato.denoise import Given
from sfumato.dist import Rng, stream
from sfumato.engine.generate import Way
from sfumato.engine.run import Run
from sfumato.errors import UserError, choose
from sfumato.files import write_png
from sfumato.grid import times
from sfumato.models.diffusion import Diffusion
from sfumato.process import Gaussian, spread
from sfumato.report import plots
from sfumato.report.gif import write_gif
from sfumato.report.plots import Pixels
from sfumato.rows import input_scale
from sfumato.sampler import sampler
from sfumato.schedule import SCHEDULES, Schedule

__all__ = ["Stop", "even_times", "forward_path", "show", "way_back"]

FRAMES = 40  # steps of the way to noise, and at least as many of an animated way back
COLUMNS, PANELS = 8, 5  # steps of a strip of pictures, and of a row of clouds; both divide FRAMES
PICTURES, POINTS, PARTICLES, LINES = 8, 20_000, 2048, 160  # how many are drawn, of each kind
VALUES = 230_000  # in a strip at most: noise cannot be compressed, and the file shall stay small
WIDE = 64  # pixels; what is wider is thinned to every second, third, ... pixel, as averaging would take the noise away
CELL, FRAME_CELL, CLOUD, FRAME_CLOUD = 100, 64, 200, 300  # sides, pixels
LEVELS = (2.0, 0.8, 0.3, 0.1)  # sigma/alpha at which the score is drawn
ARROWS = 21  # along each side of the field
PICK, WALK, FIELD = range(3)  # what a stream is for


def even_times(schedule: Schedule, steps: int) -> Tensor:
    """Return steps + 1 times from 0 to 1, float64, between which the picture changes evenly; equation (2)."""
    last = math.atan(math.exp(-float(schedule.logsnr(1.0)) / 2))
    angles = last * torch.arange(1, steps, dtype=torch.float64) / steps
    inner = schedule.time(-2 * angles.tan().log())
    return torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)])


def forward_path(process: Gaussian, x_0: Tensor, stops: Tensor, rng: Rng = None) -> list[Tensor]:
    """Walk from data to noise; equation (1).

    Args:
        process: the forward process.
        x_0: (B, ...) data.
        stops: (K+1,) rising times, the first one 0.
        rng: where the noise comes from.

    Returns:
        K + 1 states (B, ...), the first one ``x_0``.
    """
    path = [x_0]
    for s, t in pairwise(stops):
        path.append(process.transition(path[-1], s, t).sample(rng))
    return path


@dataclass(frozen=True)
class Stop:
    """A stop of the way back with what the model sees from there.

    Attributes:
        t: the time.
        x: (B, ...) the state.
        x0: (B, ...) the estimate of the data made from it; at t = 0 the state itself.
    """

    t: float
    x: Tensor
    x0: Tensor


def way_back(model: Diffusion, n: int, way: Way) -> list[Stop]:
    """Return the stops of samples 0 .. n - 1, batch by batch as :meth:`Diffusion.states` makes them.

    Fewer than a batch are made alone, so they equal those of ``sfumato sample`` up to rounding only.
    """
    parts = [
        list(model.trajectory(range(k, min(k + model.batch, n)), **asdict(way))) for k in range(0, n, model.batch)
    ]
    stops = []
    for here, after in pairwise([*zip(*parts, strict=True), None]):
        x = torch.cat([state.x for state in here]).cpu()
        # A state carries the estimate it was made from: the one made here is found in the next.
        x0 = x if after is None else torch.cat([state.x0 for state in after]).cpu()
        stops.append(Stop(here[0].t, x, x0))
    return stops


@dataclass(frozen=True)
class _Subject:
    """What is shown.

    Attributes:
        name: for the titles.
        codec: of its data.
        schedule: name of the schedule.
        way: how samples are drawn.
        dataset: the data; None if they are gone.
        model: None if data alone are shown.
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
    def visible(self) -> bool:
        """Whether states can be drawn."""
        return not self.points or self.codec.dims == (2,)

    @property
    def count(self) -> int:
        """Pictures, each in a row of its own, in a strip."""
        channels, height, width = self.codec.dims
        values = channels * min(height, WIDE) * min(width, WIDE) * (COLUMNS + 1)
        return min(max(VALUES // values, 2), PICTURES)

    def states(self, n: int, label: int | None = None) -> Tensor:
        """Return about ``n`` states at t = 0, of one class or spread over all: data, or samples if those are gone."""
        if self.dataset is None:
            assert self.model is not None
            how = asdict(self.way) | {"label": label}
            return torch.cat(list(self.model.states(min(n, PARTICLES), **how)))
        order = torch.randperm(len(self.dataset.items), generator=stream(self.way.seed, PICK))
        if self.dataset.labels is not None:
            labels = self.dataset.labels[order]
            order = order[labels.argsort(stable=True)] if label is None else order[labels == label]
        chosen = order[torch.linspace(0, len(order) - 1, min(n, len(order))).long()]
        return self.dataset.codec.encode(self.dataset.items[chosen])

    @cached_property
    def stops(self) -> Tensor:
        """Times of the way to noise."""
        return even_times(self.process.schedule, FRAMES)

    @cached_property
    def forward(self) -> list[Tensor]:
        """States of the way to noise."""
        start = self.states(POINTS if self.points else PICTURES)
        return forward_path(self.process, start, self.stops, stream(self.way.seed, WALK))

    @cached_property
    def slow(self) -> list[Stop]:
        """The way back in steps small enough for the eye."""
        assert self.model is not None
        way = asdict(self.way) | {"steps": max(self.way.steps, FRAMES)}
        return way_back(self.model, PARTICLES if self.points else PICTURES, Way(**way))

    def cell(self, x: Tensor, t: float, columns: int = 1, side: int = CELL) -> Pixels:
        """Draw states (n, *dims) of one time: pictures of about ``side`` pixels in columns, or a cloud of points."""
        shown = self.scaled(x, t)
        if self.points:
            return plots.cloud(shown.numpy(), side)
        shown = shown[..., :: -(-x.shape[-2] // WIDE), :: -(-x.shape[-1] // WIDE)]
        return plots.enlarged(self.codec.picture(self.codec.decode(shown), columns), side * columns)

    def scaled(self, x: Tensor, t: float) -> Tensor:
        """Return states divided by sqrt(alpha^2 + sigma^2)."""
        scale = input_scale(self.process.schedule, torch.tensor(t, dtype=torch.float64), 1.0)
        return x / spread(scale, x)


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
        seed: of the noise, and of which data are shown.
        method: name of the sampler.
        grid: name of the grid.
        out: folder, by default show/ in the run, or show/ and the name of the data.

    Returns:
        The files.

    Raises:
        UserError: neither run nor data, an unknown name, or a file in the folder that has a picture's name and is
            not one of ours. Nothing is written then.
    """
    way = Way(seed=seed, steps=steps, method=method, grid=grid)
    sampler(method)
    if _is_run(source):
        run = Run.open(Path(source))
        subject, folder = _of_run(run, way), run.folder / "show"
    else:
        choose("schedule", schedule, SCHEDULES)
        dataset = load_data(source)
        subject, folder = _of_data(dataset, schedule, way), Path("show") / dataset.name
    folder = folder if out is None else Path(out)
    drawers = {
        name: draw
        for name, (draw, needs) in _DRAWERS.items()
        if all(getattr(subject, need) for need in needs) and (gif or not name.endswith(".gif"))
    }
    for name in drawers:
        _refuse_foreign(folder / name)
    drawn = {name: draw(subject) for name, draw in drawers.items()}
    return [_write(folder / name, picture, subject.recipe) for name, picture in drawn.items()]


def _is_run(source: str) -> bool:
    try:
        return source not in NAMES and (Path(source) / "config.toml").is_file()
    except OSError:  # a name too long for a path; what it is instead, the data will say
        return False


def _of_run(run: Run, way: Way) -> _Subject:
    model, notes = run.load()
    config = run.config
    dataset: Dataset | None = None
    try:
        dataset = load_data(config.data, resolution=config.resolution or None, skip_bad=config.skip_bad)
    except UserError:  # the data are gone, or no longer what they were: the model's samples stand in
        pass
    if dataset is not None and dataset.fingerprint != run.data["fingerprint"]:
        dataset = None
    recipe = {"run": run.folder.name, "data": run.data["name"], "weights": model.fingerprint()}
    recipe |= {"step": int(notes["step"]), "schedule": config.model.schedule}
    recipe |= {"start": "samples" if dataset is None else "data"}
    return _subject(run.folder.name, model.codec, config.model.schedule, way, dataset, model, recipe)
