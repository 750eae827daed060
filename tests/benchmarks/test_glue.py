"""GLUE: its files, fine-tuning, and the rows and the page of a tiny encoder."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertTokenizer

from benchmarks.publish import glue as page
from benchmarks.quality import glue
from benchmarks.quality.fine_tune import Training, fine_tune
from benchmarks.quality.glue_tasks import TASKS, Example, batches, calibration, encode, matthews, predict
from benchmarks.quality.methods import CRITERIA
from benchmarks.record import append, load, row

GOOD, BAD = ["good", "fine", "warm"], ["bad", "poor", "cold"]
NEUTRAL = ["a", "film", "with", "an", "actor", "and", "music"]


def sentence(rng, label, length):
    words = [*rng.choice(NEUTRAL, length - 1), rng.choice(GOOD if label else BAD)]
    return " ".join(rng.permutation(words))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with made-up tasks whose labels a word gives away."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    lines = {
        "SST-2": lambda i, y: f"{sentence(rng, y, 3 + i % 5)}\t{y}",
        "CoLA": lambda i, y: f'gj04\t{y}\t{"" if y else "*"}\t"{sentence(rng, y, 3 + i % 5)}',
        "RTE": lambda i, y: (
            f"{i}\t{sentence(rng, y, 6)}\t{sentence(rng, y, 3)}\t{('entailment', 'not_entailment')[y]}"
        ),
    }
    for name, task in TASKS.items():
        (folder / "glue" / name).mkdir(parents=True)
        for file, count in (("train.tsv", 160), (task.dev, 40)):
            written = [lines[name](i, i % 2) for i in range(count)]
            header = [] if task.header is None else ["\t".join(task.header)]
            (folder / "glue" / name / file).write_text("\n".join([*header, *written, ""]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a tiny BERT and a tokenizer of the words."""
    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", '"', *NEUTRAL, *GOOD, *BAD]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    BertForSequenceClassification(config).base_model.save_pretrained(folder)
    return folder


def test_examples_of_each_task(data):
    for name, n_texts in (("SST-2", 1), ("CoLA", 1), ("RTE", 2)):
        for part, count in (("train", 160), ("dev", 40)):
            examples = TASKS[name].read(data / "glue", part)
            assert [e.label for e in examples] == [0, 1] * (count // 2)
            assert {len(e.texts) for e in examples} == {n_texts}
            for example in examples:
                words = set(" ".join(example.texts).replace('"', "").split())
                assert words & set(GOOD if example.label else BAD)
    assert all(e.texts[0].startswith('"') for e in TASKS["CoLA"].read(data / "glue", "dev"))


def test_missing_and_misshapen_files_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"data: expected the train examples of RTE in .*RTE/train.tsv"
    ):
        TASKS["RTE"].read(tmp_path, "train")
    for name in TASKS:
        (tmp_path / name).mkdir()
    for name, text, message in (
        ("SST-2", "a film\t1\n", r"test.tsv:1: expected the header .*sentence.*, got .*a film"),
        ("SST-2", "", r"test.tsv:1: expected the header"),
        ("SST-2", "sentence\tlabel\na film\n", r"test.tsv:2: expected 2 fields, got 1"),
        ("CoLA", "gj04\t1\t\ta film\ngj04\t2\t\ta film\n", r"dev.tsv:2: expected the label 0 or 1, got '2'"),
        ("RTE", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n", r"expected the label entailment or"),
    ):
        (tmp_path / name / TASKS[name].dev).write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            TASKS[name].read(tmp_path, "dev")


def test_matthews_correlation_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 2, 50), rng.integers(0, 2, 50)
    tp, tn = int((labels & predictions).sum()), int(((1 - labels) & (1 - predictions)).sum())
    fp, fn = int(((1 - labels) & predictions).sum()), int((labels & (1 - predictions)).sum())
    expected = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert matthews(predictions, labels) == pytest.approx(expected)
    assert matthews(np.ones(50, dtype=int), labels) == 0


def test_calibration_has_no_labels_and_at_least_the_tokens_asked_for(data, encoder):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    examples = TASKS["RTE"].read(data / "glue", "train")
    found = calibration(tokenizer, examples, 300, seed=1)
    longest = max(len(inputs["input_ids"]) for inputs in encode(tokenizer, examples))
    assert 300 <= found.n_tokens < 300 + longest
    assert all(batch.keys() == {"input_ids", "attention_mask", "token_type_ids"} for batch in found.batches)
    assert any(bool(batch["token_type_ids"].any()) for batch in found.batches)
    other = calibration(tokenizer, examples, 300, seed=2)
    assert not torch.equal(found.batches[0]["input_ids"], other.batches[0]["input_ids"])
    everything = calibration(tokenizer, examples, 10**6, seed=1)
    assert sum(len(batch["input_ids"]) for batch in everything.batches) == len(examples)


def test_fine_tuning_learns_and_leaves_the_frozen_layers(data, encoder):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    task = TASKS["SST-2"]
    training = Training(epochs=6, learning_rate=1e-2, frozen_layers=1, batch_size=16)
    models = [fine_tune(encoder, tokenizer, task.read(data / "glue", "train"), training) for _ in range(2)]
    dense = BertForSequenceClassification.from_pretrained(encoder)
    for name in ("embeddings", "encoder.layer.0"):
        before, after = (m.bert.get_submodule(name).state_dict() for m in (dense, models[0]))
        assert all(torch.equal(before[key], after[key]) for key in before)
    upper = "encoder.layer.1.output.dense"
    weights = [m.bert.get_submodule(upper).weight for m in (dense, *models)]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])
    tests = batches(tokenizer, encode(tokenizer, task.read(data / "glue", "dev")))
    labels = torch.cat([batch.pop("labels") for batch in tests])
    assert task.score(predict(models[0], tests), labels) > 0.8


