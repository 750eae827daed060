"""Wrapped models, models with other heads than a language model's, and models that cannot be saved when pruned."""

import copy

import pytest
import torch
import transformers
from torch import nn

from pruning import load_model, prune
from pruning.cli import main
from pruning.model.ffn import find_ffns
from pruning.model.forward import without_cache
from pruning.model.snapshot import take_snapshot
from pruning.observe.divergence import DenseOutputs
from pruning.repair.stream import Stream
from pruning.report.save import save_pruned
from pruning.report.speed import paired_speed

from tiny import assert_unchanged, reload_here, state_of, tiny, tiny_model

SMALL = {"ratio": 0.5, "multiple_of": 2, "sample_size": 64}


def with_head(class_name, family):
    """A random model of `class_name`, with the body of `tiny_model(family)`."""
    source = tiny_model(family)
    config = copy.deepcopy(source.config)
    model = getattr(transformers, class_name)(config).eval()
    body = source if family == "Bert" else source.model
    model.base_model.load_state_dict(body.state_dict(), strict=False)
    return model


class Merged(nn.Module):
    """What matters here of a `peft.PeftModel`, which is not installed."""

    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def merge_and_unload(self):
        return self.base_model


def uninitialized(wrapper, model):
    """A wrapper that would need a process group to be built."""
    wrapped = wrapper.__new__(wrapper)
    nn.Module.__init__(wrapped)
    wrapped.module = model
    return wrapped


@pytest.mark.parametrize(
    ("wrap", "advice"),
    [
        (nn.DataParallel, r"got DataParallel; pass model\.module"),
        (lambda m: uninitialized(nn.parallel.DistributedDataParallel, m), r"pass model\.module"),
        (torch.compile, r"got OptimizedModule from torch\.compile; pass the model before"),
        (Merged, r"got Merged; pass model\.merge_and_unload\(\)"),
        (lambda m: nn.Sequential(m), r"expected a transformers\.PreTrainedModel, got Sequential"),
    ],
)
def test_a_wrapped_model_is_an_error_that_says_what_to_pass(llama, windows, wrap, advice):
    before = state_of(llama)
    with pytest.raises(ValueError, match=advice):
        prune(wrap(llama), None, calibration=windows, **SMALL)
    assert_unchanged(llama.cpu(), before)  # DataParallel brings it to the GPU if there is one


def test_a_compiled_layer_is_an_error_that_names_it(llama, windows):
    llama.model.layers[1] = torch.compile(llama.model.layers[1])
    with pytest.raises(ValueError, match=r"got its module model\.layers\.1 from torch\.compile"):
        prune(llama, None, calibration=windows, **SMALL)


HEADS = (
    ("BertForSequenceClassification", "Bert"),
    ("BertForQuestionAnswering", "Bert"),
    ("BertForTokenClassification", "Bert"),
    ("BertForMaskedLM", "Bert"),
    ("LlamaForSequenceClassification", "Llama"),
    ("LlamaForQuestionAnswering", "Llama"),
    ("LlamaModel", "Llama"),
)


@pytest.mark.parametrize(("class_name", "family"), HEADS)
def test_models_with_other_heads_are_compared_by_their_hidden_states(class_name, family, windows):
    model = with_head(class_name, family)
    batches = windows.split(8)

    def hidden():
        with torch.no_grad():
            return torch.cat([model.base_model(input_ids=b, use_cache=False)[0] for b in batches])

    dense, measured = hidden(), DenseOutputs(model, batches)
    assert measured.divergence() == 0
    with torch.no_grad():
        find_ffns(model)[1].output.weight.mul_(0.5)
    assert measured.divergence() == pytest.approx(float((hidden() - dense).square().mean()), rel=1e-5)


@pytest.mark.parametrize(("class_name", "family"), HEADS)
@pytest.mark.parametrize(
    "options", [{"budget": "kl"}, {"criterion": "random-pairs", "threshold": 0.0, "candidates": 2}]
)
def test_models_with_other_heads_are_pruned_and_saved(class_name, family, windows, tmp_path, options):
    model = with_head(class_name, family)
    ffns, dense = find_ffns(model), take_snapshot(find_ffns(model))
    report = prune(model, None, calibration=windows, **SMALL | options)
    assert sum(report.widths) == 60
    assert paired_speed(model, ffns, dense, windows).pairs > 0
    save_pruned(model, None, report, tmp_path / "out")


