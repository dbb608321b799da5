"""The exact law of a sampler's output on Gaussian data: each of its steps is linear in the state and in the noise.

In one dimension x = c + A x_start + sum_j B_j z_j. One batch finds all of it: the first example starts at 0 without
noise (c), the second at 1 (A), and each other gets one unit impulse for one draw of noise (B_j).
"""

from itertools import count

import torch
from torch import Tensor

from sfumato.sampler import Sampler, trajectory


def output_law(monkeypatch, model, sampler: Sampler, stops, start: tuple[float, float]) -> list[tuple[float, Tensor]]:
    """Return (t, (mean, variance)) at every stop, from N(mean, variance) at the first.

    A first run counts the draws.
    """
    draws = count()

    def no_noise(x):
        next(draws)
        return torch.zeros_like(x)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn_like", no_noise)
        list(trajectory(model, sampler, torch.zeros(1, 1, dtype=torch.float64), stops))
    total, draw = next(draws), count()

    def impulse(x):
        noise = torch.zeros_like(x)
        noise[2 + next(draw)] = 1.0
        return noise

    x = torch.zeros(2 + total, 1, dtype=torch.float64)
    x[1] = 1.0
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn_like", impulse)
        states = list(trajectory(model, sampler, x, stops))
    return [(state.t, _law(state.x[:, 0], start)) for state in states]


def _law(x: Tensor, start: tuple[float, float]) -> Tensor:
    gains = x[1:] - x[0]
    return torch.stack([x[0] + gains[0] * start[0], gains[0] ** 2 * start[1] + (gains[1:] ** 2).sum()])
