"""A variational autoencoder with the noise that fits its decoder, and a prior that is learned.

With the encoder q(z|x) = N(m(x), s(x)^2) and the decoder p(x|z) = N(D(z), sigma^2), N numbers in x,

(1)  log p(x) >= E_q[log p(x|z)] - KL(q(z|x) || N(0, 1))                      (Kingma and Welling 1312.6114)
(2)  sigma^2 = mean of |x - D(z)|^2 / N over the batch: the noise under which the data are most likely
                                                                             (Rybkin et al. 2006.13202, section 4)

Without (2) somebody has to choose sigma, which is what beta in beta-VAE is, and an error that is averaged over pixels
with sigma = 1 teaches nothing but blur. beta weighs KL in training all the same, for who wants it.

N(0, 1) is not what the encoder makes of the data taken together, so samples of it are not what the decoder knows. A
second stage learns that law itself, with the first held still (Dai and Wipf 1903.05789): here a normalising flow

(3)  -log p(z),   z ~ q(z|x) without its gradient

that learns beside the first from what it makes at the time. Samples are D(z) with z ~ p(z); and with p(z) in the place
of N(0, 1), for K draws z_k ~ q(z|x),

(4)  log p(x) >= E log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x)                     (Burda et al. 1509.00519, IWAE)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sfumato.data.codec import Codec
from sfumato.dist import Normal, Rng
from sfumato.errors import UserError
from sfumato.models.base import Pushforward, Spec
from sfumato.nn import Decoder, Encoder, Flow

__all__ = ["VAE", "VAESpec"]

LOG_STD = (-8.0, 3.0)  # between which the encoder's log s stays
DRAWS = 64  # of a bound


@dataclass(frozen=True)
class VAESpec(Spec):
    """All that is needed to build an untrained VAE.

    Attributes:
        widths: hidden channels of each level, the finest first; (width,) for points.
        blocks: residual blocks a level.
        latent: length of z.
        beta: weight of the divergence from N(0, 1) in training.
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
        return (
            f"encoder and decoder {'-'.join(map(str, self.widths))}, {self.latent} latent numbers, beta {self.beta:g}"
        )

    def build(self, codec: Codec, classes: Sequence[str] = ()) -> VAE:
        if not self.beta > 0:
            raise UserError(f"beta must be above 0, got {self.beta}")
        if self.latent < 2:
            raise UserError(f"a VAE needs at least two latent numbers, got {self.latent}")
        encoder = Encoder(codec.dims, 2 * self.latent, self.widths, self.blocks, self.classes)
        decoder = Decoder(codec.dims, self.latent, self.widths, self.blocks, self.classes)
        prior = Flow(self.latent, self.prior, classes=self.classes)
        return VAE(encoder, decoder, prior, codec, tuple(classes), self.latent, self.beta, self.sigma_data)


class VAE(Pushforward):
    """An encoder, a decoder and a prior, with the codec of their data.

    Attributes:
        noise_std: sigma of (2) for the whole data, in units of ``sigma_data``; NaN until it is measured.

    Args:
        encoder: from states of unit variance and labels to m and log s, (B, 2 latent).
        decoder: from z (B, latent) and labels to such states.
        prior: of z.
        codec: between the user's items and states.
        classes: names of the classes; () if the networks take no labels.
        latent: length of z.
        beta: weight of the divergence from N(0, 1) in training.
        sigma_data: the data's standard deviation.
    """

    family: ClassVar[str] = "vae"
    noise_std: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: Flow,
        codec: Codec,
        classes: tuple[str, ...] = (),
        latent: int = 32,
        beta: float = 1.0,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__(codec, classes, latent)
        self.encoder, self.decoder, self.prior = encoder, decoder, prior
        self.beta, self.sigma_data = beta, sigma_data
        self.register_buffer("noise_std", torch.tensor(math.nan))

    def posterior(self, x_0: Tensor, cond: Tensor | None = None) -> Normal:
        """Return q(z|x) of states (B, ...) and labels (B,)."""
        mean, log_std = self.encoder(x_0 / self.sigma_data, cond).chunk(2, 1)
        return Normal(mean, log_std.clamp(*LOG_STD).exp())

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
        q = self.posterior(x_0, cond)
        z = q.sample(rng)
        error = self._error(x_0, z, cond)
        best = error.detach().mean()  # (2); the gradient of its logarithm is that of error / best
        described = (best.log() + math.log(2 * math.pi) + error / best) / 2
        kl = q.kl(Normal(torch.zeros_like(z), torch.ones_like(z)))
        second = -self.prior.log_prob(z.detach(), cond)
        return described + (self.beta * kl + second) / x_0[0].numel()

    def _error(self, x_0: Tensor, z: Tensor, cond: Tensor | None) -> Tensor:
        """Return |x - D(z)|^2 / N in units of the data's variance, (B,)."""
        error: Tensor = (x_0 / self.sigma_data - self.decoder(z, cond)).square().flatten(1).mean(1)
        return error

    def measure(self, x_0: Tensor, cond: Tensor | None = None, rng: torch.Generator | None = None) -> list[Tensor]:
        with torch.no_grad():
            q = self.posterior(x_0, cond)
            self.noise_std.copy_(self._error(x_0, q.sample(rng), cond).mean().sqrt())
        return [self.noise_std]

    @property
    def measured(self) -> bool:
        return not bool(self.noise_std.isnan())

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
        q, n = self.posterior(x_0, cond), x_0[0].numel()
        variance = float(self.noise_std) ** 2
        weights = []
        for _ in range(draws):
            z = q.sample(rng)
            error = n * self._error(x_0, z, cond).double() / variance
            told = -(error + n * math.log(2 * math.pi * variance * self.sigma_data**2)) / 2
            weights.append(told + self.prior.log_prob(z, cond).double() - q.log_prob(z).double())
        return torch.stack(weights).logsumexp(0) - math.log(draws)

    def generate(self, z: Tensor, cond: Tensor | None) -> Tensor:
        out: Tensor = self.sigma_data * self.decoder(self.prior.inverse(z, cond), cond)
        return out

    @property
    def network(self) -> nn.Module:
        return self.decoder

    def compile_networks(self) -> None:
        for network in (self.encoder, self.decoder):
            network.compile()

    def call(self, x_0: Tensor, cond: Tensor | None = None) -> Tensor:
        out: Tensor = self.decoder(self.posterior(x_0, cond).mean, cond)
        return out
