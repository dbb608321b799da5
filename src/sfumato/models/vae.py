"""A variational autoencoder with the noise that fits its decoder; of one layer of latents with a prior that is learned,
or of a ladder of them.

With the encoder q(z|x) and the decoder p(x|z) = N(D(z), sigma^2), N numbers in x,

(1)  log p(x) >= E_q[log p(x|z)] - KL(q(z|x) || p(z))                        (Kingma and Welling 1312.6114)
(2)  sigma^2 = mean of |x - D(z)|^2 / N over the batch: the noise under which the data are most likely
                                                                             (Rybkin et al. 2006.13202, section 4)

Without (2) somebody has to choose sigma, which is what beta in beta-VAE is, and an error that is averaged over pixels
with sigma = 1 teaches nothing but blur. beta weighs KL in training all the same, for who wants it.

With one layer, p(z) = N(0, 1) in (1). That is not what the encoder makes of the data taken together, so samples of it
are not what the decoder knows. A second stage learns that law itself, with the first held still (Dai and Wipf
1903.05789): here a normalising flow

(3)  -log p(z),   z ~ q(z|x) without its gradient

that learns beside the first from what it makes at the time, and takes the place of N(0, 1) afterwards. A ladder has
the prior that it was trained with; see nn/ladder.py. For K draws z_k ~ q(z|x),

(4)  log p(x) >= E log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x)                     (Burda et al. 1509.00519, IWAE)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.data.codec import Codec
from sfumato.dist import Normal, Rng
from sfumato.errors import UserError
from sfumato.models.base import Pushforward, Spec
from sfumato.nn import Decoder, Down, Encoder, Flow, Up

__all__ = ["VAE", "Autoencoder", "Flat", "Ladder", "LadderSpec", "LadderVAE", "VAESpec"]

LOG_STD = (-8.0, 3.0)  # between which the encoder's log s stays
DRAWS = 64  # of a bound


@dataclass(frozen=True)
class VAESpec(Spec):
    """All that is needed to build an untrained VAE of one layer of latents.

    Attributes:
        widths: hidden channels of each level, the finest first; (width,) for points.
        blocks: residual blocks a level.
        latent: length of z.
        beta: weight of the divergence from the prior in training.
        prior: hidden width of the prior's couplings.
        sigma_data: the data's standard deviation.
    """

    family: ClassVar[str] = "vae"

    widths: tuple[int, ...]
    blocks: int
    latent: int = 32
    beta: float = 1.0
    prior: int = 64
    sigma_data: float = 0.5

    def words(self) -> str:
        widths = "-".join(map(str, self.widths))
        return f"encoder and decoder {widths}, {self.latent} latent numbers, beta {self.beta:g}"

    def build(self, codec: Codec, classes: Sequence[str] = ()) -> VAE:
        if self.latent < 2:
            raise UserError(f"a VAE needs at least two latent numbers, got {self.latent}")
        networks = Flat(
            Encoder(codec.dims, 2 * self.latent, self.widths, self.blocks, self.classes),
            Decoder(codec.dims, self.latent, self.widths, self.blocks, self.classes),
            Flow(self.latent, self.prior, classes=self.classes),
        )
        return VAE(networks, codec, tuple(classes), self.latent, self.beta, self.sigma_data)


@dataclass(frozen=True)
class LadderSpec(Spec):
    """All that is needed to build an untrained VAE with latents at every level of its networks.

    Attributes:
        widths: hidden channels of each level, the finest first; of points, a width for each level.
        blocks: residual blocks a level.
        latent: latent channels of each level; of points, numbers.
        beta: weight of the divergence from the prior in training.
        sigma_data: the data's standard deviation.
    """

    family: ClassVar[str] = "ladder"

    widths: tuple[int, ...]
    blocks: int
    latent: int = 4
    beta: float = 1.0
    sigma_data: float = 0.5

    def words(self) -> str:
        return f"ladder {'-'.join(map(str, self.widths))}, {self.latent} latent channels a level, beta {self.beta:g}"

    def build(self, codec: Codec, classes: Sequence[str] = ()) -> VAE:
        down = Down(codec.dims, self.latent, self.widths, self.blocks, self.classes)
        networks = Ladder(Up(codec.dims, self.widths, self.blocks), down)
        latent = sum(math.prod(shape) for shape in down.shapes)
        return LadderVAE(networks, codec, tuple(classes), latent, self.beta, self.sigma_data)


class Inferred(NamedTuple):
    """What an autoencoder makes of data.

    Attributes:
        made: (B, ...) D(z).
        kl: (B,) KL of (1), in nats.
        ratio: (B,) log p(z) - log q(z|x), with the prior that samples have.
        second: (B,) (3), if there is a second stage.
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
    def infer(self, x: Tensor, cond: Tensor | None, rng: Rng = None) -> Inferred:
        """Draw z ~ q(z|x) and decode it.

        Args:
            x: (B, ...) data of unit variance.
            cond: (B,) labels.
            rng: for z.
        """

    @abstractmethod
    def generate(self, z: Tensor, cond: Tensor | None) -> Tensor:
        """Return D of the latents that standard normal numbers (B, latent) stand for."""


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

    def infer(self, x: Tensor, cond: Tensor | None, rng: Rng = None) -> Inferred:
        mean, log_std = self.encoder(x, cond).chunk(2, 1)
        q = Normal(mean, log_std.clamp(*LOG_STD).exp())
        z = q.sample(rng)
        kl = q.kl(Normal(torch.zeros_like(z), torch.ones_like(z)))
        second = -self.prior.log_prob(z.detach(), cond)
        return Inferred(self.decode(z, cond), kl, -second.detach() - q.log_prob(z), second)

    def generate(self, z: Tensor, cond: Tensor | None) -> Tensor:
        made: Tensor = self.decode(self.prior.inverse(z, cond), cond)
        return made


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

    def infer(self, x: Tensor, cond: Tensor | None, rng: Rng = None) -> Inferred:
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

    def generate(self, z: Tensor, cond: Tensor | None) -> Tensor:
        parts = torch.split(z, [math.prod(shape) for shape in self.down.shapes], 1)

        def draw(k: int, h: Tensor, law: tuple[Tensor, Tensor]) -> Tensor:
            return law[0] + law[1].clamp(*LOG_STD).exp() * parts[k].view(len(z), *self.down.shapes[k])

        made: Tensor = self.down(len(z), cond, draw)
        return made


