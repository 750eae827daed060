import math

import torch

from pruning.report.quality import generate, hidden_states, perplexity

from tiny import outputs, tiny_model


def test_perplexity_equals_that_of_the_models_own_loss(llama, windows):
    with torch.inference_mode():
        losses = [llama(input_ids=w[None], labels=w[None]).loss for w in windows]
    result = perplexity(llama, windows.split(5))
    torch.testing.assert_close(result.nll.float(), torch.stack(losses), rtol=1e-4, atol=1e-5)
    assert math.isclose(result.value, math.exp(torch.stack(losses).mean()), rel_tol=1e-4)


def test_the_perplexity_of_uniform_predictions_is_the_vocabulary_size(windows):
    model = tiny_model("Llama", tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert math.isclose(perplexity(model, windows.split(8)).value, 260, rel_tol=1e-5)


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
