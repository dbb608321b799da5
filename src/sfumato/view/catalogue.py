"""What there is to choose from on the way back: every sampler and every grid, as tables."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.grid import GRIDS
from sfumato.sampler import SAMPLERS

__all__ = ["Catalogue", "GridEntry", "SamplerEntry", "catalogue"]


@dataclass(frozen=True)
class SamplerEntry:
    """A sampler.

    Attributes:
        name: what ``--sampler`` takes.
        order: of convergence in the step size; of the law (weak order) where noise is drawn.
        calls: network calls a step.
        stochastic: whether steps draw noise.
        source: paper and equation.
    """

    name: str
    order: int
    calls: int
    stochastic: bool
    source: str


@dataclass(frozen=True)
class GridEntry:
    """A grid.

    Attributes:
        name: what ``--grid`` takes.
        stops: where the steps stop.
    """

    name: str
    stops: str


@dataclass(frozen=True)
class Catalogue:
    """All of both kinds.

    Attributes:
        samplers: in the order of ``sfumato.sampler.SAMPLERS``.
        grids: in the order of ``sfumato.grid.GRIDS``.
    """

    samplers: tuple[SamplerEntry, ...]
    grids: tuple[GridEntry, ...]

    def lines(self) -> list[str]:
        """Return the tables as text, line by line."""
        ways = [
            (each.name, str(each.order), str(each.calls), "drawn" if each.stochastic else "none", each.source)
            for each in self.samplers
        ]
        stops = [(each.name, each.stops) for each in self.grids]
        return [
            *_columns([("sampler", "order", "calls", "noise", "source"), *ways]),
            "order: of the error in the step size; with noise, of the law.  calls: of the network in a step.",
            "",
            *_columns([("grid", "stops"), *stops, ("1,0.5,0", "these times, or any that fall within [0, 1]")]),
            "n: steps.  r: the noise level, sigma/alpha.",
        ]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay rows out in columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows]


def catalogue() -> Catalogue:
    """Return every sampler and grid there is."""
    ways = [(name, make()) for name, make in SAMPLERS.items()]
    return Catalogue(
        tuple(SamplerEntry(name, way.order, way.calls, way.stochastic, way.source) for name, way in ways),
        tuple(GridEntry(name, _first_line(grid.__doc__)) for name, grid in GRIDS.items()),
    )


def _first_line(docstring: str | None) -> str:
    """Return what a docstring says its function returns, without the word and the equation."""
    line = inspect.cleandoc(docstring or "").split("\n")[0].removeprefix("Return ")
    return line.partition(";")[0].rstrip(".")
