"""Decoders: the last step of a Gaussian chain, from a little noise to the data.

The model estimates the data by D, known up to a standard deviation std. Data that vary continuously have the density

(1)  N(x; D, std^2)

and data with finitely many levels v_0 < v_1 < ..., a step h apart, the probability of the level's bin

(2)  P(x = v_k) = Phi((v_k + h/2 - D)/std) - Phi((v_k - h/2 - D)/std)          (Ho et al. 2006.11239, eq. 13)

the first bin open below, the last above. (2) goes by log Phi, so that it is exact far in the tails too. There std is at
least h/6: that costs 0.003 nats where D is right, while a narrower law falls off so steeply that the rare wrong D costs
thousands. A density depends on the unit of x and a probability does not: each decoder says which of them it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from sfumato.dist import Normal, per_example
from sfumato.errors import UserError

__all__ = ["Decoder", "Density", "Discretised"]


class Decoder(Protocol):
    """The last step of a Gaussian chain: the law of the data given the estimate."""

    name: ClassVar[str]
    mass: ClassVar[bool]
    """Whether ``log_prob`` is of a probability; else of a density, which depends on the unit of x."""

    @property
    def noise(self) -> float:
        """The noise level sigma/alpha at which the decoder takes over, unless explicit times say another."""

    def log_prob(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Return the log probability of the data in nats, (B,).

        Args:
            x: (B, ...) data.
            mean: (B, ...) estimate of them.
            std: its standard deviation, of a shape that broadcasts to ``x``.

        Raises:
            UserError: data that this law can't produce.
        """


@dataclass(frozen=True)
class Density:
    """The density N(x; D, std^2), for continuous or dequantised data.

    Attributes:
        noise: level sigma/alpha > 0 at which it takes over; it should be small against the finest detail of p(x). The
            default is logsnr 13.3, where the chain of Kingma et al. (2107.00630) ends.
    """

    noise: float = 0.0013
    name: ClassVar[str] = "density"
    mass: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.noise < math.inf:
            raise UserError(f"the decoder's noise is a level above 0, got {self.noise}")

    def log_prob(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Return the log density in nats, (B,)."""
        return Normal(mean, std).log_prob(x)


@dataclass(frozen=True)
class Discretised:
    """Probabilities of equally spaced levels, for data that take no other values; equation (2).

    Attributes:
        levels: how many, at least 2.
        low: the first level in state space.
        high: the last.
    """

    levels: int = 256
    low: float = -1.0
    high: float = 1.0
    name: ClassVar[str] = "discretised"
    mass: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.levels < 2 or not -math.inf < self.low < self.high < math.inf:
            raise UserError(f"levels are at least 2, from low to a higher high, got {self}")

    @property
    def step(self) -> float:
        """Distance between two levels."""
        return (self.high - self.low) / (self.levels - 1)

    @property
    def noise(self) -> float:
        """A sixth of a step, so a bin reaches to three standard deviations of it; logsnr 13.3 for 256 levels."""
        return self.step / 6

    def log_prob(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Return the log probability in nats, (B,), of data (B, ...) on the levels; see ``Decoder.log_prob``.

        Raises:
            UserError: a value outside [low, high] or between two levels.
        """
        place = (x.double() - self.low) / self.step
        level = place.round()
        if not bool(((level >= 0) & (level < self.levels)).all()):
            raise UserError(
                f"x holds values outside [{self.low:g}, {self.high:g}]: encode the data, or widen the decoder"
            )
        if float((place - level).abs().max()) > 0.01:
            raise UserError(
                f"x holds values between the {self.levels} levels of the discretised decoder: "
                "give data as encoded, or decoder=Density() for dequantised data"
            )
        std = std.double().clamp(min=self.noise)
        below, above = ((self.low + (level + half) * self.step - mean.double()) / std for half in (-0.5, 0.5))
        below = torch.where(level == 0, -torch.inf, below)
        above = torch.where(level == self.levels - 1, torch.inf, above)
        return per_example(_log_between(below, above))


def _log_between(a: Tensor, b: Tensor) -> Tensor:
    """Return log(Phi(b) - Phi(a)), a < b, mirrored to the left tail, where Phi is small and does not cancel."""
    right = a + b > 0
    a, b = torch.where(right, -b, a), torch.where(right, -a, b)
    log_a, log_b = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
    log_mass: Tensor = log_b + (-torch.expm1(log_a - log_b)).log()
    return log_mass
