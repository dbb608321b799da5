"""The one-file example: small, self-contained, and the same mathematics as the library."""

import ast
import importlib.util
import io
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

from oracles import tensor
from sfumato.dist import Normal
from sfumato.process import Gaussian
from sfumato.schedule import Cosine

FILE = Path(__file__).parents[1] / "examples" / "nano_ddpm.py"
TIMES = [(0.01, 0.02), (0.1, 0.9), (0.37, 0.61), (0.98, 1.0)]
X = tensor([[0.3, -1.2], [2.0, 0.0]])
CLOSE = {"rtol": 1e-12, "atol": 1e-12}

everywhen = pytest.mark.parametrize(("s", "t"), [(tensor(s), tensor(t)) for s, t in TIMES])


def load():
    spec = importlib.util.spec_from_file_location("nano_ddpm", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


nano = load()


@pytest.fixture(scope="module")
def digits():
    pictures, digit = (torch.tensor(part) for part in nano.load_digits(return_X_y=True))
    return pictures.float() / 8 - 1, digit


@pytest.fixture(scope="module")
def network(digits):
    """The minute's network after its first three seconds."""
    x_0, digit = digits
    return nano.train(x_0[:1500], digit[:1500], steps=150)


def test_one_page_that_imports_little():
    text = FILE.read_text("utf-8")
    assert len(text.splitlines()) <= 150
    roots = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            roots |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            roots.add(node.module.split(".")[0])
    assert roots - sys.stdlib_module_names == {"torch", "sklearn"}


@everywhen
def test_marginal_is_transition_after_marginal(s, t):
    """x_t = alpha_ts x_s + noise: means compose, variances add."""
    (mean_s, std_s), (mean_t, std_t) = nano.q_marginal(X, s), nano.q_marginal(X, t)
    step, fresh = nano.q_transition(mean_s, s, t)
    slope = nano.q_transition(torch.ones_like(X), s, t)[0]
    torch.testing.assert_close(step, mean_t, **CLOSE)
    torch.testing.assert_close((slope**2 * std_s**2 + fresh**2).sqrt(), std_t.expand_as(X), **CLOSE)


@everywhen
def test_posterior_is_bayes_rule(s, t):
    """log q(x_s|x_t,x_0) + log q(x_t|x_0) = log q(x_t|x_s) + log q(x_s|x_0), at any three points."""
    x_0, x_s, x_t = X, X.flip(0) + 0.1, 0.5 * X - 0.2
    left = Normal(*nano.q_posterior(x_t, x_0, t, s)).log_prob(x_s) + Normal(*nano.q_marginal(x_0, t)).log_prob(x_t)
    right = Normal(*nano.q_transition(x_s, s, t)).log_prob(x_t) + Normal(*nano.q_marginal(x_0, s)).log_prob(x_s)
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@everywhen
def test_it_is_the_library_process_on_the_quarter_circle(s, t):
    q = Gaussian(Cosine(offset=0.0, end=2 * nano.END / torch.pi))
    pairs = [
        (nano.q_transition(X, s, t), q.transition(X, s, t)),
        (nano.q_marginal(X, t), q.marginal(X, t)),
        *((nano.q_posterior(X, X.flip(0), t, s, eta), q.posterior(X, X.flip(0), t, s, eta)) for eta in (0.0, 0.3, 1.0)),
    ]
    for (mean, std), law in pairs:
        torch.testing.assert_close(mean, law.mean, **CLOSE)
        torch.testing.assert_close(std, law.std, rtol=1e-9, atol=1e-12)


def test_the_loss_of_the_true_v_is_zero_and_of_no_answer_its_power(digits):
    """With one picture in the data v is known: (alpha x_t - x_0) / sigma; and E v^2 = E alpha^2 + x_0^2 E sigma^2."""
    x_0 = digits[0][:1].expand(4000, 64)

    def knows(x_t, t, _):
        alpha, sigma = nano.alpha_sigma(t)
        return (alpha * x_t - x_0) / sigma

    assert nano.loss(knows, x_0, None, torch.Generator().manual_seed(0)) < 1e-4  # float32, divided by a small sigma
    share = torch.sin(tensor(2 * nano.END)) / (4 * nano.END)  # E alpha^2 - 1/2 for t uniform in [0, 1]
    power = (0.5 + share) + (0.5 - share) * x_0.square().mean()
    silent = nano.loss(lambda x_t, t, _: torch.zeros_like(x_t), x_0, None, torch.Generator().manual_seed(0))
    assert float(silent) == pytest.approx(float(power), rel=0.02)


def test_a_short_training_beats_the_best_guess_from_single_pixels(digits, network):
    """On digits it never saw, with the same times and noise, the network beats E[x_0 | x_t] of independent pixels."""
    x_0, digit = digits
    mean, var = x_0[:1500].mean(0), x_0[:1500].var(0)

    def pixels_alone(x_t, t, _):
        alpha, sigma = nano.alpha_sigma(t)
        guess = mean + alpha * var / (alpha**2 * var + sigma**2) * (x_t - alpha * mean)
        return (alpha * x_t - guess) / sigma

    with torch.no_grad():
        ours, trivial, silent = (
            float(nano.loss(model, x_0[1500:], digit[1500:], torch.Generator().manual_seed(7)))
            for model in (network, pixels_alone, lambda x_t, t, _: torch.zeros_like(x_t))
        )
    assert ours < 0.9 * trivial < 0.9 * silent


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_are_a_function_of_the_seed(network, eta):
    asked = torch.arange(6)
    one, again, other = (nano.sample(network, asked, eta, stops=8, seed=seed) for seed in (3, 3, 4))
    assert len(one) == 9
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[-1], other[-1])


