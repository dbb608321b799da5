"""The report of a run: what it shows equals the log, what is foreign is text, and it is one file that runs nothing."""

import base64
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sfumato
from pictures import png_bytes
from sfumato.cli import main
from sfumato.data import load
from sfumato.engine.checkpoint import checkpoints
from sfumato.engine.gauge import Levels
from sfumato.engine.run import Run
from sfumato.engine.track import Track, read_log
from sfumato.errors import UserError
from sfumato.files import write_png
from sfumato.view import sections
from sfumato.view.markup import embedded, safe
from sfumato.view.page import report

EVIL = "</title></style><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\u202e\0"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """A page taken apart, that fails on tags which are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.style = ""
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            self.style += data
        else:
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def charts(self) -> list[str]:
        return [attrs["aria-label"] for tag, attrs in self.tags if tag == "svg" and "aria-label" in attrs]

    def table(self, head: str) -> list[dict[str, str]]:
        (rows,) = (table for table in self.tables if table[0][1] == head)
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sfumato.train("ring8", steps=3, size="tiny", out=str(tmp_path_factory.mktemp("runs") / "ring"))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(trained, tmp_path / "ring"))
    (folder / "log.jsonl").unlink()
    return folder


def logged(folder: Path, count: int, events: bool = True) -> None:
    """Write a log of ``count`` records, each number one of its own."""
    rng = np.random.default_rng(0)
    log = Track(folder / "log.jsonl", 0)
    for k in range(1, count + 1):
        loss, norm, speed, *parts = rng.exponential(size=9)
        counts = [0, *rng.integers(1, 50, 5).tolist()]
        levels = Levels([None, *parts[1:]], counts)
        log.numbers(7 * k, k / 3, loss=loss, lr=1e-3 / k, norm=norm, items_per_second=100 * speed, levels=levels)
        if events and k % 5 == 0:
            log.event(7 * k, ("skip", "rollback", "damaged", "save", "resume")[k // 5 % 5], k / 3, lr=loss, note="<b>")
    log.close()


def page_of(folder: Path) -> Page:
    return Page(report(folder, None).path.read_text("utf-8"))


def sealed(page: Page) -> None:
    """Nothing runs, and nothing is fetched."""
    policy = [a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    for tag, attrs in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "link", "base", "form", "a"), tag
        assert not any(name.startswith("on") or name in ("href", "style", "srcdoc") for name in attrs), attrs
        assert attrs.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
    assert "url(" not in page.style and "@import" not in page.style


def test_numbers_in_the_tables_are_those_of_the_log(run: Path) -> None:
    logged(run, 40)
    page = page_of(run)
    sealed(page)
    records = list(read_log(run / "log.jsonl"))
    numbers = {record["step"]: record for record in records if "event" not in record}
    rows = page.table("seconds")
    assert len(rows) == sections.ROWS and rows[0]["step"] == "7" and rows[-1]["step"] == "280"
    names = {"seconds": "seconds", "loss": "loss", "gradient norm": "norm", "learning rate": "lr",
             "items / s": "items_per_second", "MB": "memory", "MB at most": "peak"}  # fmt: skip
    for row in rows:
        wanted = numbers[int(row.pop("step"))]
        assert row.keys() == names.keys()
        for head, text in row.items():
            assert float(text) == pytest.approx(wanted[names[head]], rel=1e-5)
    told = [record for record in records if record.get("event") not in (None, "save")]
    shown = page.table("event")
    assert [int(row["step"]) for row in shown] == [record["step"] for record in told]
    for row, record in zip(shown, told, strict=True):
        assert row["event"] == sections.HAPPENED[record["event"]] and row["clock"] == record["clock"]
        assert row["facts"] == f"lr: {record['lr']:.6g}, note: <b>"
    assert page.charts() == [
        "loss",
        "loss by noise level",
        "gradient norm",
        "learning rate",
        "items a second",
        "memory",
    ]
    for number in (f"{numbers[280]['loss']:.6g}", "280", "13s", "of 3 asked for"):
        assert number in page.text


def test_what_was_trained_is_said(run: Path) -> None:
    logged(run, 3)
    page = page_of(run)
    model, opened = sfumato.load(run), Run.open(run)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    said = ("20,000 examples of 2 values", f"{parameters:,} parameters", "seed 0", f"sfumato {sfumato.__version__}")
    for words in (*said, model.fingerprint(), opened.data["fingerprint"][:16], "log.jsonl"):
        assert words in page.text
    fields = [words for words in page.words if words.strip()]
    for name, value in {"batch": opened.config.batch, "noise_std": opened.config.model.noise_std}.items():
        assert fields[fields.index(name) + 1] == str(value)


def test_a_run_that_has_only_begun(tmp_path: Path, trained: Path) -> None:
    dataset = load("ring8")
    folder = Run.create(tmp_path / "new", Run.open(trained).config, dataset).folder
    page = page_of(folder)
    sealed(page)
    model = sfumato.load(trained)
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters" in page.text
    assert "No weights yet" in page.text and "holds no numbers yet" in page.text
    assert page.charts() == [] and page.tables == []
    assert not any(tag == "img" for tag, _ in page.tags)


def test_records_of_older_versions(run: Path) -> None:
    lines = [{"step": 10 * k, "loss": 1 / k, "lr": 1e-3, "seconds": float(k)} for k in range(1, 6)]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(run)
    assert page.charts() == ["loss", "learning rate"]
    assert [row["loss"] for row in page.table("seconds")] == [f"{1 / k:.6g}" for k in range(1, 6)]
    assert page.tables[-1][0] == ["step", "seconds", "loss", "learning rate"]


def test_a_log_with_holes_and_broken_lines(run: Path) -> None:
    logged(run, 20, events=False)
    whole = page_of(run).table("seconds")
    good = (run / "log.jsonl").read_bytes().splitlines()
    odd = [b'{"step": 141, "loss": "high", "lr": [1], "levels": [1, 2], "counts": 7, "norm": true}',
           b'{"step": 142, "loss": null, "event": {"x": []}}', b'{"step": 143, "event": "unheard of"}',
           b'{"step": 144, "loss": 1e999, "norm": ' + b"9" * 400 + b"}"]  # fmt: skip
    broken = [b"no JSON", b"\xff", b'{"loss": 1}', b"[" * 60_000]
    again = b'{"step": 140, "loss": 0.125}'  # a step that was done again
    (run / "log.jsonl").write_bytes(b"\n".join([*broken, *good, *odd, again]) + b'\n{"step": 150, "lo')
    written = report(run, None)
    page = Page(written.path.read_text("utf-8"))
    assert written.notes == ("log.jsonl: 4 lines cannot be read; left out",) and written.notes[0] in page.text
    assert len(written.lines()) == 2
    rows = {row["step"]: row for row in page.table("seconds")}
    assert rows["7"] == whole[0] and len(rows) == sections.ROWS
    assert rows["144"]["loss"] == rows["144"]["gradient norm"] == "–"
    assert "0.125" in page.text  # the last loss that is known


def test_a_long_log_is_a_small_page_that_keeps_its_peaks(run: Path) -> None:
    lines = [json.dumps({"step": k, "loss": 1 + k % 7 / 10, "norm": 2.0, "levels": [0.5] * 6, "counts": [3] * 6})
             for k in range(30_000)]  # fmt: skip
    lines[17_000] = '{"step": 17000, "loss": 3.5}'
    events = [f'{{"step": {k}, "event": "skip"}}' for k in range(0, 30_000, 10)]
    (run / "log.jsonl").write_text("\n".join([*lines, *events]) + "\n")
    written = report(run, None)
    assert written.bytes == written.path.stat().st_size < 600_000
    page = Page(written.path.read_text("utf-8"))
    shown = page.table("event")
    assert len(shown) == sections.EVENTS + 1 and shown[sections.EVENTS // 2]["event"] == "2,800 more"
    raw = next(attrs["d"] for tag, attrs in page.tags if attrs.get("class") == "raw a")
    highest = min(float(y) for y in re.findall(r"[ V]([\d.]+)", raw))
    assert highest == pytest.approx(20, abs=1)  # the one spike, just below the upper edge


def test_hostile_names_are_text(run: Path, tmp_path: Path) -> None:
    folder = run.rename(tmp_path / EVIL.replace("/", "|").replace("\0", ""))
    data = json.loads((folder / "data.json").read_text())
    data |= {"name": EVIL, "classes": [EVIL, "b" * 5000, *map(str, range(50))], "fingerprint": EVIL, "notes": [EVIL]}
    (folder / "data.json").write_text(json.dumps(data))
    config = (folder / "config.toml").read_text().replace('data = "ring8"', f"data = {json.dumps(EVIL)}")
    (folder / "config.toml").write_text(config)
    logged(folder, 3)
    with (folder / "log.jsonl").open("a") as log:
        for event in ({EVIL: EVIL, "seconds": EVIL, "clock": EVIL}, {"seconds": 1e300, "x": [EVIL, {EVIL: EVIL}]}):
            log.write(json.dumps({"step": 30, "event": "damaged"} | event) + "\n")
        log.write(json.dumps({"step": 30, "event": EVIL}) + "\n")
    measure = {"name": EVIL, "value": 1.0, "low": 0, "high": 3, "real": 2, "trivial": math.nan, "better": EVIL}
    told = {"n": 5, "seed": EVIL, "sampler": EVIL, "steps": EVIL, "weights": EVIL, "measures": [measure]}
    (folder / "evaluation.json").write_text(json.dumps(told))
    write_png(folder / "samples" / "step-00000009.png", np.zeros((8, 8), np.uint8), {"left to right": [EVIL, EVIL]})
    (folder / "samples" / f"step-1{EVIL.replace('/', '|')[:-1]}.png").write_bytes(b"")
    page = page_of(folder)
    sealed(page)
    shown = EVIL.replace("\u202e", "\ufffd").replace("\0", "\ufffd")
    assert page.text.count(shown) >= 12
    assert "b" * 301 not in page.text
    assert "\u202e" not in page.text and "\0" not in page.text


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("<b>&\"'", "&lt;b&gt;&amp;&quot;&#x27;"),
        ("a\nb\tc", "a b c"),
        ("\udc80\u200b\x1b[31m", "\ufffd\ufffd\ufffd[31m"),
        ("é漢", "é漢"),
        (3.5, "3.5"),
        ("x" * 400, "x" * 300 + "…"),
    ],
)
def test_safe(words: object, shown: str) -> None:
    assert safe(words) == shown
    shown.encode()


def pictures(page: Page) -> list[np.ndarray]:
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))) for source in sources]


def test_previews_from_the_first_to_the_last(run: Path) -> None:
    shutil.rmtree(run / "samples")
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 40, 3), np.uint8)
    for k, pixels in enumerate(noise):
        write_png(run / "samples" / f"step-{100 * k:08d}.png", pixels, {"left to right": ["mean", "now"]})
    (run / "samples" / "mine.png").write_bytes(b"")
    (run / "samples" / "step-one.png").write_bytes(b"")
    written = report(run, None)
    page = Page(written.path.read_text("utf-8"))
    drawn = pictures(page)
    assert len(drawn) == sections.PICTURES and not any("samples" in note for note in written.notes)
    assert np.array_equal(drawn[0], noise[0]) and np.array_equal(drawn[-1], noise[-1])
    assert "Step 1,900" in page.text and "left: mean · right: now" in page.text


def test_previews_that_cannot_be_read_are_noted(run: Path) -> None:
    shutil.rmtree(run / "samples")
    (run / "samples").mkdir()
    (run / "samples" / "step-1.png").write_bytes(b"no picture")
    (run / "samples" / "step-2.png").write_bytes(png_bytes(60_000, 60_000, 8, 2, b""))
    write_png(run / "samples" / "step-3.png", np.zeros((8, 8), np.uint8), {"left to right": 5})
    written = report(run, None)
    notes = [note for note in written.notes if "samples" in note]
    assert len(notes) == 2 and "step-1.png" in notes[0] and "megapixels" in notes[1]
    assert len(pictures(Page(written.path.read_text("utf-8")))) == 1
    shutil.rmtree(run / "samples")
    assert pictures(page_of(run)) == []


def test_large_pictures_are_made_small_enough() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    for most in (20_000, 200_000):
        source = re.search(r'base64,([^"]*)"', embedded(noise, "", most))[1]
        picture = Image.open(io.BytesIO(base64.b64decode(source)))
        assert most / 4 < len(base64.b64decode(source)) <= most
        assert picture.width / picture.height == pytest.approx(1.5, rel=0.05)


def test_an_evaluation_is_told_with_the_weights_it_is_of(run: Path) -> None:
    sfumato.evaluate(run, n=20)
    told = json.loads((run / "evaluation.json").read_text())
    written = report(run, None)
    rows = Page(written.path.read_text("utf-8")).table("samples")
    for row, measure in zip(rows, told["measures"], strict=True):
        assert row["measure"] == measure["name"] and float(row["samples"]) == pytest.approx(measure["value"], rel=1e-5)
        assert float(row["real data"]) == pytest.approx(measure["real"], rel=1e-5)
    assert not any("evaluation" in note for note in written.notes)
    (run / "evaluation.json").write_text(json.dumps(told | {"weights": "0" * 16}))
    assert any("other weights" in note for note in report(run, None).notes)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"\xff", b"{}", b'{"measures": 5}', b'{"measures": [1]}', b"[" * 100_000, b" " * 2_000_000,
     b'{"measures": [{"name": "a", "value": "high", "real": 1, "trivial": 1, "better": "low"}]}',
     b'{"measures": [], "n": 1e999, "seed": 0, "sampler": 0, "steps": 0, "weights": 0}'],
)  # fmt: skip
def test_a_broken_evaluation_is_noted(run: Path, content: bytes) -> None:
    (run / "evaluation.json").write_bytes(content)
    assert [note for note in report(run, None).notes if "evaluation" in note and "\n" not in note]


def test_a_damaged_checkpoint_does_not_keep_the_report_away(run: Path) -> None:
    logged(run, 3)
    for path in checkpoints(run / "checkpoints"):
        path.write_bytes(path.read_bytes()[:100])
    written = report(run, None)
    page = Page(written.path.read_text("utf-8"))
    assert "loss" in page.charts() and "No weights" in page.text
    assert any("damaged" in note for note in written.notes)


def test_same_run_same_page_and_only_pages_of_ours_are_replaced(run: Path, tmp_path: Path) -> None:
    logged(run, 12)
    first = report(run, tmp_path / "new" / "a.html").path.read_bytes()
    assert report(run, tmp_path / "new" / "a.html").path.read_bytes() == first
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    mine = tmp_path / "mine.html"
    mine.write_text("<html>")
    for out in (mine, tmp_path, mine / "below.html"):
        with pytest.raises(UserError, match=re.escape(str(out))) as caught:
            report(run, out)
        assert "\n" not in str(caught.value)
    assert mine.read_text() == "<html>"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_verb(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logged(run, 5)
    assert main(["report", str(run)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{run / 'report.html'}: 35 steps, ") and out.count("\n") == 1
    assert sfumato.report(run).path == run / "report.html"
    assert main(["report", str(run / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
