"""Pictures of a model of points in the plane: its score, its density, and the ways of its particles.

The density is exact up to the solver: log p by the probability-flow ODE. It is that of x + BLUR eps, and so are the
points of the data drawn, so the two pictures agree if the laws do. The lines of the flow start from places that divide
the prior N(0, 1) evenly, a sunflower stretched to its radii:

(1)  radius_k = sqrt(-2 log((k + 1/2) / n)),   angle_k = k pi (3 - sqrt 5),   k = 0 .. n - 1        (Vogel 1979)

so about as much of the density lies where a line ends as where any other does: a share of 1/n.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sfumato.data.picture import BLUR, WINDOW, Pixels
from sfumato.density import flow_logp
from sfumato.dist import stream
from sfumato.rows import input_scale
from sfumato.sampler import sampler, trajectory
from sfumato.score import score as score_of
from sfumato.view import plots
from sfumato.view.subject import POINTS, Subject

__all__ = ["density", "paths", "score"]

LINES, TANGLES = 160, 12  # paths drawn, if smooth and if a stochastic sampler shakes them
LEVELS = (2.0, 0.8, 0.3, 0.1)  # sigma / alpha at which the score is drawn
ARROWS = 15  # along each side of the field
EDGE = 2.6  # the density is seen in [-EDGE, EDGE]^2: data have variance 1, and lines of the flow may start outside
CELLS, TOLERANCE = 80, 1e-3  # along each side, next to BLUR wide, so that a spline sees all; and of the solver
FLOWS = 96  # lines of the flow
FIELD = 2  # what a stream is for


def paths(subject: Subject) -> Pixels:
    """Draw the ways of particles from noise to samples."""
    count = TANGLES if sampler(subject.way.method).stochastic else LINES
    states = np.stack([subject.scaled(stop.x[:count], stop.t).numpy() for stop in subject.slow])
    return plots.paths(
        f"{subject.name}: paths of {count} particles",
        f"from noise (pale) to samples (orange), over the density of the {subject.start}{subject.drawn}",
        subject.states(POINTS).numpy(),
        states,
    )


def score(subject: Subject) -> Pixels:
    """Draw the score at a few noise levels; of the first class, if the model has classes."""
    schedule = subject.process.schedule
    data = _data(subject)
    places = _places(ARROWS, WINDOW)
    given = subject.given(len(places))
    panels = []
    for k, level in enumerate(LEVELS):
        t = float(schedule.time(-2 * math.log(level)))
        noisy = subject.process.marginal(data, t).sample(stream(subject.way.seed, FIELD, k))
        scale = input_scale(schedule, t, 1.0)
        with torch.no_grad():
            arrows = score_of(given, places * scale, t) * float(schedule.sigma(t))
        head = plots.when(schedule, t)
        panels.append((head, subject.scaled(noisy, t).numpy(), places.numpy(), arrows.numpy()))
    return plots.field(
        f"{subject.name}: the score{subject.of}",
        "Arrows: $\\nabla\\log\\,p(x_t)$ by the model, times $\\sigma_t$.  Blue: the density of noisy "
        f"{subject.start}.  Below t: log SNR{subject.drawn}",
        panels,
    )


def density(subject: Subject) -> Pixels:
    """Draw the density of the data, that of the model, and its flow; of the first class, if the model has classes."""
    given = subject.given(CELLS**2)
    log_p = flow_logp(given, _places(CELLS, EDGE), rtol=TOLERANCE, atol=TOLERANCE, low=BLUR).value
    return plots.density(
        f"{subject.name}: what the model has learned{subject.of}",
        "p(x): exact, by the probability-flow ODE.  Lines: the way of equal shares of the noise (grey) to "
        f"{subject.start} (orange){subject.drawn}",
        (f"the {subject.start}", "$p(x)$ of the model", "its flow"),
        _data(subject).numpy(),
        log_p.view(CELLS, CELLS).numpy(),
        _flow(subject).numpy(),
        EDGE,
    )


def _data(subject: Subject) -> Tensor:
    """Return the points of the law that ``Subject.given`` is a model of."""
    return subject.states(POINTS, 0 if subject.of else None)


def _places(n: int, window: float) -> Tensor:
    """Return the middles of n x n cells of a window, (n^2, 2), row by row in x."""
    axis = torch.linspace(-1, 1, n) * window * (1 - 1 / n)
    return torch.cartesian_prod(axis, axis)


def _flow(subject: Subject) -> Tensor:
    """Return lines of the flow from the places (1) to data as they are drawn, (steps + 1, FLOWS, 2)."""
    k, way, given = torch.arange(FLOWS), subject.flow_way, subject.given(FLOWS)
    radius, angle = (-2 * ((k + 0.5) / FLOWS).log()).sqrt(), k * math.pi * (3 - math.sqrt(5))
    start = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    start = start * given.process.prior(start).std
    stops = trajectory(given, sampler(way.method), start, way.grid, way.steps)
    return torch.stack([subject.scaled(stop.x, stop.t) for stop in stops])
