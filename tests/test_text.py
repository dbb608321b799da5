"""Sentences: their words, the network that hears them, and runs that are asked by them."""

import json
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import sfumato
from commands import fails
from sfumato.condition import MOST_TOKENS, NULL, Condition, Vocabulary, words_of
from sfumato.dist import stream
from sfumato.errors import UserError
from sfumato.guide import Guidance
from sfumato.nn import DiT, UNet
from sfumato.nn.layers import attended
from sfumato.nn.text import TextEncoder

CAPTIONS = ("a light square", "a dark square")


# ── Words ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_words_are_small_letters_and_signs():
    assert words_of("A Red-hot  pizza, ¡ñandú 2!") == ["a", "red", "-", "hot", "pizza", ",", "¡", "ñandú", "2", "!"]
    assert words_of("cafe\u0301") == words_of("CAFÉ") == ["café"]
    assert words_of(" \n") == []


def test_rows_hold_what_is_known_in_its_order():
    known = Vocabulary.of(["the cat", "the dog and the cat"], "pets")
    assert known.words == ("the", "cat", "and", "dog")
    assert known.length == 5
    row = known.row("The DOG bites the cat")
    assert row == (0, 3, 0, 1, NULL)
    assert known.told(row) == "the dog the cat"
    assert known.strange("The DOG bites, bites the cat") == ["bites", ","]
    assert known.row("") == (NULL,) * 5
    assert known.rows(["", "dog", "dog cat"]).tolist() == [list(known.row(text)) for text in ("", "dog", "dog cat")]


def test_a_vocabulary_comes_back_from_its_record_and_damage_is_refused():
    known = Vocabulary.of(CAPTIONS, "squares")
    record = json.loads(json.dumps(known.to_dict()))
    assert Vocabulary.from_dict(record) == known
    for change in ({"length": MOST_TOKENS + 1}, {"length": "3"}, {"words": []}, {"words": [1]}, {"examples": []}):
        with pytest.raises(ValueError, match="a vocabulary"):
            Vocabulary.from_dict(record | change)
    with pytest.raises(UserError, match="'blank': there is no word in its captions"):
        Vocabulary.of(["", " "], "blank")


def test_long_sentences_are_cut():
    known = Vocabulary.of([" ".join(map(str, range(100)))], "numbers")
    assert known.length == MOST_TOKENS
    assert known.told(known.row("5 6 7")) == "5 6 7"


def test_sentences_are_dropped_or_lose_half_of_their_words():
    """Of four words each, a quarter whole; of the rest a quarter is thinned, which loses all four in 1 of 16."""
    cond = torch.arange(16_000).view(4_000, 4)
    left = Condition(words=cond).dropped(0.25, torch.Generator().manual_seed(0)).words
    count = (left != NULL).sum(1)
    wanted = torch.tensor([1 / 4 + 3 / 256, 3 / 64, 9 / 128, 3 / 64, 9 / 16 + 3 / 256])
    shares = torch.stack([(count == k).float().mean() for k in range(5)])
    assert (shares - wanted).abs().max() < 0.025  # about three standard deviations
    assert torch.equal(left[count == 4], cond[count == 4])
    for row, n, whole in zip(left.tolist(), count.tolist(), cond.tolist(), strict=True):
        kept = row[:n]
        assert set(row[n:]) <= {NULL} and kept == sorted(kept) and set(kept) <= set(whole)


