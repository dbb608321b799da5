"""Sets of pictures that are known by name: digits (ships with scikit-learn), three of them on top of each other, and
Fashion-MNIST (a Debian package).
"""

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
    return choose("data set", name, {"digits": _digits, "stacked-digits": _stacked, "fashion-mnist": _fashion})()


def _parts_of_digits() -> list[tuple[Array, list[str]]]:
    """1,797 handwritten digits, 8x8, values 0..16; a fifth held out, the same for every class and every run."""
    bunch = load_digits()
    pixels, numbers = bunch.images.astype(np.uint8)[..., None], bunch.target
    parts = train_test_split(np.arange(len(numbers)), test_size=0.2, stratify=numbers, random_state=0)
    # In the order of the file, so that "#7" is the seventh picture of this part in it.
    return [(pixels[rows], [str(number) for number in numbers[rows]]) for rows in map(np.sort, parts)]


def _of_digits(name: str, pixels: Array, labels: list[str], count: int, held_out: Source | None = None) -> Source:
    """Return a source of ``count`` classes, numbers from 0 on with as many places each."""
    classes = tuple(f"{number:0{len(str(count - 1))}d}" for number in range(count))
    return Source(name, Pictures(levels=17), array_reader(pixels, labels), classes, test=held_out)


def _digits() -> Source:
    train, test = _parts_of_digits()
    return _of_digits("digits", *train, 10, _of_digits("digits (held out)", *test, 10))


def _stacked() -> Source:
    """Pictures 8x8 whose red, green and blue are digits drawn alone: 1,000 equally likely classes, "000" to "999".

    A set with as many modes that are known (Metz et al. 1611.02163 stack MNIST so). Those held out are made of digits
    that are held out.
    """

    def stacked(pixels: Array, labels: list[str], seed: int, count: int) -> tuple[Array, list[str]]:
        which = np.random.default_rng(seed).integers(len(pixels), size=(count, 3))
        names = ["".join(labels[k] for k in row) for row in which]
        return np.concatenate([pixels[which[:, k]] for k in range(3)], axis=-1), names

    train, test = _parts_of_digits()
    held_out = _of_digits("stacked-digits (held out)", *stacked(*test, 1, 10_000), 1000)
    return _of_digits("stacked-digits", *stacked(*train, 0, 40_000), 1000, held_out)


def _fashion() -> Source:
    """70,000 pictures of clothes, 28x28; 10,000 held out."""
    source = open_folder(_FASHION_FOLDER, FASHION_CLASSES)
    if source is None:
        raise UserError(
            "fashion-mnist is not installed; `apt install dataset-fashion-mnist`, "
            "or give the path of a folder with its four files"
        )
    return source
