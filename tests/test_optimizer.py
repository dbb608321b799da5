"""AdamW is torch's; Muon: what its steps are, what it leaves alone, and that it can be stopped and skipped."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import sfumato
from commands import fails
from sfumato.condition import Condition
from sfumato.engine.optimizer import Muon, Optimizer, hidden_matrices, polar
from sfumato.nn import UNet


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 72), (2, 72, 8), (1, 32, 288)])
def test_the_update_is_nearly_orthogonal(shape):
    """Equation (2): all singular values near 1, and the same singular vectors."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = polar(x)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5 and values.max() < 1.3
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    alignment = torch.einsum("nij,nij->n", found, u @ v) / min(shape[1:])
    assert (alignment > 0.8).all()


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 72), (2, 72, 8), (1, 96, 864)])
@pytest.mark.parametrize("decades", [0, 2, 6])
def test_the_update_is_five_rounds_of_newton_and_schulz(shape, decades):
    """As Jordan et al. write them, in float64: also of matrices whose singular values differ a million times."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, values, v = torch.linalg.svd(x, full_matrices=False)
    x = u * torch.logspace(0, -decades, values.shape[1], dtype=torch.float64) @ v
    expected = x / x.norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        a = expected @ expected.mT
        expected = (3.4445 * torch.eye(shape[1]) - 4.7750 * a + 2.0315 * a @ a) @ expected
    torch.testing.assert_close(polar(x.float()).double(), expected, atol=2e-3, rtol=0)


def network():
    torch.manual_seed(0)
    return UNet(1, widths=(8, 16), attention=(False, True), classes=3)


def test_embeddings_first_and_last_layer_are_left_to_adam():
    model = network()
    chosen = {id(weight) for weight in hidden_matrices(model)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) not in chosen and parameter.ndim > 1}
    assert names == {"inlet.weight", "outlet.weight", "conditioning.label.weight"}
    assert len(chosen) > 10


def stepped(model, optimizer, unfit=0.0):
    optimizer.zero_grad()
    x, level = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.linspace(-1, 1, 4)
    (model(x, level, Condition(torch.tensor([0, 1, 2, 0]))) - x).square().mean().backward()
    if unfit:
        next(iter(hidden_matrices(model))).grad.fill_(torch.nan)
    optimizer.step(1e-3, torch.tensor(unfit))
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_it_is_the_adamw_of_torch():
    """To the bit, also of modules of two paces, weights without a gradient, and a step that is not finite."""
    ours, theirs = ([nn.Linear(5, 3), nn.Linear(3, 2), nn.Linear(2, 2)] for _ in range(2))
    for own, other in zip(ours, theirs, strict=True):
        other.load_state_dict(own.state_dict())
    optimizer = Optimizer("adamw", dict(zip(ours, (1.0, 0.5, 1.0), strict=True)))
    groups = [{"params": list(each.parameters())} for each in theirs]
    torchs = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    rng = torch.Generator().manual_seed(0)
    for lr, unfit in ((1e-2, 0.0), (3e-3, 0.0), (1e-2, 1.0), (2e-3, 0.0)):
        optimizer.zero_grad()
        assert all(weight.grad is None for each in ours for weight in each.parameters())
        for own, other in zip(ours[:2], theirs, strict=False):
            for mine, its in zip(own.parameters(), other.parameters(), strict=True):
                mine.grad = torch.randn(mine.shape, generator=rng)
                its.grad = mine.grad.clone()
        for group, pace in zip(torchs.param_groups, (1.0, 0.5, 1.0), strict=True):
            group["lr"] = lr * pace
        torchs.found_inf = torch.tensor(unfit)
        optimizer.step(lr, torch.tensor(unfit))
        torchs.step()
        for own, other in zip(ours, theirs, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(own.parameters(), other.parameters(), strict=True))


def test_a_run_starts_without_the_compiler():
    """Which alone takes 1.5 s to import, as much as torch."""
    code = """
import sys, torch
from sfumato.engine.optimizer import Optimizer
layer = torch.nn.Linear(2, 2)
optimizer = Optimizer("muon", {torch.nn.Sequential(layer): 1.0})
layer(torch.ones(2)).sum().backward()
optimizer.step(1e-3, torch.zeros(()))
print("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_kernels_of_one_shape_as_matrices_step_together_as_alone():
    """(8, 4, 2, 2) and (8, 16, 1, 1) are both 8x16; each moves as if it were the only one."""

    def moved(*shapes):
        weights = [torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) for shape in shapes]
        for weight in weights:
            weight.grad = weight.sin()
        Muon(dict.fromkeys(weights, 1.0)).step(1e-2, torch.tensor(0.0))
        return weights

    first, second, third = moved((8, 4, 2, 2), (8, 16, 1, 1), (8, 16))
    for together, shape in ((first, (8, 4, 2, 2)), (second, (8, 16, 1, 1)), (third, (8, 16))):
        torch.testing.assert_close(together, moved(shape)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_a_step_that_is_not_finite_changes_nothing(rule):
    model = network()
    optimizer = Optimizer(rule, {model: 1.0})
    before = stepped(model, optimizer)
    state = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    after = stepped(model, optimizer, unfit=1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(state[name], tensor) for name, tensor in optimizer.tensors().items())


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_its_state_is_all_that_a_resume_needs(rule):
    whole, part = network(), network()
    ours, theirs = Optimizer(rule, {whole: 1.0}), Optimizer(rule, {part: 1.0})
    stepped(whole, ours), stepped(part, theirs)
    again = Optimizer(rule, {part: 1.0})
    again.restore(theirs.tensors())
    assert all(torch.equal(a, b) for a, b in zip(stepped(whole, ours), stepped(part, again), strict=True))


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_each_module_has_its_pace(rule):
    """Half as fast is as by half the learning rate, whatever goes beside it."""
    slow, quick, alone = network(), network(), network()
    pair, single = Optimizer(rule, {slow: 0.5, quick: 1.0}), Optimizer(rule, {alone: 1.0})
    x, level, labels = torch.ones(2, 1, 8, 8), torch.zeros(2), Condition(torch.tensor([0, 1]))
    for model in (slow, quick, alone):
        model(x, level, labels).square().mean().backward()
    pair.step(1e-3, torch.tensor(0.0))
    single.step(5e-4, torch.tensor(0.0))
    for ours, theirs, other in zip(*(model.parameters() for model in (slow, alone, quick)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        assert not ours.grad.any() or not torch.equal(ours, other)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_without_momentum_a_step_goes_against_the_gradient_alone(rule):
    """Whatever was before: of a weight that has no decay to feel, AdamW's step has the sign of its own gradient."""
    layer = nn.Sequential(nn.Linear(3, 3, bias=False))
    layer[0].weight.data.zero_()
    optimizer = Optimizer(rule, {layer: 1.0}, momentum=False)
    for gradient in (5.0, -1.0, 2.0, -3.0):
        before = layer[0].weight.detach().clone()
        layer[0].weight.grad = torch.full((3, 3), gradient)
        optimizer.step(1e-3, torch.zeros(()))
        assert ((layer[0].weight - before) * gradient < 0).all()


def test_a_run_by_muon(tmp_path, capsys):
    run = sfumato.train("moons", steps=30, size="tiny", optimizer="muon", out=str(tmp_path / "run"))
    assert 'optimizer = "muon"' in (run / "config.toml").read_text()
    assert sfumato.load(run).sample(5).isfinite().all()
    fails(capsys, ["train", "moons", "--optimizer", "sgd"], "sgd", "muon")
