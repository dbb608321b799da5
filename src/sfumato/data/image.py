"""Pictures: their codec, and the rules by which a set of them gets one size and one number of channels.

A value v in 0..levels-1 becomes the state

    x = 2 v / (levels - 1) - 1   in [-1, 1],   so   log |dx/dv| = log(2 / (levels - 1)) per value.          (1)

Channels: 4 if every picture has an alpha that is not opaque everywhere; else transparent parts are laid over
white, and the set gets 3 channels if any picture has colour, or 1 if all are grey *in content* (a grey picture
stored as RGB is grey). Size: pictures that are all alike and not larger than 64 stay as they are; else each is
resized until it covers a common frame, and cropped at the centre.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sfumato.data.picture import contact_sheet
from sfumato.data.source import Array, Item, Look
from sfumato.files import write_png

__all__ = ["DEFAULT_RESOLUTION", "ImageCodec", "Pictures", "codec"]

DEFAULT_RESOLUTION = 64
"""Longest side that needs no --resolution."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class ImageCodec:
    """Pictures uint8 (N, C, H, W) with values 0..levels-1 <-> states in [-1, 1], equation (1).

    Attributes:
        channels: 1 grey, 3 RGB, 4 RGBA.
        height: H.
        width: W.
        levels: how many values a channel can take, 2..256.
    """

    channels: int
    height: int
    width: int
    levels: int = 256
    kind: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        if self.channels not in _MODES or min(self.height, self.width) < 1 or not 2 <= self.levels <= 256:
            raise ValueError(f"no such pictures: {self}")

    @property
    def dims(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return (self.channels, self.height, self.width)

    @property
    def level_width(self) -> float:
        """2 / (levels - 1). Half of it added to the outermost levels leaves [-1, 1]: bins are all of one width."""
        return 2 / (self.levels - 1)

    @property
    def pixel(self) -> ImageCodec:
        """Itself; a codec of latents names that of its pictures so."""
        return self

    def encode(self, items: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> float32 in [-1, 1]."""
        return items.to(torch.float32) * self.level_width - 1

    def decode(self, states: Tensor) -> Tensor:
        """Float (N, C, H, W) -> uint8, to the nearest level, clipped to 0..levels-1.

        Raises:
            ValueError: a state is not finite (cast to uint8 it would pass for black).
        """
        if not torch.isfinite(states).all():
            raise ValueError("states hold NaN or infinity: not pictures")
        values = (states.to(torch.float32) + 1) * ((self.levels - 1) / 2)
        return values.round().clamp(0, self.levels - 1).to(torch.uint8)

    def save(
        self, items: Tensor, folder: Path, names: Sequence[str], recipes: Sequence[Mapping[str, Any]]
    ) -> list[Path]:
        """Write one PNG per picture, levels spread over 0..255, the recipe as JSON in the text chunk "sfumato".

        Raises:
            UserError: the folder cannot be written.
            ValueError: the lengths differ, or a name is not a plain file name or comes twice.
        """
        if len(set(names)) != len(names) or any(Path(name).name != name for name in names):
            raise ValueError("names must be plain and different file names")
        return [
            write_png(folder / f"{name}.png", picture, recipe)
            for picture, name, recipe in zip(self.pixels(items), names, recipes, strict=True)
        ]

    def pixels(self, items: Tensor) -> NDArray[np.uint8]:
        """Pictures (N, C, H, W) as files hold them: (N, H, W, C), levels spread over 0..255."""
        return np.moveaxis(self._bytes(items), 1, 3)

    def picture(self, items: Tensor, columns: int | None = None) -> NDArray[np.uint8]:
        """Contact sheet of pictures, (h, w, 3), levels spread over 0..255; by default as square as it can be."""
        return contact_sheet(self._bytes(items), columns)

    def _bytes(self, items: Tensor) -> NDArray[np.uint8]:
        """Levels 0..levels-1 spread over 0..255."""
        values: NDArray[np.uint8] = (items.cpu().float() * (255 / (self.levels - 1))).round().to(torch.uint8).numpy()
        return values

    def log_volume(self) -> float:
        """C H W log(2 / (levels - 1)): added to log p(state) it gives log p per bin of one level."""
        return math.prod(self.dims) * math.log(2 / (self.levels - 1))

    def to_dict(self) -> dict[str, Any]:
        """Kind, channels, height, width, levels."""
        return {
            "kind": self.kind,
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
            "levels": self.levels,
        }


def codec(record: Mapping[str, Any]) -> ImageCodec:
    """Rebuild the codec from `ImageCodec.to_dict`."""
    return ImageCodec(*(int(record[key]) for key in ("channels", "height", "width", "levels")))


@dataclass(frozen=True)
class Pictures:
    """How pictures are measured and brought to one shape (the `Kind` of all picture sources).

    Attributes:
        levels: how many values a channel can take.
    """

    levels: int = 256
    name: ClassVar[str] = ImageCodec.kind
    unit: ClassVar[str] = "picture"
    dtype: ClassVar[type[np.generic]] = np.uint8

    def look(self, item: Item) -> Look:
        """Measure one picture; opaque alpha and equal colour channels do not count."""
        pixels, stored = item.value, item.value.shape[2]
        alpha = stored in (2, 4) and bool((pixels[..., -1] < 255).any())
        colour = False
        if stored >= 3:
            seen = _over_white(pixels)
            colour = not (np.array_equal(seen[..., 0], seen[..., 1]) and np.array_equal(seen[..., 0], seen[..., 2]))
        grey_as_colour = ("stored as colour, grey in content",) if stored >= 3 and not colour else ()
        digest = hashlib.sha256(repr(pixels.shape).encode())
        digest.update(np.ascontiguousarray(pixels).data)
        return Look(
            name=item.name,
            label=item.label,
            facts=item.facts + grey_as_colour,
            shape=pixels.shape[:2],
            channels=("colour" if colour else "grey") + ("+alpha" if alpha else ""),
            low=float(pixels.min()),
            high=float(pixels.max()),
            digest=digest.digest(),
        )

    def choose(
        self, sizes: Mapping[tuple[int, ...], int], channels: Mapping[str, int], resolution: int | None
    ) -> tuple[tuple[int, ...], list[str]]:
        """(C, H, W) by the rules of this module, and the reasons."""
        (height, width), notes = _frame(sizes, resolution)
        clear = sum(n for name, n in channels.items() if name.endswith("+alpha"))
        if clear == sum(channels.values()):
            return (4, height, width), [*notes, "every picture has transparent parts: 4 channels"]
        if clear:
            notes.append(f"{clear:,} with transparent parts laid over white (not every picture has them)")
        coloured = sum(n for name, n in channels.items() if name.startswith("colour"))
        return (3 if coloured else 1, height, width), notes

    def fit(self, item: Item, dims: tuple[int, ...]) -> Array:
        """One picture as uint8 (C, H, W): channels converted, resized to cover (antialiased), centre-cropped."""
        channels, height, width = dims
        pixels = _with_channels(item.value, channels)
        if pixels.shape[:2] != (height, width):
            resized = _cover(_to_pil(pixels), height, width)
            # Lanczos overshoots at edges; Pillow clips to 255, fewer levels must be clipped here.
            pixels = np.minimum(np.asarray(resized), self.levels - 1).reshape(height, width, channels)
        return np.moveaxis(pixels, 2, 0)

    def codec(self, name: str, items: Array) -> ImageCodec:
        """Codec for pictures (N, C, H, W)."""
        _, channels, height, width = items.shape
        return ImageCodec(channels, height, width, self.levels)


def _frame(sizes: Mapping[tuple[int, ...], int], resolution: int | None) -> tuple[tuple[int, int], list[str]]:
    """Height and width for all pictures: their median aspect, longest side as asked.

    Unasked, the longest side is 64, or the median picture's if that is smaller: enlarging adds cost, not detail.
    """
    (first_height, first_width), *others = sizes
    longest = max(first_height, first_width)
    if not others and longest == (min(longest, DEFAULT_RESOLUTION) if resolution is None else resolution):
        return (first_height, first_width), []
    shapes = np.repeat(np.array(list(sizes)), list(sizes.values()), axis=0)
    typical = round(float(np.median(shapes.max(axis=1))))
    side = resolution if resolution is not None else min(typical, DEFAULT_RESOLUTION)
    # The median of logs treats 3:4 and 4:3 alike.
    aspect = math.exp(float(np.median(np.log(shapes[:, 1] / shapes[:, 0]))))
    height, width = max(1, round(side / max(aspect, 1))), max(1, round(side * min(aspect, 1)))
    what = f"{len(sizes):,} sizes" if others else f"{first_height}x{first_width}"
    return (height, width), [
        f"{what} fitted to {height}x{width}: resized, centre-cropped (--resolution sets the longest side)"
    ]


def _cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Cut the largest centred part of the wanted aspect, and resize it with antialiasing."""
    step = min(image.width / width, image.height / height)
    left, top = (image.width - step * width) / 2, (image.height - step * height) / 2
    box = (max(left, 0), max(top, 0), min(left + step * width, image.width), min(top + step * height, image.height))
    # A large picture is first averaged down to three times the size wanted: many times faster, not visibly different.
    return image.resize((width, height), Image.Resampling.LANCZOS, box, reducing_gap=3.0)


def _over_white(pixels: Array) -> Array:
    """Lay (H, W, 2|4) over white -> (H, W, 1|3); without alpha unchanged."""
    if pixels.shape[2] in (1, 3):
        return pixels
    # 255 * 255 + 127 fits 16 bits, and + 127 rounds to nearest.
    colour, alpha = pixels[..., :-1].astype(np.uint16), pixels[..., -1:].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _with_channels(pixels: Array, channels: int) -> Array:
    """(H, W, any) -> (H, W, channels)."""
    if channels == 4:
        alpha = pixels[..., -1:] if pixels.shape[2] in (2, 4) else np.full_like(pixels[..., :1], 255)
        colour = pixels[..., : 3 if pixels.shape[2] >= 3 else 1]
        return np.concatenate([np.broadcast_to(colour, (*colour.shape[:2], 3)), alpha], axis=2)
    pixels = _over_white(pixels)
    if channels == 1 and pixels.shape[2] == 3:
        return np.asarray(_to_pil(pixels).convert("L"))[..., None]
    return np.broadcast_to(pixels, (*pixels.shape[:2], channels))


def _to_pil(pixels: Array) -> Image.Image:
    """(H, W, 1|3|4) -> Pillow picture."""
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
