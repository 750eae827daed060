"""The closer look at each layer that a run keeps for the report: maps, tokens, excerpts."""

import pytest
import torch

import mikernels
from pruning import prune
from pruning.choose.picture import by_similarity
from pruning.model.ffn import find_ffns
from pruning.observe.batches import Windows
from pruning.observe.excerpts import excerpts

from tiny import tiny, tiny_model


def test_a_map_holds_the_mutual_information_of_its_neurons_and_p_values_their_null():
    model = tiny_model("Llama")
    (ffn, *_) = find_ffns(model)
    ids = torch.randint(3, 260, (40, 16), generator=torch.Generator().manual_seed(1))
    z = activations(model, ffn, ids)
    layer = prune(model, None, calibration=ids, ratio=0.25, multiple_of=2).layers[0]
    picture = layer.picture
    expected = mikernels.mutual_information(z).fill_diagonal_(0)
    torch.testing.assert_close(picture.mi, expected[picture.shown][:, picture.shown], rtol=1e-3, atol=1e-4)
    top = layer.mi.argsort(descending=True)[:10]
    assert picture.redundant.tolist() == layer.dropped[top].tolist()
    null = mikernels.null_distribution(len(z), draws=20_000)
    torch.testing.assert_close(picture.p_value, null.p_value(layer.mi[top]))
    assert picture.steps.tolist() == list(range(11))


def activations(model, ffn, ids):
    """The neurons of an FFN for all tokens `[T, N]`, by a hook."""
    seen = []
    handle = ffn.output.owners[0].register_forward_pre_hook(
        lambda _module, args: seen.append(args[0].flatten(0, -2))
    )
    with torch.inference_mode():
        for row in ids:
            model(row[None])
    handle.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "MixtralForCausalLM"])
@pytest.mark.parametrize("repair", ["sequential", "lstsq"])
def test_tokens_are_those_at_which_a_neuron_is_farthest_from_zero(name, repair):
    """With padding, several batches, and experts that see some of the tokens."""
    model = tiny(name)
    generator = torch.Generator().manual_seed(1)
    rows = [
        torch.randint(3, 260, (n,), generator=generator)
        for n in (20, 7, 16, 20, 9, 20, 20, 12, 20, 20, 20, 16)
    ]
    dense = {ffn.name: ffn for ffn in find_ffns(model)}
    if name == "LlamaForCausalLM":
        z = {n: torch.cat([activations(model, ffn, row[None]) for row in rows]) for n, ffn in dense.items()}
    report = prune(model, None, calibration=rows, ratio=0.25, multiple_of=4, repair=repair, batch_size=5)
    pictures = {layer.name: layer.picture for layer in report.layers if layer.picture is not None}
    assert pictures
    for layer, picture in pictures.items():
        assert (picture.tokens >= 0).all()
        assert (picture.tokens < sum(map(len, rows))).all()
        if name == "LlamaForCausalLM":
            top = z[layer][:, picture.redundant].t().abs().topk(3)
            torch.testing.assert_close(picture.activation.abs(), top.values, rtol=1e-4, atol=1e-5)
            assert torch.equal(picture.tokens, top.indices)


def test_excerpts_are_the_words_around_a_token(tokenizer):
    texts = ["The first text.", "Another <b>one</b>, somewhat longer."]
    windows = Windows([tokenizer(text, return_tensors="pt").input_ids[0] for text in texts])
    first = len(windows.sequences[0])
    found = excerpts(windows, tokenizer, [4, first, first + 11, -1])
    assert found[4] == ("The ", "f", "irst ")
    assert found[first] == ("", "A", "nothe")
    assert found[first + 11] == ("nother <b>", "o", "ne</b")
    assert len(found) == 3
    # Two processes read every second sequence, and tell tokens apart by the rest.
    assert excerpts(windows, tokenizer, [2 * 4 + 1], 2) == {9: ("Anot", "h", "er <b")}


def test_similar_neurons_are_shown_side_by_side():
    group = torch.arange(24).remainder(2)
    mi = 0.01 + 0.5 * (group[:, None] == group).float()
    order = by_similarity(mi.fill_diagonal_(0))
    assert sorted(order.tolist()) == list(range(24))
    assert len({int(g) for g in group[order[:12]]}) == 1
