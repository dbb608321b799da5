"""Attributes and numbers: what columns tell, how they are heard in any mix, and what a run makes of them."""

import csv
import io
import json
import math
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from commands import fails
from sfumato.condition import NULL, Condition, Request
from sfumato.data import load
from sfumato.data.captions import MOST_TEXTS, Columns
from sfumato.engine.run import Run
from sfumato.errors import UserError
from sfumato.facts import Fact, Facts
from sfumato.guide import Guidance
from sfumato.nn import DiT, UNet
from sfumato.nn.layers import Told
from shards import add

COLUMNS = {
    "colour": ["red", "blue", None, "red", "green"],
    "price": ["1", "2.5", "4", None, "2.5"],
}


# ── Columns ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_column_of_numbers_is_a_number_and_any_other_an_attribute():
    colour, price = (Fact.of(name, told, "shop") for name, told in COLUMNS.items())
    assert colour == Fact("colour", ("blue", "green", "red"))
    assert price.values == () and price.mean == 2.5 and price.std == pytest.approx(np.std([1, 2.5, 4, 2.5]))
    assert [colour.place(text) for text in ("blue", "red")] == [0.0, 2.0] and math.isnan(colour.place(None))
    assert price.place("2.5") == 0.0 and price.told(price.place("3.25")) == "3.25" and price.told(math.nan) is None


def test_rows_of_examples_and_of_wishes():
    facts = Facts.of(COLUMNS, ["price", "colour"], "shop")
    assert facts.kinds == (0, 3)
    rows = facts.rows(COLUMNS | {"colour": ["pink", *COLUMNS["colour"][1:]]}, [0, 1, 2])
    assert rows.isnan().tolist() == [[False, True], [False, False], [False, True]]  # pink was never met
    assert facts.told(facts.row({"colour": "blue"})) == {"colour": "blue"}
    again = Facts.from_dict(json.loads(json.dumps(facts.to_dict())))
    assert again.columns == facts.columns
    for ours, theirs in zip(again.examples, facts.examples, strict=True):
        assert facts.told(ours) == facts.told(theirs)


@pytest.mark.parametrize(
    ("columns", "wanted", "why"),
    [
        (COLUMNS, ["size"], "no column 'size'"),
        ({}, ["size"], "write a metadata.csv"),
        ({"a": ["1", "1"]}, ["a"], "tells 1 different values"),
        ({"a": [str(k) + "x" for k in range(2_000)]}, ["a"], "2,000 values, more than 1,000"),
    ],
)
def test_columns_that_cannot_be_heard(columns, wanted, why):
    with pytest.raises(UserError, match=why):
        Facts.of(columns, wanted, "shop")


@pytest.mark.parametrize("change", [{"columns": []}, {"examples": [[0.0]]}, {"examples": []}])
def test_damaged_records_are_refused(change):
    record = Facts.of(COLUMNS, ["price", "colour"], "shop").to_dict()
    with pytest.raises(ValueError, match="facts need"):
        Facts.from_dict(record | change)


