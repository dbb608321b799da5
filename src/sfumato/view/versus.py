"""The page of a comparison: one HTML file that needs no network and no script, light or dark, wide or narrow."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfumato import __version__
from sfumato.data import Dataset
from sfumato.engine.contest import Contest
from sfumato.engine.run import Run
from sfumato.files import write_atomic
from sfumato.metrics.neighbours import nearest
from sfumato.models.base import GenerativeModel
from sfumato.view.chart import Line, chart
from sfumato.view.dots import Point, rows_of_dots, scatter
from sfumato.view.markup import document, embedded, figure, key, safe, table

__all__ = ["page"]

STYLES = ("l0", "l5", "l2", "l3", "l1", "l4")  # of the models, in their order
SAMPLES, COLUMNS = 40, 8  # of each model
NEIGHBOURS = 8  # samples beside their nearest training examples
SOUGHT = 60_000  # training examples among which they are sought
PICTURE_BYTES = 120_000
BETTER = {"low": "lower is better", "high": "higher is better", "near 1": "near that of real data is better"}


def page(contest: Contest) -> Path:
    """Write compare.html into the folder of a contest.

    Args:
        contest: that was held; its runs lie where they were.

    Returns:
        The page.
    """
    name = safe(contest.folder.resolve().name)
    head = "\n".join(f"<p>{safe(line)}</p>" for line in contest.contract())
    notes = "\n".join(f'<p class="note">{safe(note)}</p>' for note in contest.notes)
    parts = [f"<h1>{name}</h1>", head, notes, _summary(contest), _trilemma(contest), _courses(contest)]
    parts += [_seeds(contest), _samples(contest)]
    body = "\n".join([*(part for part in parts if part), f"<footer>Made by sfumato {__version__}.</footer>"])
    path = contest.folder / "compare.html"
    write_atomic(path, document(f"{name} · sfumato", __version__, body).encode())
    return path


def _styles(contest: Contest) -> dict[str, str]:
    return dict(zip(contest.terms.models, cycle(STYLES), strict=False))


def _summary(contest: Contest) -> str:
    heads, *rows = contest.table()
    return "<h2>Summary</h2>\n" + table(
        [safe(words) for words in heads], [[safe(cell) for cell in row] for row in rows], "wide"
    )


def _first(contest: Contest, start: str) -> str | None:
    """Return the name of the first measure that begins so."""
    names = [m.name for each in contest.entrants for m in each.measures]
    return next((name for name in names if name.startswith(start)), None)


def _trilemma(contest: Contest) -> str:
    """Return quality against diversity, with speed as area: a point for each seed."""
    quality, diversity = _first(contest, "frechet") or _first(contest, "kernel"), _first(contest, "recall")
    if quality is None or diversity is None:
        return ""
    styles, points = _styles(contest), {}
    for model, speed in contest.speeds.items():
        pairs = zip(contest.values(model, diversity), contest.values(model, quality), strict=True)
        points[model] = [Point(x, y, speed.best, styles[model]) for x, y in pairs]
    drawn = scatter(
        points, "quality, diversity and speed", f"{safe(diversity)} →", f"↑ {safe(quality)}, lower is better"
    )
    more = "the best corner is below, to the right; area: samples a second; a point for each seed"
    return "<h2>Quality, diversity, speed</h2>\n" + f'<div class="charts">{figure(drawn, "Trilemma", more)}</div>'


def _courses(contest: Contest) -> str:
    """Return quality and diversity against minutes of training, of the first seed of each model."""
    first = {model: contest.of(model)[0].course for model in contest.terms.models if contest.of(model)}
    found, styles = {model: places for model, places in first.items() if places}, _styles(contest)
    if not found:
        return ""
    drawn = []
    for what, more in (("distance", "to held-out data, lower is better"), ("recall", "higher is better")):
        lines = [
            Line(
                np.array([place.seconds / 60 for place in places]),
                np.array([getattr(place, what) for place in places]),
                styles[model],
                look="values",
            )
            for model, places in found.items()
        ]
        drawn.append(figure(chart(lines, (), f"{what} against minutes of training"), what.capitalize(), more))
    words = '<p class="grey">Averages that the runs of the first seed kept, by minutes of training; one that ends '
    words += "earlier would be better there: its learning rate would have fallen.</p>\n"
    strokes = key({f"line {styles[model]}": safe(model) for model in found})
    return f'<h2>On the way</h2>\n{words}{strokes}<div class="charts">\n' + "\n".join(drawn) + "\n</div>"


def _seeds(contest: Contest) -> str:
    """Return every measure seed by seed."""
    judged = [each for each in contest.entrants if each.measures]
    styles, shown = _styles(contest), []
    for m in judged[0].measures if judged else ():
        rows = {model: contest.values(model, m.name) for model in contest.terms.models}
        drawn = rows_of_dots(rows, styles, m.real, safe(m.name))
        shown.append(figure(drawn, safe(m.name), BETTER.get(m.better, "")))
    if not shown:
        return ""
    words = '<p class="grey">A dot for each seed; dashed: real training examples, as many.</p>'
    return f'<h2>Seed by seed</h2>\n{words}\n<div class="charts">\n' + "\n".join(shown) + "\n</div>"


def _samples(contest: Contest) -> str:
    """Return samples of every model beside each other, and some with the training examples nearest to them."""
    first = {model: contest.of(model)[0] for model in contest.terms.models if contest.of(model)}
    grids, beside = [], []
    data: Dataset | None = None
    for model, entrant in first.items():
        run = Run.open(Path(entrant.run))
        data = run.dataset() if data is None else data
        trained, _ = run.load()
        items = trained.sample(SAMPLES, seed=0)
        grids.append(_picture(trained, items, COLUMNS, model, f"seed {entrant.seed}, its first {SAMPLES} samples"))
        if data.codec.kind == "image":
            pairs = _beside_nearest(items[:NEIGHBOURS], data)
            beside.append(_picture(trained, pairs, NEIGHBOURS, model, "above: samples; below: what is nearest"))
    if not grids:
        return ""
    html = '<h2>Samples</h2>\n<div class="pictures">\n' + "\n".join(grids) + "\n</div>"
    if beside:
        html += '\n<h2>Nearest training examples</h2>\n<div class="pictures">\n' + "\n".join(beside) + "\n</div>"
    return html


def _picture(model: GenerativeModel, items: Tensor, columns: int, name: str, more: str) -> str:
    pixels = model.codec.picture(items, columns)
    return figure(embedded(pixels, f"samples of {safe(name)}", PICTURE_BYTES), safe(name), more)


def _beside_nearest(items: Tensor, data: Dataset) -> Tensor:
    """Return samples, and after them for each the training example whose raw values are nearest."""
    some = torch.arange(len(data.items))[:SOUGHT]
    seen = data.codec.encode(data.items[some]).flatten(1).numpy()
    _, found = nearest(data.codec.encode(items).flatten(1).numpy(), seen)
    return torch.cat([items, data.items[some[torch.from_numpy(found)]]])
