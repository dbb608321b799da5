"""Networks of tokens and of mixed states: what they learn, and what the samplers make of them."""

from functools import cache

import pytest
import torch
from scipy import stats
from torch import nn

from oracles import tensor
from outcomes import PROCESSES, TOKENS, VALUES, ExactTokens, chain_law, data_law, distance, number, states
from sfumato.dist import stream
from sfumato.mixing import Parts
from sfumato.predict import JointDenoiser, TokenDenoiser
from sfumato.process import Gaussian, spread
from sfumato.rows import input_scale, row
from sfumato.sampler.ancestral import Ancestral
from sfumato.sampler.base import generate, trajectory
from sfumato.sampler.unmask import Unmask
from sfumato.schedule import VP

# ── Training and sampling ─────────────────────────────────────────────────────────────────────────────────────────────


class Small(nn.Module):
    """A vector for each state, bent by the level, and one hidden layer: logits of all tokens."""

    def __init__(self, symbols, width=64):
        super().__init__()
        self.symbols = symbols
        self.state = nn.Embedding(symbols**TOKENS, width)
        self.level = nn.Linear(2, 2 * width)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, TOKENS * VALUES))

    def forward(self, x, level, cond=None):
        scale, shift = self.level(torch.stack([level, level**2], 1)).chunk(2, 1)
        return self.layers(self.state(number(x, self.symbols)) * (1 + scale) + shift).unflatten(1, (TOKENS, VALUES))


def draw_data(n, *keys):
    u = torch.rand(n, generator=stream(*keys), dtype=torch.float64)
    return states(VALUES)[torch.searchsorted(data_law().cumsum(0), u).clamp(max=VALUES**TOKENS - 1)]


@cache
def trained():
    torch.manual_seed(0)
    model, steps = TokenDenoiser(Small(VALUES + 1), PROCESSES["absorbing"]), 1000
    adam = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.99))
    falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda k: 1 - k / steps)
    for k in range(steps):
        adam.zero_grad()
        model.loss(draw_data(1024, 0, k), rng=stream(1, k)).mean().backward()
        adam.step()
        falling.step()
    return model.requires_grad_(False)


def all_masked(n):
    return torch.full((n, TOKENS), VALUES)


def frequencies(x):
    return torch.bincount(number(x, VALUES), minlength=VALUES**TOKENS).double()


ONE_BY_ONE = [1.0, 2 / 3, 1 / 3, 0.0]


def test_a_trained_network_recovers_the_law_by_the_chain():
    """The chain's law by summation: no noise of sampling, the whole distance is the network's and the steps'."""
    exact = ExactTokens(PROCESSES["absorbing"])
    assert distance(chain_law(trained(), exact.at(1.0), 100), exact.at(0.0)) < 0.03


def test_a_trained_network_recovers_the_law_one_token_at_a_time():
    x = generate(trained(), Unmask(), all_masked(200_000), ONE_BY_ONE, rng=stream(4))
    assert distance(frequencies(x) / len(x), data_law()) < 0.03


def test_ancestral_sampling_draws_from_the_chain():
    x = generate(trained(), Ancestral(), all_masked(30_000), "uniform", 8, rng=stream(4))
    law = chain_law(trained(), ExactTokens(PROCESSES["absorbing"]).at(1.0), 8)
    assert stats.chisquare(frequencies(x), len(x) * law[law > 0]).pvalue > 1e-3


@pytest.mark.parametrize("places", ["random", "confidence"])
def test_unmasking_one_by_one_is_exact(places):
    x = generate(ExactTokens(PROCESSES["absorbing"]), Unmask(places), all_masked(100_000), ONE_BY_ONE, rng=stream(5))
    assert stats.chisquare(frequencies(x), 100_000 * data_law()).pvalue > 1e-3


class Fixed:
    """A model of masked tokens (B, 2, 20) that says the same of every state; place k is the surer, the higher k."""

    process = PROCESSES["absorbing"]

    def __call__(self, x_t, t):
        sure = torch.linspace(1, 2, x_t[0].numel(), dtype=torch.float64).view(x_t[0].shape)
        return self.process.guess(x_t, t, sure[..., None] * torch.arange(VALUES).expand(*x_t.shape, -1))


@pytest.mark.parametrize("places", ["random", "confidence"])
def test_unmasking_keeps_pace_with_the_process_and_never_changes_a_known_token(places):
    start = torch.full((50, 2, 20), VALUES)
    start[:25, 0] = 3
    before = start
    for state in trajectory(Fixed(), Unmask(places), start, "uniform", 16, rng=stream(6)):
        masked, known = state.x == VALUES, before != VALUES
        expected = [round(20 * state.t)] * 25 + [round(40 * state.t)] * 25
        assert masked.flatten(1).sum(1).tolist() == expected
        assert torch.equal(state.x[known], before[known])
        if places == "confidence":  # the surest 40 - n are open
            assert torch.equal(masked[25:].flatten(1), (torch.arange(40) < expected[-1]).expand(25, -1))
        before = state.x
    assert state.k == 16 and int(state.x.max()) < VALUES


def test_unmasking_may_start_on_the_way():
    """From t = 0.8, a quarter of the way later a quarter of the masks are gone."""
    stops = trajectory(Fixed(), Unmask(), torch.full((3, 2, 20), VALUES), [0.8, 0.6, 0.2, 0.0], rng=stream(6))
    assert [int((stop.x == VALUES).sum()) for stop in stops] == [120, 90, 30, 0]


