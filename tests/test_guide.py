"""Guidance: on mixtures the guided score has a closed form; weights 0 and 1 are the models themselves, bit for bit."""

import json
import math
import shutil
from dataclasses import dataclass, replace

import pytest
import torch
from PIL import Image

import sfumato
from commands import fails
from oracles import SCHEDULES, Exact, Mixture, gaussian, tensor
from sfumato.condition import NULL, Condition
from sfumato.denoise import Denoiser, Given, cost, take
from sfumato.dist import stream
from sfumato.engine.run import Run
from sfumato.errors import UserError
from sfumato.guide import Guidance, Guided, Steered, Thresholded
from sfumato.nn import MLP
from sfumato.process import Gaussian
from sfumato.sampler import generate, sampler, trajectory
from sfumato.schedule import VE, VP, Cosine, Flow

PARTS = Mixture(tensor([0.3, 0.7]), tensor([[-1.0, 0.5], [1.5, -0.5]]), tensor([[0.4, 0.2], [0.3, 0.6]]))
"""A mixture of two classes."""
CLASSES = [Mixture(tensor([1.0]), PARTS.means[k : k + 1], PARTS.variances[k : k + 1]) for k in (0, 1)]
ROWS = ("x0", "eps", "v", "edm")


@dataclass
class Heard:
    """A model that remembers at which times it was asked."""

    model: Exact
    times: list

    @property
    def process(self):
        return self.model.process

    def __call__(self, x_t, t, s=None):
        self.times.append(float(self.process.schedule.at(t).t))
        return self.model(x_t, t)


def models(schedule, parameterisation="x0"):
    process = Gaussian(schedule)
    return Exact(PARTS, process, parameterisation), [Exact(law, process, parameterisation) for law in CLASSES]


def noise(n=6, dim=2, seed=0):
    return torch.randn(n, dim, generator=stream(seed), dtype=torch.float64)


def score_of(law, x, now):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(law.log_prob(x, now.alpha, now.sigma).sum(), x)[0]


# ── Towards others ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("parameterisation", ROWS)
@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "table"])
@pytest.mark.parametrize("weights", [(2.5,), (-0.5,), (0.7, 1.9)])
def test_the_guided_score_is_that_of_the_product(schedule, parameterisation, weights):
    base, each = models(SCHEDULES[schedule], parameterisation)
    guided, x = Guided(base, list(zip(each, weights, strict=False))), noise()
    for t in (0.05, 0.4, 0.9):
        now = base.process.schedule.at(t)
        scores = [score_of(law, x, now) for law in CLASSES[: len(weights)]]
        expected = (1 - sum(weights)) * score_of(PARTS, x, now) + sum(
            w * one for w, one in zip(weights, scores, strict=True)
        )
        torch.testing.assert_close(guided(x, t).score, expected, rtol=1e-7, atol=1e-7 * float(expected.abs().max()))


def test_rows_of_different_networks_are_mixed_in_terms_of_the_data():
    process, x = Gaussian(Cosine()), noise()
    same = Guided(Exact(PARTS, process, "v"), [(Exact(CLASSES[0], process, "v"), 2.0)])
    mixed = Guided(Exact(PARTS, process, "eps"), [(Exact(CLASSES[0], process, "edm"), 2.0)])
    torch.testing.assert_close(same(x, 0.6).x0, mixed(x, 0.6).x0, rtol=1e-9, atol=1e-9)


def test_times_may_differ_from_example_to_example():
    base, (one, _) = models(VP())
    guided, x, t = Guided(base, [(one, 3.0)], (0.1, 1.0)), noise(), torch.linspace(0.01, 0.99, 6, dtype=torch.float64)
    each = torch.cat([guided(x[k : k + 1], float(t[k])).x0 for k in range(6)])
    torch.testing.assert_close(guided(x, t).x0, each, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["ddim", "heun", "unipc2", "ancestral"])
