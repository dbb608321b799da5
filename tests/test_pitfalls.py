"""Faults of other libraries, each with a test of ours: those written elsewhere are listed, the rest stand here.

Laws instead of golden numbers
    a sampler of lower order than said (azula REAB) -> test_sampler::test_measured_order_is_the_declared_one
        and that the check can fail -> test_sampler::test_a_sampler_below_its_declared_order_is_caught
    an expensive order lost in a cheap first step -> test_sampler::test_start_errors_stay_where_they_are_declared
    Langevin on sub-VP (score_sde_pytorch #8) -> test_sampler_laws::test_every_combination_is_right_or_refused
    one draw of noise for all times (DiffusionLab)
        -> test_view::test_forward_path_is_a_markov_path_from_the_data_to_the_prior
    no kernel q(x_t | x_s) -> test_process::test_chapman_kolmogorov
    alpha cumulative or per step (score_sde_pytorch #73) -> test_process::test_chain_of_the_default_table_is_ddpm
    twenty converters -> test_denoise::test_every_conversion_round_trips
    exact divergence not on images (flow_matching) -> test_flow_logp::test_images
    no gradient of log p (flow_matching #59) -> test_flow_logp::test_the_gradient_is_the_score
    a start of another scale than the process (EDM's) -> test_process::test_prior_is_the_marginal_without_signal
    a hidden, pinned solver (torchcfm #60) -> test_ode::test_it_agrees_with_scipy
    normal CDF by tanh (guided-diffusion) -> test_vlb::test_the_probabilities_are_differences_of_the_normal_cdf
    log(0) of tokens (DiGress #51) -> test_dist::test_kl_of_tokens_is_infinite_only_where_mass_is_missing
    where bits/dim have their offset (score_sde_pytorch #51)
        -> test_vlb::test_the_bound_knows_whether_a_volume_belongs_to_it
        and that it belongs to the data -> test_data_codec::test_log_volume_is_the_log_determinant_of_encode

Times and noise levels (diffusers)
    DDIM's stride (#9261, #11347, #12633) -> test_diffusers::test_ddim_goes_where_its_grid_does_not
    the last step does nothing (#5689) -> test_sampler::test_the_last_step_lands_on_the_estimate
    noise does not start at T - 1 (#7401) -> test_grid::test_named_grids_fall_from_noise_to_data
    churn after the model call -> test_diffusers::test_churn_comes_after_the_network
        and ours -> test_sampler_laws::test_weak_order_is_the_declared_one
    eps with no signal left (#3851) -> test_denoise::test_bad_denoisers_are_refused_when_built
    a mode that was always NaN (#14569) -> test_sampler_laws::test_the_parameterisation_makes_no_difference
    model time * 1000, log-SNR clipped (dpm-solver #60)
        -> test_denoise::test_network_sees_unit_variance_and_bounded_level
    a learned variance for three channels -> test_denoise::test_learned_variance_without_the_channels_is_refused
    min-SNR of v (#5096, #5238, #5654, #6307) -> test_weighting::test_min_snr_of_v_is_the_weight_that_took_five_mends

Batches, seeds and numbers
    adaptive solvers couple the batch -> test_sampler::test_an_example_does_not_depend_on_its_neighbours
        -> test_ode::test_an_example_does_not_depend_on_its_neighbours
    image k cannot be made again (#612, k-diffusion #25) -> test_sampler::test_a_samples_noise_is_its_own
    float64 where there is none (#9224) -> test_ode::test_float32_states_stay_float32
    NaN becomes a black picture (#6492, #3347) -> test_data_codec::test_decode_refuses_states_that_are_not_finite
        and days of training (lucidrains #61) -> test_guard::test_a_hundred_poisoned_steps_leave_no_trace

Runs and data
    resume replays other data (accelerate #2823) -> test_resume::test_killed_a_few_times
    previews of an average that is not warm (#1772) -> test_engine::test_power_average_has_its_horizon
    a schedule in calls (#4468) -> test_engine::test_learning_rate_warms_up_stays_and_falls_to_nothing
    grey needs three edits (#10677) -> test_data_folder::test_grey_in_content_is_one_channel
        -> test_data_codec::test_png_holds_the_pixels_and_the_recipe
    the range of values is guessed (lucidrains #183) -> test_data_arrays::test_other_ranges_are_refused
    28 x 28 dies in the UNet (#3630) -> test_nn::test_networks_keep_any_shape
    how to give a condition (lucidrains #349) -> test_flow_logp::test_labels_stay_with_their_examples
    labels lost on the way -> test_nn::test_labels_must_fit_the_network
    heavy imports (guided-diffusion #27) -> test_house::test_the_command_line_starts_without_heavy_libraries
    a checkpoint that cannot be sampled (#9719)
        -> test_cli::test_samples_carry_their_recipe_and_can_be_made_again
    no generator over steps (#9407) -> test_sampler::test_network_calls_are_counted

What sfumato does not have yet, so that nothing can be tested: guidance and where its scale starts (#5882), couplings
that carry labels (torchcfm #132), flat pictures from a coupling (torchcfm), consistency training (#8277), a VAE (#894),
several processes (#3886, #4468 on two GPUs), text, Fréchet distances on Inception's features (k-diffusion #51), MPS.
Data are never flipped or cropped at random, so a likelihood cannot be that of other pictures (guided-diffusion).
"""