@pytest.mark.parametrize(("class_name", "family"), HEADS)
@pytest.mark.parametrize(
    "options", [["--budget=kl"], ["--criterion=random-pairs", "--threshold=0", "--candidates=2"]]
)
def test_the_command_prunes_models_with_other_heads(
    class_name, family, windows, tokenizer, tmp_path, capsys, options
):
    model = with_head(class_name, family)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("All happy families are alike. " * 100)
    out, text = str(tmp_path / "out"), str(tmp_path / "text.txt")
    options = ["--ratio=0.5", "--multiple-of=2", "--sequence-length=16", "--calibration-tokens=256", *options]
    options += ["--calibration", text, "--evaluate", text, "--evaluation-tokens=64", "--quiet"]
    assert main([str(tmp_path / "model"), "--out", out, *options]) == 0
    assert "hidden-state cosine" in capsys.readouterr().out
    pruned = load_model(out, device="cpu")[0]
    assert type(pruned).__name__ == class_name
    widths = [ffn.width for ffn in find_ffns(pruned)]
    assert sum(widths) == 60
    head, kept = pruned.state_dict(), model.state_dict()
    inside = ("mlp.", "intermediate.dense.", ".output.dense.")
    unpruned = [name for name in kept if not any(part in name for part in inside)]
    assert unpruned
    assert all(torch.equal(head[name], kept[name]) for name in unpruned)


@pytest.mark.parametrize("class_name", ["T5ForConditionalGeneration", "BartForConditionalGeneration"])
def test_the_command_prunes_evaluates_and_verifies_an_encoder_decoder(
    class_name, tokenizer, tmp_path, capsys, monkeypatch
):
    reload_here(monkeypatch)
    tiny(class_name).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("All happy families are alike. " * 100)
    text = str(tmp_path / "text.txt")
    options = [
        "--ratio=0.5",
        "--multiple-of=2",
        "--sequence-length=16",
        "--calibration-tokens=256",
        "--verify",
    ]
    options += [
        "--calibration",
        text,
        "--evaluate",
        text,
        "--evaluation-tokens=64",
        "--prompt=Once",
        "--quiet",
    ]
    assert main([str(tmp_path / "model"), "--out", str(tmp_path / "out"), *options]) == 0
    output = capsys.readouterr().out
    for expected in ("perplexity", "tokens/s", "[pruned] Once", "outputs differ by at most 0 of"):
        assert expected in output


@pytest.mark.parametrize(("class_name", "family"), HEADS)
def test_no_window_sees_tokens_of_another(class_name, family, windows):
    """The dense stream ends in the hidden states of a plain forward pass, batch by batch."""
    model = with_head(class_name, family)
    batches = windows.split(8)
    ffns = find_ffns(model)
    stream = Stream(model, ffns, batches)
    for index in range(len(ffns)):
        stream.advance(index)
    for hidden, batch in zip(stream.hidden, batches, strict=True):
        with torch.no_grad():
            states = model.base_model(input_ids=batch, use_cache=False, output_hidden_states=True)
        final = states.last_hidden_state
        got = hidden if family == "Bert" else model.base_model.norm(hidden)
        torch.testing.assert_close(got, final, rtol=1e-5, atol=1e-5)


def test_a_decoder_without_head_keeps_no_cache(llama, windows):
    body = llama.model
    assert body(input_ids=windows[:2]).past_key_values is not None
    assert body(input_ids=windows[:2], **without_cache(body)).past_key_values is None


def test_weights_that_the_config_does_not_describe_are_an_error(llama, windows):
    llama.model.layers[0].self_attn.q_proj.lora_A = nn.Parameter(torch.ones(2, 16))
    with pytest.raises(ValueError, match=r"q_proj\.lora_A; call merge_and_unload\(\) first"):
        prune(llama, None, calibration=windows, **SMALL)