def test_eta_0_draws_nothing_after_the_start(network):
    """Its samples are a function of the first noise; with eta = 1 they are not."""
    asked = torch.arange(4)
    x_t = nano.sample(network, asked, 0.0, stops=8)
    for k, (here, there) in enumerate(pairwise(x_t)):
        t, s = torch.tensor((8 - k) / 8), torch.tensor((7 - k) / 8)
        alpha, sigma = nano.alpha_sigma(t)
        with torch.no_grad():
            guess = alpha * here - sigma * network(here, t.expand(4, 1), asked)
        mean, std = nano.q_posterior(here, guess, t, s, eta=0.0)
        assert std == 0
        torch.testing.assert_close(there, mean)
    noisy = nano.sample(network, asked, 1.0, stops=8)
    assert torch.equal(noisy[0], x_t[0])
    assert (noisy[-1] - x_t[-1]).abs().max() > 0.01


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_with_the_exact_network_the_chain_ends_in_the_law_of_the_data(eta):
    """Data N(0, 1) in every pixel: then v = 0 is exact, every x_t is N(0, 1), and both chains keep it.

    eta = 1 loses what DDPM's small variance loses, O(1/stops); sampling error of the variance: sqrt(2 / 32,000).
    """
    x = nano.sample(lambda x_t, t, _: torch.zeros_like(x_t), torch.zeros(500), eta, stops=400)[-1]
    assert float(x.mean()) == pytest.approx(0, abs=0.02)
    assert float(x.var()) == pytest.approx(1, abs=0.04)


def test_the_png_is_the_grid_of_the_pictures(digits):
    x_0 = digits[0][:20]
    image = Image.open(io.BytesIO(nano.png(x_0, zoom=3)))
    assert image.format == "PNG"
    assert image.size == (300, 60)
    for i in (0, 9, 17):
        row, column = divmod(i, 10)
        for y, x in ((0, 3), (4, 4), (7, 2)):
            grey = image.getpixel((3 * (10 * column + 1 + x) + 1, 3 * (10 * row + 1 + y) + 1))
            assert grey == int((float(x_0[i, 8 * y + x]) + 1) * 127.5)


def test_the_terminal_shows_two_pixels_a_character(digits):
    lines = nano.in_blocks(digits[0][:10]).split("\n")
    assert [len(line) for line in lines] == [80] * 4
    for i in range(10):
        on = digits[0][i].view(8, 8) > 0
        for y in range(4):
            for x in range(8):
                assert lines[y][8 * i + x] == " ▀▄█"[int(on[2 * y, x]) + 2 * int(on[2 * y + 1, x])]


def test_the_command_writes_the_picture_it_names(tmp_path, monkeypatch, capsys):
    out = tmp_path / "new.png"
    monkeypatch.setattr(sys, "argv", ["nano_ddpm.py", "--steps", "1", "--out", str(out)])
    nano.main()
    with Image.open(out) as image:
        assert image.size == (600, 600)
    assert str(out) in capsys.readouterr().out