class VAE(Pushforward):
    """An autoencoder with the noise of its decoder, and the codec of its data.

    Attributes:
        noise_std: sigma of (2) for the whole data, in units of ``sigma_data``; NaN until it is measured.

    Args:
        networks: of data of unit variance.
        codec: between the user's items and states.
        classes: names of the classes; () if the networks take no labels.
        latent: numbers from which a sample is made.
        beta: weight of the divergence from the prior in training.
        sigma_data: the data's standard deviation.

    Raises:
        UserError: beta is not above 0.
    """

    family: ClassVar[str] = "vae"
    noise_std: Tensor

    def __init__(
        self,
        networks: Autoencoder,
        codec: Codec,
        classes: tuple[str, ...] = (),
        latent: int = 32,
        beta: float = 1.0,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__(codec, classes, latent)
        if not beta > 0:
            raise UserError(f"beta must be above 0, got {beta}")
        self.networks, self.beta, self.sigma_data = networks, beta, sigma_data
        self.register_buffer("noise_std", torch.tensor(math.nan))

    def loss(
        self, x_0: Tensor, cond: Tensor | None = None, rng: torch.Generator | None = None, t: Tensor | None = None
    ) -> Tensor:
        """Return the bound (1) with (2), and (3), in nats for each number of x, (B,).

        Args:
            x_0: (B, ...) data.
            cond: (B,) labels, if the networks take them.
            rng: CPU generator for z.
            t: is not heard.
        """
        found, error = self._infer(x_0, cond, rng)
        best = error.detach().mean()  # (2); the gradient of its logarithm is that of error / best
        described = (best.log() + math.log(2 * math.pi) + error / best) / 2
        return described + (self.beta * found.kl + found.second) / x_0[0].numel()

    def _infer(self, x_0: Tensor, cond: Tensor | None, rng: Rng) -> tuple[Inferred, Tensor]:
        """Return what the networks make of data, and |x - D(z)|^2 / N in units of the data's variance, (B,)."""
        x = x_0 / self.sigma_data
        found = self.networks.infer(x, cond, rng)
        return found, (x - found.made).square().flatten(1).mean(1)

    @torch.no_grad()
    def measure(self, x_0: Tensor, cond: Tensor | None = None, rng: torch.Generator | None = None) -> list[Tensor]:
        self.noise_std.copy_(self._infer(x_0, cond, rng)[1].mean().sqrt())
        return [self.noise_std]

    @property
    def measured(self) -> bool:
        return not bool(self.noise_std.isnan())

    @property
    def abilities(self) -> tuple[str, ...]:
        return (*super().abilities, "a bound on log p(x)", "the latents behind x")

    @torch.no_grad()
    def bound(self, x_0: Tensor, cond: Tensor | None = None, rng: Rng = None, draws: int = DRAWS) -> Tensor:
        """Return the bound (4) on log p(x_0) in nats, tighter with more draws, (B,) float64.

        Args:
            x_0: (B, ...) data.
            cond: (B,) labels, if the networks take them.
            rng: for z.
            draws: K.

        Raises:
            UserError: sigma is not measured yet, or no draw is asked for.
        """
        if not self.measured:
            raise UserError("the noise of this VAE's decoder is not measured: train the run to its end")
        if draws < 1:
            raise UserError(f"the bound needs at least one draw, got {draws}")
        n, variance = x_0[0].numel(), float(self.noise_std) ** 2
        weights = []
        for _ in range(draws):
            found, error = self._infer(x_0, cond, rng)
            told = -n * (error.double() / variance + math.log(2 * math.pi * variance * self.sigma_data**2)) / 2
            weights.append(told + found.ratio.double())
        return torch.stack(weights).logsumexp(0) - math.log(draws)

    def generate(self, z: Tensor, cond: Tensor | None) -> Tensor:
        return self.sigma_data * self.networks.generate(z, cond)

    @property
    def network(self) -> nn.Module:
        return self.networks.decoder

    def compile_networks(self) -> None:
        for network in self.networks.children():
            network.compile()

    def call(self, x_0: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.networks.infer(x_0, cond).made


class LadderVAE(VAE):
    """A VAE with latents at every level."""

    family: ClassVar[str] = "ladder"
