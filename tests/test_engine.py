"""The engine: data order, average, learning rate, plan of time, records on disk."""

import copy
import dataclasses
import inspect
import json
from itertools import pairwise

import pytest
import torch

from oracles import EmpiricalNetwork
from sfumato.data import load as load_data
from sfumato.dist import stream
from sfumato.engine.asked import Asked, Choices, seconds_of
from sfumato.engine.average import PowerAverage
from sfumato.engine.choices import configure
from sfumato.engine.config import Config, read_config, write_config
from sfumato.engine.progress import Plain, duration
from sfumato.engine.run import Run, latest
from sfumato.engine.session import Session
from sfumato.engine.trainer import Trainer
from sfumato.errors import UserError
from sfumato.models.diffusion import DiffusionSpec
from sfumato.sampler.ancestral import Ancestral
from sfumato.verbs import train
from sfumato.weighting import Likelihood

SPEC = DiffusionSpec(network="mlp", widths=(32,), blocks=2, sigma_data=1.0)
CONFIG = Config(data="moons", model=SPEC, batch=64, steps=12)


@pytest.fixture(scope="module")
def moons():
    return load_data("moons")


@pytest.fixture
def quiet():
    return Plain(every=1e9)


def begin(folder, moons, **changes):
    return Trainer(Run.create(folder, dataclasses.replace(CONFIG, **changes), moons), moons)


def test_every_epoch_shows_every_example_once(tmp_path, moons):
    trainer = begin(tmp_path / "run", moons, batch=3000)
    rows = torch.cat([trainer.order(k) for k in range(20)])  # 60,000 places: three epochs of 20,000
    epochs = rows.reshape(3, 20_000)
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(20_000))
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(trainer.order(7), begin(tmp_path / "again", moons, batch=3000).order(7))


def test_a_batch_may_be_larger_than_the_data(tmp_path, moons):
    few = dataclasses.replace(moons, items=moons.items[:10], labels=moons.labels[:10], fingerprint="few")
    trainer = Trainer(Run.create(tmp_path / "run", dataclasses.replace(CONFIG, batch=25), few), few)
    assert torch.equal(trainer.order(0).bincount().sort().values, torch.tensor([2] * 5 + [3] * 5))


def test_power_average_has_its_horizon():
    """The weights' ages have the standard deviation asked for, as a share of the run (2312.02696, eq. 2 and 17)."""
    for horizon in (0.05, 0.1, 0.2):
        steps = 4000
        model, average = torch.nn.Linear(1, steps, bias=False), torch.nn.Linear(1, steps, bias=False)
        with torch.no_grad():
            model.double().weight.zero_()
            average.double().weight.fill_(7.0)  # nothing of the start may remain
        keeper = PowerAverage(model, average, horizon)
        for k in range(1, steps + 1):
            with torch.no_grad():
                model.weight.zero_()
                model.weight[k - 1] = 1  # so the average holds the weight of each step
            keeper.update(k)
        share = average.weight[:, 0].detach()
        time = torch.arange(1, steps + 1) / steps
        assert float(share.sum()) == pytest.approx(1, abs=1e-12)
        mean = (share * time).sum()
        assert float((share * (time - mean) ** 2).sum().sqrt()) == pytest.approx(horizon, rel=2e-3)


@pytest.mark.parametrize("horizon", [0.0, -1.0, 0.5])
def test_impossible_averages_are_refused(horizon):
    with pytest.raises(UserError, match="ema"):
        PowerAverage(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), horizon)


def test_learning_rate_warms_up_stays_and_falls_to_nothing(tmp_path, moons):
    trainer = begin(tmp_path / "run", moons, steps=1000, lr=2.0)
    rates = [trainer.rate(k) for k in range(1, 1001)]
    assert rates[:50] == pytest.approx([2.0 * k / 50 for k in range(1, 51)])
    assert all(rate == 2.0 for rate in rates[49:700])
    assert rates[-1] == pytest.approx(2.0 / 300)
    assert all(a > b for a, b in pairwise(rates[701:]))