def test_weights_of_0_and_1_are_the_models_themselves_bit_for_bit(name):
    base, (one, _) = models(Cosine(), "v")
    x = noise(dim=2).float()
    for weight, alone in ((0.0, base), (1.0, one)):
        ends = [
            generate(model, sampler(name), x, "logsnr", 7, stream(3))
            for model in (Guided(base, [(one, weight)]), alone)
        ]  # fmt: skip
        assert torch.equal(*ends)


def test_network_calls_are_counted_and_saved_beyond_the_interval():
    base, (one, _) = models(Cosine())
    base, one = Heard(base, []), Heard(one, [])
    guided = Guided(base, [(one, 2.0)], (0.3, 3.0))
    *_, last = trajectory(guided, sampler("ddim"), noise(), "logsnr", 12)
    assert last.nfe == len(base.times) + len(one.times)
    assert len(one.times) == 12 and 0 < len(base.times) < 12
    ratio = [math.exp(-base.process.schedule.at(t).logsnr / 2) for t in base.times]
    assert all(0.3 <= r <= 3.0 for r in ratio)
    assert [cost(Guided(base, [(one, w)]), 0.5) for w in (0.0, 1.0, 2.0)] == [1, 1, 2]


def test_beyond_the_interval_the_model_stands_alone():
    base, (one, _) = models(Cosine())
    guided, x = Guided(base, [(one, 4.0)], (0.5, 2.0)), noise()
    near, far = 0.05, 0.95
    assert torch.equal(guided(x, near).x0, one(x, near).x0) and torch.equal(guided(x, far).x0, one(x, far).x0)
    assert not torch.equal(guided(x, 0.5).x0, one(x, 0.5).x0)


def test_guidance_narrows_and_moves_a_gaussian_by_the_closed_form():
    """From N(0, 1) towards N(m, v) by w, at t -> 0: precision (1 - w) + w/v, mean w m / v over it."""
    process, w, m, v = Gaussian(VP()), 2.0, 0.8, 0.5
    base, one = (Exact(gaussian(mean, var, 1), process) for mean, var in ((0.0, 1.0), (m, v)))
    x, precision = noise(dim=1), 1 - w + w / v
    now = process.schedule.at(1e-4)
    expected = -precision * (x - w * m / v / precision)
    torch.testing.assert_close(Guided(base, [(one, w)])(x, now).score, expected, rtol=0.01, atol=0.01)


def test_rescaled_estimates_have_the_deviation_of_what_they_are_guided_to():
    base, (one, _) = models(Cosine())
    x = noise(4, 50)
    wide = Mixture(tensor([1.0]), torch.zeros(1, 50, dtype=torch.float64), torch.ones(1, 50, dtype=torch.float64))
    base, one = (Exact(replace(wide, variances=wide.variances * var), base.process) for var in (1.0, 0.3))
    plain = Guided(base, [(one, 5.0)])(x, 0.5).x0
    full, half = (Guided(base, [(one, 5.0)], rescale=phi)(x, 0.5).x0 for phi in (1.0, 0.5))
    torch.testing.assert_close(full.std(1), one(x, 0.5).x0.std(1))
    unheard = Guided(base, [(one, 5.0), (base, 0.0)], rescale=1.0)
    torch.testing.assert_close(unheard(x, 0.5).x0, full)
    torch.testing.assert_close(half, (plain + full) / 2)


def test_rows_of_a_batch_may_be_taken():
    base, (one, other) = models(Cosine())
    guided, rows = Guided(base, [(one, 2.0), (other, -1.0)]), torch.tensor([1, 3])
    x = noise()
    torch.testing.assert_close(take(guided, rows)(x[rows], 0.5).x0, guided(x, 0.5).x0[rows])


