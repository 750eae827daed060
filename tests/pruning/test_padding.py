"""Padding does not count: padded batches give what their sequences give one by one."""

import copy

import pytest
import torch
import transformers

from pruning import prune
from pruning.model.ffn import find_ffns
from pruning.observe.batches import Windows
from pruning.observe.calibration import calibration_windows
from pruning.observe.capture import capture
from pruning.observe.divergence import DenseOutputs
from pruning.observe.mixture import longest_sequence
from pruning.report.quality import hidden_states, perplexity
from pruning.settings import Settings

from tiny import VOCABULARY, outputs, tiny_model

COMMON = {"ratio": 0.25, "multiple_of": 2}


@pytest.fixture(scope="module")
def sequences():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in (16, 5, 11, 2, 16, 9) * 4]


def padded(sequences, side="right"):
    length = max(map(len, sequences))
    ids, mask = (
        torch.zeros(len(sequences), length, dtype=torch.int64),
        torch.zeros(len(sequences), length).long(),
    )
    for row, sequence in enumerate(sequences):
        place = slice(0, len(sequence)) if side == "right" else slice(length - len(sequence), length)
        ids[row, place], mask[row, place] = sequence, 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("family", ["Llama", "Bert", "Gemma2"])
def test_statistics_and_measures(family, sequences):
    model = tiny_model(family)
    ffns, one_by_one = find_ffns(model), [sequence[None] for sequence in sequences]
    batches = [padded(sequences[:13]), padded(sequences[13:])]
    for one, other in zip(
        *(capture(model, ffns, b, sample_size=99) for b in (one_by_one, batches)), strict=True
    ):
        assert one.n_tokens == other.n_tokens == sum(map(len, sequences))
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.covariance, other.covariance, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one.sample, other.sample, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        hidden_states(model, batches), hidden_states(model, one_by_one), rtol=1e-3, atol=1e-4
    )
    if model.can_generate():
        one, other = perplexity(model, one_by_one), perplexity(model, batches)
        assert other.value == pytest.approx(one.value, rel=1e-4)
    dense = [DenseOutputs(model, b) for b in (one_by_one, batches)]
    with torch.no_grad():
        ffns[1].output.weight[::2] = 0
    assert dense[1].divergence() == pytest.approx(dense[0].divergence(), rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"refine": True}, {"repair": "lstsq", "budget": "kl"}], ids=str)
@pytest.mark.parametrize("family", ["Llama", "Bert", "Olmo2"])
def test_pruning(family, options, sequences, windows):
    found = []
    for calibration, batch_size in ((sequences, 1), (padded(sequences), 7), ([padded(sequences, "left")], 5)):
        model = tiny_model(family)
        report = prune(model, None, calibration=calibration, batch_size=batch_size, **COMMON | options)
        assert report.calibration_tokens == sum(map(len, sequences))
        found.append((report.widths, outputs(model, windows)))
    for widths, output in found[1:]:
        assert widths == found[0][0]
        torch.testing.assert_close(output, found[0][1], rtol=0.02, atol=0.02)


def test_a_layer_with_a_module_that_reads_attention_scores_is_repaired_in_sequence(sequences):
    """MPNet drops out of its attention scores `[B, heads, L, L]` by a module of its own."""
    sizes = {"vocab_size": 260, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    dense = transformers.MPNetModel(transformers.MPNetConfig(**sizes, intermediate_size=40)).eval()
    found = []
    for calibration, batch_size in ((sequences, 1), (padded(sequences), 7)):
        model = copy.deepcopy(dense)
        report = prune(model, None, calibration=calibration, batch_size=batch_size, **COMMON)
        assert report.settings["repair"] == "sequential"
        found.append(torch.cat([layer.output.weight.detach() for layer in find_ffns(model)]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_everything_with_one_meaning_is_accepted(sequences, windows, tokenizer):
    llama, settings = tiny_model("Llama"), Settings(sequence_length=16)
    expected = [list(s) for s in windows.tolist()]
    batches = [{"input_ids": part, "labels": part} for part in windows.split(5)]
    rows = [{"input_ids": row, "attention_mask": [1] * 16} for row in windows.tolist()]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(windows), batch_size=5)
    encoding = transformers.BatchEncoding({"input_ids": windows, "attention_mask": torch.ones_like(windows)})
    for given in (windows, windows.int(), windows.numpy(), windows.tolist(), batches, rows, loader, encoding):
        found = calibration_windows(llama, None, given, settings)
        assert [sequence.tolist() for sequence in found.sequences] == expected
    texts = ["All happy", "families", "are alike"]
    found = calibration_windows(llama, tokenizer, texts, settings)
    assert [sequence.tolist() for sequence in found.sequences] == [tokenizer(t)["input_ids"] for t in texts]


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (torch.full((2, 4), VOCABULARY), f"calibration: expected token ids from 0 to 259, got {VOCABULARY}"),
        (torch.tensor([[5, -1]]), "expected token ids from 0 to 259, got -1"),
        ({"attention_mask": torch.ones(1, 2)}, "got a dict with attention_mask"),
        ({"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 2)}, "attention_mask"),
        ({"input_ids": [[5, 6, 7]], "attention_mask": [[1, 0, 1]]}, "padding at the ends of sequences"),
        ({"input_ids": [[5, 6, 7]], "attention_mask": [[0, 0, 0]]}, "got padding only"),
        (7, "calibration: expected text, .* got int"),
        ([], "got nothing"),
        ([object()], "calibration: expected"),
        (b"text", "got bytes"),
        ([(torch.ones(1, 3).long(), torch.ones(1, 3).long())], r"expected windows of token ids \[n, L\]"),
    ],
)
def test_the_rest_is_a_clear_error(llama, calibration, message):
    with pytest.raises(ValueError, match=message):
        prune(llama, None, calibration=calibration, **COMMON)


def test_padding_without_a_mask_gives_a_warning(llama, sequences):
    with pytest.warns(UserWarning, match="the padding token 0, which counts as text"):
        calibration_windows(llama, None, padded(sequences)["input_ids"], Settings())


def test_roberta_has_fewer_positions_than_its_table():
    config = transformers.RobertaConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=20,
        pad_token_id=1,
    )
    model = transformers.RobertaModel(config).eval()
    assert longest_sequence(model) == 18
    outputs(model, torch.full((1, 18), 5))
    with pytest.raises((IndexError, RuntimeError)):
        outputs(model, torch.full((1, 19), 5))
    with pytest.raises(ValueError, match="at most the 18 positions of the model, got 19"):
        calibration_windows(model, None, torch.full((1, 19), 5), Settings())


def test_batches_hold_the_sequences_and_a_mask_only_with_padding(sequences):
    first, second = Windows(sequences[:2]).split(1)
    assert torch.equal(first[0], sequences[0])
    assert torch.equal(second[0], sequences[1])
    (batch,) = Windows(sequences[:2]).split(2)
    assert batch["attention_mask"].sum(1).tolist() == [16, 5]
