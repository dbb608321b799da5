"""The average of the weights: its law, and other horizons found afterwards."""

import numpy as np
import pytest
import torch
from torch import nn

import sfumato
from commands import fails
from sfumato.engine.average import Averages, PowerAverage, combination, power, reconstructed
from sfumato.errors import UserError


def walk(steps, dim=5, seed=0):
    """Weights that settle, as in training: a drift that slows down, and noise."""
    rng = np.random.default_rng(seed)
    k = np.arange(1, steps + 1)[:, None]
    return torch.from_numpy(np.log(k) * rng.normal(size=dim) + 0.3 * rng.normal(size=(steps, dim))).float()


def averaged(values, horizon):
    model, average = nn.Linear(values.shape[1], 1, bias=False), nn.Linear(values.shape[1], 1, bias=False)
    keeper = PowerAverage(model, average, horizon)
    for k, value in enumerate(values, start=1):
        model.weight.data.copy_(value)
        keeper.update(k)
    return average.weight.detach()[0]


@pytest.mark.parametrize("horizon", [0.02, 0.05, 0.1, 0.25])
def test_the_horizon_is_the_spread_of_the_weights_age(horizon):
    """Equation (2), by summation of the profile that (1) gives."""
    gamma, t = power(horizon), (np.arange(100_000) + 0.5) / 100_000
    profile = t**gamma / (t**gamma).sum()
    mean = (profile * t).sum()
    assert np.sqrt((profile * (t - mean) ** 2).sum()) == pytest.approx(horizon, rel=1e-3)


def test_inner_products_are_integrals():
    """The least squares of (3) for two profiles, which leave one share to be found, by sums over the profiles."""
    places = [(3.0, 2.0), (5.0, 7.0)]
    t = (np.arange(200_000) + 0.5) / 200_000 * 5

    def profile(end, gamma):
        return np.where(t <= end, (gamma + 1) * t**gamma / end ** (gamma + 1), 0)

    for wanted in ((5.0, 4.0), (4.0, 1.0)):
        found = combination(places, wanted)
        one, other = (profile(*place) for place in places)
        share = np.linalg.lstsq((one - other)[:, None], profile(*wanted) - other, rcond=None)[0][0]
        assert found == pytest.approx([share, 1 - share], rel=1e-3)


@pytest.mark.parametrize("own", [0.05, 0.1])
@pytest.mark.parametrize(
    ("horizon", "most"), [(0.03, 0.08), (0.05, 0.01), (0.07, 0.01), (0.1, 0.01), (0.15, 0.02), (0.2, 0.08)]
)
def test_any_horizon_can_be_had_afterwards(own, horizon, most, tmp_path):
    """Against the average that was kept all along, in units of the weights' own spread."""
    values = walk(800)
    model, *kept = (nn.Linear(5, 1, bias=False) for _ in "abc")
    averages = Averages(model, *kept, own)
    for k, value in enumerate(values, start=1):
        model.weight.data.copy_(value)
        averages.update(k)
        if k % 100 == 0:
            averages.keep(tmp_path, k, averages.tensors())
    found = reconstructed(tmp_path, own, horizon)["weight"][0]
    error = (found - averaged(values, horizon)).abs().max()
    assert error < most  # the noise of a step is 0.3, and half precision has three digits


@pytest.mark.parametrize("kept", [4, 8])
@pytest.mark.parametrize("horizon", [0.02, 0.04, 0.08, 0.15, 0.25, 0.28])
def test_weights_that_never_change_are_their_own_average(kept, horizon):
    """Few averages, or far from the wanted one: still factors that add up to 1, or all weights would be smaller."""
    places = [((k + 1) * 300.0, power(own)) for k in range(kept) for own in (0.125, 0.0625)]
    assert combination(places, (300.0 * kept, power(horizon))).sum() == pytest.approx(1, abs=1e-6)


def test_it_is_an_option_of_every_verb_that_draws(tmp_path, capsys):
    run = sfumato.train("moons", steps=40, size="tiny", out=str(tmp_path / "moons"))
    own, other = sfumato.load(run), sfumato.load(run, ema=0.05)
    assert own.fingerprint() != other.fingerprint()
    same = sfumato.load(run, ema=0.1)
    assert own.fingerprint() == same.fingerprint()
    assert "ema0.05" in str(sfumato.sample(run, n=2, ema=0.05)[0])
    assert sfumato.evaluate(run, n=30, steps=2, ema=0.05).weights == other.fingerprint()
    fails(capsys, ["sample", run, "--ema", "0.5"], "in (0, 0.28], got 0.5")
    for path in (run / "averages").iterdir():
        path.unlink()
    fails(capsys, ["sample", run, "--ema", "0.05"], "no averages were kept", "leave --ema out")


def test_an_impossible_horizon_is_refused():
    for horizon in (0.0, -1.0, 0.3):
        with pytest.raises(UserError, match="horizon as a share of the run"):
            power(horizon)