def test_a_time_becomes_steps_before_anything_depends_on_them(tmp_path, moons):
    """While the plan may change, every rate drawn from it so far is the one the final plan gives too."""
    trainer = begin(tmp_path / "run", moons, steps=0, seconds=100.0)
    session = Session(trainer, Plain())
    seen = {}
    for k in range(1, 2000):
        seen[k] = trainer.rate(k)
        trainer.step, trainer.seconds = k, (0.1 * k if k < 300 else 30 + 0.2 * (k - 300))  # it slows down midway
        trainer.total = session._plan(trainer.seconds / k if k >= 10 else None)
        if k == trainer.total:
            break
    assert trainer.step == trainer.total
    assert 60 < trainer.seconds < 130
    assert all(rate == trainer.rate(k) for k, rate in seen.items())
    assert trainer.total > 300 / (1 - trainer.config.cool_down)


def test_weights_of_a_timed_run_are_those_of_as_many_steps(tmp_path, moons, quiet):
    timed = begin(tmp_path / "timed", moons, steps=0, seconds=0.5)
    assert Session(timed, quiet).run()
    counted = begin(tmp_path / "counted", moons, steps=timed.total)
    assert Session(counted, quiet).run()
    assert timed.ema.fingerprint() == counted.ema.fingerprint()
    assert timed.model.fingerprint() == counted.model.fingerprint()


def test_dropout_is_a_function_of_the_step(tmp_path):
    data = load_data("digits")
    spec = DiffusionSpec(network="unet", widths=(8, 8), blocks=1, attention=(False, True), dropout=0.5, classes=10)
    config = Config(data="digits", model=spec, batch=8, steps=3)
    prints = []
    for name in "ab":
        torch.manual_seed(len(prints))  # whatever the state of the process
        trainer = Trainer(Run.create(tmp_path / name, config, data), data)
        before = torch.random.get_rng_state()
        for _ in range(3):
            trainer.advance()
        assert torch.equal(before, torch.random.get_rng_state())
        prints.append(trainer.model.fingerprint())
    assert prints[0] == prints[1]


def test_a_training_learns(tmp_path, moons, quiet):
    """Half of the way from an output of zero to the best possible one is gone after 400 steps.

    The best is the posterior mean of the training set itself (ORACLES 8), judged on the same noise.
    """
    trainer = begin(tmp_path / "run", moons, steps=400, batch=256, lr=3e-3)
    Session(trainer, quiet).run()
    states = moons.codec.encode(moons.test.items[:1000])
    best, none = (copy.deepcopy(trainer.ema.denoiser) for _ in range(2))
    best.network = EmpiricalNetwork(moons.codec.encode(moons.items[:5000]))
    none.network = trainer.run.build().denoiser.network  # its last layer starts at zero
    ours, least, most = (d.loss(states, rng=stream(0)).mean().item() for d in (trainer.ema.denoiser, best, none))
    assert least < ours < (least + most) / 2


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def chosen(dataset, **asked):
    """The config of a run for which this is asked, and what is said of it."""
    known = {field.name for field in dataclasses.fields(Asked)}
    defaults = {name: p.default for name, p in inspect.signature(train).parameters.items() if name in known}
    choices = Choices()
    return configure(dataset, Asked(**defaults | {"data": dataset.name, "steps": 6} | asked), choices), choices.lines


def test_a_run_for_likelihood_is_told_apart_from_one_for_samples(digits, moons):
    """Every choice that differs is said with its reason, and the model is built with it."""
    config, lines = chosen(digits, likelihood=True)
    model, usual = config.model, chosen(digits)[0].model
    assert (model.weighting, model.law, model.dequantise, model.precision) == ("elbo", "likelihood", True, "fp32")
    assert (usual.weighting, usual.law, usual.dequantise) == ("edm", "lognormal", False)
    assert model.sigma_data**2 - usual.sigma_data**2 == pytest.approx(digits.codec.level_width**2 / 12, rel=1e-6)
    for name, value in (("precision", "fp32"), ("weighting", "elbo"), ("law", "likelihood"), ("dequantise", "True")):
        (line,) = (line for line in lines if line.split()[0] == name)
        assert line.split()[1] == value
        assert len(line.split()) > 4
    assert isinstance(model.build(digits.codec).denoiser.law, Likelihood)
    assert not chosen(moons, likelihood=True)[0].model.dequantise
    assert chosen(digits, likelihood=True, weighting="learned")[0].model.weighting == "learned"
    assert chosen(digits, weighting="min-snr")[0].model.weighting == "min-snr"
    with pytest.raises(UserError, match="did you mean 'min-snr'"):
        chosen(digits, weighting="minsnr")