def test_models_of_other_processes_are_refused():
    with pytest.raises(UserError, match="different processes"):
        Guided(Exact(PARTS, Gaussian(VP())), [(Exact(PARTS, Gaussian(Cosine())), 2.0)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"weight": 2.0, "interval": (3.0, 1.0)}, "0 <= low < high"),
        ({"weight": 2.0, "interval": (-1.0, 1.0)}, "0 <= low < high"),
        ({"weight": 2.0, "rescale": 1.5}, r"rescale must be in \[0, 1\]"),
        ({"weight": math.nan}, "must be a number"),
        ({"weight": math.inf}, "must be a number"),
    ],
)
def test_impossible_guidance_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        Guidance(**words)


# ── Thresholds and readers ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_threshold_keeps_estimates_in_the_range_of_data():
    base, _ = models(Cosine())
    x = 40 * noise(5, 2)
    limited = Thresholded(base, 1.0)(x, 0.5).x0
    assert bool((limited.abs() <= 1).all()) and bool((limited.abs().amax(1) > 1 - 1e-9).all())
    inner = 0.01 * noise(5, 2)
    at = [Exact(gaussian(0.0, 0.1, 2), base.process), 0.5]
    torch.testing.assert_close(Thresholded(at[0])(inner, at[1]).x0, at[0](inner, at[1]).x0)
    assert cost(Thresholded(Guided(base, [(base, 2.0)])), 0.5) == 2


@pytest.mark.parametrize("quantile", [0.0, 1.5])
def test_an_impossible_threshold_is_refused(quantile):
    with pytest.raises(UserError, match=r"in \(0, 1\]"):
        Thresholded(models(VP())[0], quantile)


@pytest.mark.parametrize("schedule", [VP(), Cosine(), Flow(), VE()])
def test_a_reader_of_the_class_turns_the_mixture_into_one_of_its_parts(schedule):
    base, (one, _) = models(schedule)

    def log_p(x, now):
        return CLASSES[0].log_prob(x, now.alpha, now.sigma) - PARTS.log_prob(x, now.alpha, now.sigma)

    steered, x = Steered(base, log_p), noise()
    for t in (0.1, 0.5, 0.9):
        torch.testing.assert_close(steered(x, t).x0, one(x, t).x0, rtol=1e-8, atol=1e-8)
    assert torch.equal(Steered(base, log_p, 0.0)(x, 0.5).x0, base(x, 0.5).x0)


def test_a_reader_for_some_rows_of_a_batch_reads_those():
    class Reader:
        def __init__(self, aims):
            self.aims = aims

        def __call__(self, x, now):
            return -(x - self.aims).square().sum(1)

        def take(self, rows):
            return Reader(self.aims[rows])

    base, _ = models(Cosine())
    x, rows = noise(), torch.tensor([3, 0])
    whole = Steered(base, Reader(torch.linspace(-1, 1, len(x), dtype=torch.float64)[:, None]))
    torch.testing.assert_close(whole.take(rows)(x[rows], 0.4).x0, whole(x, 0.4).x0[rows])
    plain = Steered(base, lambda x, now: -x.square().sum(1))
    torch.testing.assert_close(plain.take(rows)(x[rows], 0.4).x0, plain(x, 0.4).x0[rows])


def test_where_there_is_no_signal_a_reader_says_nothing():
    base, _ = models(Flow())
    steered = Steered(base, lambda x, now: x.sum(1) / now.alpha)
    assert torch.equal(steered(noise(), 1.0).x0, base(noise(), 1.0).x0)


