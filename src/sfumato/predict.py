"""The way back for tokens: a network that says which values they had, trained by cross-entropy; and for mixed states.

(1)  p_theta(x_s | x_t) = sum_x0 p_theta(x_0 | x_t) q(x_s | x_t, x_0)      (Austin et al. 2107.03006, eq. 4)
(2)  network input: the tokens, and level = 1 - alpha(t): the chance that a token is noise; its logits say what the
     other tokens tell of each one, and mixing.py (5) adds what the token itself does
(3)  loss = w(t) mean over tokens of -log p_theta(x_0 | x_t),  t uniform in (0, 1)
     "ce"    w = 1: its minimum is p(x_0 | x_t), whatever the process
     "elbo"  w = -alpha'/(1 - alpha), masks only: E loss is then at least -log p_theta(x_0) in nats for each token,
             in the limit of small steps                                  (Sahoo et al. 2406.07524, sec. 3.4)

A state of several parts is estimated by one network that sees them all (:class:`JointDenoiser`):

(4)  loss = sum over parts of mean |target - output|^2 for numbers, "ce" of (3) for tokens, at a time they share;
     numbers are given to the network and asked of it as in denoise.py, row "edm"
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sfumato.condition import Condition
from sfumato.dist import Categorical, Joint, Normal, by_name, randn_like
from sfumato.errors import UserError, choose
from sfumato.mixing import Guess, Mixing, Parts, unread
from sfumato.process import spread
from sfumato.rows import Estimate, input_scale, row
from sfumato.schedule import Number, Time
from sfumato.weighting import Uniform

__all__ = ["Estimates", "JointDenoiser", "TokenDenoiser"]


class TokenDenoiser(nn.Module):
    """A network with a process of tokens: the counterpart of ``denoise.Denoiser``.

    Args:
        network: called as ``network(x_t, level, cond)`` with tokens (B, ...), the mask among them, and level (B,) in
            [0, 1]; equation (2). It returns logits (B, ..., K) over the K values of data.
        process: the forward process.
        weighting: of the loss, "ce" or "elbo"; equation (3).

    Raises:
        UserError: an unknown weighting, or "elbo" for a process without a mask.
    """

    def __init__(self, network: nn.Module, process: Mixing, *, weighting: str = "ce") -> None:
        super().__init__()
        choose("weighting of tokens", weighting, dict.fromkeys(("ce", "elbo")))
        if weighting == "elbo" and process.mask is None:
            raise UserError("the weighting 'elbo' is known for masks only: use 'ce', or Mixing.absorbing")
        self.network = network
        self.process = process
        self.weighting = weighting

    def forward(self, x_t: Tensor, t: Time, cond: Condition | None = None) -> Guess:
        """Estimate the tokens behind ``x_t``; equation (2).

        Args:
            x_t: int64 (B, ...) tokens at time ``t``.
            t: time in (0, 1], one number or one for each example.
            cond: of each example, if the network hears any.

        Raises:
            ValueError: the network's logits have another shape than (B, ..., K).
        """
        now = self.process.schedule.at(t)
        return self.process.guess(x_t, now, self.network(x_t, _level(1 - now.alpha, x_t), cond))

    def reverse(self, x_t: Tensor, t: Time, s: Time, cond: Condition | None = None) -> Categorical:
        """Return p_theta(x_s | x_t) for s < t; equation (1). Arguments as in :meth:`forward`.

        Raises:
            UserError: not 0 <= s < t <= 1.
        """
        return self.process.reverse(self.forward(x_t, t, cond), t, s)

    def loss(self, x_0: Tensor, cond: Condition | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Return the training loss of each example at a random time, (B,); equation (3).

        Args:
            x_0: int64 (B, ...) data.
            cond: of each example, if the network hears any.
            rng: CPU generator for the times and the noise.
        """
        schedule = self.process.schedule
        t = Uniform().times(len(x_0), schedule, 1.0, rng)
        x_t = self.process.marginal(x_0, t).sample(rng)
        error = _cross_entropy(self.forward(x_t, t, cond), x_0)
        if self.weighting == "ce":
            return error
        return error * (-schedule.d_alpha(t) / (1 - schedule.alpha(t))).to(error.device, error.dtype)


