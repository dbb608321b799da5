"""Equations of ppca.py: the fit against scikit-learn's, the guess against dense matrices and exact posteriors."""

import pytest
import torch
from sklearn.decomposition import PCA

from sfumato.data import load
from sfumato.denoise import Denoiser
from sfumato.dist import stream
from sfumato.engine.config import Config
from sfumato.engine.run import Run
from sfumato.engine.trainer import Trainer
from sfumato.errors import UserError
from sfumato.models.diffusion import DiffusionSpec
from sfumato.ppca import PPCA
from sfumato.process import Gaussian
from sfumato.schedule import SCHEDULES

DIMS, RANK = (2, 3, 2), 4
COSINE = SCHEDULES["cosine"]()


@pytest.fixture(scope="module")
def data():
    mixing = torch.randn(12, 12, generator=stream(0), dtype=torch.float64)
    return (torch.randn(500, 12, generator=stream(1), dtype=torch.float64) @ mixing + 0.3).view(-1, *DIMS)


@pytest.fixture(scope="module")
def fitted(data):
    ppca = PPCA(DIMS, RANK).double()
    ppca.fit(data)
    return ppca


def covariance(ppca):
    """S of equation (1)."""
    v = ppca.directions
    return v.T @ ppca.variances.diag() @ v + ppca.rest * (torch.eye(v.shape[1]) - v.T @ v)


def test_the_fit_is_the_covariance_of_probabilistic_pca(data, fitted):
    found = PCA(RANK).fit(data.flatten(1).numpy())
    assert torch.allclose(covariance(fitted), torch.from_numpy(found.get_covariance()), atol=1e-10)
    assert torch.allclose(fitted.mean, data.mean(0), atol=1e-12)


def test_no_other_variances_make_the_data_more_likely(data, fitted):
    def log_likelihood(s):
        law = torch.distributions.MultivariateNormal(fitted.mean.flatten(), s)
        return float(law.log_prob(data.flatten(1)).mean())

    best = log_likelihood(covariance(fitted))
    for factor in (0.9, 1.1):
        other = PPCA(DIMS, RANK).double()
        other.load_state_dict(fitted.state_dict())
        other.variances[1] *= factor
        assert log_likelihood(covariance(other)) < best
        other.load_state_dict(fitted.state_dict())
        other.rest *= factor
        assert log_likelihood(covariance(other)) < best


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_the_guess_is_the_linear_filter_of_dense_matrices(data, fitted, name):
    schedule = SCHEDULES[name]()
    t = torch.tensor([0.05, 0.3, 0.7, 1.0], dtype=torch.float64)
    now = schedule.at(t)
    x_t = Gaussian(schedule).marginal(data[:4], t).sample(stream(2))
    s, mean = covariance(fitted), fitted.mean.flatten()
    wanted = []
    for x, alpha, sigma in zip(x_t.flatten(1), now.alpha, now.sigma, strict=True):
        noisy = alpha**2 * s + sigma**2 * torch.eye(len(s))
        wanted.append(mean + alpha * s @ torch.linalg.solve(noisy, x - alpha * mean))
    assert torch.allclose(fitted(x_t, now).flatten(1), torch.stack(wanted), atol=1e-9)
    one = schedule.at(0.3)
    assert torch.allclose(fitted(x_t[1:2], one)[0].flatten(), wanted[1], atol=1e-9)


def test_no_linear_guess_is_nearer_where_the_rank_is_full(data):
    """With all directions it is the regression of x_0 on x_t by least squares."""
    ppca = PPCA(DIMS, 11).double()
    ppca.fit(data)
    now, many = COSINE.at(0.6), data.repeat(200, 1, 1, 1)
    x_t = now.alpha * many + now.sigma * torch.randn(many.shape, generator=stream(3), dtype=torch.float64)
    error = (ppca(x_t, now) - many).square().mean()
    inputs = torch.cat([x_t.flatten(1), torch.ones(len(x_t), 1)], 1)
    best = torch.linalg.lstsq(inputs, many.flatten(1)).solution
    assert float(error) == pytest.approx(float((inputs @ best - many.flatten(1)).square().mean()), rel=2e-3)


def test_the_guess_is_the_mean_where_no_signal_is_left_and_the_state_where_no_noise_is(data, fitted):
    flow = SCHEDULES["flow"]()
    assert torch.allclose(fitted(data, flow.at(1.0)), fitted.mean.expand_as(data))
    assert torch.allclose(fitted(data, flow.at(1e-9)), data, atol=1e-6)


def test_before_it_knows_data_the_guess_is_zero():
    assert not PPCA(DIMS, RANK).fitted
    assert not PPCA(DIMS, RANK)(torch.randn(2, *DIMS), COSINE.at(0.5)).any()


class Beside(torch.nn.Module):
    """Returns the guess that it sees beside the state."""

    def forward(self, x, level, cond=None, to=None):
        return x.chunk(2, 1)[1]


def test_a_denoiser_shows_the_guess_in_units_of_the_data(data, fitted):
    denoiser = Denoiser(Beside(), Gaussian(COSINE), parameterisation="x0", sigma_data=2.0, ppca=fitted)
    assert torch.allclose(denoiser(data, 0.4).x0 * 2.0, fitted(data, COSINE.at(0.4)))


@pytest.mark.parametrize("network", ["unet", "dit"])
def test_a_model_prepared_by_data_knows_them_and_keeps_what_it_knew(network):
    digits = load("digits")
    spec = DiffusionSpec(network, (8,), 1, (False,), patch=2, masks=True, sigma_data=0.75, ppca=5)
    model = spec.build(digits.codec)
    model.prepare(digits)
    wanted = PCA(5).fit(digits.codec.encode(digits.items).flatten(1).numpy())
    ppca = model.denoiser.ppca
    assert ppca.variances.numpy() == pytest.approx(wanted.explained_variance_, rel=1e-3)
    assert model.sample(2).shape == (2, 1, 8, 8)
    ppca.variances *= 2
    model.prepare(digits)
    assert ppca.variances.numpy() == pytest.approx(2 * wanted.explained_variance_, rel=1e-3)


def test_a_network_for_points_sees_no_guess():
    with pytest.raises(UserError, match="leave ppca at 0"):
        DiffusionSpec("mlp", (8,), 1, ppca=2).build(load("moons").codec)


@pytest.mark.parametrize("rank", [-3, 65])
def test_a_rank_that_no_data_have_is_refused(rank):
    with pytest.raises(UserError, match="1 to 64 directions"):
        DiffusionSpec("unet", (8,), 1, (False,), ppca=rank).build(load("digits").codec)


def test_training_begins_with_the_fit_and_leaves_it_alone(tmp_path):
    digits = load("digits")
    config = Config("digits", DiffusionSpec("unet", (8,), 1, (False,), sigma_data=0.75, ppca=3), steps=3, threads=1)
    trainer = Trainer(Run.create(tmp_path / "run", config, digits), digits)
    before = {name: tensor.clone() for name, tensor in trainer.model.denoiser.ppca.state_dict().items()}
    assert trainer.model.denoiser.ppca.fitted
    for _ in range(3):
        trainer.advance()
    trainer.finish()
    trainer.save()
    for model in (trainer.model, trainer.ema, Run.open(tmp_path / "run").load()[0]):
        now = model.denoiser.ppca.state_dict()
        assert all(torch.equal(now[name], tensor) for name, tensor in before.items())
