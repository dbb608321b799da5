"""Distributions: what every conditional of a process returns.

A :class:`Normal` here is diagonal, a :class:`Categorical` draws each token by itself, a :class:`Joint` holds several
of them by name; none knows of time. The first axis is the batch: ``log_prob`` and ``kl`` sum over all other axes and
return one number per example, in nats.

(1)  log N(x; m, s^2) = -1/2 sum [ ((x - m)/s)^2 + log(2 pi s^2) ]
(2)  KL(N(m1, s1^2) || N(m2, s2^2)) = sum [ log(s2/s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2 ]
(3)  KL(p || q) = sum_tokens sum_k p_k (log p_k - log q_k),   0 log 0 = 0,   inf where p has mass and q has none
(4)  x = #{k : p_1 + ... + p_k <= u},  u uniform in [0, 1): a draw by the inverse of the cumulative law. In float64:
     float32 has 2^24 values of u, too few for rare tokens                                    (Zheng et al. 2409.02908)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sfumato.errors import UserError

__all__ = ["Categorical", "Dist", "Joint", "Normal", "Rng", "by_name", "per_example", "rand", "randn_like", "stream"]

Rng = torch.Generator | Sequence[torch.Generator] | None
"""Where noise comes from: one generator for the batch, one for each example (then an example's noise does not
depend on its neighbours), or None for PyTorch's global state."""

_PRIME = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads consecutive keys over all 64 bits (SplitMix64)


def stream(*keys: int) -> torch.Generator:
    """Return a generator that is a function of the keys alone, such as (seed, step, rank).

    Consecutive or swapped keys give unrelated streams; nothing is kept between calls, so any step can be remade.

    Args:
        keys: whole numbers of any sign.

    Returns:
        A CPU generator.
    """
    state = len(keys)
    for key in keys:  # SplitMix64's finaliser (Steele, Lea, Flood 2014), once for each key
        state = (state + key + 1) * _PRIME % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return torch.Generator().manual_seed(state % 2**63)


def randn_like(x: Tensor, rng: Rng = None) -> Tensor:
    """Draw standard normal noise of the shape, type and device of ``x``.

    Args:
        x: (B, ...).
        rng: see :data:`Rng`; a sequence must hold B generators.

    Returns:
        (B, ...) noise. With CPU generators the numbers are the same on every device.

    Raises:
        ValueError: a sequence of another length than the batch.
    """
    return torch.randn_like(x) if rng is None else _draw(torch.randn, x, x.dtype, rng)


def rand(x: Tensor, rng: Rng = None) -> Tensor:
    """Draw float64 numbers uniform in [0, 1), of the shape and device of ``x``.

    Args:
        x: (B, ...) of any type.
        rng: see :data:`Rng`; a sequence must hold B generators.

    Raises:
        ValueError: a sequence of another length than the batch.
    """
    return torch.rand_like(x, dtype=torch.float64) if rng is None else _draw(torch.rand, x, torch.float64, rng)


def _draw(
    kind: Callable[..., Tensor], x: Tensor, dtype: torch.dtype, rng: torch.Generator | Sequence[torch.Generator]
) -> Tensor:
    """Draw torch.rand or torch.randn where the generators are, and move the numbers to ``x``."""
    if isinstance(rng, torch.Generator):
        return kind(x.shape, generator=rng, dtype=dtype, device=rng.device).to(x.device)
    if len(rng) != len(x):
        raise ValueError(f"{len(rng)} generators for a batch of {len(x)}")
    draws = [kind(x.shape[1:], generator=g, dtype=dtype, device=g.device) for g in rng]
    return torch.stack(draws).to(x.device)


