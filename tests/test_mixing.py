"""The forward process of tokens, against sums over all outcomes."""

from types import SimpleNamespace

import pytest
import torch

from oracles import observed_order, tensor
from outcomes import PROCESSES, VALUES, ExactTokens, chain_law, data_law, distance, matrix, push, states
from sfumato.dist import Categorical, stream
from sfumato.mixing import Guess, Mixing, Parts
from sfumato.process import Gaussian
from sfumato.schedule import EDM, VP, Flow

LAWS = [name for name in PROCESSES if name != "marginal"]  # of these, data may hold any value
TIMES = [(0.0, 0.3), (0.0, 1.0), (0.2, 0.7), (0.6, 1.0), (0.5, 0.500001)]


def vlb(model, steps):
    """The variational bound of every outcome in nats, (outcomes,), each expectation a sum over all states."""
    q, data, x = model.process, states(VALUES, model.tokens), states(len(model.process.law), model.tokens)
    bound = q.marginal(data, 1.0).kl(q.prior(data))
    for k in range(1, steps + 1):
        t, s = k / steps, (k - 1) / steps
        weight = matrix(q.marginal(data, t))
        some = weight.amax(0) > 0  # the states that can be reached
        weight, x_t = weight[:, some], x[some]
        row, column = weight.nonzero().T
        p = Categorical(q.reverse(model(x_t, t), t, s).log_p[column])
        terms = q.posterior(x_t[column], data[row], t, s).kl(p) if s else -p.log_prob(data[row])
        bound = bound.index_add(0, row, weight[row, column] * terms)
    return bound


# ── The conditionals ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("s", "t"), TIMES)
def test_a_transition_after_a_marginal_is_a_marginal(name, s, t):
    q = PROCESSES[name]
    data, x = states(VALUES), states(len(q.law))
    two_steps = matrix(q.marginal(data, s)) @ matrix(q.transition(x, s, t))
    torch.testing.assert_close(two_steps, matrix(q.marginal(data, t)), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("s", "t"), TIMES)
def test_posterior_is_bayes_by_summation(name, s, t):
    q = PROCESSES[name]
    x, data = states(len(q.law), 1), states(VALUES, 1)
    first, second = q.marginal(data, s).probabilities[:, 0], q.transition(x, s, t).probabilities[:, 0]
    joint = first[:, :, None] * second  # x_0, x_s, x_t
    row, column = joint.sum(1).nonzero().T
    law = q.posterior(x[column], data[row], t, s)
    bayes = (joint / joint.sum(1, keepdim=True))[row, :, column]
    torch.testing.assert_close(law.probabilities[:, 0], bayes, rtol=1e-9, atol=1e-15)
    if s == 0:
        assert torch.equal(law.log_prob(data[row]), torch.zeros(len(row), dtype=torch.float64))


def test_mixing_is_what_its_equation_says():
    q, x = PROCESSES["marginal"], torch.tensor([[2, 0]])
    expected = [[[0.3 * 0.5, 0.3 * 0.2, 0.7 + 0.3 * 0.2, 0.3 * 0.1, 0], [0.7 + 0.3 * 0.5, 0.06, 0.06, 0.03, 0]]]
    torch.testing.assert_close(q.marginal(x, 0.3).probabilities, tensor(expected))
    torch.testing.assert_close(q.prior(x).probabilities, tensor([[q.law] * 2]))
    assert PROCESSES["absorbing"].marginal(x, 1.0).probabilities[..., -1].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("name", PROCESSES)
def test_times_may_differ_by_example(name):
    q, x = PROCESSES[name], torch.tensor([[0, 1, 2], [2, 2, 0]])
    t, s, logits = tensor([0.4, 0.9]), tensor([0.0, 0.5]), torch.randn(2, 3, VALUES, generator=stream(0))
    for k in range(2):
        one = slice(k, k + 1)
        for whole, alone in [
            (q.marginal(x, t), q.marginal(x[one], float(t[k]))),
            (q.transition(x, s, t), q.transition(x[one], s[k], t[k])),
            (q.posterior(x, x, t, s), q.posterior(x[one], x[one], float(t[k]), float(s[k]))),
            (q.reverse(q.guess(x, t, logits), t, s), q.reverse(q.guess(x[one], t[k], logits[one]), t[k], s[k])),
        ]:
            torch.testing.assert_close(whole.log_p[one], alone.log_p)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("s", "t"), TIMES)
