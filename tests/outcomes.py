"""Tokens with known answers: three tokens of five values have 125 outcomes, and any noisy state is one of at most 216.

With the data's law as a vector over outcomes, every law of the chain is a matrix product, exact to rounding.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import nn

from sfumato.dist import stream
from sfumato.mixing import Guess, Mixing
from sfumato.schedule import Cosine, Flow

TOKENS, VALUES = 3, 5
PROCESSES = {
    "absorbing": Mixing.absorbing(VALUES, Flow()),
    "uniform": Mixing.uniform(VALUES, Flow()),
    "uniform-cosine": Mixing.uniform(VALUES, Cosine()),
    "marginal": Mixing(Flow(), (0.5, 0.2, 0.2, 0.1, 0.0)),
}


@cache
def states(symbols, tokens=TOKENS):
    return torch.tensor(list(product(range(symbols), repeat=tokens)))


def number(x, symbols):
    """The place of each state (B, tokens) in ``states``."""
    return x @ torch.tensor([symbols**k for k in reversed(range(x.shape[1]))])


@cache
def data_law(tokens=TOKENS):
    """A random joint law over all outcomes, far from independent."""
    return (1.5 * torch.randn(VALUES**tokens, generator=stream(3, tokens), dtype=torch.float64)).softmax(0)


def matrix(law):
    """Probability of every state (columns) under each row of a Categorical (N, tokens, symbols)."""
    rows, *others = law.probabilities.unbind(1)
    for p in others:
        rows = (rows[:, :, None] * p[:, None]).flatten(1)
    return rows


def distance(p, q):
    """Total variation."""
    return 0.5 * (p - q).abs().sum().item()


@dataclass(frozen=True)
class ExactTokens:
    """The perfect model of ``data_law``: p(x_0 | x_t) of each token, by summation."""

    process: Mixing
    tokens: int = TOKENS

    def at(self, t):
        """p_t(x_t) over all states."""
        return data_law(self.tokens) @ matrix(self.process.marginal(states(VALUES, self.tokens), t))

    def __call__(self, x_t, t):
        data = states(VALUES, self.tokens)
        joint = data_law(self.tokens)[:, None] * matrix(self.process.marginal(data, t))
        outcome = (joint / joint.sum(0))[:, number(x_t, len(self.process.law))]  # p(x_0 | x_t), (outcomes, B)
        p = torch.einsum("ob,okv->bkv", outcome, nn.functional.one_hot(data, VALUES).double())
        return Guess(x_t, self.process.schedule.at(t), p.log())


def push(model, law, t, s, tokens=TOKENS):
    """The law at s after one reverse step from ``law`` at t, over all states."""
    x, some = states(len(model.process.law), tokens), law > 0
    return law[some] @ matrix(model.process.reverse(model(x[some], t), t, s))


def chain_law(model, law, steps):
    """The law of x_0 that the reverse chain makes from ``law`` at t = 1, over all states."""
    for k in range(steps, 0, -1):
        law = push(model, law, k / steps, (k - 1) / steps)
    return law
