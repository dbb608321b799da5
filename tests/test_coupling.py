"""Noise and examples: an assignment is a permutation, the cheapest one, and leaves the law of the noise as it is."""

from itertools import permutations

import pytest
import torch

from sfumato.coupling import COUPLINGS, immiscible
from sfumato.denoise import Denoiser
from sfumato.dist import randn_like, stream
from sfumato.errors import UserError
from sfumato.nn import MLP
from sfumato.process import Gaussian
from sfumato.schedule import VP


def draw(*shape, key=0):
    return torch.randn(*shape, generator=stream(key), dtype=torch.float64)


def cost(x, eps):
    return float((x - eps).square().sum())


def test_the_assignment_is_the_best_of_all_permutations():
    for k in range(20):
        x, eps = draw(6, 2, 3, key=k), draw(6, 2, 3, key=100 + k)
        best = min(cost(x, eps[list(order)]) for order in permutations(range(6)))
        assert cost(x, immiscible(x, eps)) == pytest.approx(best, rel=1e-6)


def test_noise_stays_within_its_class():
    """And is the best there: each class of a batch is assigned as if it were alone."""
    x, eps, cond = draw(40, 3, key=1), draw(40, 3, key=2), torch.arange(40) % 4
    got = immiscible(x, eps, cond)
    for k in range(4):
        torch.testing.assert_close(got[cond == k], immiscible(x[cond == k], eps[cond == k]))
    assert not torch.equal(got, immiscible(x, eps))


def test_the_noise_of_a_class_is_still_standard_normal():
    """Mean and covariance of 160,000 draws within 4 standard errors, though data and labels lie far from 0."""
    n, batch = 5_000, 32
    cond = torch.arange(batch) % 2
    x = draw(batch, 2, key=3) + 5 * cond[:, None]
    eps = torch.stack([immiscible(x, draw(batch, 2, key=10 + k), cond) for k in range(n)])
    for k in range(2):
        mine = eps[:, cond == k].flatten(0, 1)
        assert (mine.mean(0).abs() < 4 / len(mine) ** 0.5).all()
        assert ((mine.T.cov() - torch.eye(2)).abs() < 4 * 2**0.5 / len(mine) ** 0.5).all()


def test_assigned_noise_is_nearer():
    x, eps = draw(64, 2, key=4), draw(64, 2, key=5)
    assert cost(x, immiscible(x, eps)) < 0.2 * cost(x, eps)
    assert COUPLINGS["independent"](x, eps, None) is eps


def test_training_asks_for_it():
    """A fresh network answers 0: as an estimate of eps, its loss is the size of the noise each example was given."""
    x, t = draw(256, 2, key=6).float(), torch.full((256,), 0.5, dtype=torch.float64)
    eps = randn_like(x, stream(7))
    for name, coupled in COUPLINGS.items():
        loss = Denoiser(MLP(2), Gaussian(VP()), parameterisation="eps", coupling=name).loss(x, None, stream(7), t)
        torch.testing.assert_close(loss, coupled(x, eps, None).square().mean(1))
    with pytest.raises(UserError, match=r"coupling 'imiscible'.*immiscible"):
        Denoiser(MLP(2), Gaussian(VP()), coupling="imiscible")
