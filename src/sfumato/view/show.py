"""Show how data turn to noise and back: which pictures are drawn of a run or of data, and into which files.

    schedule.png   alpha, sigma and logsnr against t, and the stops of the way back
    forward.png    the way to noise, and forward.gif
    reverse.png    the way back of a run's samples, state and estimate, and reverse.gif
    both.png       some of both ways in one picture
    score.png      the score field of a run on points
    density.png    its density, beside that of the data, and the flow that makes it
    paths.png      the ways of its particles

All is a function of the weights and the seed. Of points that do not lie in a plane only the schedule is drawn.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from PIL import Image
from torch import Tensor

from sfumato.data import NAMES
from sfumato.data import load as load_data
from sfumato.data.picture import Pixels
from sfumato.denoise import tells_mean
from sfumato.engine.generate import Wish
from sfumato.engine.run import Run, is_run
from sfumato.errors import UserError, choose, nearest
from sfumato.files import exists, write_png
from sfumato.sampler import sampler
from sfumato.schedule import SCHEDULES
from sfumato.view import plane, plots
from sfumato.view.gif import write_gif
from sfumato.view.states import evenly
from sfumato.view.subject import FRAMES, PICTURES, Subject, of_data, of_run

__all__ = ["show"]

STRIP, CLOUDS = 8, 5  # steps of a strip of pictures, and of a row of clouds; both divide FRAMES
BOTH = 3  # pictures where both ways are drawn


def show(source: str, wish: Wish, gif: bool, schedule: str, out: str | None) -> list[Path]:
    """Draw the pictures of a run or of data; see ``sfumato.verbs.show``.

    Args:
        source: folder of a run (it has a config.toml), or data as for ``sfumato.data.load``; a name known to that
            goes before a folder.
        wish: how samples are drawn; its seed is of the choice of data too.
        gif: draw animations too.
        schedule: name of the schedule where there is no run.
        out: folder; by default show/ in the run, or show/ and the name of the data.

    Returns:
        The files.

    Raises:
        UserError: neither a run nor data, an unknown name, or a file of a picture's name that is not one of ours;
            nothing is written then.
    """
    if wish.method not in (None, "tuned"):
        sampler(str(wish.method))
    if is_run(source):
        run = Run.open(Path(source))
        subject, folder = of_run(run, wish), run.folder / "show"
    else:
        if source not in NAMES and not exists(Path(source)):
            raise UserError(f"no run, data set or path '{source}'{nearest(source, NAMES)}")
        choose("schedule", schedule, SCHEDULES)
        subject = of_data(load_data(source), schedule, wish)
        folder = Path("show") / subject.name
    folder = folder if out is None else Path(out)
    drawers = _drawers(subject, gif)
    for name in drawers:
        _refuse_foreign(folder / name)
    ways = {"density.png": subject.flow_way, "paths.png": subject.slow_way, "reverse.gif": subject.slow_way}
    drawn = {name: draw(subject) for name, draw in drawers.items()}
    written = []
    for name, picture in drawn.items():
        recipe = subject.recipe | asdict(ways.get(name, subject.way)) | {"picture": name}
        if isinstance(picture, list):
            written.append(write_gif(folder / name, picture, recipe))
        else:
            written.append(write_png(folder / name, picture, recipe))
    return written


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


def _drawers(subject: Subject, gif: bool) -> dict[str, Callable[[Subject], Pixels | list[Pixels]]]:
    """Return what can be drawn of a subject, by file name; the last is the one to look at first."""
    drawers: dict[str, Callable[[Subject], Pixels | list[Pixels]]] = {"schedule.png": _schedule}
    if subject.points and subject.codec.dims != (2,):
        return drawers
    if subject.points and subject.model is not None and tells_mean(subject.model.denoiser):
        drawers |= {"score.png": plane.score, "density.png": plane.density, "paths.png": plane.paths}
    drawers |= {"forward.png": _forward} | ({"forward.gif": _forward_frames} if gif else {})
    if subject.model is not None:
        drawers |= {"reverse.png": _reverse} | ({"reverse.gif": _reverse_frames} if gif else {})
        drawers |= {"both.png": _both}
    return drawers


def _schedule(subject: Subject) -> Pixels:
    stops = subject.times
    subtitle = f"Points: the {len(stops)} stops of the way back in {len(stops) - 1} steps on the {subject.grid}"
    return plots.schedules(f"The {subject.schedule} schedule", subtitle, subject.schedule, stops.numpy())


def _forward(subject: Subject, most: int = PICTURES) -> Pixels:
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


def _reverse(subject: Subject, most: int = PICTURES // 2) -> Pixels:
    way, stops = subject.way, subject.back(subject.way)
    shown = evenly(stops, subject.process.schedule, CLOUDS if subject.points else STRIP)
    rows = [[(stop.x, stop.t) for stop in shown], [(stop.x0, 0.0) for stop in shown]]
    return plots.table(
        f"{subject.name}: from noise to samples",
        f"{way.method}, {len(stops) - 1} steps, {subject.grid}.  Above: the state; below: what the model sees in it"
        + subject.drawn,
        [[subject.cell(subject.fit(x, most, 2 * len(shown)), t) for x, t in row] for row in rows],
        [plots.when(subject.process.schedule, stop.t) for stop in shown],
        ["$x_t$", "$\\hat{x}_0$"],
    )


def _both(subject: Subject) -> Pixels:
    return plots.stacked([_forward(subject, BOTH), _reverse(subject, BOTH)])


def _forward_frames(subject: Subject) -> list[Pixels]:
    return [_frame(subject, t, {"": (x, t)}) for t, x in zip(subject.stops, subject.forward, strict=True)]


def _reverse_frames(subject: Subject) -> list[Pixels]:
    return [
        _frame(subject, stop.t, {"state": (stop.x, stop.t), "estimate of the data": (stop.x0, 0.0)})
        for stop in subject.slow
    ]


def _frame(subject: Subject, t: float, parts: dict[str, tuple[Tensor, float]]) -> Pixels:
    title, subtitle = plots.when(subject.process.schedule, t).split("\n")
    cells = [subject.cell(x, time, small=True) for x, time in parts.values()]
    return plots.table(title, f"log SNR {subtitle}", [cells], list(parts), least=0)
