"""The networks of autoencoders: what they make of data, and data of what they make.

(1)  u = (mean of q(z|x) - m) / s       the latents of an example, of zero mean and unit variance over the data

with m and s the prior's: a flow's for one layer of latents, of every level for a ladder, measured for each channel of a
grid. A diffusion model of latents needs such u: what it knows of noise holds for unit variance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfumato.condition import Condition
from sfumato.dist import Normal, Rng
from sfumato.nn import Down, Flow, Up

__all__ = ["LOG_STD", "Autoencoder", "Flat", "Grid", "Inferred", "Ladder"]

LOG_STD = (-8.0, 3.0)
"""Between which the encoder's log s stays."""


class Inferred(NamedTuple):
    """What an autoencoder makes of data.

    Attributes:
        made: (B, ...) D(z).
        kl: (B,) KL(q(z|x) || p(z)), in nats.
        ratio: (B,) log p(z) - log q(z|x), with the prior that samples have.
        second: (B,) loss of a second stage that learns the prior, if there is one.
    """

    made: Tensor
    kl: Tensor
    ratio: Tensor
    second: Tensor | float


class Autoencoder(nn.Module, ABC):
    """The networks of a VAE."""

    @property
    @abstractmethod
    def decoder(self) -> nn.Module:
        """The one that draws."""

    @abstractmethod
    def infer(self, x: Tensor, cond: Condition | None, rng: Rng = None) -> Inferred:
        """Draw z ~ q(z|x) and decode it.

        Args:
            x: (B, ...) data of unit variance.
            cond: of each example.
            rng: for z.
        """

    @abstractmethod
    def generate(self, z: Tensor, cond: Condition | None) -> Tensor:
        """Return D of the latents that standard normal numbers (B, latent) stand for."""

    @abstractmethod
    def encode(self, x: Tensor, cond: Condition | None) -> Tensor:
        """Return the numbers (B, latent) of which :meth:`generate` makes data like x, equation (1).

        Args:
            x: (B, ...) data of unit variance.
            cond: of each example.
        """

    def measure(self, x: Tensor, cond: Condition | None) -> list[Tensor]:
        """Measure the prior as far as it is not learned, and return the buffers that hold it.

        Args:
            x: (B, ...) data of unit variance.
            cond: of each example.
        """
        return []