def write(folder, rows, kind):
    """Pictures 8x8 and a table of what is told of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels, _ in rows:
        Image.fromarray(pixels).save(folder / name)
    told = [{"file_name": name} | columns for name, _, columns in rows]
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, told)))
        return folder
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(
            file, ["file_name", *dict.fromkeys(key for row in told for key in row if key != "file_name")]
        )
        writer.writeheader()
        writer.writerows(told)
    return folder


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_tables_beside_pictures_tell_columns(tmp_path, kind):
    grey = np.full((8, 8), 100, np.uint8)
    rows = [("a.png", grey, {"colour": "red", "price": 3}), ("b.png", grey + 1, {"colour": "", "price": 4.5})]
    found = load(write(tmp_path / "set", rows, kind))
    assert found.columns == {"colour": ("red", None), "price": ("3", "4.5")} and found.captions == ()
    streamed = load(tmp_path / "set", stream=True)
    assert streamed.columns == found.columns and streamed.in_memory().columns == found.columns
    write(tmp_path / "set", [("a.png", grey, {"colour": "blue", "price": 3}), rows[1]], kind)
    assert load(tmp_path / "set").fingerprint != found.fingerprint
    assert load(tmp_path / "set", stream=True).fingerprint != streamed.fingerprint


GREY = np.full((8, 8), 100, np.uint8)


def pixels(picture):
    to = io.BytesIO()
    Image.fromarray(picture).save(to, "png")
    return to.getvalue()


def test_shards_tell_columns(tmp_path):
    first = {"text": "a cat", "price": 3, "kind": "tame", "at": "u" * 300, "box": [1, 2]}
    with tarfile.open(tmp_path / "a.tar", "w") as out:
        for k, record in enumerate((first, {"price": 4.5})):
            members = [(f"{k}.png", pixels(GREY + k)), (f"{k}.json", json.dumps(record | {"label": "cat"}).encode())]
            for name, content in members[:: 1 - 2 * k]:  # what is said may come before the picture
                add(out, name, content)
    found = load(tmp_path / "a.tar")
    assert found.columns == {"price": ("3", "4.5"), "kind": ("tame", None)} and found.captions == ("a cat", None)
    assert load(tmp_path / "a.tar", stream=True).columns == found.columns


def test_parquet_tells_columns(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    columns = {
        "image": datasets.Image(), "price": datasets.Value("float32"), "new": datasets.Value("bool"),
        "kind": datasets.ClassLabel(names=["tame", "wild"]), "box": datasets.Sequence(datasets.Value("int64")),
        "label": datasets.Value("string"),
    }  # fmt: skip
    rows = [
        {"image": {"bytes": pixels(GREY + k)}, "price": price, "new": k > 0, "kind": kind, "box": [k], "label": "cat"}
        for k, (price, kind) in enumerate([(3.0, 1), (math.nan, 0), (None, None)])
    ]
    table = datasets.Dataset.from_list(rows, features=datasets.Features(columns))
    table.to_parquet(tmp_path / "set.parquet")
    found = load(tmp_path / "set.parquet")
    assert found.columns["price"] == ("3.0", None, None) and found.columns["kind"][:2] == ("wild", "tame")
    assert found.columns["new"] == ("False", "True", "True") and sorted(found.columns) == ["kind", "new", "price"]
    assert load(tmp_path / "set.parquet", stream=True).columns == found.columns


def test_columns_of_addresses_are_let_go():
    columns = Columns()
    for row in range(MOST_TEXTS + 2):
        columns.put("price", row, str(row))
        columns.put("url", row, f"u{row}")
        if row % 2:
            columns.put("kind", row, "tame")
    found = columns.whole(MOST_TEXTS + 3)
    assert sorted(found) == ["kind", "price"] and found["price"][7] == "7" and found["price"][-1] is None
    assert found["kind"][:4] == (None, "tame", None, "tame") and len(found["kind"]) == MOST_TEXTS + 3


# ── Conditions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_parts_are_asked_for_and_dropped_together():
    mix = [Request(2, (1, 0), (0.5, math.nan)), Request(0, (3, NULL), (1.0, 2.0))]
    cond = Condition.of(mix)
    null = cond.asking(NULL)
    assert null.label.tolist() == [NULL] * 2 and (null.words == NULL).all() and null.facts.isnan().all()
    partly = cond.asking(Request(facts=(3.0, math.nan)))
    assert (partly.label == NULL).all() and partly.facts[:, 0].tolist() == [3.0, 3.0]
    assert torch.equal(cond.dropped(0.9999, torch.Generator().manual_seed(0)).label, null.label)


def test_facts_are_left_out_one_by_one():
    cond = Condition(facts=torch.arange(20_000.0).view(10_000, 2))
    left = cond.dropped(0.2, torch.Generator().manual_seed(0)).facts
    known = (~left.isnan()).sum(1)
    for count, wanted in ((0, 0.2 + 0.8 * 0.2 / 4), (1, 0.8 * 0.2 / 2), (2, 0.8 * 0.8 + 0.8 * 0.2 / 4)):
        assert abs(float((known == count).double().mean()) - wanted) < 0.02
    assert torch.equal(left[~left.isnan()], cond.facts[~left.isnan()])


@pytest.mark.parametrize("values", [0, 3])
def test_what_is_not_told_adds_nothing(values):
    torch.manual_seed(0)
    told = Told(values, 8)(torch.tensor([0.0, 1.0, math.nan]))
    assert not told[2].any() and not torch.allclose(told[0], told[1])


@pytest.mark.parametrize("kind", [UNet, DiT])
def test_networks_hear_any_mix(kind):
    torch.manual_seed(0)
    sizes = {"widths": (8, 16), "blocks": 1, "attention": (False, True)} if kind is UNet else {"width": 16, "depth": 1}
    network = kind(1, **sizes, classes=3, vocabulary=5, tokens=2, facts=(0, 4))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, level, whole = torch.randn(1, 1, 8, 8), torch.zeros(1), Request(1, (2, 3), (0.5, 2.0))
    said = network(x, level, Condition.of([whole]))
    for other in (Request(0, (2, 3), (0.5, 2.0)), Request(1, (2, 4), (0.5, 2.0)), Request(1, (2, 3), (0.6, 2.0)),
                  Request(1, (2, 3), (0.5, math.nan))):  # fmt: skip
        assert not torch.allclose(network(x, level, Condition.of([other])), said, atol=1e-6)
    with pytest.raises(ValueError, match="built with 2 facts, and cond has none"):
        network(x, level, Condition.of([Request(1, (2, 3))]))


# ── Runs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Pictures with a bright half, told as an attribute, of a brightness that is told as a number, in two classes."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("facts")
    for kind in ("plain", "dotted"):
        rows = []
        for k in range(60):
            side, light = ("left", "right")[k % 2], round(float(rng.uniform(100, 250)), 1)
            pixels = np.zeros((8, 8), np.uint8)
            pixels[:, :4] = light * (side == "left")
            pixels[:, 4:] = light * (side == "right")
            pixels[3, 3:5] = 255 * (kind == "dotted")
            rows.append((f"{kind}{k}.png", pixels, {"side": side, "light": light}))
        write(folder / "set" / kind, rows, "csv")
        table = (folder / "set" / kind / "metadata.csv").read_text().splitlines()
        (folder / "set" / kind / "metadata.csv").unlink()
        top = folder / "set" / "metadata.csv"
        lines = [f"{kind}/{line}" for line in table[1:]]
        top.write_text("\n".join([*(top.read_text().splitlines() if top.exists() else [table[0]]), *lines]))
    return sfumato.train(str(folder / "set"), classes=True, facts=("side", "light"), steps=250, batch=32, size="tiny",
                         out=str(folder / "run"))  # fmt: skip


def bright(model, told, **more):
    return model.sample(24, steps=6, cond=Request(facts=model.say(told)), **more).float()[:, 0]


def test_a_run_does_what_facts_ask(run):
    model = sfumato.load(run)
    assert model.knows_null and {"side", "light"} <= set(model.abilities)
    left, right = bright(model, ["side=left"]), bright(model, ["side=right"])
    assert left[:, :, :3].mean() > 2 * left[:, :, 5:].mean() and right[:, :, 5:].mean() > 2 * right[:, :, :3].mean()
    dim, light = (bright(model, ["side=left", f"light={k}"])[:, :, :3].mean() for k in (110, 240))
    assert light - dim > 70  # of 130 that are asked for
    more = bright(model, ["side=left", "light=200"], guidance=Guidance(1.5))
    assert more[:, :, :3].mean() > 2 * more[:, :, 5:].mean()


def test_facts_and_classes_go_together(run, tmp_path):
    model = sfumato.load(run)
    mix = Request(model.label("dotted"), facts=model.say(["side=right", "light=150"]))
    made = model.sample(24, steps=6, cond=mix).float()[:, 0]
    assert made[:, 3, 3:5].mean() > made[:, 5, 3].mean() + 50 and made[:, :, 5:].mean() > made[:, :, :3].mean()
    path, *_ = sfumato.sample(
        run, n=1, steps=2, class_="plain", where=("side=left", "light=150"), out=str(tmp_path / "a")
    )
    told = json.loads(Image.open(path).text["sfumato"])
    assert (told["class"], told["side"], told["light"]) == ("plain", "left", "150")


def test_polishing_and_teaching_keep_what_is_heard(run, tmp_path):
    better = sfumato.polish(run, n=64, steps=2, batch=8, out=str(tmp_path / "better"))
    student = sfumato.distill(run, calls=1, steps=1, batch=8, out=str(tmp_path / "student"))
    for folder in (better, student):
        model = sfumato.load(folder)
        assert model.facts == sfumato.load(run).facts or model.facts.columns == sfumato.load(run).facts.columns
        assert model.sample(2, steps=1 if folder == student else 2).shape == (2, 1, 8, 8)
    assert Run.open(run).config.facts == ("side", "light")


def test_mistakes_are_one_line(run, tmp_path, capsys):
    ask = ["sample", run, "-n", "1", "--where"]
    fails(capsys, [*ask, "side"], "write name=value, of side, light")
    fails(capsys, [*ask, "side=above"], "no 'above' among the values of 'side'")
    fails(capsys, [*ask, "light=much"], "'light' is a number, and 'much' is none")
    fails(capsys, [*ask, "price=3"], "nothing is heard of 'price'")
    plain = sfumato.train("digits", steps=1, batch=8, out=str(tmp_path / "plain"))
    fails(capsys, ["sample", plain, "--where", "a=b"], "trained without facts")
    fails(capsys, ["train", "digits", "--facts", "size", "--out", tmp_path / "a"], "write a metadata.csv")
    fails(capsys, ["train", "digits", "--facts", "size", "--model", "gan"], "--facts is a choice of diffusion models")
