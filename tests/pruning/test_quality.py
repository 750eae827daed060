import math

import numpy
import pytest
import torch
import transformers

from pruning.observe.batches import Windows
from pruning.observe.mixture import decoder_start, text_windows
from pruning.observe.sources import open_sources
from pruning.report.comparison import meaning_of_mark
from pruning.report.quality import (
    NEW_TOKENS,
    Perplexity,
    check_prompt,
    generate,
    hidden_states,
    log_ratio_error,
    perplexity,
)
from pruning.settings import Settings

from tiny import outputs, tiny, tiny_model


def test_perplexity_equals_that_of_the_models_own_loss(llama, windows):
    with torch.inference_mode():
        losses = [llama(input_ids=w[None], labels=w[None]).loss for w in windows]
    result = perplexity(llama, windows.split(5))
    torch.testing.assert_close(result.nll.float(), torch.stack(losses), rtol=1e-4, atol=1e-5)
    assert math.isclose(result.value, math.exp(torch.stack(losses).mean()), rel_tol=1e-4)


@pytest.mark.parametrize("class_name", ["T5ForConditionalGeneration", "BartForConditionalGeneration"])
def test_perplexity_of_an_encoder_decoder_is_that_of_its_tokens_as_labels(class_name, windows):
    model = tiny(class_name)
    with torch.inference_mode():
        losses = torch.stack([model(input_ids=w[None], labels=w[None]).loss for w in windows])
    result = perplexity(model, Windows(list(windows), decoder_start=decoder_start(model)).split(5))
    torch.testing.assert_close(result.nll.float(), losses, rtol=1e-4, atol=1e-5)
    lengths = [3 + i % 9 for i in range(len(windows))]
    parts = [w[:n] for w, n in zip(windows, lengths, strict=True)]
    padded = perplexity(model, Windows(parts, decoder_start=decoder_start(model)).split(len(parts)))
    alone = [
        perplexity(model, Windows([part], decoder_start=decoder_start(model)).split(1)) for part in parts
    ]
    torch.testing.assert_close(padded.nll, torch.cat([one.nll for one in alone]), rtol=1e-4, atol=1e-5)
    assert padded.n_tokens.tolist() == lengths


@pytest.mark.parametrize("class_name", ["T5ForConditionalGeneration", "BartForConditionalGeneration"])
def test_what_an_encoder_decoder_writes_is_all_shown(class_name, tokenizer):
    model = tiny(class_name)
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
    shown = generate(model, tokenizer, "Once upon a time")
    assert shown == tokenizer.decode(expected, skip_special_tokens=True).strip()
    if class_name.startswith("Bart"):  # 64 positions
        check_prompt("a" * 50, model, tokenizer)
        with pytest.raises(ValueError, match="--prompt: expected at most the 64 positions"):
            check_prompt("a" * 70, model, tokenizer)


def test_a_model_that_reads_what_it_should_predict_has_no_perplexity(windows):
    sizes = {"vocab_size": 260, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for is_decoder in (True, False):
        config = transformers.BertConfig(**sizes, intermediate_size=40, is_decoder=is_decoder)
        model = transformers.BertLMHeadModel(config).eval()
        if is_decoder:
            assert perplexity(model, [windows]).value > 1
            continue
        with pytest.raises(ValueError, match="BertLMHeadModel: expected a model that predicts a token from"):
            perplexity(model, [windows])


def test_the_perplexity_of_uniform_predictions_is_the_vocabulary_size(windows):
    model = tiny_model("Llama", tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert math.isclose(perplexity(model, windows.split(8)).value, 260, rel_tol=1e-5)


def test_the_error_of_windows_of_equal_length_is_that_of_their_mean():
    draw = numpy.random.default_rng(0)
    nll = draw.normal(size=(2, 30))
    before, after = (Perplexity(torch.from_numpy(values)) for values in nll)
    expected = (nll[1] - nll[0]).std(ddof=1) / 30**0.5
    assert math.isclose(log_ratio_error(before, after), expected, rel_tol=1e-12)
    tokens = torch.full((30,), 7)
    weighted = log_ratio_error(before._replace(n_tokens=tokens), after._replace(n_tokens=tokens))
    assert math.isclose(weighted, expected, rel_tol=1e-12)
    assert math.isnan(log_ratio_error(Perplexity(torch.ones(1)), Perplexity(torch.ones(1))))


def test_the_error_of_windows_of_different_lengths_is_that_of_a_jackknife():
    draw = numpy.random.default_rng(0)
    tokens = draw.integers(1, 500, 400)
    nll = draw.normal(3, 1 / numpy.sqrt(tokens), (2, 400))  # short windows vary more
    before, after = (Perplexity(torch.from_numpy(values), torch.from_numpy(tokens)) for values in nll)

    def log_ratio(kept):
        dense, pruned = (Perplexity(p.nll[kept], p.n_tokens[kept]).value for p in (before, after))
        return math.log(pruned / dense)

    left_out = [log_ratio(numpy.arange(400) != i) for i in range(400)]
    jackknife = math.sqrt(399 * numpy.var(left_out))
    assert math.isclose(log_ratio_error(before, after), jackknife, rel_tol=0.01)
    unweighted = (nll[1] - nll[0]).std(ddof=1) / 20
    assert unweighted > 1.3 * jackknife


def test_hidden_states_are_those_of_all_tokens(windows):
    model = tiny_model("Bert")
    states = hidden_states(model, windows.split(5))
    torch.testing.assert_close(states, outputs(model, windows).flatten(0, 1))


def test_generation_continues_the_prompt_greedily(llama, tokenizer):
    ids = tokenizer("Once", return_tensors="pt")["input_ids"]
    prompt_length = ids.shape[1]
    for _ in range(5):
        ids = torch.cat([ids, outputs(llama, ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    expected = tokenizer.decode(ids[0, prompt_length:], skip_special_tokens=True).strip()
    assert generate(llama, tokenizer, "Once", max_new_tokens=5) == expected


def test_the_mark_of_a_text_says_whether_its_windows_are_those_of_the_calibration(llama, tokenizer, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("".join(f"{number} is a number. " for number in range(2000)))
    for name in ("builtin", str(file)):
        calibration, evaluation = (
            text_windows(
                llama,
                tokenizer,
                open_sources([name], builtin_half=half),
                Settings(sequence_length=64, seed=half),
                n_tokens=4096,
            )
            for half in (0, 1)
        )
        read = {tuple(window.tolist()) for window in calibration.sequences}
        is_shared = any(tuple(window.tolist()) in read for window in evaluation.sequences)
        assert is_shared is (name != "builtin")
        assert (f"on parts of {name} itself" in meaning_of_mark([name])) is is_shared
