import pytest
import torch

from pruning.model.ffn import find_ffns
from pruning.observe.capture import Recorder, capture

from tiny import tiny_model

CPU = torch.device("cpu")


def record(batches, sample_size=64, seed=0):
    recorder = Recorder("layer", batches[0].shape[1], sample_size, seed=seed, device=CPU)
    for batch in batches:
        recorder.add(batch)
    return recorder.finish()


@pytest.mark.parametrize("split", [1, 7, 100, 1000])
def test_moments_equal_those_of_all_data_for_any_batch_size(split):
    torch.manual_seed(0)
    z = torch.randn(1000, 6) * torch.tensor([1e-3, 1.0, 1.0, 5.0, 100.0, 1.0]) + torch.tensor(
        [0, 0, 1e3, 3, 0, -7.0]
    )
    statistics = record(list(z.split(split)))
    exact = z.double()
    assert statistics.n_tokens == 1000
    torch.testing.assert_close(statistics.mean, exact.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        statistics.covariance.diagonal().double(), torch.var(exact, 0, correction=0), rtol=1e-3, atol=0
    )
    scale = exact.std(0)
    error = (statistics.covariance.double() - exact.T.cov(correction=0)) / torch.outer(scale, scale)
    assert error.abs().max() < 1e-3
    every = torch.arange(6)
    expected = exact.T @ exact / 1000
    torch.testing.assert_close(statistics.second_moment(every, every), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(statistics.mean_square, expected.diagonal(), rtol=1e-4, atol=1e-3)


def test_the_sample_does_not_alias_the_recorded_tensor():
    z = torch.randn(32, 4)
    recorder = Recorder("layer", 4, 100, seed=0, device=CPU)
    recorder.add(z)
    expected = z.clone()
    z.zero_()
    sample = recorder.finish().sample
    assert sorted(sample[:, 0].tolist()) == sorted(expected[:, 0].tolist())


def test_the_sample_is_bounded_without_replacement_and_has_the_same_tokens_for_every_layer():
    tokens = torch.arange(500.0)[:, None]
    one = record(list(tokens.split(90)), sample_size=50)
    other = record(list((tokens * 2).split(90)), sample_size=50)
    assert one.sample.shape == (50, 1)
    assert len(one.sample.unique()) == 50
    assert torch.equal(other.sample, one.sample * 2)


def test_the_sample_is_uniform_over_all_tokens():
    tokens = torch.arange(400.0)[:, None]
    hits = torch.zeros(400)
    for seed in range(200):
        hits[record(list(tokens.split(37)), sample_size=100, seed=seed).sample.flatten().long()] += 1
    # Each token is drawn with probability 1/4: 50 of 200 draws, standard deviation 6.1.
    assert 48 < hits[:200].mean() < 52
    assert hits.min() > 20
    assert hits.max() < 80


def test_the_captured_activations_are_the_inputs_of_the_output_projection(llama, windows):
    ffns = find_ffns(llama)
    seen = []
    handle = (
        ffns[1]
        .output.owners[0]
        .register_forward_pre_hook(lambda _m, args: seen.append(args[0].flatten(0, 1).clone()))
    )
    statistics = capture(llama, ffns, windows.split(5), sample_size=10_000)
    handle.remove()
    z = torch.cat(seen)
    assert statistics[1].n_tokens == windows.numel() == len(z)
    assert torch.equal(statistics[1].sample.sort(0).values, z.sort(0).values)


def test_hooks_are_removed_and_the_mode_is_restored_after_success(llama, windows):
    llama.train()
    ffns = find_ffns(llama)
    capture(llama, ffns, windows.split(8), sample_size=16)
    assert llama.training
    assert all(not ffn.output.owners[0]._forward_pre_hooks for ffn in ffns)


def test_the_error_for_nan_activations_names_the_layer_and_hooks_are_removed(windows):
    model = tiny_model("Llama").train()
    ffns = find_ffns(model)
    with torch.no_grad():
        ffns[1].inputs[1].weight[3, 0] = float("nan")
    n_tokens = windows[:8].numel()
    with pytest.raises(
        ValueError, match=rf"model\.layers\.1\.mlp: expected finite .* got {n_tokens} NaN and 0 infinite"
    ):
        capture(model, ffns, windows.split(8), sample_size=16)
    assert model.training
    assert all(not ffn.output.owners[0]._forward_pre_hooks for ffn in ffns)


def test_no_calibration_tokens_is_an_error(llama):
    with pytest.raises(
        ValueError, match=r"layers\.0\.mlp: expected calibration that reaches this FFN, got no tokens"
    ):
        capture(llama, find_ffns(llama), [], sample_size=16)
