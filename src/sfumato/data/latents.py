"""Numbers on a grid that stand for pictures: what an autoencoder made of them, and another model learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.picture import contact_sheet
from sfumato.errors import UserError

__all__ = ["LatentsCodec", "codec"]

SPREAD = 3.0
"""Standard deviations that a picture of latents shows, from black to white."""


@dataclass(frozen=True)
class LatentsCodec:
    """Latents float32 (N, C, H, W) as they are; they are white, so states are what they are.

    Attributes:
        channels: C.
        height: H.
        width: W.
    """

    channels: int
    height: int
    width: int
    kind: ClassVar[str] = "latents"

    @property
    def dims(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return (self.channels, self.height, self.width)

    @property
    def level_width(self) -> float:
        """0: latents vary continuously."""
        return 0.0

    def encode(self, items: Tensor) -> Tensor:
        """(N, C, H, W), as it is."""
        return items

    def decode(self, states: Tensor) -> Tensor:
        """(N, C, H, W), as it is.

        Raises:
            ValueError: a state is not finite.
        """
        if not torch.isfinite(states).all():
            raise ValueError("states hold NaN or infinity: not latents")
        return states

    def save(
        self, items: Tensor, folder: Path, names: Sequence[str], recipes: Sequence[Mapping[str, Any]]
    ) -> list[Path]:
        """Refuse: latents are written as the pictures that they stand for.

        Raises:
            UserError: always.
        """
        raise UserError("latents are no files of anybody's: the codec of their run writes the pictures behind them")

    def picture(self, items: Tensor, columns: int | None = None) -> NDArray[np.uint8]:
        """Contact sheet of the first channel, grey."""
        values = ((items[:, :1].cpu() / SPREAD + 1) / 2).clamp(0, 1) * 255
        return contact_sheet(values.round().to(torch.uint8).numpy(), columns)

    def log_volume(self) -> float:
        """0: latents are their states."""
        return 0.0

    def to_dict(self) -> dict[str, Any]:
        """Kind, channels, height, width."""
        return {"kind": self.kind, "channels": self.channels, "height": self.height, "width": self.width}


def codec(record: Mapping[str, Any]) -> LatentsCodec:
    """Rebuild the codec from `LatentsCodec.to_dict`."""
    return LatentsCodec(*(int(record[key]) for key in ("channels", "height", "width")))
