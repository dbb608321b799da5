"""The gain of a student: its samples differ as much as the data do."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from sfumato.condition import Condition
from sfumato.denoise import Denoiser
from sfumato.dist import stream
from sfumato.process import Gaussian
from sfumato.schedule import SCHEDULES
from sfumato.teaching import jumps, set_gain
from sfumato.teaching.contrast import MOST, total_variance

SD, DIM, N = 0.5, 8, 6_000


class Loud(nn.Module):
    """Says ``loud`` times the noise that it hears, of unit variance, and where its label lies."""

    def __init__(self, loud):
        super().__init__()
        self.loud = loud

    def forward(self, x, level, cond):
        said = self.loud * SD * x
        return said if cond is None else said + 3.0 * cond.label[:, None]


def student(loud):
    made = Denoiser(Loud(loud), Gaussian(SCHEDULES["cosine"]()), parameterisation="x0", sigma_data=SD, gives="end")
    return made.eval()


def found(loud, calls=1, label=None):
    x_0 = SD * torch.randn(N, DIM, generator=stream(31))
    if label is not None:
        x_0 = x_0 + 3.0 * label[:, None]
    cond = [None] * 6 if label is None else [Condition(part) for part in label.chunk(6)]
    examples = list(zip(x_0.chunk(6), cond, strict=True))
    pupil = student(loud)
    gain = set_gain(pupil, jumps(pupil.process.schedule, calls, SD).tolist(), examples, stream(32))
    assert gain == float(pupil.gain)
    return gain


def test_variance_and_its_error_are_those_of_a_gaussian():
    """V = d sd^2 with a standard error of V (2 / (d n))^(1/2)."""
    value, error = total_variance(SD * torch.randn(100_000, DIM, generator=stream(33)))
    assert value == pytest.approx(DIM * SD**2, rel=0.01)
    assert error == pytest.approx(DIM * SD**2 * (2 / (DIM * 100_000)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("loud", [0.93, 1.06])
def test_a_dull_or_loud_student_is_brought_to_the_datas_variance(loud):
    assert found(loud) == pytest.approx(1 / loud, abs=0.01)


@pytest.mark.parametrize(("loud", "calls"), [(0.95, 2), (0.95, 4)])
def test_of_several_calls_each_is_loud(loud, calls):
    """All but the first hear what the one before has said: the gain counts once in what is drawn at the end."""
    schedule = SCHEDULES["cosine"]()
    pupil = student(loud)
    gain = found(loud, calls)
    pupil.gain.fill_(gain)
    x = torch.randn(50_000, DIM, generator=stream(34)) * float(schedule.sigma(1.0))
    stops = jumps(schedule, calls, SD).tolist()
    for t, s in pairwise(stops):
        noise = torch.randn(x.shape, generator=stream(35, int(1e6 * s)))
        x = float(schedule.alpha(s)) * pupil(x, t).x0 + float(schedule.sigma(s)) * noise
    assert total_variance(x)[0] == pytest.approx(DIM * SD**2, rel=0.03)


def test_what_chance_may_be_is_left_as_it_is():
    assert found(1.0) == 1.0


def test_more_than_a_tenth_is_no_matter_of_contrast():
    assert found(0.5) == pytest.approx(MOST)


def test_it_is_asked_for_what_the_examples_are():
    """Of classes far apart and not equally frequent: by its own mixture of them a student would seem duller."""
    label = (torch.arange(N) % 10 == 0).long()
    assert found(1.0, label=label) == 1.0


def test_training_does_not_see_it():
    pupil, x = student(1.0), torch.randn(5, DIM, generator=stream(36))
    plain = pupil(x, 0.7).x0
    pupil.gain.fill_(1.05)
    torch.testing.assert_close(pupil(x, 0.7).x0, 1.05 * plain)
    torch.testing.assert_close(pupil.train()(x, 0.7).x0, plain)
