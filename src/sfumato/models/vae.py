"""A variational autoencoder with the noise that fits its decoder: of one layer of latents with a prior that is learned,
of a ladder of them, or of a grid of them to learn another model on. Their networks are in autoencoder.py.

With the encoder q(z|x) and the decoder p(x|z) = N(D(z), sigma^2), N numbers in x,

(1)  log p(x) >= E_q[log p(x|z)] - KL(q(z|x) || p(z))                        (Kingma and Welling 1312.6114)
(2)  sigma^2 = mean of |x - D(z)|^2 / N over the batch: the noise under which the data are most likely
                                                                             (Rybkin et al. 2006.13202, section 4)

Without (2) somebody has to choose sigma, which is what beta in beta-VAE is, and an error that is averaged over pixels
with sigma = 1 teaches nothing but blur. beta weighs KL in training all the same, for who wants it; but where the mean
of KL over a batch is below FREE nats it weighs nothing (Kingma et al. 1606.04934, eq. 15, for z as a whole). With (2) a
decoder that ignores z stays so where the data have the same variance in all directions, as points on a grid have: the
first bit about x costs as much as it gains.

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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sfumato.condition import Condition, Vocabulary
from sfumato.data.codec import Codec
from sfumato.dist import Rng
from sfumato.errors import UserError
from sfumato.models.autoencoder import Autoencoder, Flat, Grid, Inferred, Ladder
from sfumato.models.base import Spec
from sfumato.models.gan import GAMES, lost
from sfumato.models.pushforward import Pushforward
from sfumato.nn import Decoder, Down, Encoder, Flow, GridDecoder, GridEncoder, Up

__all__ = ["DRAWS", "VAE", "GridSpec", "GridVAE", "LadderSpec", "LadderVAE", "VAESpec"]

DRAWS = 64
"""Of the latents, for a bound."""
FREE = 2.0
"""Nats that z may tell of x at no cost; of pictures it tells 20 and more."""


@dataclass(frozen=True)
class AutoencoderSpec(Spec):
    """What all VAEs are built by.

    Attributes:
        widths: hidden channels of each level, the finest first; of points, (width,), or of a ladder one for each level.
        blocks: residual blocks a level.
        latent: length of z; of a ladder and of a grid its channels at every place, of a ladder of points its numbers.
        beta: weight of the divergence from the prior in training.
        sigma_data: the data's standard deviation.
    """

    NETWORKS: ClassVar[str] = "encoder and decoder"
    LATENTS: ClassVar[str] = "latent channels"

    widths: tuple[int, ...]
    blocks: int
    latent: int = 4
    beta: float = 1.0
    sigma_data: float = 0.5

    def words(self) -> str:
        widths = "-".join(map(str, self.widths))
        return f"{self.NETWORKS} {widths}, {self.latent} {self.LATENTS}, beta {self.beta:g}"


@dataclass(frozen=True)
class VAESpec(AutoencoderSpec):
    """All that is needed to build an untrained VAE of one layer of latents.

    Attributes:
        prior: hidden width of the prior's couplings.
    """

    family: ClassVar[str] = "vae"
    LATENTS: ClassVar[str] = "latent numbers"

    latent: int = 32
    prior: int = 64

    def build(self, codec: Codec, classes: Sequence[str] = (), vocabulary: Vocabulary | None = None) -> VAE:
        if self.latent < 2:
            raise UserError(f"a VAE needs at least two latent numbers, got {self.latent}")
        networks = Flat(
            Encoder(codec.dims, 2 * self.latent, self.widths, self.blocks, self.classes),
            Decoder(codec.dims, self.latent, self.widths, self.blocks, self.classes),
            Flow(self.latent, self.prior, classes=self.classes),
        )
        return VAE(networks, codec, tuple(classes), self.latent, self.beta, self.sigma_data)


@dataclass(frozen=True)
class LadderSpec(AutoencoderSpec):
    """All that is needed to build an untrained VAE with latents at every level of its networks."""

    family: ClassVar[str] = "ladder"
    NETWORKS: ClassVar[str] = "ladder"
    LATENTS: ClassVar[str] = "latent channels a level"

    def build(self, codec: Codec, classes: Sequence[str] = (), vocabulary: Vocabulary | None = None) -> VAE:
        down = Down(codec.dims, self.latent, self.widths, self.blocks, self.classes)
        networks = Ladder(Up(codec.dims, self.widths, self.blocks), down)
        latent = sum(math.prod(shape) for shape in down.shapes)
        return LadderVAE(networks, codec, tuple(classes), latent, self.beta, self.sigma_data)


@dataclass(frozen=True)
class GridSpec(AutoencoderSpec):
    """All that is needed to build an untrained VAE with a grid of latents at its coarsest level, for pictures.

    Attributes:
        adversary: weight of what a critic says of the pictures that it makes; 0 for no critic.
    """

    family: ClassVar[str] = "autoencoder"

    adversary: float = 0.0

    def build(self, codec: Codec, classes: Sequence[str] = (), vocabulary: Vocabulary | None = None) -> VAE:
        if len(codec.dims) < 3:
            raise UserError("an autoencoder with a grid of latents is for pictures, and these are points")
        if self.classes:
            raise UserError("an autoencoder with a grid of latents takes no classes: leave --classes out")
        if self.adversary < 0:
            raise UserError(f"the adversary's weight must not be negative, got {self.adversary}")
        encoder = GridEncoder(codec.dims, 2 * self.latent, self.widths, self.blocks, self.precision)
        decoder = GridDecoder(codec.dims, self.latent, self.widths, self.blocks, self.precision)
        networks = Grid(encoder, decoder, (self.latent, *decoder.sides))
        critic = Encoder(codec.dims, 1, self.widths, self.blocks) if self.adversary else None
        return GridVAE(networks, codec, self.beta, self.sigma_data, critic, self.adversary)


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
        self, x_0: Tensor, cond: Condition | None = None, rng: torch.Generator | None = None, t: Tensor | None = None
    ) -> Tensor:
        """Return the bound (1) with (2), and (3), in nats for each number of x, (B,).

        Args:
            x_0: (B, ...) data.
            cond: of each example, if the networks hear any.
            rng: CPU generator for z.
            t: is not heard.
        """
        x = x_0 / self.sigma_data
        found, error = self._infer(x, cond, rng)
        best = error.detach().mean()  # (2); the gradient of its logarithm is that of error / best
        described = (best.log() + math.log(2 * math.pi) + error / best) / 2
        kl = found.kl if float(found.kl.detach().mean()) > FREE else found.kl.detach()
        return described + (self.beta * kl + found.second) / x[0].numel() + self._told(x, cond, found)

    def _told(self, x: Tensor, cond: Condition | None, found: Inferred) -> Tensor | float:
        """Return what is lost beside the bound, (B,)."""
        return 0.0

    def _infer(self, x: Tensor, cond: Condition | None, rng: Rng) -> tuple[Inferred, Tensor]:
        """Return what the networks make of data of unit variance, and |x - D(z)|^2 / N, (B,)."""
        found = self.networks.infer(x, cond, rng)
        return found, (x - found.made).square().flatten(1).mean(1)

    @torch.no_grad()
    def measure(self, x_0: Tensor, cond: Condition | None = None, rng: torch.Generator | None = None) -> list[Tensor]:
        x = x_0 / self.sigma_data
        moved = self.networks.measure(x, cond)
        self.noise_std.copy_(self._infer(x, cond, rng)[1].mean().sqrt())
        return [self.noise_std, *moved]

    @property
    def measured(self) -> bool:
        return not bool(self.noise_std.isnan())

    @property
    def abilities(self) -> tuple[str, ...]:
        return (*super().abilities, "a bound on log p(x)", "the latents behind x")

    @torch.no_grad()
    def bound(self, x_0: Tensor, cond: Condition | None = None, rng: Rng = None, draws: int = DRAWS) -> Tensor:
        """Return the bound (4) on log p(x_0) in nats, tighter with more draws, (B,) float64.

        Args:
            x_0: (B, ...) data.
            cond: of each example, if the networks hear any.
            rng: for z.
            draws: K.

        Raises:
            UserError: sigma is not measured yet, or no draw is asked for.
        """
        self._need_measured()
        if draws < 1:
            raise UserError(f"the bound needs at least one draw, got {draws}")
        x, n, variance = x_0 / self.sigma_data, x_0[0].numel(), float(self.noise_std) ** 2
        weights = []
        for _ in range(draws):
            found, error = self._infer(x, cond, rng)
            told = -n * (error.double() / variance + math.log(2 * math.pi * variance * self.sigma_data**2)) / 2
            weights.append(told + found.ratio.double())
        return torch.stack(weights).logsumexp(0) - math.log(draws)

    @torch.no_grad()
    def encode(self, x_0: Tensor, cond: Condition | None = None) -> Tensor:
        """Return the latents of data, (B, latent), of which :meth:`generate` makes data like them.

        Args:
            x_0: (B, ...) data.
            cond: of each example, if the networks hear any.

        Raises:
            UserError: the prior is not measured yet.
        """
        self._need_measured()
        return self.networks.encode(x_0 / self.sigma_data, cond)

    def _need_measured(self) -> None:
        if not self.measured:
            raise UserError("the noise of this VAE's decoder is not measured: train the run to its end")

    def generate(self, z: Tensor, cond: Condition | None) -> Tensor:
        return self.sigma_data * self.networks.generate(z, cond)

    @property
    def network(self) -> nn.Module:
        return self.networks.decoder

    def compile_networks(self) -> None:
        for network in self.networks.children():
            network.compile()

    def call(self, x_0: Tensor, cond: Condition | None = None) -> Tensor:
        return self.networks.infer(x_0, cond).made


class LadderVAE(VAE):
    """A VAE with latents at every level."""

    family: ClassVar[str] = "ladder"


class GridVAE(VAE):
    """A VAE with a grid of latents, which may hear a critic: its pictures are sharper, and farther from the data.

    Attributes:
        shape: of the latents of a picture, (channels, height, width).

    Args:
        networks: of pictures of unit variance.
        codec: between the user's items and states.
        beta: weight of the divergence from the prior in training.
        sigma_data: the data's standard deviation.
        critic: from pictures of unit variance to (B, 1), or None.
        adversary: weight of what it says.
    """

    family: ClassVar[str] = "autoencoder"

    def __init__(
        self,
        networks: Grid,
        codec: Codec,
        beta: float = 1.0,
        sigma_data: float = 0.5,
        critic: nn.Module | None = None,
        adversary: float = 0.0,
    ) -> None:
        super().__init__(networks, codec, (), math.prod(networks.shape), beta, sigma_data)
        self.critic, self.adversary = critic, adversary
        self.shape = networks.shape
        self.momentum = critic is None

    def _told(self, x: Tensor, cond: Condition | None, found: Inferred) -> Tensor | float:
        if self.critic is None:
            return 0.0
        of_critic, of_generator = lost(self.critic, x, found.made, cond, GAMES["relativistic"], 1.0)
        return of_critic + self.adversary * of_generator
