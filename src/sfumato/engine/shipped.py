"""Trained models that come with sfumato: run folders in the package, of the averaged weights alone, in half precision.

Asked for by name they become runs of the user's own below runs/shipped/, so that every verb finds an ordinary run and
nothing is written where the package lies. `bench/shipped.py` makes them from runs.
"""

from __future__ import annotations

from pathlib import Path

from sfumato.files import write_atomic

__all__ = ["PLACE", "SHIPPED", "names", "unpacked"]

SHIPPED = Path(__file__).parents[1] / "weights"
"""Where they lie, a folder for each."""
PLACE = Path("runs", "shipped")
"""Where they are unpacked."""
MARK = Path("checkpoints", "latest")  # names the weights by their checksum, and is written last


def names() -> list[str]:
    """Return the names of the models that come along."""
    return sorted(path.parents[1].name for path in SHIPPED.glob(f"*/{MARK}"))


def unpacked(name: str) -> Path | None:
    """Return the folder of a model that came along as a run, made if these weights are not there; None for other names.

    Args:
        name: of the model.

    Raises:
        UserError: it cannot be written.
    """
    if name not in names():
        return None
    source, folder = SHIPPED / name, PLACE / name
    if not (folder / MARK).exists() or (folder / MARK).read_bytes() != (source / MARK).read_bytes():
        files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path == MARK):
            write_atomic(folder / path, (source / path).read_bytes())
    return folder