# ── Away from what a model was ────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_guided_away_from_what_it_was(tmp_path, capsys):
    run = sfumato.train("digits", steps=80, batch=16, size="tiny", out=str(tmp_path / "run"))
    opened = Run.open(run)
    model, _ = opened.load(device="cpu")
    early = model.worse[0.3] = opened.worse(model, 0.3)
    assert early.fingerprint() != model.fingerprint() and "worse" not in "".join(model.state_dict())
    assert torch.equal(model.sample(4, steps=3, guidance=Guidance(1.0, worse=0.3)), model.sample(4, steps=3))
    assert torch.equal(model.sample(4, steps=3, guidance=Guidance(0.0, worse=0.3)), early.sample(4, steps=3))
    x = noise().new_ones(2, *model.codec.dims).float()
    found = model.asked(None, Guidance(1.5, worse=0.3))(x, 0.5).x0
    torch.testing.assert_close(found, 1.5 * model.denoiser(x, 0.5).x0 - 0.5 * early.denoiser(x, 0.5).x0)
    files = sfumato.sample(run, n=2, steps=2, guidance=1.5, worse=0.3)
    assert "w1.5-worse0.3" in files[0].parent.name
    ask = ["sample", str(run), "-n", "2", "--guidance", "1.5"]
    fails(capsys, [*ask, "--worse", "1.5"], "--worse is a share of the run")
    fails(capsys, ["sample", str(run), "--worse", "0.3"], "give a weight with --guidance")
    fails(capsys, [*ask, "--worse", "0.3", "--interval", "5", "2"], "0 <= low < high")
    fails(capsys, ["sample", "digits", "--guidance", "2", "--worse", "0.3"], "no averages were kept")
    with pytest.raises(UserError, match="either --away or --worse"):
        Guidance(1.5, away=3, worse=0.3)
    with pytest.raises(UserError, match="nothing is known of this model after"):
        model.sample(1, steps=2, guidance=Guidance(1.5, worse=0.6))


# ── The null condition ────────────────────────────────────────────────────────────────────────────────────────────────


def test_conditions_are_dropped_by_their_share():
    cond = Condition(torch.arange(20_000) % 7)
    got = cond.dropped(0.1, stream(0))
    gone = got.label == NULL
    assert abs(gone.double().mean() - 0.1) < 0.01 and torch.equal(got.label[~gone], cond.label[~gone])
    assert cond.dropped(0.0) is cond


def test_what_is_known_is_no_wish_and_stays():
    cond = Condition(torch.tensor([3, 1]), known=torch.randn(2, 2, 4, 4))
    for null in (cond.asking(NULL), cond.dropped(0.999999, stream(0))):
        assert null.label.tolist() == [NULL, NULL] and torch.equal(null.known, cond.known)
    assert torch.equal(cond[torch.tensor([1])].known, cond.known[1:]) and len(cond) == len(cond[:1]) + 1


def test_no_class_adds_nothing_to_what_a_network_hears():
    network = MLP(2, width=16, depth=1, classes=3)
    none, plain = Condition(torch.full((4,), NULL)), MLP(2, width=16, depth=1)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if "label" not in k})
    torch.nn.init.normal_(network.outlet.weight)
    plain.outlet.load_state_dict(network.outlet.state_dict())
    x, level = torch.randn(4, 2), torch.zeros(4)
    assert torch.equal(network(x, level, none), plain(x, level))


def test_a_network_learns_classes_and_none_of_them_from_one_loss():
    """Trained with a dropped share, the null condition answers for the mixture, and each class for its part."""
    torch.manual_seed(0)
    process = Gaussian(Cosine())
    model = Denoiser(MLP(2, width=64, depth=2, classes=2), process, sigma_data=1.2, drop=0.3)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for k in range(500):
        rng = stream(1, k)
        label = (torch.rand(512, generator=rng) < 0.7).long()
        x = PARTS.means[label] + PARTS.variances[label].sqrt() * torch.randn(512, 2, generator=rng, dtype=torch.float64)
        optimiser.zero_grad()
        model.loss(x.float(), Condition(label), rng).mean().backward()
        optimiser.step()
    x_t = noise(2000, seed=5)
    with torch.no_grad():
        for label, law in ((NULL, PARTS), (0, CLASSES[0]), (1, CLASSES[1])):
            said = Given(model.eval(), Condition(torch.full((2000,), label)))(x_t.float(), 0.5).x0
            right, other = (Exact(each, process)(x_t, 0.5).x0 for each in (law, PARTS if label >= 0 else CLASSES[0]))
            near, far = ((said - each).square().mean() for each in (right, other))
            assert near < 0.03 < far


