"""The comparison of pruning methods, from a tiny model to table and plot."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import BertConfig

from benchmarks.quality import budgets, report, spread
from benchmarks.quality.calibrated import Calibrated
from benchmarks.quality.measure import DENSE, Plan, Source, load, measure_model
from benchmarks.quality.methods import CRITERIA, GROUPS, METHODS, unknown_setting
from benchmarks.quality.rivals import RIVALS
from benchmarks.quality.scores import Score, sheets
from benchmarks.quality.tasks import PROTOCOLS, WikiText, embed, spearman
from benchmarks.quality.tasks import spread as evenly
from pruning import prune
from pruning.model.families import find_ffns
from pruning.observe.text import builtin_text

from tiny import VOCABULARY, outputs, tiny_model, tiny_tokenizer

WINDOWS = torch.randint(3, VOCABULARY, (8, 32), generator=torch.Generator().manual_seed(0))
RATIO = 0.25
WORDS = (
    "grey",
    "dogs",
    "run",
    "over",
    "a",
    "wet",
    "field",
    "while",
    "two",
    "small",
    "birds",
    "sing",
    "in",
    "trees",
)


@pytest.fixture
def tokenizer():
    found = tiny_tokenizer()
    found.model_max_length = 64
    return found


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "wikitext-2").mkdir()
    (tmp_path / "stsb").mkdir()
    for name in ("valid", "test"):
        text = " ".join(rng.choice(WORDS, 2000))
        (tmp_path / "wikitext-2" / f"{name}.txt").write_text(text, encoding="utf-8")
    for name in ("dev", "test"):
        lines = [
            f'"{" ".join(rng.choice(WORDS, 4))}",{" ".join(rng.choice(WORDS, 5))},{rng.integers(11) / 2}'
            for _ in range(60)
        ]
        (tmp_path / "stsb" / f"stsb-en-{name}.csv").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def plan(data, *names):
    return Plan(
        data, [METHODS[n] for n in names], [RATIO], ["8x512"], windows=6, length=32, encoder_length=32
    )


def causal():
    return tiny_model("Llama", max_position_embeddings=2048)


def test_methods_are_named_once_and_name_what_exists():
    assert len({m.name for m in METHODS.values()}) == len(METHODS)
    assert all(m.group in GROUPS for m in METHODS.values())
    assert {m.rival for m in METHODS.values()} == {None, *RIVALS}
    assert report.REFERENCE in METHODS
    assert all(f"{criterion}, lstsq" in METHODS for criterion in CRITERIA)


def test_unknown_settings_are_told():
    assert unknown_setting({"criterion": "flap", "ratio": 0.2}) is None
    assert "no colour" in unknown_setting({"colour": "red"})
    assert "criterion='best'" in unknown_setting({"criterion": "best"})


@pytest.mark.parametrize("family", ["Llama", "Bert"])
@pytest.mark.parametrize("name", [m.name for m in METHODS.values() if m.rival is None])
def test_shared_statistics_prune_as_prune_does(name, family):
    method = METHODS[name]
    dense, whole = tiny_model(family), tiny_model(family)
    if reason := method.unfit(dense):
        pytest.skip(reason)
    calibrated = Calibrated(dense, WINDOWS)
    before = outputs(dense, WINDOWS)
    model, seconds = calibrated.prune(method, RATIO)
    prune(whole, None, calibration=WINDOWS, settings=calibrated.settings(method, RATIO))
    assert torch.equal(outputs(model, WINDOWS), outputs(whole, WINDOWS))
    assert torch.equal(outputs(dense, WINDOWS), before)
    assert all(s >= 0 for s in seconds.values())


def test_each_ratio_of_one_calibration_has_its_width():
    calibrated = Calibrated(tiny_model("Llama"), WINDOWS)
    for name in ("random-pairs, lstsq", "wanda, none"):
        for ratio in (0.1, 0.5):
            model, _ = calibrated.prune(METHODS[name], ratio)
            assert {ffn.width for ffn in find_ffns(model)} == {round(40 * (1 - ratio))}


@pytest.mark.parametrize("rival", RIVALS)
def test_refitting_keeps_the_neurons_of_the_rival(rival):
    own, refitted = METHODS[rival], METHODS[f"{rival}, lstsq"]
    dense = tiny_model("Llama")
    if reason := own.unfit(dense):
        pytest.skip(reason)
    calibrated = Calibrated(dense, WINDOWS)
    models = [calibrated.prune(method, RATIO)[0] for method in (own, refitted)]
    for first, second in zip(*map(find_ffns, models), strict=True):
        assert torch.equal(first.inputs[0].weight, second.inputs[0].weight)
        assert not torch.equal(first.output.weight, second.output.weight)


def test_calibration_leaves_the_end_of_the_text_alone(data, tokenizer):
    task = WikiText(tokenizer, data, n_windows=10**6, length=32, protocols=["8x512"])
    ids = tokenizer((data / "wikitext-2" / "valid.txt").read_text(encoding="utf-8"))["input_ids"]
    assert len(task.calibration) == int(0.88 * (len(ids) // 32))
    assert task.calibration.flatten().tolist() == ids[: task.calibration.numel()]


def test_protocols():
    windows = torch.arange(40)[:, None]
    assert PROTOCOLS["8x512"].pick(windows).flatten().tolist() == list(range(8))
    assert PROTOCOLS["16x512"].pick(windows).flatten().tolist()[:3] == [0, 2, 5]
    assert evenly(windows, 100).shape == (40, 1)


def test_a_text_unlike_that_of_calibration(data, tokenizer):
    task = WikiText(tokenizer, data, n_windows=1, length=32, protocols=["16x512", "python"])
    assert tokenizer.decode(task.tests["python"][0]) in builtin_text()[1]
    assert tokenizer.decode(task.tests["16x512"][0]) in (data / "wikitext-2" / "test.txt").read_text("utf-8")
    assert "Python" in PROTOCOLS["python"].said
    assert "WikiText" in PROTOCOLS["16x512"].said


def test_slow_methods_have_as_many_tokens_whatever_the_window():
    slow = METHODS["fmchisel-osscar"]
    for length in (32, 512):
        calibration = torch.zeros(112 * 512 // length, length)
        assert slow.windows(calibration).numel() == 32 * 512
        assert len(METHODS["flap, none"].windows(calibration)) == len(calibration)


def test_repair_of_more_of_the_text_sees_it():
    dense = tiny_model("Llama")
    method = METHODS["conditional-mi, sequential, kl, threefold text"]
    models = [Calibrated(dense, WINDOWS[:4], more=more).prune(method, RATIO)[0] for more in (None, WINDOWS)]
    first, second = (find_ffns(model)[0] for model in models)
    assert torch.equal(first.inputs[0].weight, second.inputs[0].weight)
    assert not torch.equal(first.output.weight, second.output.weight)


def test_padding_does_not_change_a_sentence(tokenizer):
    model = tiny_model("Bert")
    sentences = ["a bird", "two small birds sing in the trees", "x"]
    together = embed(model, tokenizer, sentences)
    alone = torch.cat([embed(model, tokenizer, [s]) for s in sentences])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    states = model(input_ids=torch.tensor([tokenizer(sentences[0])["input_ids"]])).last_hidden_state[0]
    mean = states.mean(0).detach()
    torch.testing.assert_close(together[0], mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_spearman_shares_ranks_of_ties():
    x, y = np.array([1.0, 2, 2, 3]), np.array([10.0, 30, 20, 40])
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: covariance 4.5, squares 4.5 and 5.
    assert spearman(x, y) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman(np.exp(y), y) == pytest.approx(1.0)


def test_paired_errors():
    a, b = np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.5, 2.7])
    first, second = (Score("perplexity", math.exp(v.mean()), v) for v in (a, b))
    difference, error = first.against(second)
    assert difference == pytest.approx((a - b).mean())
    assert error == pytest.approx((a - b).std(ddof=1) / math.sqrt(3))
    # The jackknife of a mean with one value left out is its usual standard error.
    values = np.array([0.1, 0.5, 0.2, 0.7])
    without = (values.sum() - values) / 3
    mean = Score("spearman", values.mean(), without)
    none = Score("spearman", 0.0, np.zeros(4))
    assert mean.against(none)[1] == pytest.approx(values.std(ddof=1) / 2)


def test_from_models_to_table_plot_and_spread(data, tokenizer, tmp_path, capsys, monkeypatch):
    rows = tmp_path / "quality.jsonl"
    names = ("flap, none", "random, none", "flap, lstsq", "random, lstsq", "optipfair-maw")
    encoder = tiny_model("Bert", max_position_embeddings=128)
    assert isinstance(encoder.config, BertConfig)
    for model, name in ((causal(), "tiny"), (encoder, "encoder")):
        assert measure_model(Source(name, "-"), model, tokenizer, plan(data, *names), rows) == 0
        before = len(load(rows))
        measure_model(Source(name, "-"), model, tokenizer, plan(data, *names), rows, skip_done=True)
        assert len(load(rows)) == before
    assert "encoder, optipfair-maw" not in capsys.readouterr().out
    stored = load(rows)
    assert {r["case"]["method"] for r in stored} >= {DENSE, *names[:4]}
    assert all(r["command"] and r["commit"] and r["result"]["evaluation_seconds"] >= 0 for r in stored)
    assert len(stored[0]["result"]["quality"]["8x512"]["nll"]) == 8

    readme = tmp_path / "README.md"
    readme.write_text("<!-- quality:begin --><!-- quality:end -->", encoding="utf-8")
    monkeypatch.setattr(
        "sys.argv", ["report", f"--rows={rows}", f"--out={tmp_path / 'out'}", f"--readme={readme}"]
    )
    report.main()
    found = sheets(rows)
    tables = (tmp_path / "out" / "quality.md").read_text(encoding="utf-8")
    for sheet in found:
        assert f"## {sheet.model}, {sheet.protocol}" in tables
        assert report.value(sheet.scores["flap, lstsq", RATIO]) in tables
    assert "Paired against FLAP, least squares" in tables
    assert (tmp_path / "out" / "quality.png").stat().st_size > 1000
    assert "out/quality.png" in readme.read_text(encoding="utf-8")

    monkeypatch.setattr("sys.argv", ["spread", "tiny", "--ratio=0.25", f"--rows={rows}"])
    capsys.readouterr()
    spread.main()
    printed = capsys.readouterr().out
    assert printed.count("tiny") == 2
    values = [np.log(found[0].scores[f"{c}, none", RATIO].value) for c in ("random", "flap")]
    assert f"{np.std(values, ddof=1):.3f}" in printed


def test_a_method_that_fails_costs_its_own_row_only(data, tokenizer, tmp_path, monkeypatch):
    rows = tmp_path / "quality.jsonl"
    prune_with = Calibrated.prune

    def fail(self, method, ratio):
        if method.name == "flap, none":
            raise RuntimeError("no")
        return prune_with(self, method, ratio)

    monkeypatch.setattr(Calibrated, "prune", fail)
    chosen = plan(data, "flap, none", "magnitude, none")
    assert measure_model(Source("tiny", "-"), causal(), tokenizer, chosen, rows) == 1
    assert [json.loads(line)["case"]["method"] for line in rows.read_text().splitlines()] == [
        DENSE,
        "magnitude, none",
    ]


def test_names_of_models():
    assert Source.parse("small=/models/a.gguf") == Source("small", "/models/a.gguf")
    assert Source.parse("/models/a.gguf").name == "a"
    assert Source.parse("/models/b").name == "b"


def test_budgets_by_each_statistic(data, tokenizer, tmp_path, monkeypatch, capsys):
    model = tiny_model("Llama", max_position_embeddings=2048)
    monkeypatch.setattr(budgets, "load_model", lambda _: (model, tokenizer))
    rows = tmp_path / "budgets.jsonl"
    monkeypatch.setattr(
        "sys.argv", ["budgets", f"--data={data}", "--model=tiny=-", "--windows=3", f"--out={rows}"]
    )
    budgets.main()
    stored = {r["case"]["statistic"]: r["result"] for r in load(rows)}
    assert stored["uniform"]["agreement"] is None
    assert stored["halved layer"]["agreement"] == 1
    assert all(len(r["weights"]) == 3 for name, r in stored.items() if name != "uniform")
    assert f"{stored['uniform']['quality']['8x512']['perplexity']:.4g}" in capsys.readouterr().out


def test_information_of_gaussian_neurons_is_that_of_their_correlation():
    """Three pairs, of which two are independent: the median is one of them; with all correlated, that."""
    generator = torch.Generator().manual_seed(0)
    common, own = torch.randn(20_000, 1, generator=generator), torch.randn(20_000, 3, generator=generator)
    for sample, rho in ((own, 0.0), (0.6**0.5 * common + 0.4**0.5 * own, 0.6)):
        for ranks in (False, True):
            found = budgets._gaussian(sample, ranks=ranks)
            assert found == pytest.approx(-0.5 * math.log1p(-(rho**2)), abs=0.01)
