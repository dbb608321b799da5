"""Distributions against scipy and closed forms; random streams against their promises."""

import numpy as np
import pytest
import torch
from scipy import stats

from oracles import tensor
from sfumato.dist import Categorical, Joint, Normal, rand, randn_like, stream
from sfumato.errors import UserError


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


def test_tokens_log_prob_and_kl_equal_numpy():
    p, q = np.array([[0.2, 0.3, 0.5], [0.0, 0.9, 0.1]]), np.array([[0.1, 0.1, 0.8], [0.0, 0.5, 0.5]])
    ours = [Categorical(tensor(law)[None].log()) for law in (p, q)]
    assert ours[0].log_prob(torch.tensor([[2, 1]])).item() == pytest.approx(np.log(0.5 * 0.9))
    assert ours[0].log_prob(torch.tensor([[2, 0]])).item() == -np.inf
    assert ours[0].kl(ours[1]).item() == pytest.approx(stats.entropy(p, q, axis=1).sum())
    assert ours[0].kl(ours[0]) == 0
    torch.testing.assert_close(ours[0].probabilities, tensor(p)[None])


def test_kl_of_tokens_is_infinite_only_where_mass_is_missing():
    some, less = Categorical(tensor([[[0.5, 0.5, 0.0]]]).log()), Categorical(tensor([[[1.0, 0.0, 0.0]]]).log())
    assert some.kl(less) == np.inf
    assert less.kl(some).item() == pytest.approx(np.log(2))


def test_kl_of_tokens_has_gradients_where_probabilities_are_zero():
    logits = tensor([[[0.3, -0.2, -np.inf]]]).requires_grad_()
    Categorical(logits.log_softmax(-1)).kl(Categorical(tensor([[[0.5, 0.5, 0.0]]]).log())).sum().backward()
    p = torch.softmax(tensor([0.3, -0.2]), 0)
    slope = p * (p.log() - (p * p.log()).sum())
    torch.testing.assert_close(logits.grad, torch.cat([slope, tensor([0.0])])[None, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_follow_their_law(dtype):
    p = tensor([0.0, 0.5, 1e-3, 0.0, 0.499, 0.0])
    draws = torch.bincount(Categorical(p.log().to(dtype).expand(100_000, -1)).sample(stream(1)), minlength=6)
    assert draws[p == 0].sum() == 0
    assert stats.chisquare(draws[p > 0], 100_000 * p[p > 0]).pvalue > 1e-3


def test_tokens_are_drawn_in_float64(monkeypatch):
    """In float32 both the sum of the first probability and this uniform number would be 1."""
    law = Categorical(tensor([[1 - 2.0**-26, 2.0**-26]]).log().float())
    monkeypatch.setattr(torch, "rand", lambda *args, dtype, **kwargs: torch.tensor([1 - 2.0**-27], dtype=dtype))
    assert law.sample(stream(0)).tolist() == [1]
    assert rand(torch.zeros(1, dtype=torch.long), stream(0)).dtype == torch.float64


def test_the_lowest_number_draws_no_token_of_probability_zero(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *args, dtype, **kwargs: torch.zeros(1, dtype=dtype))
    assert Categorical(tensor([[0.0, 0.0, 0.4, 0.6]]).log()).sample(stream(0)).tolist() == [2]


def test_tokens_of_an_example_do_not_depend_on_the_batch():
    law = Categorical(torch.randn(5, 4, 7, generator=stream(2)).log_softmax(-1))
    whole = law.sample([stream(7, i) for i in range(5)])
    assert torch.equal(whole[3:4], Categorical(law.log_p[3:4]).sample([stream(7, 3)]))
    assert whole.shape == (5, 4) and whole.dtype == torch.int64


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_tokens_are_not_drawn_from_nan(bad):
    with pytest.raises(UserError, match="NaN"):
        Categorical(torch.full((2, 3), bad)).sample()


def test_a_joint_law_is_the_sum_of_its_parts():
    kind = Categorical(torch.randn(2, 3, 4, generator=stream(0)).log_softmax(-1))
    other = Categorical(torch.randn(2, 3, 4, generator=stream(1)).log_softmax(-1))
    place, away = Normal(torch.zeros(2, 3), torch.tensor(1.0)), Normal(torch.ones(2, 3), torch.tensor(2.0))
    law = Joint({"place": place, "kind": kind})
    x = law.sample(stream(3))
    torch.testing.assert_close(law.log_prob(x), place.log_prob(x["place"]) + kind.log_prob(x["kind"]))
    torch.testing.assert_close(law.kl(Joint({"kind": other, "place": away})), kind.kl(other) + place.kl(away))
    rng = stream(3)  # parts are drawn in the order of their names, whatever the order they are given in
    assert torch.equal(x["kind"], kind.sample(rng)) and torch.equal(x["place"], place.sample(rng))
    with pytest.raises(UserError, match=r"the parts are \['kind', 'place'\], got \['kind'\]"):
        law.log_prob({"kind": x["kind"]})
