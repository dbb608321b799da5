"""Sets of pictures that are known by name: digits (ships with scikit-learn) and Fashion-MNIST (a Debian package)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sfumato.data.idx import open_folder
from sfumato.data.image import Pictures
from sfumato.data.source import Array, Source, array_reader
from sfumato.errors import UserError, choose

__all__ = ["FASHION_CLASSES", "open_named"]

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Names of the ten classes, in the order of their labels."""

_FASHION_FOLDER = Path(os.sep, "usr", "share", "datasets", "fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its four files."""


def open_named(name: str) -> Source:
    """Open a set by its name.

    Raises:
        UserError: the set is not installed.
    """
    return choose("data set", name, {"digits": _digits, "fashion-mnist": _fashion})()


def _digits() -> Source:
    """1,797 handwritten digits, 8x8, values 0..16; a fifth held out, the same for every class and every run."""
    bunch = load_digits()
    pixels, numbers = bunch.images.astype(np.uint8)[..., None], bunch.target
    train, test = train_test_split(np.arange(len(numbers)), test_size=0.2, stratify=numbers, random_state=0)

    def part(name: str, rows: Array, held_out: Source | None = None) -> Source:
        # In the order of the file, so that "#7" is the seventh picture of this part in it.
        rows = np.sort(rows)
        labels = [str(number) for number in numbers[rows]]
        classes = tuple(map(str, range(10)))
        return Source(name, Pictures(levels=17), array_reader(pixels[rows], labels), classes, test=held_out)

    return part("digits", train, part("digits (held out)", test))


def _fashion() -> Source:
    """70,000 pictures of clothes, 28x28; 10,000 held out."""
    source = open_folder(_FASHION_FOLDER, FASHION_CLASSES)
    if source is None:
        raise UserError(
            "fashion-mnist is not installed; `apt install dataset-fashion-mnist`, "
            "or give the path of a folder with its four files"
        )
    return source
