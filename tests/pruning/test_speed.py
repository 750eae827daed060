"""The paired speed of the dense and the pruned model; times themselves are not tested."""

import pytest
import torch

from pruning import prune
from pruning.model.ffn import find_ffns
from pruning.model.snapshot import take_snapshot
from pruning.report import speed
from pruning.report.speed import PAIRS, paired_speed

from tiny import assert_unchanged, outputs, state_of


@pytest.mark.parametrize(
    "options",
    [
        {"budget": "uniform"},
        {"budget": "kl", "max_layer_ratio": 0.6, "refine": True},  # layers of different widths
        {"repair": "bias"},  # adds biases to all projections
    ],
    ids=["uniform", "uneven", "bias"],
)
def test_dense_and_pruned_run_in_turn_on_the_same_windows(llama, windows, options):
    dense = outputs(llama, windows)
    ffns = find_ffns(llama)
    snapshot = take_snapshot(ffns)
    prune(llama, None, calibration=windows, ratio=0.5, multiple_of=2, **options)
    pruned, before = outputs(llama, windows), state_of(llama)
    assert not torch.equal(dense, pruned)

    runs = []
    handle = llama.register_forward_hook(
        lambda _module, _args, keywords, output: runs.append((keywords["input_ids"], output[0])),
        with_kwargs=True,
    )
    result = paired_speed(llama, ffns, snapshot, windows)
    handle.remove()
    assert len(runs) == 2 * (PAIRS + 1)
    for i, (ids, output) in enumerate(runs):
        assert torch.equal(ids, windows)
        assert torch.equal(output, pruned if i % 2 else dense)
    assert result.pairs == PAIRS
    assert_unchanged(llama, before)
    assert torch.equal(outputs(llama, windows), pruned)


def test_the_result_is_the_median_of_the_ratios_without_the_warm_up(llama, windows, monkeypatch):
    dense = [9.0, 1.0, 2.0, 4.0, 1.0, 2.0, 4.0, 1.0]
    pruned = [0.1, 0.5, 1.6, 2.0, 0.8, 1.0, 4.0, 0.4]
    seconds = iter([second for pair in zip(dense, pruned, strict=True) for second in pair])
    monkeypatch.setattr(speed, "_forward_seconds", lambda _model, _ids: next(seconds))
    ffns = find_ffns(llama)
    result = paired_speed(llama, ffns, take_snapshot(ffns), windows)
    # The ratios are 2, 1.25, 2, 1.25, 2, 1, 2.5.
    assert result.ratio == 2
    assert result.quartiles == (1.25, 2)
    assert (result.dense, result.pruned) == (windows.numel() / 2, windows.numel() / 1)


def test_the_pruned_weights_are_back_after_an_error(llama, windows, monkeypatch):
    ffns = find_ffns(llama)
    snapshot = take_snapshot(ffns)
    prune(llama, None, calibration=windows, ratio=0.5, multiple_of=2)
    before = state_of(llama)
    monkeypatch.setattr(speed, "_forward_seconds", lambda _model, _ids: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        paired_speed(llama, ffns, snapshot, windows)
    assert_unchanged(llama, before)


def test_long_texts_are_cut_to_about_1024_tokens(llama, windows):
    sizes = []
    handle = llama.register_forward_hook(
        lambda _module, _args, keywords, _output: sizes.append(keywords["input_ids"].shape), with_kwargs=True
    )
    ffns = find_ffns(llama)
    paired_speed(llama, ffns, take_snapshot(ffns), windows.repeat(10, 1))
    handle.remove()
    assert set(sizes) == {(64, 16)}