import re
from pathlib import Path

import pytest
import torch

from laws import output_law
from oracles import SCHEDULES, Exact, gaussian, tensor
from sfumato.data import load as load_data
from sfumato.dist import stream
from sfumato.engine.evaluate import Evaluation, Real, compare
from sfumato.grid import GRIDS, R_MAX, R_MIN, times
from sfumato.metrics.features import features_of
from sfumato.process import Gaussian
from sfumato.sampler import DDIM, Sampler, generate
from sfumato.schedule import VP, Flow, Table
from test_engine import chosen

LAW = gaussian(mean=0.7, var=0.5, dim=1)
HERE = Path(__file__).parent


def missing(text):
    """The tests named "file::test" in a text that do not exist."""
    named = re.findall(r"(test_\w+)::(test_\w+)", text)
    assert named
    return [f"{file}::{test}" for file, test in named if f"\ndef {test}(" not in _source(file)]


def _source(file):
    path = HERE / f"{file}.py"
    return path.read_text("utf-8") if path.exists() else ""


def test_the_tests_listed_above_exist():
    assert missing(__doc__) == []
    assert missing("test_grid::test_nothing test_nowhere::test_x") == [
        "test_grid::test_nothing",
        "test_nowhere::test_x",
    ]


class Slipped(Sampler):
    """DDIM with alpha_t where alpha_s belongs, as in hackable's AdjustedDDIMStep."""

    def step(self, model, x, t, s, memory, rng):
        estimate = model(x, t)
        return t.alpha * estimate.x0 + s.sigma * estimate.eps, estimate, None


def mean_error(monkeypatch, method, steps):
    """Of data N(0.7, 0.5) on the straight flow, from noise, without sampling noise."""
    model = Exact(LAW, Gaussian(Flow()), "flow")
    *_, (_, (mean, _)) = output_law(monkeypatch, model, method, times("uniform", steps, Flow()), (0.0, 1.0))
    return abs(float(mean) - 0.7)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_mean_of_the_data_is_kept(eta, monkeypatch):
    """hackable: a mean of 0.70 comes out as 0.27, with any number of steps; its test is a number the bug made."""
    errors = [mean_error(monkeypatch, DDIM(eta), steps) for steps in (64, 512)]
    assert errors[0] < 0.05
    assert errors[1] < 0.007
    assert min(mean_error(monkeypatch, Slipped(), steps) for steps in (64, 512)) > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_states_get_their_noise(dtype):
    """diffusers casts alpha_bar first: ten steps without noise, 26 more than 5 percent off. Here every kernel is right.

    The truth is DDPM's chain in its betas (Ho et al. 2006.11239, eq. 2, 4 and 7).
    """
    q, x = Gaussian(Table()), torch.ones(1, 4, dtype=dtype)
    betas = tensor(Table().betas)
    alpha_bars = torch.cat([tensor([1.0]), (1 - betas).cumprod(0)])
    for k in range(1, 40):
        beta, before, after = betas[k - 1], alpha_bars[k - 1], alpha_bars[k]
        t, s = k / 1000, (k - 1) / 1000
        for law, mean, var in (
            (q.marginal(x, t), after.sqrt(), 1 - after),
            (q.transition(x, s, t), (1 - beta).sqrt(), beta),
            (
                q.posterior(x, x, t, s),
                (before.sqrt() * beta + (1 - beta).sqrt() * (1 - before)) / (1 - after),
                beta * (1 - before) / (1 - after),
            ),
        ):
            assert law.std.dtype == dtype
            assert float(law.std) == pytest.approx(float(var.sqrt()), rel=2**-8, abs=1e-9)
            torch.testing.assert_close(law.mean.double(), mean.expand(1, 4), rtol=2**-6, atol=0)


