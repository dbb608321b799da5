"""The end of a student's training: what it draws is judged beside data."""

import math

import pytest
import torch

from oracles import line
from pupils import mlp, taught, trained
from sfumato.condition import Condition
from sfumato.dist import stream
from sfumato.nn import UNet
from sfumato.overheard import heard, overheard
from sfumato.teaching import Matching, Rivalry, Task, base
from sfumato.teaching.base import still
from sfumato.teaching.rivalry import Adversary, drawn_by


@pytest.fixture(scope="module")
def teacher():
    return trained()


def rivalry(student):
    """Of a student of one call, on its usual way."""
    return Rivalry(tuple(Matching().stops(student.process.schedule, 1, student.sigma_data).tolist()))


def rivals():
    """A student of one call, its teacher, and a rivalry's task of some step, with heads that are not blank."""
    student, teacher = mlp("end"), mlp("mean", seed=2).requires_grad_(False)
    method = rivalry(student)
    beside = method.beside(teacher)
    x_0, t = line().sample(64, stream(21)).float(), student.times(64, stream(20))
    return method, student, teacher, beside, lambda step: Task(x_0, None, stream(19), t, 0.0, beside, step)


def test_rivals_take_turns():
    """A step moves the heads alone, or the student alone, and never the teacher; the heads have the first ones."""
    method, student, teacher, beside, task = rivals()
    turns = []
    for step in range(method.lead + 4):
        student.zero_grad()
        beside["adversary"].zero_grad()
        method.loss(student, teacher, task(step)).mean().backward()
        moved = [any(p.grad is not None for p in each.parameters()) for each in (student, beside["adversary"], teacher)]
        assert moved in ([True, False, False], [False, True, False])
        turns.append(moved[0])
    assert turns == [False] * method.lead + [False, True] * 2


def test_rivals_play_for_the_same_stake_and_heads_pay_for_being_sure():
    """What one loses the other gains: softplus(d) - softplus(-d) = d, of the same noise and the same pairs, but for
    the tenth of d^2 that the heads pay."""
    method, student, teacher, _, task = rivals()
    heads, student_s = (method.loss(student, teacher, task(step)) for step in (method.lead, method.lead + 1))
    x_0, _, rng, t, *_ = task(0)
    x = drawn_by(student, method.way, x_0, None, rng).detach()
    now = student.process.schedule.at(t)
    d = []
    for each in (x_0, x):
        features = heard(teacher, base.noisy(each, torch.randn(64, 1, generator=rng), now), now, None)
        d.append(still(task(0).beside["adversary"], features, None))
    gap = d[0] - d[1]
    torch.testing.assert_close(heads - student_s, 0.1 * gap.square() - gap, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(student_s, torch.nn.functional.softplus(gap), atol=1e-5, rtol=1e-4)  # who pays nothing


def test_equal_laws_are_worth_log_2():
    """Where the student draws the data themselves, a blind adversary's loss is log 2 for both."""
    method, student, teacher, beside, task = rivals()
    for parameter in beside["adversary"].parameters():
        torch.nn.init.zeros_(parameter)
    for step in (method.lead, method.lead + 1):
        torch.testing.assert_close(method.loss(student, teacher, task(step)), torch.full((64,), math.log(2)))


def test_an_adversary_judges_under_a_label():
    torch.manual_seed(0)
    heads, features = Adversary([8, 16], 3), [torch.randn(5, 16, 8), torch.randn(5, 4, 16)]
    one, other = (heads(features, Condition(torch.full((5,), label))) for label in (0, 2))
    assert one.shape == (5,)
    assert not torch.allclose(one, other)
    with_more = [torch.cat([each, each], 1) for each in features]  # the mean over places
    torch.testing.assert_close(heads(with_more, Condition(torch.zeros(5, dtype=torch.long))), one)


def test_what_is_overheard_is_what_the_network_is_built_of():
    network = UNet(1, widths=(8, 16), blocks=1, attention=(False, True))
    with overheard(network) as features:
        network(torch.randn(2, 1, 8, 8), torch.zeros(2))
    assert [each.shape[-1] for each in features] == [width for _, width in network.parts] == [8, 16, 16, 8]
    for each in features:
        torch.testing.assert_close(each.square().mean(-1), torch.ones(each.shape[:-1]), atol=1e-3, rtol=0)
    assert not any(part._forward_hooks for part, _ in network.parts)


def test_a_rival_mends_what_a_student_does_wrong(teacher):
    """A student whose samples lie beside the data comes back to their law: mean and spread, which nobody told it."""
    student = taught(Matching(), teacher, 300)
    with torch.no_grad():
        student.network.outlet.bias += 0.3
    rival = rivalry(student)
    beside = rival.beside(teacher)
    learning = [{"params": student.parameters(), "lr": 2e-4}, {"params": beside["adversary"].parameters(), "lr": 2e-3}]
    optimiser = torch.optim.Adam(learning, betas=(0.0, 0.99))
    before = off_law(student)
    for k in range(600):
        x_0 = line().sample(512, stream(28, k)).float()
        task = Task(x_0, None, stream(29, k), student.times(512, stream(30, k)), 0.0, beside, k)
        optimiser.zero_grad()
        rival.loss(student, teacher, task).mean().backward()
        optimiser.step()
    assert before > 0.15
    assert off_law(student) < 0.3 * before


def off_law(student):
    """Wasserstein-1 distance of the student's samples to the data."""
    with torch.no_grad():
        x = drawn_by(student, rivalry(student).way, torch.zeros(4000, 1), None, stream(31))
    return float((x.sort(0).values - line().sample(4000, stream(32)).sort(0).values).abs().mean())
