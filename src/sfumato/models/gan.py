"""A generative adversarial network: a generator learns from a critic, and the critic from both.

With real x, z ~ N(0, 1), made y = G(z), and c(.) the critic, for each pair (x, y) of one class

(1)  critic     f(c(y) - c(x)) + gamma/2 (|grad c(x)|^2 + |grad c(y)|^2),   f(u) = log(1 + e^u)
(2)  generator  f(c(x) - c(y))

is the relativistic pairing loss with the penalties R1 and R2 of R3GAN (Huang et al. 2501.05441, eq. 4 and 6); under it
training converges locally where the two-player game of (3) without penalties does not (Mescheder et al. 1801.04406):

(3)  critic     f(-c(x)) + f(c(y)),      generator  f(-c(y))        (Goodfellow et al. 1406.2661, non-saturating)

(3) on the networks of DCGAN (nn/dcgan.py) is what a tutorial gives.

Both players move at once, with the gradient at the same weights, so one pass of the critic over y serves both. The
penalties, gradients of gradients, cost twice what all else does: one of every few examples has them, so many times as
much, which changes nothing on average (a lazy regularisation, Karras et al. 1912.04958, by examples and not by steps).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.condition import Condition, Vocabulary
from sfumato.data.codec import Codec
from sfumato.dist import randn_like
from sfumato.errors import UserError, choose
from sfumato.models.base import Spec
from sfumato.models.pushforward import Pushforward
from sfumato.nn import Critic, Decoder, Encoder, Generator

__all__ = ["GAMES", "GAN", "GANSpec", "Game", "lost"]


class Game(NamedTuple):
    """What each player loses, by c(x) and c(y), for each pair."""

    critic: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]


GAMES = {
    "relativistic": Game(lambda x, y: F.softplus(y - x), lambda x, y: F.softplus(x - y)),
    "non-saturating": Game(lambda x, y: F.softplus(-x) + F.softplus(y), lambda x, y: F.softplus(-y)),
}
"""Equations (1), (2) and (3) without their penalties, by name."""


@dataclass(frozen=True)
class GANSpec(Spec):
    """All that is needed to build an untrained GAN.

    Attributes:
        widths: hidden channels of each level, the finest first; (width,) for points.
        blocks: residual blocks a level, of residual networks.
        latent: length of z.
        network: "residual", or "dcgan" for pictures.
        game: a key of :data:`GAMES`.
        gamma: weight of the penalties; 0 for none.
        every: of how many examples one is penalised, by so many times as much.
        octaves: of the waves through which the critic sees points; 0 for none.
        sigma_data: the data's standard deviation.
    """

    family: ClassVar[str] = "gan"

    widths: tuple[int, ...]
    blocks: int
    latent: int = 64
    network: Literal["residual", "dcgan"] = "residual"
    game: Literal["relativistic", "non-saturating"] = "relativistic"
    gamma: float = 1.0
    every: int = 1
    octaves: int = 0
    sigma_data: float = 0.5

    def words(self) -> str:
        widths = "-".join(map(str, self.widths))
        return f"{self.network} generator and critic {widths}, {self.game}, penalty {self.gamma:g}"

    def build(self, codec: Codec, classes: Sequence[str] = (), vocabulary: Vocabulary | None = None) -> GAN:
        game = choose("game", self.game, GAMES)
        if self.gamma < 0:
            raise UserError(f"the penalty's weight gamma must not be negative, got {self.gamma}")
        if self.every < 1:
            raise UserError(f"one of every so many examples is penalised, at least 1, got every = {self.every}")
        generator, critic = self._players(codec.dims)
        return GAN(generator, critic, codec, tuple(classes), game, self.gamma, self.sigma_data, self.latent, self.every)

    def _players(self, dims: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
        choose("network", self.network, dict.fromkeys(("residual", "dcgan")))
        if self.network == "residual":
            generator = Decoder(dims, self.latent, self.widths, self.blocks, self.classes)
            return generator, Encoder(dims, 1, self.widths, self.blocks, self.classes, self.octaves)
        if len(dims) < 3:
            raise UserError("the networks of DCGAN are for pictures, and these are points: leave dcgan out")
        if self.gamma:
            raise UserError("a penalty needs a critic that hears each example alone, which DCGAN's does not: gamma = 0")
        return Generator(dims, self.latent, self.widths, self.classes), Critic(dims, self.widths, self.classes)


class GAN(Pushforward):
    """A generator and its critic, with the codec of their data.

    Args:
        generator: from z (B, latent) and labels to states of unit variance.
        critic: from such states and labels to (B, 1).
        codec: between the user's items and states.
        classes: names of the classes; () if the networks take no labels.
        game: what the players lose.
        gamma: weight of the penalties.
        sigma_data: the data's standard deviation.
        latent: length of z.
        every: of how many examples one is penalised, by so many times as much.
    """

    family: ClassVar[str] = "gan"
    momentum = False  # it would follow where the other player was

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        codec: Codec,
        classes: tuple[str, ...] = (),
        game: Game = GAMES["relativistic"],
        gamma: float = 1.0,
        sigma_data: float = 0.5,
        latent: int = 64,
        every: int = 1,
    ) -> None:
        super().__init__(codec, classes, latent)
        self.generator, self.critic = generator, critic
        self.game, self.gamma, self.every, self.sigma_data = game, gamma, every, sigma_data

    def loss(
        self, x_0: Tensor, cond: Condition | None = None, rng: torch.Generator | None = None, t: Tensor | None = None
    ) -> Tensor:
        """Return what both players lose, for each example, (B,); its gradient is (1) for the critic, (2) for the
        generator.

        Args:
            x_0: (B, ...) data.
            cond: of each example, if the networks hear any.
            rng: CPU generator for z.
            t: is not heard.
        """
        z = randn_like(x_0.new_empty(len(x_0), self.latent), rng)
        made = self.generator(z, cond)
        of_critic, of_generator = lost(
            self.critic, x_0 / self.sigma_data, made, cond, self.game, self.gamma, self.every
        )
        return of_critic + of_generator

    def generate(self, z: Tensor, cond: Condition | None) -> Tensor:
        out: Tensor = self.sigma_data * self.generator(z, cond)
        return out

    @property
    def network(self) -> nn.Module:
        return self.generator

    def compile_networks(self) -> None:
        raise UserError("a gan is trained by gradients of gradients, which torch.compile cannot make: no --compile")

    def call(self, x_0: Tensor, cond: Condition | None = None) -> Tensor:
        made = self.generator(torch.zeros(len(x_0), self.latent, device=self.device), cond)
        out: Tensor = self.critic(made, cond)
        return out


def lost(
    critic: nn.Module, x: Tensor, made: Tensor, cond: Condition | None, game: Game, gamma: float, every: int = 1
) -> tuple[Tensor, Tensor]:
    """Return what a critic loses, (B,), with its gradient by the critic alone, and a generator, (B,), by what it made.

    Args:
        critic: from data and labels to (B, 1).
        x: (B, ...) data.
        made: (B, ...) by a generator.
        cond: of each example, if the critic hears any.
        game: what the players lose.
        gamma: weight of the penalties; 0 for none.
        every: of how many examples one is penalised, by so many times as much: a penalty costs more than all else.
    """
    real, fake = x.detach(), made.detach().requires_grad_()
    c_real, c_fake = critic(real, cond)[:, 0], critic(fake, cond)[:, 0]
    of_critic = game.critic(c_real, c_fake)
    says = c_fake.detach().requires_grad_()
    of_generator = game.generator(c_real.detach(), says)
    (by_c,) = torch.autograd.grad(of_generator.sum(), says)
    (pull,) = torch.autograd.grad(c_fake, fake, by_c, retain_graph=True)
    if gamma:
        labels, penalty = None if cond is None else cond[::every], torch.zeros_like(c_real)
        for each in (real, fake):
            penalty[::every] += every * gamma / 2 * _steepness(critic, each.detach()[::every], labels)
        of_critic = of_critic + penalty
    moved = (pull * made).flatten(1).sum(1)
    return of_critic, of_generator.detach() + moved - moved.detach()


def _steepness(critic: nn.Module, x: Tensor, cond: Condition | None) -> Tensor:
    """Return |grad c|^2 at data, (B,)."""
    x = x.requires_grad_()
    (found,) = torch.autograd.grad(critic(x, cond).sum(), x, create_graph=True)
    return found.square().flatten(1).sum(1)
