"""The comparison of pruning methods, from a tiny model to the page."""

import math
import re

import numpy as np
import pytest
import torch

from benchmarks.publish import quality as page
from benchmarks.publish import sizes as sizes_page
from benchmarks.publish import texts as texts_page
from benchmarks.quality import __main__ as command
from benchmarks.quality import budgets, measure, methods, sizes, texts
from benchmarks.quality.calibrated import Calibrated
from benchmarks.quality.measure import DENSE, Source
from benchmarks.quality.methods import CRITERIA, GROUPS, METHODS, NOTABLE, unknown_setting
from benchmarks.quality.rivals import RIVALS
from benchmarks.quality.scores import Score, sheets
from benchmarks.quality.tasks import PROTOCOLS, WikiText, embed, evenly_spaced
from benchmarks.record import append, load, row
from pruning import prune
from pruning.model.ffn import find_ffns
from pruning.observe.text import builtin_text
from pruning.report.quality import Perplexity

from tiny import VOCABULARY, outputs, tiny_model, tiny_tokenizer

WINDOWS = torch.randint(3, VOCABULARY, (8, 32), generator=torch.Generator().manual_seed(0))
RATIO = 0.25
WORDS = [
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
]


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
    (tmp_path / "glue" / "RTE").mkdir(parents=True)
    premises = [f'{i}\t"{" ".join(rng.choice(WORDS, 20))}\tDogs run.\tentailment' for i in range(40)]
    table = "\n".join(["index\tsentence1\tsentence2\tlabel", *premises])
    (tmp_path / "glue" / "RTE" / "dev.tsv").write_text(table, encoding="utf-8")
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


@pytest.fixture
def run(data, tokenizer, tmp_path, monkeypatch):
    """Run a module on a tiny model, by its name; returns the exit status and leaves the rows in `rows.jsonl`."""
    models = {
        "tiny": tiny_model("Llama", max_position_embeddings=2048),
        "encoder": tiny_model("Bert", max_position_embeddings=128),
    }
    monkeypatch.setattr(measure, "load_model", lambda path, device: (models[path].to(device), tokenizer))

    def run(module, model, *options):
        common = [f"--data={data}", f"--model={model}={model}", f"--out={tmp_path / 'rows.jsonl'}"]
        monkeypatch.setattr("sys.argv", ["", *common, "--windows=6", *options])
        return module.main()

    return run


SIZES = (f"--ratios={RATIO}", "--length=32", "--encoder-length=32")


def test_methods_are_named_once_and_name_what_exists():
    built = [*methods._criteria(), *methods._recipes(), *methods._rivals()]
    assert len(built) == len(METHODS)
    assert all(m.group in GROUPS for m in METHODS.values())
    assert {m.rival for m in METHODS.values()} == {None, *RIVALS}
    assert {page.REFERENCE, *NOTABLE} <= METHODS.keys()
    assert all(f"{criterion}, lstsq" in METHODS for criterion in CRITERIA)


def test_unknown_settings_are_named():
    assert unknown_setting({"criterion": "flap", "ratio": 0.2}) is None
    assert "no color" in unknown_setting({"color": "red"})
    assert "criterion='best'" in unknown_setting({"criterion": "best"})


OWN = [m for m in METHODS.values() if m.rival is None]
ONE_OF_EACH_GROUP = {m.group: m for m in OWN}.values()


@pytest.mark.parametrize(
    ("family", "name"), [("Llama", m.name) for m in OWN] + [("Bert", m.name) for m in ONE_OF_EACH_GROUP]
)
def test_shared_statistics_prune_as_prune_does(family, name):
    method = METHODS[name]
    dense, alone = tiny_model(family), tiny_model(family)
    assert method.obstacle(dense) is None
    calibrated = Calibrated(dense, WINDOWS)
    before = outputs(dense, WINDOWS)
    model, seconds = calibrated.prune(method, RATIO)
    prune(alone, None, calibration=WINDOWS, settings=calibrated.settings(method, RATIO))
    assert torch.equal(outputs(model, WINDOWS), outputs(alone, WINDOWS))
    assert torch.equal(outputs(dense, WINDOWS), before)
    assert {"select", "repair"} <= seconds.keys()


def test_each_ratio_of_one_calibration_has_its_width():
    calibrated = Calibrated(tiny_model("Llama"), WINDOWS)
    for name in ("random-pairs, lstsq", "wanda, none"):
        for ratio in (0.1, 0.5):
            model, _ = calibrated.prune(METHODS[name], ratio)
            assert {ffn.width for ffn in find_ffns(model)} == {round(40 * (1 - ratio))}


