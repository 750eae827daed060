"""The calibration `self`: text that the model writes, in its own distribution."""

import copy
import json
import warnings

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, GenerationMixin

from pruning import Settings, prune
from pruning.choose.origin import calibration_identity
from pruning.cli import main
from pruning.observe import mixture
from pruning.observe import samples as samples_module
from pruning.observe.calibration import calibration_windows
from pruning.observe.samples import OPENERS, Samples, is_loop, sample_sequences
from pruning.observe.sources import builtin, open_sources
from pruning.prepare import prepare
from pruning.report.comparison import warnings_of

from tiny import tiny_model, tiny_tokenizer

SHORT = {
    "sequence_length": 16,
    "calibration_tokens": 512,
    "ratio": 0.25,
    "multiple_of": 2,
    "sample_size": 128,
}
COMMAND = [
    "--ratio=0.25",
    "--multiple-of=2",
    "--sequence-length=16",
    "--calibration-tokens=256",
    "--sample-size=128",
    "--quiet",
]
OPTIONS = {"length": 16, "n_tokens": 64, "bos": True, "seed": 0}


def sharp_model():
    """A model that prefers some tokens clearly, so that a wrong temperature or top-k shows in their frequencies."""
    model = tiny_model("Llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    return model


def with_eos_only(model):
    """The model, certain that every text ends at once."""
    with torch.no_grad():
        norm = model.model.norm.weight
        norm.zero_()
        model.lm_head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
        model.lm_head.bias.fill_(-50.0)
        model.lm_head.bias[2] = 50.0
    return model


@pytest.fixture
def never_generates(monkeypatch):
    def generate(*args, **kwargs):
        raise AssertionError("wrote samples")

    monkeypatch.setattr(GenerationMixin, "generate", generate)


def test_first_tokens_have_the_probabilities_of_the_model_whatever_its_generation_config(tokenizer):
    model = sharp_model()
    model.generation_config = own = GenerationConfig(
        do_sample=False, top_k=1, repetition_penalty=5.0, eos_token_id=2, max_new_tokens=3, temperature=0.1
    )
    samples = sample_sequences(model, tokenizer, length=5, n_tokens=5 * 4096, bos=True, seed=0)
    assert model.generation_config is own
    first = torch.stack(samples[::2])[:, 0].bincount(minlength=260) / len(samples[::2])
    with torch.no_grad():
        truth = model(torch.tensor([[1]])).logits[0, -1].softmax(0)
    assert float(truth.max()) > 0.05
    assert (first - truth).abs().max() < 5 * float((truth * (1 - truth) / len(samples[::2])).max().sqrt())


def test_every_second_sample_goes_on_from_an_opener(tokenizer):
    samples = sample_sequences(tiny_model("Llama"), tokenizer, length=48, n_tokens=48 * 80, bos=True, seed=0)
    texts = [tokenizer.decode(sample) for sample in samples]
    for i, text in enumerate(texts):
        opener = OPENERS[i // 2 % len(OPENERS)][:24]  # at most half of the sample
        assert text.startswith(opener) == bool(i % 2)
    # Two samples with the same opener go on differently.
    assert texts[1] != texts[1 + 2 * len(OPENERS)]


def test_the_first_token_is_shown_only_if_the_tokenizer_adds_it(tokenizer):
    with_bos = tiny_tokenizer()
    with_bos._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    model = tiny_model("Llama")
    shown = sample_sequences(model, with_bos, **OPTIONS | {"length": 17, "n_tokens": 17 * 4})
    assert [sample[0] for sample in shown] == [1] * 4
    assert {len(sample) for sample in shown} == {17}
    hidden = sample_sequences(model, tokenizer, **OPTIONS)
    left_out = sample_sequences(model, with_bos, **OPTIONS | {"bos": False})
    assert {len(sample) for sample in hidden} == {16}
    for a, b, c in zip(shown, hidden, left_out, strict=True):
        assert torch.equal(a[1:], b)
        assert torch.equal(b, c)


def test_a_window_is_several_passages_behind_one_first_token(tokenizer, monkeypatch):
    monkeypatch.setattr(samples_module, "PASSAGE", 8)
    model, with_bos = tiny_model("Llama"), tiny_tokenizer()
    with_bos._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    passages = sample_sequences(model, tokenizer, **OPTIONS | {"length": 8, "n_tokens": 8 * 16})
    windows = sample_sequences(model, tokenizer, **OPTIONS | {"length": 30, "n_tokens": 30 * 4})
    behind_bos = sample_sequences(model, with_bos, **OPTIONS | {"length": 31, "n_tokens": 31 * 4})
    expected = torch.stack(passages).reshape(4, 32)[:, :30]
    assert torch.equal(torch.stack(windows), expected)
    assert torch.equal(
        torch.stack(behind_bos), torch.cat([torch.ones(4, 1, dtype=torch.long), expected], dim=1)
    )


@pytest.fixture
def short_passages(tokenizer, monkeypatch):
    """Options for four windows of two passages, and these passages `[8, 8]`."""
    monkeypatch.setattr(samples_module, "PASSAGE", 8)
    options = OPTIONS | {"n_tokens": 16 * 4}
    windows = sample_sequences(tiny_model("Llama"), tokenizer, **options)
    return options, torch.stack(windows).reshape(8, 8)


def test_a_passage_that_loops_is_written_again_and_the_others_are_not(tokenizer, short_passages, monkeypatch):
    options, passages = short_passages
    verdicts = iter([i in (1, 4) for i in range(8)] + [False, True] + [False])
    monkeypatch.setattr(samples_module, "is_loop", lambda _passage: next(verdicts))
    windows = sample_sequences(tiny_model("Llama"), tokenizer, **options)
    again = torch.stack(windows).reshape(8, 8)
    assert (again != passages).any(1).tolist() == [i in (1, 4) for i in range(8)]
    assert torch.equal(again[1, :4], passages[1, :4])  # its opener, at most half of it
    assert next(verdicts, None) is None


def test_a_passage_that_always_loops_takes_no_others_with_it(tokenizer, short_passages, monkeypatch):
    options, passages = short_passages
    loops = [passages[1, 4:], passages[5, 4:]]
    written = []

    def loops_there(passage):
        written.append(passage)
        return any(torch.equal(passage, loop) for loop in loops) or len(written) > 8

    monkeypatch.setattr(samples_module, "is_loop", loops_there)
    with pytest.warns(UserWarning, match="2 of the 8 passages that the model wrote only repeat themselves"):
        windows = sample_sequences(tiny_model("Llama"), tokenizer, **options)
    assert torch.equal(torch.stack(windows), passages[[0, 2, 3, 4, 6, 7]].reshape(3, 16))
    assert len(written) == 8 + 2  # writing them again did not help, and is not tried further


def test_equal_seeds_write_equal_samples_and_the_global_generator_is_left_alone(tokenizer):
    model = tiny_model("Llama").train()
    state = torch.random.get_rng_state()
    first, again, other = (sample_sequences(model, tokenizer, **OPTIONS | {"seed": s}) for s in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    assert torch.equal(torch.stack(first), torch.stack(again))
    assert not torch.equal(torch.stack(first), torch.stack(other))


def test_a_text_goes_on_behind_its_end(tokenizer):
    samples = torch.stack(
        sample_sequences(tiny_model("Llama"), tokenizer, **OPTIONS | {"n_tokens": 16 * 400})
    )
    assert (samples[:, :-1] == 2).any()
    behind = samples[:, 1:][samples[:, :-1] == 2]
    assert behind.unique().numel() > 5


@pytest.mark.parametrize(
    ("sample", "loops"),
    [
        (torch.zeros(64, dtype=torch.int64), True),
        (torch.arange(64) % 7, True),
        (torch.cat([torch.arange(24), torch.full((40,), 3)]), True),
        (torch.cat([torch.arange(44), torch.full((20,), 3)]), False),
        (torch.arange(64), False),
    ],
)
def test_loops_are_recognized(sample, loops):
    assert is_loop(sample) is loops


def test_text_that_ships_with_python_replaces_loops_and_a_warning_says_so(tokenizer, monkeypatch):
    monkeypatch.setattr(samples_module, "OPENERS", ("a",))
    model, settings = with_eos_only(tiny_model("Llama")), Settings(**SHORT)
    with pytest.warns(UserWarning, match="32 of the 32 passages that the model wrote only repeat themselves"):
        windows = calibration_windows(model, tokenizer, [(Samples(), 1.0)], settings)
    expected = calibration_windows(model, tokenizer, [(builtin(), 1.0)], settings)
    assert torch.equal(torch.stack(list(windows.sequences)), torch.stack(list(expected.sequences)))


def test_weights_share_the_tokens(tokenizer, tmp_path):
    text = tmp_path / "wiki.txt"
    text.write_text("All happy families are alike. " * 200)
    sources = open_sources(["self=3", str(text)])
    windows = calibration_windows(tiny_model("Llama"), tokenizer, sources, Settings(**SHORT))
    assert windows.source == f"self=3, {text}=1"
    assert len(windows) == 32
    own = sample_sequences(tiny_model("Llama"), tokenizer, **OPTIONS | {"n_tokens": 384})
    written = [sequence for sequence in windows.sequences if any(torch.equal(sequence, one) for one in own)]
    assert torch.equal(torch.stack(written), torch.stack(own))


def test_any_stretch_of_a_mixture_has_its_weights(tokenizer, tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name * 4000)
    sources = open_sources([f"{tmp_path / 'a'}=1", f"{tmp_path / 'b'}=2", f"{tmp_path / 'c'}=5"])
    windows = calibration_windows(tiny_model("Llama"), tokenizer, sources, Settings(**SHORT))
    letters = "".join(tokenizer.decode(sequence[-1:]) for sequence in windows.sequences)
    assert {"".join(sorted(letters[start : start + 8])) for start in range(0, 32, 8)} == {"abbccccc"}


def test_by_default_half_of_the_text_is_what_a_causal_model_writes(tokenizer):
    windows = calibration_windows(tiny_model("Llama"), tokenizer, None, Settings(**SHORT))
    assert windows.source == "builtin, self"
    own = sample_sequences(tiny_model("Llama"), tokenizer, **OPTIONS | {"n_tokens": 256})
    written = [sequence for sequence in windows.sequences if any(torch.equal(sequence, one) for one in own)]
    assert len(windows) == 32
    assert torch.equal(torch.stack(written), torch.stack(own))


def test_by_default_text_takes_the_place_of_samples_that_a_model_cannot_write(tokenizer, monkeypatch):
    def fails(*_args, **_options):
        raise RuntimeError("no cache")

    monkeypatch.setattr(mixture, "sample_sequences", fails)
    with pytest.warns(
        UserWarning, match="got RuntimeError: no cache; the text that ships with Python is read"
    ):
        windows = calibration_windows(tiny_model("Llama"), tokenizer, None, Settings(**SHORT))
    expected = calibration_windows(tiny_model("Llama"), tokenizer, [(builtin(), 1.0)], Settings(**SHORT))
    assert windows.source == "builtin"
    assert torch.equal(torch.stack(list(windows.sequences)), torch.stack(list(expected.sequences)))


@pytest.mark.parametrize("kind", ["encoder", "no special tokens"])
def test_by_default_models_that_cannot_write_read_the_text_that_ships_with_python(kind, tokenizer):
    model = tiny_model("Bert" if kind == "encoder" else "Llama")
    if kind == "no special tokens":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.bos_token = tokenizer.eos_token = None
        tokenizer._tokenizer.post_processor = None
    assert calibration_windows(model, tokenizer, None, Settings(**SHORT)).source == "builtin"


@pytest.mark.parametrize("kind", [list, tuple])
def test_the_model_is_calibrated_on_its_samples_and_not_on_what_stands_in_for_them(
    kind, tokenizer, monkeypatch
):
    read = []

    def prepared(*args, **options):
        read.append(prepare(*args, **options))
        return read[0]

    monkeypatch.setattr("pruning.pipeline.prepare", prepared)
    report = prune(tiny_model("Llama"), tokenizer, calibration=kind([(Samples(), 1.0)]), **SHORT)
    settings = Settings(**SHORT)
    written = calibration_windows(tiny_model("Llama"), tokenizer, [(Samples(), 1.0)], settings)
    digests = [calibration_identity(windows, settings)["sha256"] for windows in (written, read[0].windows)]
    assert [digest == report.notes["calibration"]["sha256"] for digest in digests] == [True, False]


def test_a_mixture_is_named_in_the_manifest_and_its_samples_are_timed(tokenizer):
    report = prune(tiny_model("Llama"), tokenizer, calibration=open_sources(["self", "builtin"]), **SHORT)
    assert report.notes["calibration"]["source"] == "self, builtin"
    assert report.notes["calibration"]["tokens"] == 512
    assert report.seconds["sample"] > 0


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("Bert", {}, "expected a model that predicts the next token for 'self', got Bert"),
        ("Llama", {"sequence_length": 65}, "expected at most the 64 positions of the model, got 65"),
        ("Llama", {"ratio": 0.001}, "got 40 for ratio=0.001"),
    ],
)
def test_errors_come_before_the_samples(family, change, message, tokenizer, never_generates):
    with pytest.raises(ValueError, match=message):
        prune(tiny_model(family), tokenizer, calibration=[(Samples(), 1.0)], **SHORT | change)


def test_a_tokenizer_without_a_first_token_is_refused(tokenizer, never_generates):
    bare = tiny_tokenizer()
    bare.bos_token = bare.eos_token = None
    with pytest.raises(
        ValueError, match="expected a tokenizer with a BOS or EOS token for 'self', got neither"
    ):
        prune(tiny_model("Llama"), bare, calibration=[(Samples(), 1.0)], **SHORT)


def test_preparing_writes_no_samples(tokenizer, never_generates):
    windows = prepare(tiny_model("Llama"), tokenizer, open_sources(["self"]), Settings(**SHORT)).windows
    assert windows.n_tokens == 512


def test_a_class_that_cannot_generate_is_named(tokenizer, monkeypatch):
    def generate(*args, **kwargs):
        raise TypeError("unexpected keyword argument")

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    message = (
        "LlamaForCausalLM to write text for 'self', got TypeError: unexpected keyword argument; name a text"
    )
    with pytest.raises(ValueError, match=message):
        prune(tiny_model("Llama"), tokenizer, calibration=[(Samples(), 1.0)], **SHORT)


def test_nan_weights_are_refused_by_name(tokenizer):
    model = tiny_model("Llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp: expected finite activations"):
        prune(model, tokenizer, calibration=[(Samples(), 1.0)], **SHORT)


def test_the_table_shows_each_text_and_which_were_calibrated_on(tokenizer, tmp_path, capsys):
    tiny_model("Llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("All happy families are alike. " * 200)
    options = [*COMMAND, "--calibration=self", "--calibration=builtin"]
    texts = ["self", "builtin", str(tmp_path / "text.txt")]
    evaluate = [f"--evaluate={text}" for text in texts] + ["--evaluation-tokens=192"]
    assert main([str(tmp_path / "model"), f"--out={tmp_path / 'out'}", *options, *evaluate]) == 0
    output = capsys.readouterr().out
    for row in (
        "perplexity, self *",
        "perplexity, builtin *",
        f"perplexity, {texts[2]}  ",
        "* The model was",
    ):
        assert row in output
    assert "Other kinds of text may lose more" not in output
    manifest = json.loads((tmp_path / "out" / "mi_prune.json").read_text())
    entries = manifest["evaluation"]["texts"]
    assert [(entry["text"], entry["windows"]) for entry in entries] == [(text, 4) for text in texts]
    assert [entry["calibrated_on"] for entry in entries] == [True, True, False]
    assert main([str(tmp_path / "model"), f"--out={tmp_path / 'out2'}", *options, *evaluate[:2]]) == 0
    assert "Other kinds of text may lose more; add one with --evaluate." in capsys.readouterr().out


def test_texts_behind_statistics_are_marked_too(tokenizer, tmp_path, capsys):
    tiny_model("Llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = [*COMMAND, "--repair=lstsq", f"--seed={2**63 - 1}"]
    saved = tmp_path / "statistics.safetensors"
    command = [str(tmp_path / "model"), *options]
    assert (
        main([*command, f"--out={tmp_path / 'a'}", "--calibration=builtin=2", f"--save-statistics={saved}"])
        == 0
    )
    texts = ["--evaluate=builtin", "--evaluate=self", "--evaluation-tokens=128"]
    assert main([*command, f"--out={tmp_path / 'b'}", f"--statistics={saved}", *texts]) == 0
    assert "perplexity, builtin *" in capsys.readouterr().out
    evaluation = json.loads((tmp_path / "b" / "mi_prune.json").read_text())["evaluation"]
    assert [entry["calibrated_on"] for entry in evaluation["texts"]] == [True, False]


@pytest.mark.parametrize(
    ("growth", "warned"),
    [
        ({"own": 1.08, "other": 1.25}, []),
        (
            {"own": 1.08, "other": 1.35},
            ["narrow: perplexity changes by +35.0% on text of another kind, by +8.0%"],
        ),
        ({"own": 1.08, "other": 1.7}, ["narrow", "more than half"]),
        ({"own": 1.6, "other": 1.7}, ["more than half"]),
        ({"other": 1.4}, []),
        ({"own": 1.4}, []),
        ({}, []),
    ],
)
def test_a_narrow_calibration_is_named_by_what_it_costs_on_other_text(growth, warned):
    found = warnings_of(growth, {"own", "absent"})
    assert len(found) == len(warned)
    assert all(words in line for words, line in zip(warned, found, strict=True))


def test_a_text_that_is_read_in_place_of_own_samples_is_not_said_to_be_short(llama, tokenizer):
    """Half of 400,000 tokens is less than the text that ships with Python has, all of them are more."""
    weighted = mixture.default_sources(llama, tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = Settings(sequence_length=64)
        mixture.text_windows(llama, tokenizer, weighted, settings, n_tokens=400_000, stand_in=True)