def test_low_precision_samples_have_their_noise():
    """The same as drawn: the spread of x_t about alpha x_0 at the chain's first time, in bfloat16."""
    noisy = Gaussian(Table()).marginal(torch.zeros(1, 4000, dtype=torch.bfloat16), 1 / 1000).sample(stream(0))
    assert float(noisy.double().std()) == pytest.approx(0.01, rel=4 / 8000**0.5)


def test_the_whole_grid_is_the_grid_of_training():
    """diffusers #13243 warps its grid twice: asked for all 1,000 stops it gives others than it trained on."""
    for grid in ("uniform", "trailing"):
        torch.testing.assert_close(times(grid, 1000, Table()).flip(0), Gaussian(Table()).chain(1000).times)
    learned = torch.tensor(Table().betas, dtype=torch.float64)
    torch.testing.assert_close(Gaussian(Table()).chain(1000).betas, learned, rtol=1e-10, atol=0)


def test_a_chain_of_1000_has_any_number_of_stops():
    """guided-diffusion's "ddimN" fails for most N; diffusers' stride ends beside the data unless N divides 1,000."""
    for n in range(1, 1001):
        stops = times("trailing", n, Table()) * 1000
        assert len(stops) == n + 1
        assert stops[0] == 1000
        assert stops[-1] == 0
        assert bool((stops == stops.round()).all())
        assert bool((stops.diff() < 0).all())


@pytest.mark.parametrize("name", ["karras", "logsnr"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_range_of_noise_levels_is_that_of_the_schedule(name, schedule):
    """diffusers: sigma_max is 157.4 or 60.8 by class and number of steps."""
    r = [(-schedule.logsnr(times(name, n, schedule)[:-1]) / 2).exp() for n in (3, 10, 301)]
    highest = min(float((-schedule.logsnr(1.0) / 2).exp()), R_MAX)
    middle = [float(levels[len(levels) // 2]) for levels in (r[0], r[2])]
    assert [float(levels[-1]) for levels in r] == pytest.approx([R_MIN] * 3, rel=1e-6)
    assert middle[0] == pytest.approx(middle[1], rel=1e-6)  # equal ends, equal middle
    root = {"karras": lambda x: x ** (1 / 7), "logsnr": lambda x: tensor(x).log()}[name]
    assert float(root(middle[0])) == pytest.approx((float(root(highest)) + float(root(R_MIN))) / 2, rel=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_spacing_does_not_change_what_is_drawn(grid):
    """diffusers #7401: FID swings with the spacing alone. With many steps every grid of ours leads to one place."""
    x = torch.randn(4, 1, generator=stream(1), dtype=torch.float64)
    model = Exact(LAW, Gaussian(VP()))
    exact = 0.7 + (0.5 / (1 + float(VP().alpha(1.0)) ** 2 * (0.5 - 1))) ** 0.5 * (x - float(VP().alpha(1.0)) * 0.7)
    torch.testing.assert_close(generate(model, DDIM(), x, grid, 1000), exact, rtol=0, atol=0.01)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def test_sigma_data_is_that_of_the_data(digits):
    """k-diffusion #10: 0.5 is not the spread of every data set, 0.75 is that of digits."""
    states = digits.codec.encode(digits.items).double()
    spread = (states.square().mean() - states.mean() ** 2).sqrt()
    config, lines = chosen(digits)
    (line,) = (line for line in lines if line.split()[0] == "sigma_data")
    assert config.model.sigma_data == pytest.approx(float(spread), abs=1e-3)
    assert float(line.split()[1]) == pytest.approx(float(spread), abs=1e-3)
    assert "measured" in line


def test_copies_of_the_training_set_are_seen(digits):
    """improved-diffusion #63: small sets are copied. A metric says of what features it is (k-diffusion #51)."""
    measures, notes = compare(
        Real(digits, digits.test, features_of("raw", (1, 8, 8))[0]), digits.items, digits.labels, 0
    )
    found = {measure.name.split("[")[0]: measure for measure in measures}
    nearest, copies, recognised = (
        found[n] for n in ("median distance to nearest train", "near copies", "recognised as asked")
    )
    assert nearest.value == 0 < nearest.real and copies.value == 1 and copies.real < 0.02
    assert found["frechet"].name == "frechet[64 raw values]" and notes == []
    assert found["frechet"].value == pytest.approx(found["frechet"].real, rel=1e-6)
    assert found["recall"].value == found["recall"].real and found["precision"].trivial < 0.1
    assert recognised.value > 0.99 > recognised.trivial
    said = Evaluation("run", "w", "digits", "raw", 50, 1, 2, 7, 12, "ddim", "logsnr", tuple(measures)).lines()
    assert said[0].startswith("50 samples of run (seed 7, ddim, 12 steps)")
    assert all(measure.name in line for measure, line in zip(measures, said[1:], strict=True))