def test_dequantised_examples_fill_their_bins(tmp_path, digits):
    """u ~ U(-1/2, 1/2) of a level, a function of the step; the outermost bins reach half a level out of [-1, 1]."""
    config, _ = chosen(digits, likelihood=True)
    trainer = Trainer(Run.create(tmp_path / "run", config, digits), digits)
    index, width = torch.arange(1000), digits.codec.level_width
    states = digits.codec.encode(digits.items[index])
    assert float(states.min()) == -1
    assert float(states.max()) == 1
    place = (trainer.examples(index, stream(1))[0] - states) / width
    assert float(place.abs().max()) <= 0.5 + 1e-6
    assert float(place.mean()) == pytest.approx(0, abs=4 / (12 * place.numel()) ** 0.5)
    assert float(place.var()) == pytest.approx(1 / 12, rel=0.02)
    again, other = (trainer.examples(index, stream(seed))[0] for seed in (1, 2))
    assert torch.equal((again - states) / width, place)
    assert not torch.equal(again, other)


def test_mirrored_examples_are_turned_every_other_time(tmp_path, digits):
    """Left for right, whole pictures, half of them, by a law of the step alone."""
    trainer = Trainer(Run.create(tmp_path / "run", chosen(digits, mirror=True)[0], digits), digits)
    index = torch.arange(1000)
    plain = digits.codec.encode(digits.items[index])
    states, _ = trainer.examples(index, stream(1))
    turned = (states == plain.flip(-1)).flatten(1).all(1)
    assert ((states == plain).flatten(1).all(1) | turned).all()
    assert abs(turned.float().mean() - 0.5) < 0.08  # 5 standard errors, and some are their own mirror image
    assert torch.equal(states, trainer.examples(index, stream(1))[0])


def test_points_have_no_mirror_image():
    with pytest.raises(UserError, match=r"--mirror turns pictures, and 'moons' has none"):
        train("moons", mirror=True)


@pytest.mark.parametrize("weighting", ["elbo", "learned"])
def test_runs_with_more_to_learn_resume_exactly(tmp_path, digits, weighting):
    config, _ = chosen(digits, likelihood=True, learn_variance=True, weighting=weighting, batch=8)
    spec = dataclasses.replace(config.model, widths=(8, 8), blocks=1)
    config = dataclasses.replace(config, model=spec)
    straight, broken = (Trainer(Run.create(tmp_path / name, config, digits), digits) for name in "ab")
    for _ in range(6):
        straight.advance()
    for _ in range(3):
        broken.advance()
    broken.save()
    broken = Trainer(broken.run, digits)
    for _ in range(3):
        broken.advance()
    assert straight.model.fingerprint() == broken.model.fingerprint()
    assert straight.ema.fingerprint() == broken.ema.fingerprint()
    names = dict(straight.model.named_parameters())
    assert ("denoiser.uncertainty.knots" in names) == (weighting == "learned")
    if weighting == "learned":
        assert bool((names["denoiser.uncertainty.knots"] != 0).any())


def test_a_variance_learns_on_the_way(tmp_path, moons, quiet):
    """More than half of what the start, f = 1/2, loses to the optimal variance is gone after 300 steps.

    In the KL of single steps of the chain of 1,000 near the data, on held-out examples and the same noise.
    """
    spec = dataclasses.replace(SPEC, variance="learned")
    trainer = begin(tmp_path / "run", moons, model=spec, steps=300, batch=256, lr=3e-3)
    Session(trainer, quiet).run()
    states, q = moons.codec.encode(moons.test.items[:2000]), trainer.ema.denoiser.process
    for t in (0.0005, 0.002, 0.005, 0.01):
        x_t, s = q.marginal(states, t).sample(stream(3)), max(t - 0.001, t / 2)
        ours = trainer.ema.denoiser(x_t, t)
        start = dataclasses.replace(ours, fraction=torch.full_like(x_t, 0.5))
        laws = [Ancestral("learned").law(trainer.ema.denoiser, estimate, t, s) for estimate in (ours, start)]
        laws.append(Ancestral("optimal").law(trainer.ema.denoiser, ours, t, s))
        learned, half, optimal = (float(q.posterior(x_t, states, t, s).kl(law).mean()) for law in laws)
        assert learned < (half + optimal) / 2
    learned, small = (trainer.ema.sample(64, method=name) for name in ("ancestral-learned", "ancestral"))
    assert not torch.equal(learned, small)
    assert float((learned - moons.items.mean(0)).std()) == pytest.approx(float(moons.items.std()), rel=0.3)
    plain = begin(tmp_path / "plain", moons).model
    with pytest.raises(UserError, match="not trained to predict its variance"):
        plain.sample(2, method="ancestral-learned")