def test_padding_does_not_change_a_prediction(encoder):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = BertForSequenceClassification.from_pretrained(encoder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    examples = [Example((text,), 0) for text in ("good", "a bad film", "a poor film with an actor and music")]
    (batch,) = batches(tokenizer, encode(tokenizer, examples))
    batch.pop("labels")
    with torch.no_grad():
        together = model(**batch).logits
        alone = torch.cat([model(**tokenizer(e.texts[0], return_tensors="pt")).logits for e in examples])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_rows_of_an_encoder(data, encoder, tmp_path, monkeypatch):
    def run(*methods):
        folders = [f"--data={data}", f"--cache={tmp_path}", f"--out={tmp_path / 'glue.jsonl'}"]
        sizes = ["--ratios=0.5", "--tokens=400", "--epochs=1", "--examples=64", "--seeds=1", "--seed=3"]
        options = [f"--model=small={encoder}", "--tasks=RTE", "--skip-done", "--methods", *methods]
        monkeypatch.setattr("sys.argv", ["", *folders, *sizes, *options])
        assert glue.main() == 0
        return load(tmp_path / "glue.jsonl")

    rows = run("flap, none", "conditional-mi, sequential")
    assert [r["case"]["method"] for r in rows] == ["dense", "flap, none", "conditional-mi, sequential"]
    assert rows[0]["result"]["agreement"] == 1
    left = rows[0]["result"]["parameters"] - 2 * 24 * (2 * 32 + 1)
    assert [r["result"]["parameters"] for r in rows[1:]] == [left, left]
    assert all("--model small=... --device cpu --tasks RTE" in r["command"] for r in rows)
    monkeypatch.setattr(glue, "fine_tune", None)  # the model is in the cache
    again = run("flap, none", "random, none")
    assert [r["case"]["method"] for r in again[len(rows) :]] == ["random, none"]


@pytest.fixture
def stored(tmp_path):
    """Rows of two models in three seeds: the scores of the smaller one spread ten times as much over the criteria."""
    path = tmp_path / "glue.jsonl"
    for model, parameters, spread in (("large", 9_000_000, 0.01), ("small", 2_000_000, 0.1)):
        for seed in range(3):
            common = {"model": model, "task": "CoLA", "measure": "Matthews correlation", "test_examples": 400}
            common |= {"seed": seed, "training": asdict(Training(seed=seed))}
            sizes = {"dense_parameters": parameters, "agreement": 0.75}
            case = common | {"method": "dense", "ratio": 0.0}
            append([row("glue", "", case, sizes | {"score": 0.6, "parameters": parameters})], path)
            for i, criterion in enumerate(CRITERIA):
                case = common | {"method": f"{criterion}, none", "ratio": 0.4, "calibration": {"tokens": 9}}
                result = {"score": 0.3 + 0.01 * seed + spread * i, "parameters": 0.7 * parameters}
                append([row("glue", "", case, sizes | result)], path)
    return path


def cells(text, start):
    line = next(x for x in text.splitlines() if x.startswith(start))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_page_shows_means_over_seeds_and_the_spread_over_criteria(stored, tmp_path):
    page.publish(stored, tmp_path)
    text = (tmp_path / "glue.md").read_text(encoding="utf-8")
    small, large = text[text.index("## small, CoLA") :], text[text.index("## large, CoLA") :]
    half = 4.302653 * 0.01 / 3**0.5  # 97.5 % quantile of Student's t with 2 degrees of freedom
    assert cells(small, "| random ")[1] == f"0.310 ± {half:.3f} (75 %)"
    assert cells(large, "| conditional MI ")[1] == f"**0.370 ± {half:.3f}** (75 %)"
    assert cells(small, "| parameters")[1] == "1.4 M (-30 %)"
    deviation = np.std(np.arange(len(CRITERIA)), ddof=1)
    spreads = [line for line in text.splitlines() if line.startswith("| CoLA")]
    for line, name, step in zip(spreads, ("small (2 M)", "large (9 M)"), (0.1, 0.01), strict=True):
        assert cells(line, "| CoLA")[1:] == [
            "no repair",
            name,
            f"{step * deviation:.3f} ± 0.000",
            f"{(1 - 0.6**2) / 400**0.5:.3f}",
        ]
    assert "Of 1 comparisons" in text
    assert "smaller in the larger model in 1, in 1 of them beyond the intervals" in text


def test_one_seed_has_no_interval():
    assert str(page.Mean.of([0.5])) == "0.500"


def test_scores_stand_beside_those_of_the_same_seeds_before_pruning(stored, tmp_path):
    rows = [r for r in load(stored) if r["case"]["model"] == "small" and r["case"]["seed"] == 2]
    rows[0]["result"]["score"] = 0.9  # dense
    rows[1]["case"]["ratio"] = 0.2
    append(rows[:2], stored)
    page.publish(stored, tmp_path)
    text = (tmp_path / "glue.md").read_text(encoding="utf-8")
    of_one_seed, of_three = cells(text[text.index("## small, CoLA") :], "| dense")[1:]
    assert of_one_seed == "0.900"
    assert of_three.startswith("0.700 ± ")