def test_calibration_leaves_the_end_of_the_text_alone(data, tokenizer):
    task = WikiText(tokenizer, data, n_windows=10**6, length=32, protocols=["8x512"])
    ids = tokenizer((data / "wikitext-2" / "valid.txt").read_text(encoding="utf-8"))["input_ids"]
    assert len(task.calibration) == int(0.88 * (len(ids) // 32))
    assert task.calibration.flatten().tolist() == ids[: task.calibration.numel()]


def test_protocols():
    windows = torch.arange(40)[:, None]
    assert PROTOCOLS["8x512"].pick(windows).flatten().tolist() == list(range(8))
    assert PROTOCOLS["16x512"].pick(windows).flatten().tolist()[:3] == [0, 2, 5]
    assert evenly_spaced(windows, 100).shape == (40, 1)


def test_protocol_python_is_a_text_of_another_domain(data, tokenizer):
    task = WikiText(tokenizer, data, n_windows=1, length=32, protocols=["16x512", "python"])
    assert tokenizer.decode(task.tests["python"][0]) in builtin_text()[1]
    assert tokenizer.decode(task.tests["16x512"][0]) in (data / "wikitext-2" / "test.txt").read_text("utf-8")
    assert PROTOCOLS["python"].description.startswith("16 evenly spaced windows of 512 tokens of the Python")
    assert PROTOCOLS["8x512"].description == "8 first windows of 512 tokens of the WikiText-2 test split"


def test_slow_methods_get_the_same_number_of_tokens_for_any_window():
    slow = METHODS["fmchisel-osscar"]
    for length in (32, 512):
        calibration = torch.zeros(112 * 512 // length, length)
        assert slow.windows(calibration).numel() == 32 * 512
        assert len(METHODS["flap, none"].windows(calibration)) == len(calibration)


def test_repair_with_more_text_sees_it_but_keeps_the_choice():
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


def test_from_models_to_the_page(run, tmp_path, capsys):
    names = ("flap, none", "random, none", "flap, lstsq", "random, lstsq", "optipfair-maw")
    rows = tmp_path / "rows.jsonl"
    for model in ("tiny", "encoder"):
        assert run(command, model, "--methods", *names, *SIZES) == 0
        before = load(rows)
        assert run(command, model, "--methods", *names, *SIZES, "--skip-done") == 0
        assert load(rows) == before
    assert "optipfair-maw: skipped, " in capsys.readouterr().out
    stored = load(rows)
    assert {r["case"]["method"] for r in stored} >= {DENSE, *names[:4]}
    assert all(f"--model {r['case']['model']}=... --device cpu --methods" in r["command"] for r in stored)
    assert len(stored[0]["result"]["quality"]["8x512"]["nll"]) == 8

    page.publish(rows, tmp_path)
    assert not (tmp_path / "quality.png").exists()  # a line needs two ratios
    text = (tmp_path / "quality.md").read_text(encoding="utf-8")
    for sheet in sheets(rows):
        assert f"### {sheet.model} in {sheet.dtype}, {sheet.protocol}\n" in text
        assert page.value(sheet.scores["flap, lstsq", RATIO]) in text
    assert "Paired difference from FLAP, least squares" in text

    dense = next(
        row for row in stored if row["case"]["method"] == DENSE
    )  # rows in another dtype are not mixed in
    append([dense | {"case": dense["case"] | {"dtype": "bfloat16"}}], rows)
    found = [sheet for sheet in sheets(rows) if sheet.model == dense["case"]["model"]]
    assert {sheet.dtype for sheet in found if len(sheet.scores) == 1} == {"bfloat16"}
    assert {sheet.dtype for sheet in found if len(sheet.scores) > 1} == {"float32"}


def test_failure_of_a_method_costs_only_its_own_row(run, tmp_path, monkeypatch):
    prune_with = Calibrated.prune

    def fail(self, method, ratio):
        if method.name == "flap, none":
            raise RuntimeError("no")
        return prune_with(self, method, ratio)

    monkeypatch.setattr(Calibrated, "prune", fail)
    assert run(command, "tiny", "--methods", "flap, none", "magnitude, none", *SIZES) == 1
    stored = load(tmp_path / "rows.jsonl")
    assert [r["case"]["method"] for r in stored] == [DENSE, "magnitude, none"]


def test_names_of_models():
    assert Source.parse("small=/models/a.gguf") == Source("small", "/models/a.gguf")
    assert Source.parse("/models/a.gguf").name == "a"
    assert Source.parse("/models/b").name == "b"


def test_budgets_by_each_statistic(run, tmp_path, capsys):
    run(budgets, "tiny")
    stored = {r["case"]["statistic"]: r["result"] for r in load(tmp_path / "rows.jsonl")}
    assert stored["uniform"]["agreement"] is None
    assert stored["halved layer"]["agreement"] == 1
    assert all(len(r["weights"]) == 3 for name, r in stored.items() if name != "uniform")
    assert f"{stored['uniform']['quality']['8x512']['perplexity']:.4g}" in capsys.readouterr().out


def test_gaussian_mi_is_that_of_the_correlation():
    """Of three independent neurons, and of three neurons that are all correlated by rho."""
    generator = torch.Generator().manual_seed(0)
    common, own = torch.randn(20_000, 1, generator=generator), torch.randn(20_000, 3, generator=generator)
    for sample, rho in ((own, 0.0), (0.6**0.5 * common + 0.4**0.5 * own, 0.6)):
        for ranks in (False, True):
            found = budgets.gaussian_mi(sample, ranks=ranks)
            assert found == pytest.approx(-0.5 * math.log1p(-(rho**2)), abs=0.01)


def test_the_ratios_on_several_texts_are_of_the_mean_losses_of_windows():
    dense = {"a": Perplexity(torch.tensor([1.0, 3.0])), "b": Perplexity(torch.tensor([2.0, 2.0]))}
    pruned = {"a": Perplexity(torch.tensor([1.5, 3.5])), "b": Perplexity(torch.tensor([2.0, 2.4]))}
    found = texts.compare(dense, pruned)
    assert found["texts"]["a"]["ratio"] == pytest.approx(math.exp(0.5), abs=1e-4)
    assert found["texts"]["b"]["ratio"] == pytest.approx(math.exp(0.2), abs=1e-4)
    assert found["texts"]["a"]["log_ratio_standard_error"] == 0
    assert found["texts"]["b"]["log_ratio_standard_error"] == pytest.approx(0.2, abs=1e-4)
    assert found["geometric_mean"] == pytest.approx(math.exp(0.35), abs=1e-4)
    assert found["worst"] == pytest.approx(math.exp(0.5), abs=1e-4)


def test_every_calibration_is_measured_on_four_texts_and_shown_on_the_page(run, tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "LENGTH", 32)
    options = ["--ratios=0.25", "--tokens=512", "--methods", "flap, lstsq", "conditional-mi, sequential"]
    assert run(texts, "tiny", *options, "--calibrations", "self,builtin=2", "wikitext") == 0
    rows = load(tmp_path / "rows.jsonl")
    assert [row["case"]["calibration"]["sources"] for row in rows] == ["self,builtin=2"] * 2 + [
        "wikitext"
    ] * 2
    for found in rows:
        measured = found["result"]["pruned"]["texts"]
        assert measured.keys() == found["result"]["dense"].keys()
        assert {len(entry["nll"]) for entry in measured.values()} == {6}
        for text, entry in measured.items():
            assert entry["perplexity"] / found["result"]["dense"][text] == pytest.approx(
                entry["ratio"], rel=1e-3
            )
    texts_page.publish(tmp_path / "rows.jsonl", tmp_path)
    page_text = (tmp_path / "texts.md").read_text()
    assert page_text.count("conditional MI, sequential") == 2
    assert f"{rows[0]['result']['pruned']['worst']:.3f}" in page_text
    assert page_text.count("self,builtin=2 (480 tokens, passages of 128)") == 2
    assert page_text.count("wikitext (512 tokens)") == 2


def test_every_criterion_is_measured_on_four_texts(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "LENGTH", 32)
    names = ["random, none", "magnitude, none", "random, lstsq", "magnitude, lstsq"]
    assert run(sizes, "tiny", "--ratios=0.25", "--tokens=512", "--methods", *names) == 0
    rows = load(tmp_path / "rows.jsonl")
    assert [row["case"]["method"] for row in rows] == names
    assert {row["case"]["calibration"]["tokens"] for row in rows} == {512}
    assert all(len(row["result"]["pruned"]["texts"]) == 4 for row in rows)
    sizes_page.publish(tmp_path / "rows.jsonl", tmp_path)
    assert "| no repair " not in (tmp_path / "sizes.md").read_text(
        encoding="utf-8"
    )  # other criteria are missing
    blind = {name: methods.CRITERIA[name] for name in ("random", "magnitude")}
    monkeypatch.setattr(sizes_page, "CRITERIA", blind)
    sizes_page.publish(tmp_path / "rows.jsonl", tmp_path)
    text = (tmp_path / "sizes.md").read_text(encoding="utf-8")
    assert f"{rows[0]['result']['pruned']['geometric_mean']:.3f}" in text
    losses = [[entry["nll"] for entry in row["result"]["pruned"]["texts"].values()] for row in rows[:2]]
    apart = np.mean(losses[0]) - np.mean(losses[1])
    assert f"{abs(apart) / math.sqrt(2):.3f} (" in text  # the deviation of two values


def test_rows_from_other_passages_do_not_share_a_table(tmp_path):
    case = {"model": "tiny", "parameters": 10, "ratio": 0.5, "windows": 2, "sample_size": 8, "seed": 0}
    texts = {"news": {"nll": [1.0, 2.0], "log_ratio_standard_error": 0.1}}
    for name, passage in (("flap, none", {}), ("flap, lstsq", {"passage": 16})):
        calibration = {"sources": "self", "tokens": 64, "length": 32} | passage
        result = {
            "dense": {"news": 1.0},
            "parameters": 8,
            "pruned": {"texts": texts, "geometric_mean": 2.0, "worst": 2.0},
        }
        append(
            [row("sizes", "", case | {"method": name, "calibration": calibration}, result)],
            tmp_path / "sizes.jsonl",
        )
    sizes_page.publish(tmp_path / "sizes.jsonl", tmp_path)
    page_text = (tmp_path / "sizes.md").read_text(encoding="utf-8")
    assert re.findall(r"passages of (\d+)\n", page_text) == ["32", "16"]