def test_random_places_are_random():
    start = torch.full((40_000, 2, 2), VALUES)
    (_, state, *_) = trajectory(Fixed(), Unmask(), start, [1.0, 0.5, 0.0], rng=stream(7))
    pairs = torch.bincount((state.x.flatten(1) != VALUES).long() @ torch.tensor([1, 2, 4, 8]), minlength=16)
    assert stats.chisquare(pairs[[3, 5, 6, 9, 10, 12]].numpy()).pvalue > 1e-3
    assert pairs.sum() == pairs[[3, 5, 6, 9, 10, 12]].sum()


@pytest.mark.parametrize("sampler", [Unmask(), Ancestral()])
def test_tokens_of_an_example_do_not_depend_on_the_batch(sampler):
    def draw(indices):
        rng = [stream(8, i) for i in indices]
        return generate(ExactTokens(PROCESSES["absorbing"]), sampler, all_masked(len(rng)), "uniform", 5, rng=rng)

    assert torch.equal(draw(range(6))[4:5], draw([4]))


class ExactNetwork(nn.Module):
    """What the other tokens say of a masked one does not depend on the time."""

    def forward(self, x, level, cond=None):
        return ExactTokens(PROCESSES["absorbing"])(x, 0.5).logits


def test_the_weighted_loss_of_the_perfect_network_is_the_entropy():
    model = TokenDenoiser(ExactNetwork(), PROCESSES["absorbing"], weighting="elbo")
    loss = model.loss(draw_data(100_000, 9), rng=stream(10)).double()
    entropy = -(data_law() * data_law().log()).sum() / TOKENS
    assert abs(loss.mean() - entropy) < 4 * loss.std() / len(loss) ** 0.5
    assert loss.std() / len(loss) ** 0.5 < 0.01 * entropy


# ── States of several parts ───────────────────────────────────────────────────────────────────────────────────────────

PARTS = Parts({"place": Gaussian(VP()), "kind": PROCESSES["absorbing"]})
DATA = {"place": torch.linspace(-1, 1, 24).view(4, 2, 3), "kind": torch.arange(8).view(4, 2) % VALUES}


class Knowing(nn.Module):
    """The joint network that knows the data, but for ``off`` in its numbers; it is ``sure`` of its tokens."""

    def __init__(self, off=0.0, sure=20.0):
        super().__init__()
        self.off, self.sure = off, sure

    def forward(self, x, level, cond=None):
        now, data = VP().at(level.double()), DATA["place"].double()
        a, b = row("edm", VP(), now, 0.6)
        x_t = x["place"] * spread(input_scale(VP(), now, 0.6), data)
        eps = (x_t - spread(now.alpha, data) * data) / spread(now.sigma, data)
        place = spread(a, data) * data + spread(b, data) * eps + self.off
        return {"place": place.float(), "kind": self.sure * nn.functional.one_hot(DATA["kind"], VALUES).float()}


def joint(**kwargs):
    return JointDenoiser(Knowing(**kwargs), PARTS, sigma_data={"place": 0.6})


def test_the_joint_loss_is_the_sum_of_its_parts():
    torch.testing.assert_close(joint(off=0.5).loss(DATA, rng=stream(1)), torch.full((4,), 0.25), atol=1e-3, rtol=0)
    masks = joint(sure=0).loss(DATA, rng=stream(1)) * 2 / tensor(VALUES).log()  # log 5 for each of two tokens if masked
    torch.testing.assert_close(masks, masks.round(), atol=1e-3, rtol=0)
    assert set(masks.round().tolist()) <= {0, 1, 2} and masks.sum() > 0.5


def test_a_joint_state_goes_all_the_way_back():
    start = PARTS.prior(DATA).sample(stream(2))
    *_, last = trajectory(joint(), Ancestral(), start, "uniform", 8, rng=stream(3))
    for x in (last.x, last.x0):
        torch.testing.assert_close(x["place"], DATA["place"], atol=1e-4, rtol=0)
        assert torch.equal(x["kind"], DATA["kind"])
    step = joint().reverse(start, 1.0, 0.5)
    assert torch.equal(step.parts["kind"].log_p, PARTS.reverse(joint()(start, 1.0), 1.0, 0.5).parts["kind"].log_p)


# ── Wrong inputs ──────────────────────────────────────────────────────────────────────────────────────────────────────

UNIFORM, MASKS = PROCESSES["uniform"], PROCESSES["absorbing"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: TokenDenoiser(Small(5), UNIFORM, weighting="elbo"), "masks only"),
        (lambda: TokenDenoiser(Small(6), MASKS, weighting="elb"), "did you mean 'elbo'"),
        (lambda: Unmask("randon"), "did you mean 'random'"),
        (
            lambda: generate(ExactTokens(UNIFORM), Unmask(), all_masked(2), "uniform", 3),
            "needs the process Mixing.absorbing",
        ),
        (lambda: JointDenoiser(Knowing(), PARTS, sigma_data={}), r"each of the parts \['place'\]"),
        (lambda: JointDenoiser(Knowing(), PARTS, sigma_data={"place": 0.0}), "above 0"),
    ],
)
def test_wrong_inputs_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        wrong()
