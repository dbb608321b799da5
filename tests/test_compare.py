"""A contest of models: what it tells, what it does not do twice, what it counts and what it refuses."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.cli import main
from sfumato.data import load
from sfumato.engine import compare as comparing
from sfumato.engine import entry, trials
from sfumato.engine.contest import Contest, Entrant, Terms, Trial, best
from sfumato.engine.course import Recovery
from sfumato.engine.evaluate import Measure
from sfumato.engine.run import Run
from sfumato.engine.speed import Speed
from sfumato.errors import Diverged
from sfumato.view.versus import _seeds, page

WORDS = ["compare", "moons", "--time", "1s", "-n", "60"]


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A contest of all four on one seed, which nothing disturbed, and what it said."""
    folder = tmp_path_factory.mktemp("contest") / "moons"
    assert main([*WORDS, "--seeds", "1", "--out", str(folder)]) == 0
    return folder


def told(folder):
    return json.loads((folder / "compare.json").read_text())


def test_every_entrant_is_a_run_of_its_own_and_judged_alike(held):
    record = told(held)
    assert [each["model"] for each in record["entrants"]] == ["diffusion", "student", "gan", "vae"]
    names = [[m["name"] for m in each["measures"]] for each in record["entrants"]]
    assert all(each == names[0] for each in names) and "recall[2 raw values]" in names[0]
    for each in record["entrants"]:
        run = Run.open(Path(each["run"]))
        model, notes = run.load()
        assert each["weights"] == model.fingerprint() and each["steps"] == int(notes["step"])
        assert each["memory"] > 50
    assert {name: speed["calls"] for name, speed in record["speeds"].items()} == {
        "diffusion": 12,
        "student": 1,
        "gan": 1,
        "vae": 1,
    }
    bits = {each["model"]: each["bits"] for each in record["entrants"]}
    assert bits["student"] is bits["gan"] is None and math.isfinite(bits["diffusion"]) and math.isfinite(bits["vae"])
    counts = {each["model"]: each["parameters"] for each in record["entrants"]}
    assert max(counts.values()) <= 1.05 * min(counts.values())
    assert any("one seed" in note for note in record["notes"])
    assert any("a student learns from the diffusion model" in note for note in record["notes"])


def test_the_first_seed_tells_its_way_and_how_it_takes_a_spike(held):
    told_of = {each["model"]: each for each in told(held)["entrants"]}
    assert all(each["course"] for each in told_of.values())
    assert told_of["student"]["recovery"] is None
    assert all(told_of[model]["recovery"]["before"] > 0 for model in ("diffusion", "gan", "vae"))
    assert "any number of calls" in " ".join(told_of["diffusion"]["abilities"])
    page = (held / "compare.html").read_text()
    assert page.count('aria-label="distance against minutes of training"') == 1


def test_a_collapse_is_a_recall_of_next_to_nothing():
    def of(recall):
        return Entrant("gan", 0, "x", measures=(Measure("recall[x]", recall, 0, 1, 0.9, 0, "high"),))

    contest = Contest(Path("c"), Terms("d", "1s", 3, ("gan",)), (of(0.0), of(0.05), of(0.06)), {})
    assert "2 of 3" in next(line for line in contest.lines() if "collapsed" in line)


def test_the_same_command_again_repeats_nothing(held, monkeypatch, capsys):
    before = told(held)
    for where, name in ((comparing, "evaluate"), (entry, "begin"), (entry, "distill"), (entry, "go_on")):
        monkeypatch.setattr(where, name, lambda *_, name=name: pytest.fail(f"{name} was called again"))
    assert main([*WORDS, "--seeds", "1", "--out", str(held)]) == 0
    assert told(held)["entrants"] == before["entrants"]
    assert "recall[2 raw values]" in capsys.readouterr().out


