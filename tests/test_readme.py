"""The READMEs say only what runs, and the same in both languages."""

import re
from pathlib import Path

import pytest
import torch

import sfumato as sf
from sfumato.cli import VERBS

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "README.es.md"]


def blocks(path, language=""):
    fenced = path.read_text("utf-8").split("```")[1::2]
    return [text.partition("\n")[2] for text in fenced if text.partition("\n")[0].startswith(language)]


def code(block):
    """The words of a block without comments, and without the names a translation may change."""
    lines = [line.partition("#")[0].rstrip() for line in block.splitlines()]
    return [line.replace("mis_fotos", "my_photos") for line in lines]


def test_both_languages_show_the_same_code_figures_and_pictures():
    english, spanish = READMES
    assert [code(block) for block in blocks(english)] == [code(block) for block in blocks(spanish)]
    for pattern in (r"!\[[^]]*\]\(([^)]*)\)", r"\d+\.\d+"):
        assert re.findall(pattern, english.read_text("utf-8")) == re.findall(pattern, spanish.read_text("utf-8"))
    assert [line.count("|") for line in english.read_text("utf-8").splitlines() if line.startswith("|")] == [
        line.count("|") for line in spanish.read_text("utf-8").splitlines() if line.startswith("|")
    ]


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_what_they_name_exists(path):
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\(([^)]*)\)", text):
        assert (ROOT / target).exists(), target
    for picture in re.findall(r"\]\(([^)]*\.png)\)", text):
        assert (ROOT / picture).stat().st_size < 300_000
    for verb in re.findall(r"^sfumato ([a-z-]+)", text, re.M):
        assert verb in VERBS
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (\w+)", text, re.M):
        assert f"\n{target}:" in makefile


def test_the_python_runs(tmp_path, monkeypatch):
    """Both blocks, with fewer steps and with what the second leaves to the reader."""
    monkeypatch.chdir(tmp_path)
    outside, inside = blocks(READMES[0], "python")
    names = {}
    exec(outside.replace("classes=True", "classes=True, steps=2, batch=8").replace("64,", "4,", 1), names)
    assert names["digits"].shape == (4, 1, 8, 8)
    assert names["digits"].dtype == torch.uint8
    x_0 = torch.randn(5, 3)
    given = {"x_0": x_0, "x_s": x_0, "s": 0.2, "t": 0.7, "network": sf.load("runs/digits").denoiser.network}
    states = torch.randn(5, 1, 8, 8)
    model_lines = inside.replace("p.reverse(x_t, t, s)", "p.reverse(y, t, s)").replace("p(x_t, t)", "p(y, t)")
    given |= {"y": states, "sf": sf}
    given["network"].forward = lambda x, level, cond=None: torch.zeros_like(x)
    exec(model_lines, given)
    assert given["score"].shape == states.shape
    assert given["x_t"].shape == x_0.shape
