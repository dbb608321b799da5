"""What pictures are drawn of: a run or data, and the states that are seen on the way to noise and back.

A state is drawn divided by sqrt(alpha^2 + sigma^2), its size if the data have variance 1; for variance preserving
schedules that is 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sfumato import __version__
from sfumato.data import Codec, Dataset
from sfumato.data.picture import Pixels, cloud
from sfumato.defaults import GRID, SAMPLER, STEPS
from sfumato.denoise import Given, tells_mean
from sfumato.dist import stream
from sfumato.engine.generate import Wish
from sfumato.engine.run import Run
from sfumato.errors import UserError
from sfumato.grid import times
from sfumato.models.base import Way
from sfumato.models.diffusion import Diffusion, need_diffusion
from sfumato.process import Gaussian
from sfumato.rows import input_scale
from sfumato.schedule import SCHEDULES
from sfumato.view import plots
from sfumato.view.states import Stop, even_times, forward_path, way_back

__all__ = ["FRAMES", "PICTURES", "POINTS", "Subject", "of_data", "of_run"]

FRAMES = 40
"""Steps of the way to noise, and at least as many of a way back that is drawn smoothly."""
PICTURES = 8
"""How many pictures are drawn."""
POINTS = 20_000
"""How many points of the data are drawn."""
PARTICLES = 2048  # points drawn on the way back
VALUES = 230_000  # in a strip at most: noise cannot be compressed, and the file shall stay small
WIDE = 64  # what is wider is thinned to every second, third, ... pixel: averaging would take the noise away
CELL, CLOUD, SMALL_CELL, SMALL_CLOUD = 100, 200, 64, 280  # sides in pixels, the small ones of animations
PICK, WALK = range(2)  # what a stream is for


@dataclass(frozen=True)
class Subject:
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
        """The forward process."""
        return Gaussian(SCHEDULES[self.schedule]())

    @property
    def points(self) -> bool:
        """Whether the data are points and not pictures."""
        return self.codec.kind == "points"

    @property
    def start(self) -> str:
        """What the way to noise starts from."""
        return "data" if self.dataset is not None else "samples"

    @property
    def drawn(self) -> str:
        """A sentence to end a subtitle with where a state is not drawn as it is."""
        scales = (float(input_scale(self.process.schedule, k / 10, 1.0)) for k in range(11))
        preserving = all(abs(scale - 1) < 1e-6 for scale in scales)
        return "" if preserving else ".  Drawn: $x_t/\\sqrt{\\alpha_t^2+\\sigma_t^2}$"

    @property
    def slow_way(self) -> Way:
        """The way back in steps small enough for the eye; a student's or a tuned way goes in its own steps alone."""
        if self.model is not None and not tells_mean(self.model.denoiser):
            return self.way
        way = replace(self.way, method=SAMPLER, grid=GRID) if self.way.method == "tuned" else self.way
        return replace(way, steps=max(way.steps, FRAMES))

    @property
    def times(self) -> Tensor:
        """Where the way back stops."""
        if self.model is not None:
            return self.model.stops_of(self.way)
        return times(self.way.grid, self.way.steps, self.process.schedule)

    @property
    def flow_way(self) -> Way:
        """A way along the probability flow in steps small enough for the eye, whatever the way of the samples."""
        return replace(self.way, steps=FRAMES, method="heun", grid="logsnr")

    @property
    def grid(self) -> str:
        """What a subtitle says of the grid: its name, or that it is a list."""
        return "given grid" if "," in self.way.grid else f"{self.way.grid} grid"

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

    def given(self, n: int) -> Given:
        """Return the model for n states: that of the first class or sentence, if it can be asked."""
        assert self.model is not None
        cond = self.model.conditions(n * [0])
        return Given(self.model.denoiser, None if cond is None else cond.to(self.model.device))

    @property
    def of(self) -> str:
        """The words that name the class of :meth:`given`."""
        return f" of class {self.model.classes[0]}" if self.model is not None and self.model.classes else ""

    def states(self, n: int, label: int | None = None) -> Tensor:
        """Return up to n states at t = 0, of one class or spread over all; samples if the data are gone."""
        if self.dataset is None:
            assert self.model is not None
            return torch.cat(list(self.model.states(min(n, PARTICLES), replace(self.way, cond=label))))
        order = torch.randperm(len(self.dataset.items), generator=stream(self.way.seed, PICK))
        if self.dataset.labels is not None:
            labels = self.dataset.labels[order]
            order = order[labels.argsort(stable=True)] if label is None else order[labels == label]
        chosen = order[torch.linspace(0, len(order) - 1, min(n, len(order))).long()]
        return self.codec.encode(self.dataset.items[chosen])

    def scaled(self, x: Tensor, t: float) -> Tensor:
        """Return states as they are drawn."""
        return x / input_scale(self.process.schedule, t, 1.0)

    def cell(self, x: Tensor, t: float, small: bool = False) -> Pixels:
        """Draw states of one time: pictures below each other, or a cloud of points.

        Args:
            x: (n, *dims) states.
            t: their time.
            small: a smaller cloud, or pictures in two rows.
        """
        shown = self.scaled(x, t)
        if self.points:
            return cloud(shown.numpy(), SMALL_CLOUD if small else CLOUD)
        shown = shown[..., :: -(-x.shape[-2] // WIDE), :: -(-x.shape[-1] // WIDE)]
        columns = -(-len(x) // 2) if small else 1
        sheet = self.codec.picture(self.codec.decode(shown), columns)
        return plots.enlarged(sheet, (SMALL_CELL if small else CELL) * columns)

    def fit(self, x: Tensor, most: int, often: int) -> Tensor:
        """Return as many pictures as a strip can hold, the first; of points, all.

        Args:
            x: (n, *dims) states.
            most: pictures that are wanted.
            often: how often each is drawn.
        """
        if self.points:
            return x
        channels, height, width = self.codec.dims
        return x[: min(most, max(VALUES // (channels * min(height, WIDE) * min(width, WIDE) * often), 1))]


def of_run(run: Run, wish: Wish) -> Subject:
    """Return a run as a subject; its data count as gone if they have changed."""
    loaded, notes = run.load()
    model = need_diffusion(loaded, "showing the way to noise and back")
    dataset: Dataset | None
    try:
        dataset = run.dataset()
    except UserError:
        dataset = None
    if dataset is not None and dataset.fingerprint != run.data["fingerprint"]:
        dataset = None  # no longer what it was: as good as gone
    schedule = need_diffusion(run.config.model, "showing").schedule
    start = "samples" if dataset is None else "data"
    recipe = run.recipe(model, notes) | {"schedule": schedule, "start": start}
    return Subject(run.folder.name, model.codec, schedule, wish.way(model), dataset, model, recipe)


def of_data(dataset: Dataset, schedule: str, wish: Wish) -> Subject:
    """Return data alone as a subject.

    Args:
        dataset: the data.
        schedule: name of the schedule of the way to noise.
        wish: how samples would be drawn; its seed chooses data and noise.
    """
    recipe = {"sfumato": __version__, "data": dataset.name, "fingerprint": dataset.fingerprint, "schedule": schedule}
    steps = STEPS if wish.steps is None else wish.steps
    usual = Way(wish.seed, steps, wish.method or SAMPLER, wish.grid or GRID)
    return Subject(dataset.name, dataset.codec, schedule, usual, dataset, None, recipe)