class Estimates(dict[str, Estimate | Guess]):
    """What a network says about each part of a state, by name."""

    @property
    def x0(self) -> dict[str, Tensor]:
        """The estimate of the data, of each part."""
        return {name: estimate.x0 for name, estimate in self.items()}


class JointDenoiser(nn.Module):
    """One network for a state of several parts; equation (4).

    Args:
        network: called as ``network(x, level, cond)`` with a dict of the parts, numbers of unit variance and tokens
            as they are, and level (B,) = t. It returns a dict: for numbers their shape, for tokens logits (B, ..., K).
        process: the forward process.
        sigma_data: the data's standard deviation of each part that holds numbers.

    Raises:
        UserError: sigma_data for other parts than those, or not above 0.
    """

    def __init__(self, network: nn.Module, process: Parts, *, sigma_data: Mapping[str, float]) -> None:
        super().__init__()
        numbers = sorted(name for name, q in process.processes.items() if not isinstance(q, Mixing))
        if sorted(sigma_data) != numbers or not all(0 < sd < float("inf") for sd in sigma_data.values()):
            raise UserError(f"sigma_data must be above 0 for each of the parts {numbers}, got {dict(sigma_data)}")
        self.network = network
        self.process = process
        self.sigma_data = dict(sigma_data)

    def forward(self, x_t: Mapping[str, Tensor], t: Time, cond: Condition | None = None) -> Estimates:
        """Estimate the data behind ``x_t``.

        Args:
            x_t: (B, ...) each, the state at time ``t``.
            t: time in (0, 1], one number or one for each example.
            cond: of each example, if the network hears any.

        Raises:
            UserError: other names than the process'.
        """
        t, scaled = unread(t), dict(x_t)
        for name, sd in self.sigma_data.items():
            scaled[name] = x_t[name] / spread(input_scale(self.process.processes[name].schedule, t, sd), x_t[name])
        outputs = self.network(scaled, _level(t, next(iter(x_t.values()))), cond)
        estimates = Estimates()
        for name, (q, x, output) in by_name(self.process.processes, x_t, outputs):
            if isinstance(q, Mixing):
                estimates[name] = q.guess(x, t, output)
            else:
                a, b = row("edm", q.schedule, t, self.sigma_data[name])
                estimates[name] = Estimate(x, q.schedule.at(t), q.schedule, output, a, b)
        return estimates

    def reverse(self, x_t: Mapping[str, Tensor], t: Time, s: Time, cond: Condition | None = None) -> Joint:
        """Return p_theta(x_s | x_t) for s < t. Arguments as in :meth:`forward`.

        Raises:
            UserError: not 0 <= s < t <= 1, or other names than the process'.
        """
        return self.process.reverse(self.forward(x_t, t, cond), t, s)

    def loss(
        self, x_0: Mapping[str, Tensor], cond: Condition | None = None, rng: torch.Generator | None = None
    ) -> Tensor:
        """Return the training loss of each example at a random time, (B,); equation (4).

        Args:
            x_0: (B, ...) each, the data.
            cond: of each example, if the network hears any.
            rng: CPU generator for the times and the noise.
        """
        t = Uniform().times(len(next(iter(x_0.values()))), self.process.schedule, 1.0, rng)
        x_t, eps = {}, {}
        for name, law in self.process.marginal(x_0, t).parts.items():
            if isinstance(law, Normal):
                eps[name] = randn_like(law.mean, rng)
                x_t[name] = law.mean + law.std * eps[name]
            else:
                x_t[name] = law.sample(rng)
        losses = []
        for name, (estimate, x) in by_name(self.forward(x_t, t, cond), x_0):
            if isinstance(estimate, Guess):
                losses.append(_cross_entropy(estimate, x))
            else:
                error = spread(estimate.a, x) * x + spread(estimate.b, x) * eps[name] - estimate.output
                losses.append(error.square().flatten(1).mean(1))
        return torch.stack(losses).sum(0)


def _cross_entropy(estimate: Guess, x_0: Tensor) -> Tensor:
    """Return -log p(x_0 | x_t), mean over tokens, (B,)."""
    return -Categorical(estimate.logits.float().log_softmax(-1)).log_prob(x_0) / max(x_0[0].numel(), 1)


def _level(level: Number, x: Tensor) -> Tensor:
    """Return the level for each example of ``x``, float32 (B,)."""
    return torch.as_tensor(level, dtype=torch.float32, device=x.device).expand(len(x))