def test_reverse_is_its_sum(name, s, t):
    """Equation (4), for a guess that is no posterior of any law."""
    q = PROCESSES[name]
    x = q.marginal(states(VALUES), t).sample(stream(1))
    guess = q.guess(x, t, 3 * torch.randn(*x.shape, VALUES, generator=stream(2), dtype=torch.float64))
    total, p = torch.zeros(*x.shape, len(q.law), dtype=torch.float64), guess.log_p.exp()
    arrives = q.marginal(states(VALUES, 1), t).probabilities[:, 0]  # x_0, x_t
    for v in range(VALUES):
        able = arrives[v][x] > 0
        p[..., v] *= able
        posterior = q.posterior(torch.where(able, x, v), torch.full_like(x, v), t, s)
        total += p[..., v, None] * posterior.probabilities
    total /= p.sum(-1, keepdim=True)
    torch.testing.assert_close(q.reverse(guess, t, s).probabilities, total, rtol=1e-9, atol=1e-14)


# ── The chain ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("s", "t"), TIMES)
def test_one_token_goes_back_exactly(name, s, t):
    model = ExactTokens(PROCESSES[name], 1)
    torch.testing.assert_close(push(model, model.at(t), t, s, 1), model.at(s), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", LAWS)
def test_several_tokens_go_back_exactly_in_the_limit_of_small_steps(name):
    model = ExactTokens(PROCESSES[name])
    errors = [distance(chain_law(model, model.at(1.0), n), model.at(0.0)) for n in (16, 32, 64)]
    assert observed_order([16, 32, 64], errors) == pytest.approx(1, abs=0.2)
    assert errors[-1] < 0.02


@pytest.mark.parametrize("name", ["absorbing", "uniform"])
def test_the_bound_of_one_token_is_its_log_probability(name):
    for steps in (1, 2, 5):
        torch.testing.assert_close(vlb(ExactTokens(PROCESSES[name], 1), steps), -data_law(1).log())


@pytest.mark.parametrize("name", ["absorbing", "uniform"])
def test_the_bound_lies_above_the_model_and_comes_down_to_the_data(name):
    model, gaps = ExactTokens(PROCESSES[name]), []
    for steps in (4, 8, 16):
        bound, made = vlb(model, steps), chain_law(model, model.at(1.0), steps)
        assert (bound + made[model.at(0.0) > 0].log()).min() > -1e-12
        gaps.append((data_law() * (bound + data_law().log())).sum())
    assert observed_order([4, 8, 16], gaps) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("name", LAWS)
def test_a_network_is_asked_only_for_what_the_other_tokens_say(name):
    """For a token alone that is the data's law, whatever x_t: equation (5)."""
    q = PROCESSES[name]
    x = states(len(q.law), 1)
    guess = q.guess(x, 0.6, data_law(1).log().expand(len(x), 1, -1))
    exact = ExactTokens(q, 1)(x, 0.6).log_p
    torch.testing.assert_close(guess.log_p, exact)
    assert torch.equal(guess.x0, exact.argmax(-1))


def test_a_token_given_at_the_start_is_kept():
    """At t = 1 all should be masked; filling in around known tokens starts there nevertheless."""
    q, x = PROCESSES["absorbing"], torch.tensor([[2, VALUES]])
    law = q.reverse(q.guess(x, 1.0, torch.zeros(1, 2, VALUES)), 1.0, 0.4).probabilities
    torch.testing.assert_close(law, tensor([[[0, 0, 1, 0, 0, 0], [0.12] * 5 + [0.4]]]))


# ── States of several parts ───────────────────────────────────────────────────────────────────────────────────────────

PARTS = Parts({"place": Gaussian(VP()), "kind": PROCESSES["absorbing"]})
DATA = {"place": torch.linspace(-1, 1, 24).view(4, 2, 3), "kind": torch.arange(8).view(4, 2) % VALUES}


def test_parts_go_each_by_its_own_process_and_schedule():
    """Times are given as instants of one schedule, which is not the other part's."""
    t, s = PARTS.schedule.at(0.6), PARTS.schedule.at(0.2)
    x_t = PARTS.marginal(DATA, t).sample(stream(0))
    assert int((x_t["kind"] == VALUES).sum()) > 0
    guess = {
        "kind": PROCESSES["absorbing"].guess(x_t["kind"], 0.6, torch.zeros(4, 2, VALUES)),
        "place": SimpleNamespace(x_t=x_t["place"], x0=DATA["place"]),
    }
    for name, q in PARTS.processes.items():
        x, data = x_t[name], DATA[name]
        for joint, alone in [
            (PARTS.transition(DATA, s, t), q.transition(data, 0.2, 0.6)),
            (PARTS.marginal(DATA, t), q.marginal(data, 0.6)),
            (PARTS.posterior(x_t, DATA, t, s), q.posterior(x, data, 0.6, 0.2)),
            (PARTS.reverse(guess, t, s), q.reverse(guess[name], 0.6, 0.2)),
            (PARTS.prior(DATA), q.prior(data)),
        ]:
            for field in vars(alone):
                torch.testing.assert_close(getattr(joint.parts[name], field), getattr(alone, field))


# ── Wrong inputs ──────────────────────────────────────────────────────────────────────────────────────────────────────

UNIFORM, MASKS, X = PROCESSES["uniform"], PROCESSES["absorbing"], torch.tensor([[0, 4, 1]])
RULED_OUT = torch.zeros(1, 3, 5).scatter(2, X[..., None], -torch.inf)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Mixing.absorbing(5, VP()), r"VP keeps 0.0066 of them: use Flow\(\)"),
        (lambda: Mixing.uniform(5, EDM()), "never changes a token"),
        (lambda: Mixing.absorbing(1, Flow()), "at least 2 values"),
        (lambda: Mixing.absorbing(-1, Flow()), "2 or more probabilities"),
        (lambda: Mixing.uniform(0, Flow()), "2 or more probabilities"),
        (lambda: Mixing(Flow(), (0.5, 0.4)), r"sum to 1, got \(0.5, 0.4\)"),
        (lambda: Mixing(Flow(), (1.5, -0.5)), "sum to 1"),
        (lambda: Mixing(Flow(), (0.5, float("nan"))), "sum to 1"),
        (lambda: Mixing(Flow(), (1.0, 0.0, 0.0)), "on one value"),
        (lambda: UNIFORM.marginal(X + 1, 0.5), "from 0 to 4 here, got 1 to 5"),
        (lambda: MASKS.marginal(X + 1, 0.5), "from 0 to 4 here, got 1 to 5"),
        (lambda: MASKS.transition(X + 2, 0.2, 0.5), "from 0 to 5 here, got 2 to 6"),
        (lambda: UNIFORM.marginal(X.float(), 0.5), "got torch.float32"),
        (lambda: UNIFORM.marginal(X, 1.5), r"lie in \[0, 1\], got 1.5"),
        (lambda: UNIFORM.transition(X, 0.5, 0.5), "s < t, got 0.5 and 0.5"),
        (lambda: UNIFORM.posterior(X, X, 0.2, float("nan")), "lie in .* nan"),
        (lambda: MASKS.posterior(X, (X + 1) % 5, 0.5, 0.2), "can't have become"),
        (lambda: MASKS.reverse(Guess(X, 0.5, RULED_OUT), 0.5, 0.2), "can't have become"),
        (lambda: UNIFORM.reverse(Guess(X, 0.5, torch.full((1, 3, 5), torch.nan)), 0.5, 0.2).sample(), "NaN"),
        (lambda: UNIFORM.guess(X, 0.5, torch.zeros(1, 3, 6)), r"\(1, 3, 6\), not \(1, 3, 5\)"),
        (lambda: Parts({}), "at least one"),
        (lambda: PARTS.marginal({"place": DATA["place"]}, 0.5), r"the parts are \['kind', 'place'\], got \['place'\]"),
    ],
)
def test_wrong_inputs_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        wrong()
