"""LoRA: a change of low rank, 0 at first, taken in shares; the other run stays as it was, and mistakes are one line."""

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from commands import fails
from sfumato.condition import Condition
from sfumato.data import load
from sfumato.engine.run import Run
from sfumato.nn import UNet
from sfumato.nn.lora import adapt, merge

RANK = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    return sfumato.train("digits", classes=True, steps=120, batch=32, size="tiny", out=str(folder / "base"))


@pytest.fixture(scope="module")
def bright(tmp_path_factory):
    """Twenty digits on a bright ground, in folders by their class; of half of the classes."""
    folder, data = tmp_path_factory.mktemp("pictures"), load("digits")
    for label in (1, 3, 5, 7, 9):
        places = torch.nonzero(data.labels == label)[:4, 0]
        (folder / str(label)).mkdir()
        for k, item in enumerate(data.items[places]):
            pixels = 255 - (item[0].numpy() * 15.9375).round()
            Image.fromarray(pixels.astype(np.uint8)).save(folder / str(label) / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def adapted(base, bright):
    return sfumato.train(str(bright), lora=str(base), steps=80, batch=20, rank=RANK, out=str(bright) + "-run")


# ── Networks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def stirred():
    """A network, what it was before it was adapted, and a change that is not 0."""
    torch.manual_seed(0)
    network = UNet(1, widths=(8, 16), blocks=1, attention=(False, True), classes=3)
    torch.nn.init.normal_(network.outlet.weight)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    adapt(network, RANK)
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return network, before


def test_a_fresh_change_is_none():
    torch.manual_seed(0)
    network, x = UNet(1, widths=(8, 16), blocks=1, attention=(False, True)), torch.randn(2, 1, 8, 8)
    torch.nn.init.normal_(network.outlet.weight)
    before = network(x, torch.zeros(2))
    adapt(network, RANK)
    assert torch.equal(network(x, torch.zeros(2)), before)


def test_what_is_merged_is_of_low_rank_and_computes_the_same():
    network, before = stirred()
    x, cond = torch.randn(2, 1, 8, 8), Condition(torch.tensor([0, 2]))
    apart = network(x, torch.zeros(2), cond)
    merge(network)
    torch.testing.assert_close(network(x, torch.zeros(2), cond), apart)
    after = network.state_dict()
    assert after.keys() == before.keys()
    changes = {name: (after[name] - before[name]).flatten(1) for name in after if after[name].ndim > 1}
    ranks = {name: int(torch.linalg.matrix_rank(change, rtol=1e-4)) for name, change in changes.items()}
    assert ranks.pop("conditioning.label.weight") == 0
    assert all(rank == min(RANK, *changes[name].shape) for name, rank in ranks.items())
    assert all(torch.equal(after[name], before[name]) for name in after if after[name].ndim == 1)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_share_of_it_lies_between(share):
    (network, before), (whole, _) = stirred(), stirred()
    merge(network, share)
    merge(whole)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, torch.lerp(before[name], whole.state_dict()[name], share))


# ── Runs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_style_is_learned_and_the_other_run_stays(base, adapted):
    before, after = sfumato.load(base), sfumato.load(adapted)
    assert before.sample(16, steps=6).float().mean() < 8 < after.sample(16, steps=6).float().mean()
    assert after.classes == before.classes and after.codec == before.codec
    without, _ = Run.open(adapted).load(lora=0.0)
    assert torch.equal(without.sample(8, steps=3), before.sample(8, steps=3))


def test_classes_keep_their_names(adapted, base):
    """Data with half of the classes: what is learned under "3" belongs to it, though it is the second of theirs."""
    run = Run.open(adapted)
    model, _ = run.load()
    assert run.dataset().classes == ("1", "3", "5", "7", "9") and model.classes == sfumato.load(base).classes


def test_a_run_that_was_stopped_goes_on(base, bright, tmp_path):
    """Half and half again ends with the bits of the whole."""
    from sfumato.engine.trainer import Trainer

    whole = sfumato.train(str(bright), lora=str(base), steps=6, batch=8, out=str(tmp_path / "whole"))
    run = Run.open(sfumato.train(str(bright), lora=str(base), steps=6, batch=8, out=str(tmp_path / "parts")))
    for path in run.checkpoints.iterdir():
        path.unlink()
    trainer = Trainer(run, run.dataset())
    for _ in range(3):
        trainer.advance()
    trainer.save()
    sfumato.resume(str(run.folder))
    ours, theirs = (sfumato.load(folder).state_dict() for folder in (run.folder, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_shares_have_folders_of_their_own(adapted):
    folders = {sfumato.sample(adapted, n=1, steps=2, lora=share)[0].parent.name for share in (1.0, 0.5)}
    assert len(folders) == 2 and any(name.endswith("-lora0.5") for name in folders)


def test_mistakes_are_one_line(base, bright, adapted, tmp_path, capsys):
    ask = ["train", bright, "--lora"]
    fails(capsys, [*ask, tmp_path / "none"], "no such run")
    fails(capsys, [*ask, base, "--size", "base"], "--size stays as the run below has it")
    fails(capsys, [*ask, base, "--rank", "0", "--out", tmp_path / "a"], "--rank must be at least 1")
    fails(capsys, ["train", "moons", "--lora", base, "--out", tmp_path / "b"], "the run knows 1x8x8")
    fails(capsys, ["train", "digits", "--rank", "4", "--out", tmp_path / "c"], "--rank goes with --lora")
    fails(capsys, ["sample", base, "--lora", "0.5"], "learned nothing on top of another run")
    strange = tmp_path / "strange"
    (strange / "cat").mkdir(parents=True)
    (strange / "dog").mkdir()
    for path in ("cat/a.png", "dog/b.png"):
        Image.fromarray(np.full((8, 8), 9, np.uint8)).save(strange / path)
    fails(capsys, ["train", strange, "--lora", base, "--out", tmp_path / "d"], "the run knows no class 'cat'")
    student = sfumato.distill(base, calls=1, steps=1, batch=8, out=str(tmp_path / "student"))
    fails(capsys, [*ask, student, "--out", tmp_path / "e"], "is a student of 'base'; give another run to --lora")