class Flat(Autoencoder):
    """One layer of latents.

    Args:
        encoder: from data of unit variance and labels to m and log s, (B, 2 latent).
        decoder: from z (B, latent) and labels to such data.
        prior: of z.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, prior: Flow) -> None:
        super().__init__()
        self.encoder, self.decode, self.prior = encoder, decoder, prior

    @property
    def decoder(self) -> nn.Module:
        return self.decode

    def infer(self, x: Tensor, cond: Condition | None, rng: Rng = None) -> Inferred:
        q = _law(self.encoder(x, cond))
        z = q.sample(rng)
        kl = q.kl(Normal(torch.zeros_like(z), torch.ones_like(z)))
        second = -self.prior.log_prob(z.detach(), cond)
        return Inferred(self.decode(z, cond), kl, -second.detach() - q.log_prob(z), second)

    def generate(self, z: Tensor, cond: Condition | None) -> Tensor:
        made: Tensor = self.decode(self.prior.inverse(z, cond), cond)
        return made

    def encode(self, x: Tensor, cond: Condition | None) -> Tensor:
        return self.prior(_law(self.encoder(x, cond)).mean, cond)[0]


class Ladder(Autoencoder):
    """Latents at every level.

    Args:
        up: finds what is in the data.
        down: infers and draws.
    """

    def __init__(self, up: Up, down: Down) -> None:
        super().__init__()
        self.up, self.down = up, down

    @property
    def decoder(self) -> nn.Module:
        return self.down

    def infer(self, x: Tensor, cond: Condition | None, rng: Rng = None) -> Inferred:
        found = self.up(x)[::-1]
        kl, ratio = x.new_zeros(len(x)), x.new_zeros(len(x))

        def draw(k: int, h: Tensor, law: tuple[Tensor, Tensor]) -> Tensor:
            nonlocal kl, ratio
            shift, scale = self.down.relative(k, h, found[k])
            std = law[1].clamp(*LOG_STD).exp()
            p, q = Normal(law[0], std), Normal(law[0] + std * shift, std * scale.clamp(*LOG_STD).exp())
            z = q.sample(rng)
            kl, ratio = kl + q.kl(p), ratio + p.log_prob(z) - q.log_prob(z)
            return z

        return Inferred(self.down(len(x), cond, draw), kl, ratio, 0.0)

    def generate(self, z: Tensor, cond: Condition | None) -> Tensor:
        parts = torch.split(z, [math.prod(shape) for shape in self.down.shapes], 1)

        def draw(k: int, h: Tensor, law: tuple[Tensor, Tensor]) -> Tensor:
            return law[0] + law[1].clamp(*LOG_STD).exp() * parts[k].view(len(z), *self.down.shapes[k])

        made: Tensor = self.down(len(z), cond, draw)
        return made

    def encode(self, x: Tensor, cond: Condition | None) -> Tensor:
        found, shifts = self.up(x)[::-1], []

        def draw(k: int, h: Tensor, law: tuple[Tensor, Tensor]) -> Tensor:
            shifts.append(self.down.relative(k, h, found[k])[0])
            return law[0] + law[1].clamp(*LOG_STD).exp() * shifts[-1]

        self.down(len(x), cond, draw)
        return torch.cat([shift.flatten(1) for shift in shifts], 1)


class Grid(Autoencoder):
    """Latents that stand where the picture is that they tell of, (B, latent, height, width): what a diffusion model of
    latents learns. Their prior has one mean and one deviation for each channel, measured at the end.

    Args:
        encoder: from pictures of unit variance to m and log s, (B, 2 latent, height, width).
        decode: from z (B, latent, height, width) to such pictures.
        shape: of z.
    """

    moments: Tensor

    def __init__(self, encoder: nn.Module, decode: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.decode, self.shape = encoder, decode, tuple(shape)
        self.register_buffer("moments", torch.tensor([0.0, 1.0]).expand(shape[0], 2).clone())

    @property
    def decoder(self) -> nn.Module:
        return self.decode

    def prior(self) -> Normal:
        """Return the law of z; until it is measured, the one that training pulls to."""
        first, second = self.moments[:, :, None, None].unbind(1)
        return Normal(first, (second - first.square()).sqrt())

    def infer(self, x: Tensor, cond: Condition | None, rng: Rng = None) -> Inferred:
        q = _law(self.encoder(x))
        z = q.sample(rng)
        kl = q.kl(Normal(torch.zeros_like(z), torch.ones_like(z)))
        p = self.prior()
        p = Normal(p.mean.expand_as(z), p.std.expand_as(z))
        return Inferred(self.decode(z), kl, p.log_prob(z) - q.log_prob(z), 0.0)

    def generate(self, z: Tensor, cond: Condition | None) -> Tensor:
        p = self.prior()
        made: Tensor = self.decode(p.mean + p.std * z.view(len(z), *self.shape))
        return made

    def encode(self, x: Tensor, cond: Condition | None) -> Tensor:
        p = self.prior()
        return ((_law(self.encoder(x)).mean - p.mean) / p.std).flatten(1)

    def measure(self, x: Tensor, cond: Condition | None) -> list[Tensor]:
        mean = _law(self.encoder(x)).mean
        self.moments.copy_(torch.stack([mean.mean((0, 2, 3)), mean.square().mean((0, 2, 3))], 1))
        return [self.moments]


def _law(told: Tensor) -> Normal:
    """Return q(z|x) by an encoder's (B, 2 latent, ...)."""
    mean, log_std = told.chunk(2, 1)
    return Normal(mean, log_std.clamp(*LOG_STD).exp())