def test_configs_from_before_a_key_was_there_still_load(tmp_path):
    path = tmp_path / "config.toml"
    write_config(path, CONFIG)
    lines = path.read_text().splitlines()
    kept = [line for line in lines if line.partition(" ")[0] not in ("law", "variance", "dequantise")]
    assert len(lines) - len(kept) == 3
    path.write_text("\n".join(kept))
    assert read_config(path) == CONFIG


def test_resume_of_other_data_is_refused(tmp_path, moons):
    run = begin(tmp_path / "run", moons).run
    with pytest.raises(UserError, match="not what this run began with"):
        Trainer(run, load_data("ring8"))


def test_a_killed_runs_log_is_cut_to_its_checkpoint(tmp_path, moons, quiet):
    trainer = begin(tmp_path / "run", moons, steps=5)
    trainer.save()
    trainer.run.log.write_text('{"step": 0}\n{"step": 3}\n{"ste')
    again = Trainer(trainer.run, moons)
    Session(again, quiet).run()
    steps = [json.loads(line)["step"] for line in trainer.run.log.read_text().splitlines()]
    assert steps[0] == 0
    assert steps[-1] == 5
    assert 3 not in steps[:2]


def test_config_round_trips_and_refuses_what_it_does_not_know(tmp_path):
    path = tmp_path / "config.toml"
    spec = DiffusionSpec(network="unet", widths=(8, 16), blocks=2, attention=(False, True), classes=3)
    config = Config(data="a folder", model=spec, seconds=90.5)
    write_config(path, config)
    assert read_config(path) == config
    good = path.read_text()
    for old, new, message in [
        ("batch =", "bach =", "unknown key 'bach'; did you mean 'batch'"),
        ("batch = 64", "batch = 'x'", "batch: 'x' is not int"),
        ("[model]", "[model]\nwidht = 3", "unknown key 'widht'; did you mean 'widths'"),
        ('network = "unet"', 'network = "resnet"', "'resnet' is not 'unet' or 'dit' or 'mlp'"),
        ("seconds = 90.5", "seconds = 0.0", "either steps or a time"),
        ("batch = 64", "batch = -1", "batch must be above 0"),
        ("cool_down = 0.3", "cool_down = 1.0", "cool_down is a share of the run"),
        ("batch = 64", "batch = ", "not readable as TOML"),
        ('data = "a folder"\n', "", "missing.*data"),
    ]:
        assert old in good
        path.write_text(good.replace(old, new))
        with pytest.raises(UserError, match=message):
            read_config(path)
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        read_config(path)


def test_runs_are_found_and_damage_named(tmp_path, moons):
    assert latest(tmp_path / "none") is None
    first = begin(tmp_path / "a", moons)
    first.save()
    assert latest(tmp_path) == tmp_path / "a"
    with pytest.raises(UserError, match="exists; go on with"):
        begin(tmp_path / "a", moons)
    with pytest.raises(UserError, match="no such run; the newest there is"):
        Run.open(tmp_path / "b")
    (tmp_path / "a" / "data.json").write_text("{")
    with pytest.raises(UserError, match=r"data\.json: missing or damaged"):
        Run.open(tmp_path / "a")


def test_weights_of_another_model_are_refused(tmp_path, moons):
    trainer = begin(tmp_path / "a", moons)
    trainer.save()
    other = dataclasses.replace(SPEC, widths=(48,))
    write_config(tmp_path / "a" / "config.toml", dataclasses.replace(CONFIG, model=other))
    with pytest.raises(UserError, match=r"do not fit config\.toml"):
        Run.open(tmp_path / "a").load()


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("2m", 120), ("1h30m", 5400), ("45", 45), ("1.5m", 90), ("1h1m1s", 3661)]
)
def test_times_are_read(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "0s", "-3m", "2 weeks", "m"])
def test_no_times_are_refused(text):
    with pytest.raises(UserError, match="is no time"):
        seconds_of(text)


def test_durations_read_well():
    assert [duration(s) for s in (0.2, 45, 125, 3720)] == ["0s", "45s", "2m05s", "1h02m"]
