"""A model whose law is that of noise pushed through a network: one call turns a latent vector into a sample."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sfumato.condition import Condition
from sfumato.data.codec import Codec
from sfumato.dist import stream
from sfumato.errors import UserError
from sfumato.guide import Guidance
from sfumato.models.base import GenerativeModel, Way

__all__ = ["Pushforward"]


class Pushforward(GenerativeModel):
    """A model whose law is that of noise pushed through a network: one call turns a latent vector into a sample.

    Args:
        codec: between the user's items and states.
        classes: names of the classes; () if the model takes no labels.
        latent: length of the vector.
    """

    METHOD, GRID = "generator", "none"

    def __init__(self, codec: Codec, classes: tuple[str, ...], latent: int) -> None:
        super().__init__(codec, classes)
        self.latent = latent

    @abstractmethod
    def generate(self, z: Tensor, cond: Condition | None) -> Tensor:
        """Return the states (B, *dims) of latent vectors (B, latent), standard normal, and conditions."""

    @property
    def learner(self) -> nn.Module:
        return self

    def times(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Return (n,) zeros: there is no noise level to be asked at."""
        return torch.zeros(n, dtype=torch.float64)

    def usual(
        self, steps: int | None, method: str | None, grid: str | None, guidance: Guidance | None
    ) -> tuple[int, str, str]:
        if steps not in (None, 1) or method not in (None, self.METHOD) or grid not in (None, self.GRID):
            raise UserError(f"a {self.family} draws in one call: leave --steps, --sampler and --grid out")
        if guidance is not None:
            raise UserError(f"a {self.family} cannot be guided: leave --guidance out")
        return 1, self.METHOD, self.GRID

    def slug(self, way: Way) -> str:
        return way.method

    @torch.no_grad()
    def draw(self, indices: Sequence[int], way: Way) -> Tensor:
        z = torch.stack([torch.randn(self.latent, generator=stream(way.seed, i)) for i in indices])
        cond = self.conditions(indices, way.cond)
        with self.resting():
            return self.generate(z.to(self.device), None if cond is None else cond.to(self.device))
