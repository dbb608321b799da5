"""Pictures as the latents of an autoencoder: a diffusion model learns these, which are fewer.

(1)  z = (E(x) - m) / s        with the mean m and deviation s of each channel of E(x) over the data
                                                                 (Rombach et al. 2112.10752, section 3.1 and app. G)

so that what the model learns has unit variance, whatever the autoencoder. Its decoder makes pictures of z again. What
is drawn, judged and edited is pictures; log p(x) of them is not known, as many z stand for one x.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data import Dataset
from sfumato.data.image import ImageCodec
from sfumato.data.latents import LatentsCodec
from sfumato.errors import UserError
from sfumato.models.vae import GridVAE

__all__ = ["LatentCodec"]

BATCH = 256
"""Pictures that are encoded together."""


@dataclass(frozen=True)
class LatentCodec:
    """Pictures uint8 (N, C, H, W) <-> white latents of an autoencoder; equation (1).

    Args:
        autoencoder: trained to its end, with the codec of the pictures.
        folder: of its run, to be copied into runs that use it.

    Raises:
        UserError: it is not trained to its end.
    """

    autoencoder: GridVAE
    folder: Path
    kind: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        if not self.autoencoder.measured:
            raise UserError(f"{self.folder}: not trained to its end; sfumato resume {self.folder}")

    @property
    def pixel(self) -> ImageCodec:
        """The codec of the pictures."""
        found = self.autoencoder.codec
        assert isinstance(found, ImageCodec)
        return found

    @property
    def latents(self) -> LatentsCodec:
        """The codec of the latents."""
        return LatentsCodec(*self.autoencoder.shape)

    @property
    def dims(self) -> tuple[int, ...]:
        """Shape of the latents of a picture."""
        return self.latents.dims

    @property
    def level_width(self) -> float:
        """0: latents vary continuously."""
        return 0.0

    def encode(self, items: Tensor) -> Tensor:
        """uint8 (N, C, H, W) to (N, *dims) of unit variance."""
        own = self.autoencoder.device
        parts = (self.autoencoder.encode(self.pixel.encode(some).to(own)) for some in torch.split(items, BATCH))
        return torch.cat(list(parts)).view(len(items), *self.dims)

    @torch.no_grad()
    def decode(self, states: Tensor) -> Tensor:
        """(N, *dims) to uint8 (N, C, H, W).

        Raises:
            ValueError: a state is not finite.
        """
        own = self.autoencoder.device
        parts = (self.autoencoder.generate(some.flatten(1).to(own), None) for some in torch.split(states, BATCH))
        return self.pixel.decode(torch.cat(list(parts)))

    def encoded(self, dataset: Dataset) -> Dataset:
        """Return a data set with the latents of its pictures, all in memory; one of latents as it is."""
        if isinstance(dataset.codec, LatentsCodec):
            return dataset
        index = torch.split(torch.arange(len(dataset.items)), BATCH)
        items = torch.cat([self.encode(dataset.items[some]).cpu() for some in index])
        return replace(dataset, items=items, codec=self.latents)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the autoencoder's weights."""
        return self.autoencoder.fingerprint()

    def copy(self, folder: Path) -> None:
        """Copy the autoencoder's run into another one's folder: what it takes to load it.

        Args:
            folder: that is made.
        """
        kept = shutil.ignore_patterns("samples", "averages", "likelihood", "*.jsonl", "*.html")
        shutil.copytree(self.folder, folder, ignore=kept)

    def save(
        self, items: Tensor, folder: Path, names: Sequence[str], recipes: Sequence[Mapping[str, Any]]
    ) -> list[Path]:
        """Write pictures; see ``ImageCodec.save``."""
        return self.pixel.save(items, folder, names, recipes)

    def pixels(self, items: Tensor) -> NDArray[np.uint8]:
        """Return pictures as files hold them; see ``ImageCodec.pixels``."""
        return self.pixel.pixels(items)

    def picture(self, items: Tensor, columns: int | None = None) -> NDArray[np.uint8]:
        """Return a contact sheet of pictures; see ``ImageCodec.picture``."""
        return self.pixel.picture(items, columns)

    def log_volume(self) -> float:
        """Refuse: many latents stand for one picture.

        Raises:
            UserError: always.
        """
        raise UserError("a model of latents does not know log p of a picture: ask a run without --latent")

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the latents; the autoencoder lies beside it, in a folder of its own."""
        return self.latents.to_dict()
