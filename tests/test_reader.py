"""Classifier guidance: Bayes' rule by a reader of noisy states, on a run that hears no classes."""

import pytest
import torch
from torch import nn

import sfumato
from commands import fails
from sfumato.condition import NULL, Condition
from sfumato.data import load
from sfumato.guide import Guidance
from sfumato.guide.reader import Reading
from sfumato.process import Gaussian
from sfumato.schedule import Cosine


class Tap(nn.Module):
    """The exact output for N(0, 1) data in every dimension, of one part that passes x on."""

    def __init__(self):
        super().__init__()
        self.part = nn.Identity()

    @property
    def parts(self):
        return [(self.part, 2)]

    def forward(self, x, level, cond=None):
        return 0.0 * self.part(x)


class Linear(nn.Module):
    """log p(y = 1 | x) - log p(y = 0 | x) = 2 f[0], f = sqrt(2) x / |x| of what the part shows."""

    def forward(self, features):
        f = features[0][:, 0]
        return torch.stack([torch.zeros(len(f)), 2 * f[:, 0]], 1).to(f.dtype)


def model():
    """EDM's row at sigma_data = 1: an output of 0 is the mean of N(0, 1) data."""
    return Reading(Tap(), Gaussian(Cosine()), Linear(), sigma_data=1.0)


def test_a_label_adds_the_gradient_of_what_is_read():
    """The network sees x_t of unit variance as it is, so log p(1 | x_t) = log sigmoid(2 f[0])."""
    reads, t = model().double(), 0.6
    x = torch.randn(50, 2, dtype=torch.float64)
    now = reads.process.schedule.at(t)
    plain = reads(x, t).x0
    torch.testing.assert_close(plain, now.alpha * x)
    label = torch.tensor([0, 1] * 25)
    told = reads(x, t, Condition(label)).x0
    sign = 2.0 * label - 1
    f = 2**0.5 * x / x.norm(dim=1, keepdim=True)
    turn = f[:, 1:] * torch.stack([f[:, 1], -f[:, 0]], 1) / (2**0.5 * x.norm(dim=1, keepdim=True))  # gradient of f[0]
    rise = (sign * 2 * torch.sigmoid(-sign * 2 * f[:, 0]))[:, None] * turn
    torch.testing.assert_close(told, plain + now.sigma**2 / now.alpha * rise)
    assert torch.equal(reads(x, t, Condition(torch.full((50,), NULL))).x0, plain)
    mixed = reads(x, t, Condition(torch.where(label == 0, NULL, 1))).x0
    torch.testing.assert_close(mixed[label == 0], plain[label == 0])
    torch.testing.assert_close(mixed[label == 1], told[label == 1])


def test_a_pure_state_says_nothing():
    reads, x = model(), torch.randn(4, 2)
    assert torch.isfinite(reads(x, 1.0, Condition(torch.ones(4, dtype=torch.long))).x0).all()


def test_the_gradient_of_an_estimate_goes_through_what_is_read():
    """As an inverse problem or the likelihood asks for it: by differences."""
    reads, x = model().double(), torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    cond = Condition(torch.tensor([0, 1, 1]))
    assert torch.autograd.gradcheck(lambda x: reads(x, 0.5, cond).x0, (x,))


def test_a_reader_needs_classes():
    with pytest.raises(ValueError, match="cond has no labels"):
        model().loss(torch.randn(2, 2))


# ── Runs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    return sfumato.train("moons", steps=600, batch=256, out=str(folder / "base"))


@pytest.fixture(scope="module")
def reader(base):
    return sfumato.train("moons", reader=str(base), steps=300, batch=256, out=str(base) + "-reader")


def share_of(points, label):
    """The share of points whose nearest data are of a class."""
    data = load("moons")
    nearest = torch.cdist(points, data.items[:4000]).argmin(1)
    return float((data.labels[:4000][nearest] == label).float().mean())


def test_a_run_without_classes_is_asked_for_one(base, reader):
    model, before = sfumato.load(reader), sfumato.load(base)
    assert model.classes == load("moons").classes and model.knows_null and not before.classes
    for label in (0, 1):
        assert share_of(model.sample(500, steps=24, cond=label), label) > 0.9
    more = model.sample(500, steps=24, cond=0, guidance=Guidance(2.0))
    assert share_of(more, 0) > 0.9
    assert torch.equal(model.sample(50, steps=6, cond=NULL), before.sample(50, steps=6))


def test_mistakes_are_one_line(base, reader, tmp_path, capsys):
    ask = ["train", "moons", "--out", tmp_path / "a"]
    fails(capsys, [*ask, "--reader", reader], "reads classes already")
    fails(capsys, [*ask, "--reader", base, "--lora", base], "not both")
    fails(capsys, ["train", "checkerboard", "--reader", base, "--out", tmp_path / "b"], "no classes")
    fails(capsys, ["distill", reader, "--out", tmp_path / "c"], "which a student does not")
    fails(capsys, ["polish", reader, "--out", tmp_path / "d"], "correct that one")
    heard = sfumato.train("moons", classes=True, steps=1, batch=8, out=str(tmp_path / "heard"))
    fails(capsys, [*ask, "--reader", heard], "hears classes already")
