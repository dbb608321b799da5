"""Distributions against scipy and closed forms; random streams against their promises."""

import pytest
import torch
from scipy import stats

from oracles import tensor
from sfumato.dist import Normal, randn_like, stream


def test_log_prob_equals_scipy():
    law = Normal(tensor([[0.2, -1.0], [3.0, 0.5]]), tensor([[0.5, 2.0]]))
    x = tensor([[0.0, 1.0], [2.0, 2.0]])
    expected = stats.norm.logpdf(x, law.mean, law.std.expand_as(x)).sum(1)
    torch.testing.assert_close(law.log_prob(x), tensor(expected))


def test_kl_equals_torch_distributions():
    p, q = Normal(tensor([[0.2, -1.0]]), tensor(0.7)), Normal(tensor([[1.0, 0.0]]), tensor([[0.4, 3.0]]))
    ours = [torch.distributions.Normal(d.mean, d.std.expand_as(d.mean)) for d in (p, q)]
    torch.testing.assert_close(p.kl(q), torch.distributions.kl_divergence(*ours).sum(1))
    assert p.kl(p) == 0


def test_samples_follow_the_law():
    law = Normal(torch.full((200_000, 1), 1.5, dtype=torch.float64), tensor(0.3))
    x = law.sample(stream(0))
    assert stats.kstest(x[:, 0].numpy(), "norm", args=(1.5, 0.3)).pvalue > 1e-3


def test_per_example_noise_does_not_depend_on_the_batch():
    x = torch.zeros(5, 2, 3)
    whole = randn_like(x, [stream(7, i) for i in range(5)])
    alone = randn_like(x[3:4], [stream(7, 3)])
    assert torch.equal(whole[3:4], alone)
    with pytest.raises(ValueError, match="generators"):
        randn_like(x, [stream(0)])


def test_streams_are_functions_of_their_keys():
    def draw(*keys):
        return torch.randn(4, generator=stream(*keys))

    assert torch.equal(draw(1, 2), draw(1, 2))
    seen = [draw(*k) for k in [(1, 2), (2, 1), (1, 2, 0), (12,), (1,), (0, 0), (0,), (-1,), (2**40,)]]
    for i, a in enumerate(seen):
        assert all(not torch.equal(a, b) for b in seen[:i])


def test_neighbouring_streams_are_uncorrelated():
    draws = torch.stack([torch.randn(1000, generator=stream(0, i)) for i in range(100)])
    correlation = torch.corrcoef(draws) - torch.eye(100)
    assert correlation.abs().max() < 5.5 / 1000**0.5