def per_example(x: Tensor) -> Tensor:
    """Sum over all axes but the first: (B, ...) -> (B,)."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


class Dist(Protocol):
    """A law over states: tensors (B, ...), or dicts of them."""

    def sample(self, rng: Rng = None) -> Any:
        """Draw one state."""

    def log_prob(self, x: Any) -> Tensor:
        """Return the log density, or log probability, of ``x`` in nats, (B,)."""

    def kl(self, other: Any) -> Tensor:
        """Return KL(self || other), a law of the same kind, in nats, (B,)."""


@dataclass(frozen=True)
class Normal:
    """A diagonal normal distribution.

    Attributes:
        mean: (B, ...).
        std: at least 0, of a shape that broadcasts to ``mean``. Zero is a point mass: it can be sampled, but has
            no density.
    """

    mean: Tensor
    std: Tensor

    def sample(self, rng: Rng = None) -> Tensor:
        """Draw one sample of the shape of ``mean``, differentiable in both parameters."""
        return self.mean + self.std * randn_like(self.mean, rng)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log density at ``x`` (B, ...) in nats, (B,); equation (1)."""
        z = (x - self.mean) / self.std
        return -0.5 * per_example(z.square() + (2 * math.pi * self.std.square()).log())

    def kl(self, other: Normal) -> Tensor:
        """Return KL(self || other) in nats, (B,); equation (2)."""
        ratio = self.std / other.std
        shift = (self.mean - other.mean) / other.std
        return per_example(0.5 * (ratio.square() + shift.square() - 1) - ratio.log())


@dataclass(frozen=True)
class Categorical:
    """Tokens drawn independently of each other, each from a law over K symbols.

    Attributes:
        log_p: (B, ..., K) log-probabilities, normalised along the last axis; -inf is a symbol that never comes.
    """

    log_p: Tensor

    @property
    def probabilities(self) -> Tensor:
        """exp(log_p), (B, ..., K)."""
        return self.log_p.exp()

    def sample(self, rng: Rng = None) -> Tensor:
        """Draw tokens, int64 (B, ...), never one of probability 0; equation (4).

        Raises:
            UserError: the log-probabilities hold NaN, or nothing but -inf for a token.
        """
        below = self.log_p.double().softmax(-1).cumsum(-1)
        if bool(below[..., -1].isnan().any()):
            raise UserError("can't draw tokens from NaN: the start or the network's weights hold NaN or inf")
        u = rand(below[..., -1], rng) * below[..., -1]  # the sum of all may miss 1 by a rounding error
        return torch.searchsorted(below, u[..., None], right=True)[..., 0]

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-probability of tokens ``x`` (B, ...) in nats, (B,)."""
        return per_example(self.log_p.gather(-1, x[..., None])[..., 0])

    def kl(self, other: Categorical) -> Tensor:
        """Return KL(self || other) in nats, (B,); equation (3)."""
        never = self.log_p.isneginf()
        gap = self.log_p.masked_fill(never, 0) - other.log_p.masked_fill(never, 0)
        return per_example((self.probabilities * gap).sum(-1))


@dataclass(frozen=True)
class Joint:
    """Independent parts by name, such as the positions and the kinds of a molecule's atoms.

    Attributes:
        parts: the law of each; all have the same batch.
    """

    parts: Mapping[str, Dist]

    def sample(self, rng: Rng = None) -> dict[str, Tensor]:
        """Draw every part, in the order of their names, from the same source."""
        return {name: part.sample(rng) for name, (part,) in by_name(self.parts)}

    def log_prob(self, x: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the parts' log-probabilities of ``x``, (B,).

        Raises:
            UserError: other names than the parts'.
        """
        return torch.stack([part.log_prob(value) for _, (part, value) in by_name(self.parts, x)]).sum(0)

    def kl(self, other: Joint) -> Tensor:
        """Return KL(self || other), the sum over the parts, (B,).

        Raises:
            UserError: other names than the parts'.
        """
        return torch.stack([part.kl(its) for _, (part, its) in by_name(self.parts, other.parts)]).sum(0)


def by_name(*tables: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield (name, what each table holds under it) in the order of the names.

    Raises:
        UserError: a table with other names than the first.
    """
    for table in tables[1:]:
        if table.keys() != tables[0].keys():
            raise UserError(f"the parts are {sorted(tables[0])}, got {sorted(table)}")
    yield from ((name, tuple(table[name] for table in tables)) for name in sorted(tables[0]))