def test_stopped_between_training_and_judging_it_trains_nothing_again(tmp_path, monkeypatch):
    words = [*WORDS, "--seeds", "2", "--models", "gan,vae", "--out", str(tmp_path / "c")]
    judged = []

    def judge(run, *rest, real=comparing.evaluate):
        if len(judged) == 1:
            raise KeyboardInterrupt
        judged.append(run.name)
        return real(run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(comparing, "evaluate", judge)
        assert main(words) == 130
    assert [each["run"].endswith("gan-0") for each in told(tmp_path / "c")["entrants"]] == [True]
    first = Run.open(tmp_path / "c" / "vae-0").load()[0].fingerprint()
    begun = []

    def begin(asked, real=entry.begin):
        begun.append(Path(asked.out).name)
        return real(asked)

    monkeypatch.setattr(entry, "begin", begin)
    assert main(words) == 0
    assert begun == ["gan-1", "vae-1"]
    entrants = told(tmp_path / "c")["entrants"]
    assert {Path(each["run"]).name: each["weights"] for each in entrants}["vae-0"] == first
    seeds = {(each["model"], each["seed"]) for each in entrants}
    assert seeds == {("gan", 0), ("gan", 1), ("vae", 0), ("vae", 1)}


def test_a_training_that_diverges_is_counted_with_its_student_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def begin(asked, real=entry.begin):
        if asked.model == "diffusion":
            raise Diverged("weights are not finite")
        return real(asked)

    monkeypatch.setattr(entry, "begin", begin)
    words = [*WORDS, "--seeds", "1", "--models", "student,diffusion,gan", "--out", str(tmp_path / "c")]
    assert main(words) == 0
    record = told(tmp_path / "c")
    failed = {each["model"]: each["failed"] for each in record["entrants"]}
    assert failed == {"diffusion": "weights are not finite", "student": "its teacher failed", "gan": ""}
    out = capsys.readouterr().out
    assert "1 of 1" in out and "note: diffusion, seed 0, failed: weights are not finite" in out


def entrant(model, seed, value, **more):
    measure = Measure("frechet[x]", value, value, value, 0.25, 9.0, "low")
    return Entrant(model, seed, f"runs/{model}-{seed}", "w", **{"parameters": 100, "measures": (measure,)} | more)


def test_the_table_tells_medians_ends_and_failures():
    first = entrant("gan", 0, 3.0, recovery=Recovery(2.0, None, 5.0), abilities=("smoke",))
    entrants = (
        first,
        *(entrant("gan", k, value) for k, value in enumerate((1.0, 8.0), 1)),
        entrant("vae", 0, 2.0),
        Entrant("vae", 1, "runs/vae-1", failed="broke"),
        entrant("vae", 2, 4.0),
    )
    terms = Terms("digits", "2m", 3, ("gan", "vae"))
    contest = Contest(Path("c"), terms, entrants, {"gan": Speed(1, 2e6, 10.0, 1234.0, 64)})
    lines = {line.split("  ")[1]: line for line in contest.lines() if line.startswith("  ")}
    assert "3 (1 to 8)" in lines["frechet[x]"] and "3 (2 to 4)" in lines["frechet[x]"]
    assert lines["frechet[x]"].endswith("0.25")
    assert lines["distance after 10x the lr (at once)"].split()[7:] == ["2.5x", "(lost)", "-"]
    assert lines["can give smoke"].split()[-2:] == ["yes", "-"]
    assert "0 of 3" in lines["failed"] and "1 of 3" in lines["failed"]
    assert "1,234 (64 at a time)" in lines["samples/s at best"]
    assert lines["network calls a sample"].split()[-1] == "-"  # of the VAE nothing was timed


def test_sizes_that_differ_are_told():
    entrants = (entrant("gan", 0, 1.0), entrant("vae", 0, 1.0, parameters=106))
    notes = list(comparing._notes(entrants, Terms("digits", "2m", 2, ("gan", "vae"))))
    assert notes == ["parameters differ by more: gan 100, vae 106"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["moons", "--seeds", "0"], "--seeds must be at least 1"),
        (["moons", "--models", "gan"], "two or more of diffusion, student, gan, vae, ladder"),
        (["moons", "--models", "gan,gan"], "each once"),
        (["moons", "--models", "gan,vea"], "unknown model 'vea'"),
        (["moons", "--models", "student,gan"], "add diffusion to --models"),
        (["moons", "--time", "soon"], "'soon' is no time"),
        (["moons", "--trials", "1"], "--trials must be 2 or more, or 0"),
        (["moons", "--trials", "-2"], "--trials must be 2 or more, or 0"),
        (["checkerboard", "--classes"], "has no classes"),
        (["nothing-here"], "nothing-here"),
    ],
)
def test_impossible_terms_are_refused_in_one_line_before_anything_is_written(words, reason, tmp_path, capsys):
    assert main(["compare", *words, "--out", str(tmp_path / "c")]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_data_without_a_held_out_part_are_refused(tmp_path, capsys):
    (tmp_path / "points.csv").write_text("\n".join(f"{k},{k}" for k in range(40)))
    assert main(["compare", str(tmp_path / "points.csv"), "--out", str(tmp_path / "c")]) == 2
    assert "has no held-out part" in capsys.readouterr().err


def test_data_that_hold_out_too_little_are_refused(tmp_path, capsys):
    for part, count in (("train", 30), ("test", 3)):
        for k in range(count):
            (tmp_path / "d" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 7 * k, np.uint8)).save(tmp_path / "d" / part / f"{k}.png")
    assert main(["compare", str(tmp_path / "d"), "--out", str(tmp_path / "c")]) == 2
    assert "3 held-out examples are too few to compare with" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
    assert main(["train", str(tmp_path / "d"), "--steps", "2", "--batch", "4", "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "3 held-out examples are too few" in error and error.count("\n") == 1


def test_other_terms_foreign_folders_and_damaged_records_are_refused(held, tmp_path, capsys):
    assert main(["compare", "moons", "--time", "2s", "-n", "60", "--seeds", "1", "--out", str(held)]) == 2
    assert "under other terms" in capsys.readouterr().err
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("dear")
    assert main([*WORDS, "--out", str(tmp_path / "letters")]) == 2
    assert "no comparison of ours" in capsys.readouterr().err
    for words in (WORDS, ["compare", str(held / "gan-0"), str(held / "vae-0")]):
        assert main([*words, "--out", str(tmp_path / "letters" / "one.txt")]) == 2
        assert "no comparison of ours" in capsys.readouterr().err
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "compare.json").write_text("{")
    assert main([*WORDS, "--out", str(tmp_path / "c")]) == 2
    assert "damaged" in capsys.readouterr().err


def test_bits_count_what_the_bound_and_the_volume_of_a_bin_say():
    """A uniform law on the states says 2^-levels of every value: log2(17) bits, whatever the picture."""
    digits = load("digits")

    class Uniform:
        codec, classes, batch, device = digits.codec, (), 128, torch.device("cpu")

        def conditions_of(self, dataset, index):
            return None

        def bound(self, x, cond, rng):
            half = digits.codec.level_width / 2
            assert float(x.min()) >= -1 - half and float(x.max()) <= 1 + half and len(rng) == len(x)
            return torch.full((len(x),), -64 * math.log(2 + 2 * half), dtype=torch.float64)

    assert comparing._bits(Uniform(), digits) == pytest.approx(math.log2(17))


# ── Trials ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rates_are_tried_on_both_sides_of_the_usual_one():
    assert [trials.factor(k) for k in range(5)] == [1, 2, 0.5, 4, 0.25]


def test_the_rate_whose_samples_come_nearest_trains_and_all_is_told(tmp_path, monkeypatch, capsys):
    """What a trial is said to be worth decides, one that diverges has no say, and what was tried is not tried again."""
    worth = {1: 0.4, 2: 0.3, 0.5: None, 4: math.nan}
    asked = []

    class Nearness:
        def __init__(self, dataset, say):
            assert dataset.name == "moons"

        def __call__(self, what, model):
            return worth[float(asked[-1].out.rpartition("-")[2])]

    def begin(words, real=entry.begin):
        asked.append(words)
        if worth.get(float(words.out.rpartition("-")[2]), 0) is None:
            real(words)
            raise Diverged("weights are not finite")
        if len(asked) == 2 and stops:
            raise stops.pop()
        return real(words)

    stops = [KeyboardInterrupt()]
    monkeypatch.setattr(trials, "Nearness", Nearness)
    monkeypatch.setattr(entry, "begin", begin)
    words = [*WORDS, "--seeds", "1", "--trials", "4", "--models", "gan,vae", "--out", str(tmp_path / "c")]
    assert main(words) == 130
    assert [each["model"] for each in told(tmp_path / "c")["trials"]] == ["gan"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert len(asked) == 2 * (4 + 1) + 1  # the second was stopped, and is the only one to begin twice
    assert {each.seed for each in asked if "trials" in each.out} == {trials.SEED}
    assert {each.time for each in asked if "trials" in each.out} == {"0.2s"}
    for model in ("gan", "vae"):
        tried = [each for each in told(tmp_path / "c")["trials"] if each["model"] == model]
        usual = tried[0]["lr"]
        assert [each["lr"] / usual for each in tried] == [1, 2, 0.5, 4]
        assert [each["distance"] for each in tried] == [0.4, 0.3, None, None]
        assert Run.open(tmp_path / "c" / f"{model}-0").config.lr == 2 * usual
        lost = f"{usual / 2:g}: lost, {4 * usual:g}: lost"
        line = f"{model}: {usual:g}: 0.4, {2 * usual:g}: 0.3, {lost}; {2 * usual:g} trains."
        assert line in out and line in (tmp_path / "c" / "compare.html").read_text()
    before = len(asked)
    assert main(words) == 0 and len(asked) == before
    assert main([*words[:-4], "--models", "gan,vae", "--out", str(tmp_path / "c"), "--trials", "2"]) == 2
    assert "under other terms" in capsys.readouterr().err


def test_a_trial_is_held_against_training_examples_and_a_student_has_some_too(tmp_path, capsys):
    words = [*WORDS, "--seeds", "1", "--trials", "2", "--models", "student,diffusion", "--out", str(tmp_path / "c")]
    assert main(words) == 0
    record = told(tmp_path / "c")
    assert [each["model"] for each in record["trials"]] == ["diffusion"] * 2 + ["student"] * 2
    assert all(each["distance"] > 0 for each in record["trials"])
    assert "Tried: 2 learning rates of each, 20% of the time for each" in capsys.readouterr().out
    for model in ("diffusion", "student"):
        tried = [Trial(**each) for each in record["trials"] if each["model"] == model]
        assert Run.open(tmp_path / "c" / f"{model}-0").config.lr == best(tried)
        assert Run.open(tmp_path / "c" / "trials" / f"{model}-2").config.lr == tried[1].lr


# ── Runs as they are ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_runs_are_compared_as_they_are(held, tmp_path, capsys):
    runs = [str(held / "gan-0"), str(held / "vae-0")]
    assert main(["compare", *runs, "-n", "60", "--out", str(tmp_path / "c")]) == 0
    out = capsys.readouterr().out
    assert "gan-0" in out and "runs as they are" in out and "note: trained for gan-0" in out
    entrants = {each["model"]: each for each in told(tmp_path / "c")["entrants"]}
    before = {Path(each["run"]).name: each for each in told(held)["entrants"]}
    assert entrants["gan-0"]["measures"] == before["gan-0"]["measures"]  # the same samples of the same weights
    assert (tmp_path / "c" / "compare.html").exists()


def test_runs_that_cannot_be_compared_are_refused(held, tmp_path, capsys):
    gan, out = str(held / "gan-0"), ["--out", str(tmp_path / "c")]
    assert main(["train", "ring8", "--steps", "2", "--batch", "8", "--out", str(tmp_path / "ring")]) == 0
    for others, reason in (
        ([str(tmp_path / "ring")], "trained on data moons and ring8"),
        ([str(tmp_path / "none")], "no such run"),
        ([gan], "two or more runs by different names"),
        ([], "two or more runs by different names"),
    ):
        assert main(["compare", gan, *others, *out]) == 2
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1
    assert not (tmp_path / "c").exists()


# ── The page ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_shows_every_seed_and_fetches_and_runs_nothing(held):
    text = (held / "compare.html").read_text()
    assert "default-src 'none'" in text and "<script" not in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    record = told(held)
    for name in {m["name"] for each in record["entrants"] for m in each["measures"]}:
        assert text.count(f'aria-label="{name}"') == 1
    dots = re.findall(r'<circle class="dot (l\d)"', text)
    measures = len(record["entrants"][0]["measures"])
    finite = sum(np.isfinite(m["value"]) for each in record["entrants"] for m in each["measures"])
    assert len(dots) == finite + len(record["speeds"])  # each measure of each, and each once more in the trilemma
    assert len(set(dots)) == len(record["speeds"]) and measures > 5


def test_names_in_the_page_are_text(tmp_path):
    evil = "<script>alert(1)</script>"
    terms = Terms(evil, "1s", 1, ("gan", "vae"))
    contest = Contest(tmp_path, terms, (Entrant("gan", 0, "x", failed=evil),), {}, (evil,))
    assert evil not in page(contest).read_text()


def test_more_runs_than_colours_are_drawn_too(tmp_path):
    names = tuple(f"run{k}" for k in range(9))
    entrants = tuple(entrant(name, 0, 1.0 + k) for k, name in enumerate(names))
    contest = Contest(tmp_path, Terms("digits", "", 1, names), entrants, {})
    assert _seeds(contest).count("<circle") == 9


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_the_page_at_any_width_light_and_dark(held, tmp_path, width, dark):
    shot = tmp_path / "shot.png"
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={shot}"]
    words += [f"--window-size={width},1600", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    subprocess.run(["chromium", *words, (held / "compare.html").resolve().as_uri()], check=True, timeout=120)
    pixels = np.asarray(Image.open(shot).convert("L")) / 255
    assert pixels.shape[1] == width
    assert (np.median(pixels) < 0.3) == dark
    assert (np.abs(pixels - np.median(pixels)) > 0.3).mean() > 0.005  # there are words and dots on it
