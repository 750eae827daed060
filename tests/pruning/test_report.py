"""The report: the page, also in a browser, and the form for terminals. What a run keeps for it: test_pictures."""

import base64
import gzip
import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from pruning import prune
from pruning.choose.evidence import Evidence
from pruning.choose.explain import PrunedLayer, explain
from pruning.choose.picture import Picture
from pruning.cli import main
from pruning.model.ffn import find_ffns
from pruning.report import write_html
from pruning.report.comparison import example
from pruning.report.manifest import Report
from pruning.report.plain import sparkline
from pruning.report.swept import furthest
from pruning.report_command import main as mi_report
from pruning.settings import Settings

from browser import CHROMIUM, browser
from tiny import statistics_of, tiny_model

EVIL = "<script>alert(1)<img src=x onerror=alert(2)>"
OPTIONS = ("--sequence-length=32", "--calibration-tokens=1024", "--evaluation-tokens=256", "--multiple-of=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
    """A folder with a result, of a model and a text that try to run a script, and its page."""
    root = tmp_path_factory.mktemp("report")
    tiny_model("Llama", num_hidden_layers=2).save_pretrained(root / EVIL)
    tokenizer.save_pretrained(root / EVIL)
    (root / f"{EVIL}.txt").write_text("</td><script>alert(3)</script>&amp;" * 100)
    text = f"{root / EVIL}.txt"
    arguments = (
        root / EVIL,
        "--out",
        root / "out",
        "--calibration",
        text,
        "--evaluate",
        text,
        "--ratio=0.25",
    )
    assert main([*map(str, arguments), "--quiet", "--report", str(root / "page.html"), *OPTIONS]) == 0
    return root


@pytest.fixture
def report_of(capsys):
    """Run `mi-report`; returns exit status, standard output and standard error."""

    def show(*args):
        status = mi_report([str(arg) for arg in args])
        return status, *capsys.readouterr()

    return show


class Structure(HTMLParser):
    """What is in a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(dict(attrs))

    def handle_data(self, data):
        if self.tags[-1:] not in (["script"], ["style"]):
            self.text += f"{data} "

    def values(self, name):
        return [attributes[name] for attributes in self.attributes if name in attributes]


def test_the_page_is_one_file_that_loads_nothing_and_runs_no_text(run):
    page = (run / "page.html").read_text()
    found = Structure(page)
    assert found.tags.count("script") == 1
    assert not [name for attributes in found.attributes for name in attributes if name.startswith("on")]
    assert all(value.startswith(("data:image/svg+xml;base64,", "#")) for value in found.values("src"))
    assert all(value.startswith("#") or value == "data:," for value in found.values("href"))
    assert set(found.tags) & {"iframe", "object", "embed", "link"} == {"link"}
    assert re.findall(r"url\(|@import|https?://", page) == []
    policy = next(value for value in found.values("content") if "default-src" in value)
    assert "default-src 'none'" in policy
    assert EVIL in found.text  # the path of the model
    assert "<script>" in found.text
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    assert {value.removeprefix("#") for value in found.values("href")} - {"data:,"} <= set(ids)
    assert len(found.values("alt")) == found.tags.count("img") == 2 * 2
    for uri in found.values("src"):
        chart = base64.b64decode(uri.partition(",")[2]).decode()
        assert "<script" not in chart
        assert not re.findall(r'(?:href|src)="(?!#|data:image/png)', chart)


def test_a_perplexity_that_is_no_number_is_past_the_limit(run, tmp_path, report_of):
    shutil.copytree(run / "out", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "mi_prune.json").read_text())
    manifest["evaluation"]["texts"][0]["perplexity_pruned"] = None  # how the manifest has NaN and infinity
    (tmp_path / "out" / "mi_prune.json").write_text(json.dumps(manifest))
    status, shown, _ = report_of(tmp_path / "out", "--text")
    assert status == 0
    assert "past what closed-form repair holds" in shown
    assert "a perplexity grew by more than half" in shown


def test_the_example_is_of_a_layer_that_was_measured(llama, windows):
    report = prune(llama, None, calibration=windows, ratio=0.25, multiple_of=4, sample_size=128)
    measured = report.layers[0]
    unseen = replace(measured, name="unseen", null_mi=math.nan)
    (sentence,) = example(replace(report, layers=[unseen, measured, unseen, unseen]))
    assert f"of {measured.name} was dropped" in sentence
    assert example(replace(report, layers=[unseen])) == []


def test_what_went_why_and_what_it_cost_stand_in_the_page(run):
    text = Structure((run / "page.html").read_text()).text
    manifest = json.loads((run / "out" / "mi_prune.json").read_text())
    evaluation = manifest["evaluation"]["texts"][0]
    growth = evaluation["perplexity_pruned"] / evaluation["perplexity_dense"] - 1
    for expected in (
        "20 of 80 FFN neurons were dropped (25.0%)",
        f"{growth:+.1%}",
        "within what closed-form repair holds" if growth <= 0.5 else "past what closed-form repair holds",
        manifest["model_fingerprint"],
        manifest["calibration"]["sha256"],
        manifest["versions"]["torch"],
        "mi-prune ",
        *(f"{layer['repair_error']:.1%}" for layer in manifest["layers"]),
    ):
        assert expected in text
    layer = manifest["layers"][0]["dropped"]
    best = max(range(len(layer["neuron"])), key=lambda i: layer["mi_nats"][i])
    row = [str(layer["neuron"][best]), str(layer["partner"][best]), f"{layer['mi_nats'][best]:.3g}"]
    assert row == text[text.index("tokens that excite it most") :].split()[5:8]


def test_the_same_page_comes_from_the_folder(run, report_of, tmp_path):
    assert report_of(run / "out", "--out", tmp_path / "again.html")[0] == 0
    assert (tmp_path / "again.html").read_text() == (run / "page.html").read_text()


def test_without_text_no_word_of_the_calibration_is_kept_or_shown(run, report_of, tmp_path, tokenizer):
    assert "excerpt" in gzip.decompress((run / "out" / "mi_prune_pictures.json.gz").read_bytes()).decode()
    report_of(run / "out", "--no-text", "--out", tmp_path / "page.html")
    assert "alert(3)" not in (tmp_path / "page.html").read_text()
    ids = torch.randint(3, 260, (24, 16), generator=torch.Generator().manual_seed(1))
    options = {"calibration": ids, "ratio": 0.25, "multiple_of": 2}
    kept = {text: prune(tiny_model("Llama"), tokenizer, text=text, **options) for text in (True, False)}
    assert kept[True].excerpts
    assert not kept[False].excerpts
    assert "excerpt" not in json.dumps(kept[False].pictures())


def test_a_terminal_shows_the_same_in_any_encoding(run, report_of):
    status, output, _ = report_of(run / "out", "--text")
    assert status == 0
    assert "20 of 80 FFN neurons were dropped (25.0%)" in output
    assert re.search("^error +[▁▂▃▄▅▆▇█]{2} ", output, re.MULTILINE)


def test_sparklines_span_the_range_and_skip_what_is_unknown():
    assert sparkline([1.0, 2.0, math.nan, 4.5, 3.0]) == "▁▃ █▅"
    assert sparkline([2.0, 2.0], "_.:-=+*#") == "__"
    assert sparkline([math.nan]) == " "


def test_results_are_compared_with_each_other_and_with_a_sweep(run, report_of, tmp_path):
    shutil.copytree(run / "out", tmp_path / "other")
    manifest = json.loads((tmp_path / "other" / "mi_prune.json").read_text())
    manifest["evaluation"]["texts"][0]["perplexity_pruned"] *= 10
    (tmp_path / "other" / "mi_prune.json").write_text(json.dumps(manifest))
    row = {
        "parameters": 100,
        "bytes": 400,
        "hidden_state_cosine": {},
        "change_error": {"a": 0.1},
        "widths": [9],
    }
    rows = [
        row | {"ratio": r, "neurons": n, "perplexity": {"a": p}}
        for r, n, p in ((0, 80, 8.0), (0.25, 60, 9.0))
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"sweep": rows}))
    folders = (run / "out", tmp_path / "other")
    status, _, error = report_of(
        *folders, "--sweep", tmp_path / "sweep.json", "--out", tmp_path / "page.html"
    )
    assert (status, error) == (0, "")
    found = Structure((tmp_path / "page.html").read_text())
    assert "9.00 (+12.5% +- 10.0%)" in found.text
    assert "0.25 (this result)" in found.text
    assert "past the limit" in found.text
    assert found.tags.count("img") == 1 + 2 * 2 * 2
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    text = report_of(*folders, "--text")[1]
    assert re.search(r"other +25\.0% +conditional-mi +sequential +uniform .*past the limit", text)
    rows[0]["neurons"] = 120
    (tmp_path / "sweep.json").write_text(json.dumps({"sweep": rows}))
    status, _, error = report_of(
        *folders, "--sweep", tmp_path / "sweep.json", "--out", tmp_path / "page.html"
    )
    assert status == 1
    assert "sweep: expected one of the same model, with 80 neurons, got one with 120" in error


def test_the_page_of_a_sweep_says_how_far_one_may_go(run, tmp_path, capsys):
    text, page = run / f"{EVIL}.txt", tmp_path / "sweep.html"
    arguments = [
        str(run / EVIL),
        "--sweep=0.25,0.5",
        "--calibration",
        str(text),
        "--report",
        str(page),
        "--json",
    ]
    assert main([*arguments, "--quiet", *OPTIONS]) == 0
    rows = json.loads(capsys.readouterr().out)["sweep"]
    found = Structure(page.read_text())
    assert (
        "Up to a ratio of 0.5, the largest that was tried, the perplexity grows by at most 50%" in found.text
    )
    assert found.tags.count("img") == 1
    assert f"{rows[-1]['perplexity']['builtin']:.2f} (" in found.text


@pytest.mark.parametrize(
    ("factors", "sentence"),
    [
        ((1.1, 1.4), "Up to a ratio of 0.2, the largest that was tried, "),
        (
            (1.1, 1.6),
            "Up to a ratio of 0.1 the perplexity grows by at most 50% on every text; at 0.2 by more.",
        ),
        ((1.6, 1.4), "At none of the ratios that were tried "),
    ],
)
def test_how_far_one_may_go_is_the_last_ratio_before_one_that_costs_too_much(factors, sentence):
    row = {
        "parameters": 1,
        "bytes": 4,
        "hidden_state_cosine": {},
        "change_error": {},
        "widths": [9],
        "neurons": 9,
    }
    tried = zip((0.0, 0.1, 0.2), (1.0, *factors), strict=True)
    rows = [row | {"ratio": ratio, "perplexity": {"a": 8 * factor, "b": 8.0}} for ratio, factor in tried]
    assert furthest(rows).startswith(sentence)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "expected at most 1, got 99"),
        ({"layers": []}, "expected at least one"),
        ({"layers": [{"name": "a"}]}, "cannot be read"),
        ({"layers": 3}, "cannot be read"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(run, report_of, tmp_path, change, message):
    shutil.copytree(run / "out", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "mi_prune.json").read_text()) | change
    (tmp_path / "out" / "mi_prune.json").write_text(json.dumps(manifest))
    status, _, error = report_of(tmp_path / "out", "--out", tmp_path / "page.html")
    assert status == 1
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_pictures_that_are_broken_are_refused_and_missing_ones_left_out(run, report_of, tmp_path):
    shutil.copytree(run / "out", tmp_path / "out")
    pictures = tmp_path / "out" / "mi_prune_pictures.json.gz"
    pictures.write_bytes(pictures.read_bytes()[:-20])
    assert "cannot be read" in report_of(tmp_path / "out")[2]
    pictures.unlink()
    manifest = json.loads((tmp_path / "out" / "mi_prune.json").read_text())
    for entry in ("schema", "peak_bytes", "parameters", "weight_bytes", "command", "model_fingerprint"):
        del manifest[entry]
    for layer in manifest["layers"]:
        del layer["repair_error"]
    (tmp_path / "out" / "mi_prune.json").write_text(json.dumps(manifest))  # as an earlier version wrote it
    assert report_of(tmp_path / "out", "--out", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert ">predicted</th>" in page
    assert ">error</th>" not in page
    assert '<details id="layer' not in page


@pytest.mark.parametrize(
    ("name", "message"),
    [("page.txt", "ends with .html"), ("no/page.html", "existing folder"), ("out/page.html", "--report")],
)
def test_a_bad_place_for_the_page_is_an_error_before_the_model_is_loaded(capsys, tmp_path, name, message):
    arguments = ["no/such/model", "--out", str(tmp_path / "out"), "--report", str(tmp_path / name)]
    (tmp_path / "out").mkdir()
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_bad_place_is_named_by_the_option_that_was_given(report_of, tmp_path):
    status, _, error = report_of(tmp_path, "--out", tmp_path / "page.txt")
    assert status == 1
    assert "--out: expected the name of a file that ends with .html" in error


@pytest.mark.parametrize("option", ["--sweep", "--out"])
def test_what_only_a_page_has_is_refused_with_the_form_for_terminals(run, report_of, tmp_path, option):
    status, output, error = report_of(run / "out", "--text", option, tmp_path / "a")
    assert (status, output) == (1, "")
    assert (
        error
        == f"mi-report: {option}: expected none with --text, which writes no page, got {tmp_path / 'a'}\n"
    )


def test_missing_packages_are_named_before_the_model_is_loaded(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("pruning.report.page.PACKAGES", ("jinja2", "no_such_plots"))
    assert main(["no/such/model", "--out", str(tmp_path / "a"), "--report", str(tmp_path / "a.html")]) == 1
    assert "no_such_plots" in (message := capsys.readouterr().err)
    assert "pip install 'mikernels[report]'" in message


def test_a_layer_that_loses_nothing_has_a_place_in_the_report(tmp_path):
    (ffn, *_) = find_ffns(tiny_model("Llama"))
    evidence = Evidence(statistics_of(torch.randn(200, 40)), None, torch.arange(0), torch.zeros(1).double())
    layer = explain(ffn, evidence, torch.arange(40), 1.0, Settings(), picture=True)
    assert len(layer.picture.redundant) == len(layer.dropped) == 0
    settings = {"budget": "kl", "criterion": "flap", "repair": "none"}
    write_html(Report(settings, 9, [layer], {}), tmp_path / "page.html")
    assert "40 of 40" in (tmp_path / "page.html").read_text()


def synthetic(n_layers, width=11_008):
    """The report of a large model, from random numbers."""
    generator = torch.Generator().manual_seed(0)
    layers = []
    for i in range(n_layers):
        order = torch.randperm(width, generator=generator)
        kept, dropped = order[: width * 4 // 5].sort().values, order[width * 4 // 5 :].sort().values
        n = len(dropped)
        mi = torch.rand(96, 96, generator=generator)
        tokens = torch.randint(0, 50_000, (10, 3), generator=generator)
        picture = Picture(
            shown=torch.cat([dropped[:40], kept[:56]]),
            mi=(mi + mi.t()).fill_diagonal_(0),
            steps=torch.arange(65) * (n // 64),
            damage=torch.linspace(0, 0.2, 65).double(),
            redundant=dropped[:10],
            p_value=torch.rand(10, generator=generator).double(),
            tokens=tokens,
            activation=torch.randn(10, 3, generator=generator),
        )
        reasons = [dropped, kept[:n], *[torch.rand(n, generator=generator)] * 3]
        layers.append(PrunedLayer(f"layer {i}", kept, *reasons, 0.1, 0.02, 1.0, 9, 0.1, picture=picture))
    named = {int(token) for layer in layers for token in layer.picture.tokens.flatten()}
    words = dict.fromkeys(named, ("ten words of text that go before a token ", "token", " and five behind"))
    settings = {"budget": "uniform", "criterion": "conditional-mi", "repair": "sequential"}
    return Report(settings, 9, layers, {}, excerpts=words)


def test_a_page_of_32_layers_of_11008_neurons_stays_below_6_megabytes(tmp_path):
    """From one and two layers: a page grows by the same for each."""
    size = {}
    for n_layers in (1, 2):
        write_html(synthetic(n_layers), tmp_path / "page.html")
        size[n_layers] = (tmp_path / "page.html").stat().st_size
    assert size[1] + 31 * (size[2] - size[1]) < 6e6


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium; on Debian: apt-get install chromium")
def test_in_a_browser_the_page_is_drawn_and_a_click_opens_a_layer(run, tmp_path):
    address = (run / "page.html").as_uri()
    with browser(tmp_path / "profile") as page:
        for width, dark in ((400, False), (1600, True)):
            page.open(address, width=width, dark=dark)
            assert page.requests() == [address]
            assert page.evaluate("document.querySelectorAll('details[open]').length") == 1  # the conditions
            page.evaluate("document.querySelector('tr[data-layer=layer-1-1] td:last-child').click()")
            page.evaluate("new Promise(done => setTimeout(done, 100))")
            assert page.evaluate("document.getElementById('layer-1-1').open")
            drawn = page.evaluate(DRAWN)
            assert len(drawn) == 2
            assert all(chart["colors"] > 8 for chart in drawn)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(OVERLAPS) == []
            assert page.complaints() == []


DRAWN = """
Promise.all([...document.querySelectorAll("#layer-1-1 img")].map(async (image) => {
  await image.decode();
  const canvas = new OffscreenCanvas(200, 150), context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, 200, 150);
  const data = new Uint32Array(context.getImageData(0, 0, 200, 150).data.buffer);
  return {colors: new Set(data).size};
}))
"""
OVERLAPS = """
(() => {
  const parts = [...document.querySelectorAll("h1, h2, h3, p, summary, figure, .scroll, .warnings")]
    .filter(part => part.checkVisibility()).map(part => [part, part.getBoundingClientRect()]);
  const found = [];
  parts.forEach(([one, a], i) => parts.slice(i + 1).forEach(([other, b]) => {
    const apart = a.right <= b.left + 1 || b.right <= a.left + 1 || a.bottom <= b.top + 1 || b.bottom <= a.top + 1;
    if (!apart && !one.contains(other)) found.push([one.outerHTML.slice(0, 60), other.outerHTML.slice(0, 60)]);
  }));
  return found;
})()
"""
