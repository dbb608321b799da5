"""The forward process of tokens: each is kept, or drawn anew from a law pi; and of states that mix tokens and numbers.

With alpha the chance that a token is kept, alpha_ts = alpha_t/alpha_s, and 1[.] the law that is all on one symbol:

(1)  q(x_t | x_s)      = alpha_ts 1[x_s] + (1 - alpha_ts) pi        (Austin et al. 2107.03006, sec. 3.1, for any pi)
(2)  q(x_t | x_0)      = alpha_t 1[x_0] + (1 - alpha_t) pi          transition from s = 0; pi is stationary
(3)  q(x_s | x_t, x_0) = q(x_t | x_s) q(x_s | x_0) / q(x_t | x_0)   Bayes' rule                        (ibid., eq. 3)
(4)  p(x_s | x_t)      = sum_x0 p(x_0 | x_t) q(x_s | x_t, x_0)                                         (ibid., eq. 4)
                       = q(x_t | x_s) [alpha_s r(x_s) + (1 - alpha_s) pi(x_s) sum r],   r(.) = p(. | x_t) / q(x_t | .)

The second form of (4) costs K, not K^2. Tokens go their ways independently of each other, so (4) is the true reverse
step for one token, and for several in the limit of small steps.

What x_t itself says of each token is known, so a network is asked for the rest only, what the others say:

(5)  log p(x_0 | x_t) = logits(x_t) + log q(x_t | x_0) + const, token by token

With a mask, that keeps what is not masked as it is ("carry-over", Sahoo et al. 2406.07524, sec. 3.2.3).

Three laws pi are in use: "absorbing", all on a mask that is no value of the data; "uniform"; and "marginal", how
often each value occurs in the data (Vignac et al. 2209.14734, sec. 4.2). Probabilities are float64, whatever the
network's type, and go by their logarithms where they are multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.dist import Categorical, Dist, Joint, by_name
from sfumato.errors import UserError
from sfumato.process import Gaussian, rising, spread
from sfumato.schedule import Instant, Number, Schedule, Time

__all__ = ["Guess", "Mixing", "Parts", "unread"]


@dataclass(frozen=True)
class Guess:
    """What a network says about the tokens behind x_t: the counterpart of ``rows.Estimate``.

    Attributes:
        x_t: int64 (B, ...) the noisy tokens.
        t: their time.
        logits: (B, ..., K) over the K values that data have, up to a constant for each token.
    """

    x_t: Tensor
    t: Instant
    logits: Tensor

    @cached_property
    def log_p(self) -> Tensor:
        """log p(x_0 | x_t) of each token, float64 (B, ..., K)."""
        return self.logits.double().log_softmax(-1)

    @cached_property
    def x0(self) -> Tensor:
        """The most likely tokens, int64 (B, ...)."""
        return self.logits.argmax(-1)


@dataclass(frozen=True)
class Mixing:
    """Forward diffusion of tokens, int64 (B, ...); equations (1) to (4).

    ``Mixing.absorbing(K, Flow())`` and ``Mixing.uniform(K, Flow())`` write their law themselves; the marginal one is
    ``Mixing(Flow(), frequencies)``.

    Arguments named ``t`` and ``s`` are times with 0 <= s < t <= 1, one number or one for each example.

    Attributes:
        schedule: its alpha(t) is the chance that a token is still the data's; ``Flow()`` gives 1 - t.
        law: pi, a probability for each symbol. If all of it is on the last one, that is a mask, and the values of
            data are those before it.

    Raises:
        UserError: numbers that are no law, fewer than two values, all of pi on a value of the data, a mask with
            alpha(1) > 0 (tokens outlive the noise, but the prior has none), or alpha(1) = 1 (nothing ever changes).
    """

    schedule: Schedule
    law: Sequence[float]

    def __post_init__(self) -> None:
        law = torch.tensor(self.law, dtype=torch.float64)
        if len(law) < 2 or not bool((law >= 0).all() & ((law.sum() - 1).abs() < 1e-6)):
            raise UserError(f"the law of new tokens is 2 or more probabilities that sum to 1, got {_short(self.law)}")
        law = law / law.sum()
        object.__setattr__(self, "law", tuple(law.tolist()))
        object.__setattr__(self, "_pi", law)
        if self.values < 2 or (self.mask is None and max(self.law) == 1):
            raise UserError(
                f"{_short(self.law)} puts all new tokens on one value: data need at least 2 values, and a mask comes "
                "after them, as in Mixing.absorbing"
            )
        end, name = float(self.schedule.alpha(1.0)), type(self.schedule).__name__
        if self.mask is not None and end != 0:
            raise UserError(f"a mask must hide every token at t = 1, but {name} keeps {end:.2g} of them: use Flow()")
        if end == 1:
            raise UserError(f"{name} has alpha = 1 at all times, which never changes a token: use Flow()")

    _pi: Tensor = field(init=False, repr=False, compare=False)

    @classmethod
    def absorbing(cls, values: int, schedule: Schedule) -> Mixing:
        """Return the process that masks tokens of 0 .. values - 1; the mask is the symbol ``values``.

        Raises:
            UserError: values < 2, or a schedule with alpha(1) > 0.
        """
        return cls(schedule, (*[0.0] * values, 1.0))

    @classmethod
    def uniform(cls, values: int, schedule: Schedule) -> Mixing:
        """Return the process that replaces tokens by any of 0 .. values - 1.

        Raises:
            UserError: values < 2, or a schedule with alpha(1) = 1.
        """
        return cls(schedule, (1 / max(values, 1),) * values)

    @property
    def mask(self) -> int | None:
        """The symbol of the mask, or None if new tokens are values of the data."""
        return len(self.law) - 1 if self.law[-1] == 1 else None

    @property
    def values(self) -> int:
        """K, how many values data have: 0 .. K - 1."""
        return len(self.law) - (self.mask is not None)

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Categorical:
        """Return q(x_t | x_s); equation (1).

        Args:
            x_s: (B, ...) tokens at time ``s``.
            s: earlier time.
            t: later time.

        Raises:
            UserError: not 0 <= s < t <= 1, or what is no token.
        """
        start, end = rising(self.schedule, s, t)
        return Categorical(self._log_ahead(self._tokens(x_s), end.alpha / start.alpha))

    def marginal(self, x_0: Tensor, t: Time) -> Categorical:
        """Return q(x_t | x_0); equation (2).

        Args:
            x_0: (B, ...) data.
            t: time; at t = 0 the law is all on ``x_0``.

        Raises:
            UserError: t outside [0, 1], or what is no value of data.
        """
        (now,) = rising(self.schedule, t)
        return Categorical(self._log_ahead(self._tokens(x_0, self.values), now.alpha))

    def posterior(self, x_t: Tensor, x_0: Tensor, t: Time, s: Time) -> Categorical:
        """Return q(x_s | x_t, x_0); equation (3).

        Args:
            x_t: (B, ...) tokens at time ``t``.
            x_0: (B, ...) data.
            t: later time.
            s: earlier time; at s = 0 the law is all on ``x_0``.

        Raises:
            UserError: not 0 <= s < t <= 1, what is no token, or x_t that can't come from x_0.
        """
        start, end = rising(self.schedule, s, t)
        ahead = self._log_ahead(self._tokens(x_0, self.values), start.alpha)
        return _normalised(self._log_back(self._tokens(x_t), end.alpha / start.alpha) + ahead)

    def reverse(self, estimate: Guess, t: Time, s: Time) -> Categorical:
        """Return p_theta(x_s | x_t); equation (4). Values that can't have become x_t are ruled out.

        Args:
            estimate: of the tokens behind x_t.
            t: time of x_t.
            s: earlier time; at s = 0 the law is the estimate.

        Raises:
            UserError: not 0 <= s < t <= 1, what is no token, or x_t that the estimate rules out.
        """
        start, end = rising(self.schedule, s, t)
        x_t = self._tokens(estimate.x_t)
        log_q = self._log_back(x_t, end.alpha)
        log_p = F.pad(estimate.log_p, (0, len(self.law) - self.values), value=-math.inf)
        never = log_q.isneginf()
        log_r = (log_p - log_q.masked_fill(never, 0)).masked_fill(never, -math.inf)
        alpha = torch.as_tensor(start.alpha, dtype=torch.float64, device=x_t.device)
        alpha = alpha.reshape(-1, *[1] * x_t.ndim)
        fresh = (1 - alpha).log() + self._pi.to(x_t.device).log() + log_r.logsumexp(-1, keepdim=True)
        log_sum = torch.logaddexp(alpha.log() + log_r, fresh)
        return _normalised(self._log_back(x_t, end.alpha / start.alpha) + log_sum)

    def prior(self, like: Tensor, t: Time = 1.0) -> Categorical:
        """Return pi for every token of ``like`` (B, ...), whatever t; see :meth:`sfumato.process.Process.prior`."""
        return Categorical(self._pi.to(like.device).log().expand(*like.shape, -1))

    def guess(self, x_t: Tensor, t: Time, logits: Tensor) -> Guess:
        """Return the estimate that a network's output stands for; equation (5).

        Args:
            x_t: (B, ...) tokens at time ``t``.
            t: their time.
            logits: (B, ..., K) over the values of data.

        Raises:
            ValueError: logits of another shape.
            UserError: t outside [0, 1], or what is no token.
        """
        if logits.shape != (*x_t.shape, self.values):
            raise ValueError(f"logits of shape {tuple(logits.shape)}, not {(*x_t.shape, self.values)}")
        (now,) = rising(self.schedule, t)
        itself = self._log_back(self._tokens(x_t), now.alpha)[..., : self.values]
        return Guess(x_t, now, logits + itself.to(logits.dtype))

    def _log_ahead(self, x: Tensor, keep: Number) -> Tensor:
        """Return log q(. | x), what ``x`` (B, ...) becomes: (B, ..., symbols); equation (1)."""
        return self._log_mix(x, keep, self._pi.to(x.device))

    def _log_back(self, x: Tensor, keep: Number) -> Tensor:
        """Return log q(x | .), how likely each symbol was to become ``x``: (B, ..., symbols); equation (1).

        A token that was given where none should be left, at alpha = 0, is taken for known: the limit of alpha to 0.
        """
        keep = keep.clamp(min=1e-300) if isinstance(keep, Tensor) else max(keep, 1e-300)
        return self._log_mix(x, keep, self._pi.to(x.device)[x][..., None])

    def _log_mix(self, x: Tensor, keep: Number, fresh: Tensor) -> Tensor:
        same = (x[..., None] == torch.arange(len(self.law), device=x.device)).double()
        keep = spread(keep, same)
        return (same * keep + fresh * (1 - keep)).log()

    def _tokens(self, x: Tensor, symbols: int | None = None) -> Tensor:
        """Return ``x`` if it holds tokens: of data below ``symbols``, of noise any symbol."""
        symbols = len(self.law) if symbols is None else symbols
        if x.is_floating_point() or (x.numel() and not 0 <= int(x.min()) <= int(x.max()) < symbols):
            got = x.dtype if x.is_floating_point() else f"{int(x.min())} to {int(x.max())}"
            raise UserError(f"tokens are whole numbers from 0 to {symbols - 1} here, got {got}")
        return x.long()


@dataclass(frozen=True)
class Parts:
    """States of several parts, each with its own process: dicts of tensors (B, ...) by name.

    Noise acts on every part by itself, so each conditional is a :class:`sfumato.dist.Joint`; what ties the parts
    together is the network that sees them all. Arguments are as in :class:`sfumato.process.Process`, by name.

    Attributes:
        processes: of each part, such as ``{"kind": Mixing.absorbing(5, Flow()), "place": Gaussian(VP())}``.

    Raises:
        UserError: no parts.
    """

    processes: Mapping[str, Gaussian | Mixing]

    def __post_init__(self) -> None:
        if not self.processes:
            raise UserError("a state of several parts needs at least one: {name: process}")

    @property
    def schedule(self) -> Schedule:
        """The first part's, by which grids place their times; every part reads its own at them."""
        return next(iter(self.processes.values())).schedule

    def transition(self, x_s: Mapping[str, Tensor], s: Time, t: Time) -> Joint:
        """Return q(x_t | x_s); see :class:`sfumato.process.Process`."""
        return self._each(lambda q, x: q.transition(x, unread(s), unread(t)), x_s)

    def marginal(self, x_0: Mapping[str, Tensor], t: Time) -> Joint:
        """Return q(x_t | x_0)."""
        return self._each(lambda q, x: q.marginal(x, unread(t)), x_0)

    def posterior(self, x_t: Mapping[str, Tensor], x_0: Mapping[str, Tensor], t: Time, s: Time) -> Joint:
        """Return q(x_s | x_t, x_0); see :class:`sfumato.process.Process`."""
        return self._each(lambda q, x, data: q.posterior(x, data, unread(t), unread(s)), x_t, x_0)

    def prior(self, like: Mapping[str, Tensor], t: Time = 1.0) -> Joint:
        """Return the law from which the way back starts, each part's; see :meth:`sfumato.process.Process.prior`."""
        return self._each(lambda q, x: q.prior(x, unread(t)), like)

    def reverse(self, estimate: Mapping[str, Any], t: Time, s: Time) -> Joint:
        """Return p_theta(x_s | x_t), given each part's estimate; see :class:`sfumato.process.Process`."""
        return self._each(lambda q, guess: q.reverse(guess, unread(t), unread(s)), estimate)

    def _each(self, law: Callable[..., Dist], *states: Mapping[str, Any]) -> Joint:
        return Joint({name: law(*its) for name, its in by_name(self.processes, *states)})


def unread(t: Time) -> Number:
    """Return the bare time of an instant: another part's schedule says other things at it."""
    return t.t if isinstance(t, Instant) else t


def _normalised(log_p: Tensor) -> Categorical:
    """Return the law of these weights, unless a token has none: then x_t was impossible."""
    if bool(log_p.amax(-1).isneginf().any()):
        raise UserError("x_t holds a token that what is known of x_0 can't have become by then")
    return Categorical(log_p.log_softmax(-1))


def _short(law: Sequence[float]) -> str:
    """Return a law for an error line, its middle left out if it is long."""
    told = [f"{p:.4g}" for p in law]
    return f"({', '.join(told if len(told) < 9 else [*told[:3], '...', *told[-3:]])})"