# ── Networks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def awake(network):
    """Fill the layers that begin at zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return network.double().eval()


@pytest.fixture(params=["unet", "dit"])
def network(request):
    torch.manual_seed(0)
    if request.param == "dit":
        return awake(DiT(1, width=16, depth=2, patch=4, vocabulary=5, tokens=4))
    return awake(UNet(1, widths=(8, 16), blocks=1, attention=(False, False), vocabulary=5, tokens=4))


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 7, 16), torch.randn(3, 5, 16), torch.randn(3, 5, 16)
    silent = torch.tensor([[0, 0, 0, 0, 1], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0]]).bool()
    parted = [each.view(3, -1, 4, 4).transpose(1, 2) for each in (q, k, v)]
    for mask, ours in ((None, attended(q, k, v, 4)), (~silent[:, None, None], attended(q, k, v, 4, silent))):
        theirs = F.scaled_dot_product_attention(*parted, attn_mask=mask).transpose(1, 2).reshape(3, 7, 16)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_sentence_is_heard_in_its_order_and_nothing_after_it(network):
    x, level = torch.randn(1, 1, 8, 8).double(), torch.zeros(1).double()

    def told(*words):
        return network(x, level, Condition.of([(*words, *[NULL] * (4 - len(words)))]))

    assert not torch.allclose(told(1, 2), told(2, 1))
    assert not torch.allclose(told(1), told())
    table = network.text.word.weight
    (gradient,) = torch.autograd.grad(told(1, 3).square().sum(), table)
    assert [bool(row.any()) for row in gradient] == [False, True, False, True, False]


def test_examples_hear_their_own_sentence(network):
    x, level = torch.randn(3, 1, 8, 8).double(), torch.zeros(3).double()
    cond = Condition.of([(0, 1, NULL, NULL), (NULL,) * 4, (4, 3, 2, 1)])
    together = network(x, level, cond)
    alone = torch.cat([network(x[k : k + 1], level[:1], cond[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(together, alone)


def test_a_network_hears_sentences_in_bfloat16():
    torch.manual_seed(0)
    options = {"widths": (8, 16), "blocks": 1, "attention": (False, True), "vocabulary": 5, "tokens": 4}
    exact, rough = UNet(1, **options), UNet(1, **options, precision="bf16")
    awake(exact).float()
    rough.load_state_dict(exact.state_dict())
    x, level, cond = torch.randn(2, 1, 8, 8), torch.zeros(2), Condition.of([(1, 2, -1, -1), (0, -1, -1, -1)])
    torch.testing.assert_close(rough(x, level, cond), exact(x, level, cond), rtol=0.1, atol=0.1)


def test_networks_refuse_what_they_cannot_hear(network):
    x, level = torch.zeros(2, 1, 8, 8).double(), torch.zeros(2).double()
    with pytest.raises(ValueError, match="built to hear sentences"):
        network(x, level)
    with pytest.raises(ValueError, match=r"hears sentences \(B, 4\), got \(2, 3\)"):
        network(x, level, Condition.of(2 * [(0, 0, 0)]))
    assert TextEncoder(5, 4)(torch.full((2, 4), NULL)).silent.tolist() == 2 * [[False, True, True, True, True]]


# ── Runs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of light and dark squares 8x8, each with its caption."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for k in range(64):
        light = k % 2 == 0
        pixels = rng.normal(200 if light else 50, 20, (8, 8)).clip(0, 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:02d}.png")
        (folder / f"{k:02d}.txt").write_text(CAPTIONS[k % 2])
    return folder


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("text") / "run"
    return sfumato.train(str(pictures), text=True, steps=120, batch=32, size="tiny", lr=2e-3, out=str(out))


@pytest.fixture(scope="module")
def model(run):
    return sfumato.load(run)


def test_a_sentence_decides_what_is_drawn(model):
    light, dark = (model.sample(32, cond=model.prompt(text)).float().mean((1, 2, 3)) for text in ("light", "dark"))
    assert light.mean() > dark.mean() + 80
    more = model.sample(32, cond=model.prompt("light"), guidance=Guidance(1.5, away=model.prompt("dark")))
    assert more.float().mean() > light.mean()


def test_weight_0_is_the_empty_sentence_and_1_the_sentence_bit_for_bit(model):
    wanted, nothing = model.prompt(CAPTIONS[0]), model.prompt("")
    plain = model.sample(8, steps=3, cond=wanted)
    assert torch.equal(model.sample(8, steps=3, cond=wanted, guidance=Guidance(1.0)), plain)
    assert torch.equal(
        model.sample(8, steps=3, cond=wanted, guidance=Guidance(0.0)), model.sample(8, steps=3, cond=nothing)
    )
    assert not torch.equal(model.sample(8, steps=3, cond=nothing), plain)


def test_several_sentences_are_asked_for_by_their_weights(model, run, tmp_path):
    """The score is that of both, each from no sentence: with equal weights their order does not matter."""
    light, dark, cond = model.prompt("light"), model.prompt("dark"), model.conditions([0, 1], model.prompt("light"))
    x = torch.randn(2, *model.codec.dims, generator=stream(0))
    both = model.asked(cond, Guidance(1.5, also=((dark, 0.5),)))(x, 0.5).x0
    alone = {
        text: model.asked(model.conditions([0, 1], model.prompt(text)))(x, 0.5).x0 for text in ("light", "dark", "")
    }
    aim = 1.5 * alone["light"] + 0.5 * alone["dark"] - alone[""]
    torch.testing.assert_close(both, aim, rtol=1e-4, atol=1e-4)
    swapped = model.sample(4, steps=3, cond=dark, guidance=Guidance(1.5, also=((light, 1.5),)))
    same = model.sample(4, steps=3, cond=light, guidance=Guidance(1.5, also=((dark, 1.5),)))
    assert (swapped.int() - same.int()).abs().max() <= 1
    words = {"prompt": "light", "guidance": 2.0, "also": ("dark:0.5", "dark picture")}
    *_, sheet = sfumato.sample(run, n=2, steps=2, out=str(tmp_path / "s"), **words)
    told = json.loads(Image.open(sheet).text["sfumato"])["guidance"]["also"]
    assert told[0] == ["dark", 0.5] and told[1][1] == 2.0


def test_without_a_sentence_the_captions_of_the_data_are_asked_for_in_turn(model):
    assert set(model.vocabulary.examples) == {*CAPTIONS}
    rows = [model.prompt(text) for text in model.vocabulary.examples]
    assert model.conditions(range(4)).words.tolist() == 2 * [list(row) for row in rows]


def test_samples_carry_their_sentence(run, tmp_path):
    *files, sheet = sfumato.sample(
        run, n=2, steps=2, prompt="dark", guidance=2.0, away="light", out=str(tmp_path / "s")
    )
    assert json.loads(Image.open(files[0]).text["sfumato"])["prompt"] == "dark"
    told = json.loads(Image.open(sheet).text["sfumato"])
    assert (told["asked for"], told["guidance"]["away"]) == ("dark", "light")
    sfumato.sample(run, n=2, steps=2, shards=1, format="tar", out=str(tmp_path / "t"))
    with tarfile.open(next((tmp_path / "t").glob("*.tar"))) as archive:
        names = archive.getnames()
        assert [name.rpartition(".")[2] for name in names] == 2 * ["png", "json", "txt"]
        assert archive.extractfile(names[2]).read().decode() in CAPTIONS


def test_words_that_are_not_known_are_told_and_not_fatal(run, tmp_path, capsys):
    sfumato.sample(run, n=1, steps=2, prompt="a dark zebra", out=str(tmp_path / "a"))
    assert "not heard: zebra" in capsys.readouterr().out
    fails(capsys, ["sample", run, "--prompt", "lihgt"], "no word of 'lihgt' was in the captions", "light")


def test_a_picture_is_changed_towards_a_sentence(run, pictures, tmp_path):
    means = []
    for prompt in CAPTIONS:
        how = {"image": str(pictures / "01.png"), "prompt": prompt, "strength": 0.9, "n": 4}
        *made, _ = sfumato.edit(run, **how, out=str(tmp_path / prompt))
        means.append(np.mean([np.asarray(Image.open(path)) for path in made]))
    light, dark = means
    assert light > dark + 10


def test_other_verbs_take_a_run_that_hears_sentences(run, capsys):
    assert sfumato.report(run)
    assert sfumato.show(run)
    told = sfumato.likelihood(run, n=4, draws=1)
    assert np.isfinite(told.parts[0].columns["log_p"]).all()


@pytest.mark.parametrize("method", ["matching", "direct", "meanflow"])
def test_a_student_hears_what_its_teacher_heard(run, model, method, tmp_path):
    student = sfumato.load(sfumato.distill(run, calls=1, steps=2, method=method, out=str(tmp_path / "student")))
    assert student.vocabulary == model.vocabulary
    light, dark = (student.sample(8, cond=student.prompt(text)).float().mean() for text in ("light", "dark"))
    assert light > dark


def test_a_run_that_hears_sentences_corrects_itself(run, model, tmp_path):
    better = sfumato.load(sfumato.polish(run, n=64, steps=2, out=str(tmp_path / "better")))
    assert better.vocabulary == model.vocabulary


def test_what_hears_no_sentence_says_so(run, pictures, tmp_path, capsys):
    fails(
        capsys, ["train", "digits", "--text", "--out", tmp_path / "a"], "'digits': has no captions", "leave --text out"
    )
    fails(capsys, ["train", "moons", "--text", "--out", tmp_path / "a"], "'moons': has no captions")
    fails(capsys, ["train", "digits", "--text", "--classes", "--out", tmp_path / "a"], "'digits': has no captions")
    fails(capsys, ["train", pictures, "--text", "--model", "gan", "--out", tmp_path / "a"], "--text is a choice of")
    fails(capsys, ["sample", "digits", "--prompt", "seven"], "trained without captions", "--class")
    fails(capsys, ["sample", run, "--class", "3"], "trained without classes", "--prompt")
    fails(capsys, ["sample", run, "--class", "3", "--prompt", "dark"], "trained without classes")
    assert not (tmp_path / "a").exists()


def test_a_picture_without_a_caption_is_counted(pictures, tmp_path, capsys):
    for name in ("00.png", "00.txt", "01.png"):
        (tmp_path / name).write_bytes((pictures / name).read_bytes())
    fails(capsys, ["train", tmp_path, "--text", "--out", tmp_path / "a"], "1 of its 2 items have no caption")