# ── Runs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guide")
    return sfumato.train("digits", classes=True, steps=4, batch=16, size="tiny", out=str(folder / "run"))


def test_a_run_with_classes_may_be_guided(run, tmp_path):
    model = sfumato.load(run)
    assert model.knows_null and model.denoiser.drop == 0.1
    plain = model.sample(8, steps=3, cond=3)
    assert torch.equal(model.sample(8, steps=3, cond=3, guidance=Guidance(1.0)), plain)
    none = model.sample(8, steps=3, cond=NULL)
    assert torch.equal(model.sample(8, steps=3, cond=3, guidance=Guidance(0.0)), none)
    files = sfumato.sample(run, n=3, steps=3, class_="3", guidance=2.0, interval=(0.2, 5.0), away="1")
    assert "w2-away1-from0.2to5" in files[0].parent.name
    named = sfumato.sample(run, n=2, steps=2, class_="none", out=str(tmp_path / "none"))
    assert json.loads(Image.open(named[0]).text["sfumato"])["class"] == "none"


def test_a_recipe_says_how_samples_were_guided(run, tmp_path):
    *_, sheet = sfumato.sample(run, n=2, steps=2, guidance=2.0, out=str(tmp_path / "g"))
    told = json.loads(Image.open(sheet).text["sfumato"])
    assert told["guidance"] == {
        "weight": 2.0,
        "interval": [0.0, None],
        "rescale": 0.0,
        "away": None,
        "also": [],
        "worse": 0.0,
    }
    *_, sheet = sfumato.sample(run, n=2, steps=2, out=str(tmp_path / "p"))
    assert "guidance" not in json.loads(Image.open(sheet).text["sfumato"])


def test_guided_samples_take_twice_the_calls(run):
    model = sfumato.load(run)
    for weight, calls in ((None, 4), (1.0, 4), (2.0, 8)):
        guidance = None if weight is None else Guidance(weight)
        *_, last = model.trajectory(range(2), model.way(steps=4, guidance=guidance))
        assert last.nfe == calls


def test_what_cannot_be_guided_says_why(run, tmp_path, capsys):
    fails(capsys, ["sample", str(run), "--rescale", "0.5"], "give a weight with --guidance")
    fails(capsys, ["sample", str(run), "--guidance", "2", "--away", "fish"], "no class 'fish'")
    fails(capsys, ["sample", str(run), "--guidance", "2", "--class", "3", "--also", "fish:2"], "no class 'fish'")
    fails(capsys, ["sample", str(run), "--guidance", "2", "--also", "3"], "name that with --prompt, --class or --where")
    fails(capsys, ["sample", str(run), "--class", "3", "--also", "4"], "give a weight with --guidance")
    fails(capsys, ["sample", str(run), "--guidance", "2", "--interval", "5", "0.2"], "0 <= low < high")
    plain = sfumato.train("digits", steps=1, batch=8, size="tiny", out=str(tmp_path / "plain"))
    fails(capsys, ["sample", str(plain), "--guidance", "2"], "train with --classes")
    gan = sfumato.train("digits", model="gan", classes=True, steps=1, batch=8, out=str(tmp_path / "gan"))
    fails(capsys, ["sample", str(gan), "--guidance", "2"], "cannot be guided")
    fails(capsys, ["sample", str(gan), "--class", "none"], "without dropping its classes")
    student = sfumato.distill(run, calls=1, steps=1, batch=8, out=str(tmp_path / "student"))
    fails(capsys, ["sample", str(student), "--guidance", "2"], "guide its teacher")


def test_a_run_of_before_is_guided_from_class_to_class_alone(run, tmp_path, capsys):
    old = shutil.copytree(run, tmp_path / "old")
    config = (old / "config.toml").read_text()
    (old / "config.toml").write_text(config.replace("drop = 0.1\n", ""))
    fails(capsys, ["sample", str(old), "--guidance", "2"], "without dropping its classes")
    assert len(sfumato.sample(old, n=2, steps=2, class_="3", guidance=2.0, away="1")) == 3
