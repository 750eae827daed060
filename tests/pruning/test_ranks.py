"""Several processes prune together what one would alone."""

import pytest
import torch
import torch.distributed as dist
from results import assert_same, weights

from mikernels.ranks import RankError
from pruning import Settings, prune_folder
from pruning.observe.capture import Recorder

import rank_work
from processes import processes
from rank_work import N_TOKENS, OPTIONS, windows
from tiny import tiny_model, tiny_tokenizer

CLOSE = 1e-3
"""Relative difference of weights from sums in another order."""
REFINED = 0.2
"""The same where other tokens are held back, and each step has others."""


@pytest.fixture(scope="module")
def group():
    with processes(3) as started:
        yield started


def relative(got, expected):
    return float((got.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-9))


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("Llama", {}, 3),
        ("T5ForConditionalGeneration", {}, 2),  # whose layers cannot be run one by one
        ("Bert", {}, 2),
        ("Qwen2MoeForCausalLM", {}, 3),
        ("Llama", {"budget": "kl"}, 2),
        ("Llama", {"refine": True}, 2),
    ],
)
def test_all_end_with_the_model_of_one_process(group, name, options, count):
    expected, alone, n_alone = rank_work.prune_one(None, name, options)
    answers = group.run(count, rank_work.prune_one, name, options)
    for state, report, _ in answers:
        assert [layer.kept.tolist() for layer in report.layers] == [
            layer.kept.tolist() for layer in alone.layers
        ]
        assert [layer.n_tokens for layer in report.layers] == [layer.n_tokens for layer in alone.layers]
        assert report.calibration_tokens == N_TOKENS
        assert state.keys() == expected.keys()
        close = REFINED if "refine" in options else CLOSE
        assert all(relative(value, expected[key]) < close for key, value in state.items())
        assert all(torch.equal(value, answers[0][0][key]) for key, value in state.items())
    if "budget" not in options:
        assert all(n < 0.75 * n_alone for _, _, n in answers)  # beside trials, each runs its share


@pytest.mark.parametrize("sizes", [(1000, 1000), (1980, 20), (1999, 1)])
def test_refining_together_helps_as_much(group, sizes):
    """Steps have other tokens, so that the weights are not those of one process. Each token counts once, however few
    its process has."""
    _, before, alone, _ = rank_work.refine(None)
    answers = group.run(2, rank_work.refine, sizes)
    assert alone < 0.9 * before
    for relative, _, error, parameters in answers:
        assert error < 0.9 * alone + 0.1 * before
        assert relative == answers[0][0] < 1
        pairs = zip(parameters, answers[0][3], strict=True)
        assert all(torch.equal(value, first) for value, first in pairs)


def test_refining_that_the_tokens_of_one_process_contradict_is_undone_on_all(group):
    for relative, before, error, _ in group.run(2, rank_work.refine, (1000, 1000), 1):
        assert relative == 1
        assert error == before


@pytest.mark.parametrize("sizes", [(60, 140, 100), (0, 299, 1)])
@pytest.mark.parametrize("gated", [False, True])
def test_moments_are_those_of_all_tokens(group, sizes, gated):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(300, 7, generator=generator) * 3 + torch.arange(7) * 100
    gates = torch.rand(300, generator=generator) if gated else None
    weights = (torch.ones(300) if gates is None else gates.square()).double()
    mean = (weights @ values.double()) / weights.sum()
    centered = values.double() - mean
    covariance = (centered.t() * weights) @ centered / weights.sum()
    found = group.run(3, rank_work.record, values, gates, sizes, 50)
    for statistics in found:
        assert statistics.n_tokens == 300
        torch.testing.assert_close(statistics.mean, mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(statistics.covariance.double(), covariance, rtol=1e-4, atol=1e-3)
        assert torch.equal(statistics.sample, found[0].sample)
    places = (found[0].sample[:, None] == values).all(2).nonzero()[:, 1].tolist()
    starts = [0, sizes[0], sizes[0] + sizes[1]]  # a token is told by its place in a process, and the process
    assert [starts[token % 3] + token // 3 for token in found[0].tokens.tolist()] == places
    assert len(set(places)) == 50
    share = sum(place >= sizes[0] + sizes[1] for place in places) / 50
    assert abs(share - sizes[2] / 300) < 0.25


def test_one_process_has_the_sample_that_it_always_had(group):
    values = torch.randn(300, 7, generator=torch.Generator().manual_seed(0))
    recorder = Recorder("ffn", 7, 50, seed=0, device=torch.device("cpu"))
    for part in range(2):
        recorder.add(values[part::2])
    alone, (of_group,) = recorder.finish(), group.run(1, rank_work.record, values, None, (300,), 50)
    assert torch.equal(alone.sample, of_group.sample)
    assert torch.equal(alone.covariance, of_group.covariance)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("settings", "ratio: expected the same on all processes, got 0.25 on rank 0 and 0.5 on rank 1"),
        ("weights", "model: expected the same on all processes"),
        ("calibration", "calibration: expected the same on all processes"),
        (
            "few windows",
            "process_group: expected at most as many processes as windows of calibration, 1, got 2",
        ),
        ("file", "/no/such/file.txt"),
        ("overflow", "model.layers.1.mlp: expected finite activations"),
    ],
)
def test_what_is_wrong_on_one_process_is_an_error_on_all_and_changes_no_model(group, what, message):
    errors = group.run(2, rank_work.prune_with_others, what)
    assert all(isinstance(error, (ValueError, OSError, RankError)) for error in errors), errors
    assert all(message in str(error) for error in errors)


def test_a_process_that_is_killed_ends_the_others():
    with processes(2) as started:
        error, killed = started.run(2, rank_work.die_while_pruning)
    assert killed is None
    assert isinstance(error, RankError)
    assert "expected an answer of all 2 processes" in str(error)


@pytest.fixture
def folder(tmp_path):
    tiny_model("Llama").save_pretrained(tmp_path / "model", max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


def test_from_disk_interrupted_at_every_layer_and_resumed(group, folder):
    settings, options = Settings(**OPTIONS), {}
    prune_folder(folder / "model", folder / "one", calibration=windows(), settings=settings, device="cpu")
    group.run(2, rank_work.prune_on_disk, folder, "whole", options)
    expected = weights(folder / "one")
    assert all(relative(v, expected[name]) < CLOSE for name, v in weights(folder / "whole").items())
    for index, before in ((0, True), (1, False), (2, False)):
        how = (index % 2, index, False, before)
        errors = group.run(2, rank_work.prune_on_disk, folder, "out", options, how, True)
        assert sorted(type(error).__name__ for error in errors) == ["RankError", "StopError"]
        assert not (folder / "out").exists()
    (error, _, _) = group.run(3, rank_work.prune_on_disk, folder, "out", options, None, True)
    assert str(error).startswith("resume: expected the processes of the interrupted run, 2, got 3")
    group.run(2, rank_work.prune_on_disk, folder, "out", options, None, True)
    assert_same(folder / "out", folder / "whole")
    assert {path.name for path in folder.iterdir()} == {"model", "one", "whole", "out"}


def test_from_disk_killed_and_resumed(group, folder):
    group.run(2, rank_work.prune_on_disk, folder, "whole", {})
    for process in range(2):
        with processes(2) as started:
            how = (process, process, True, False)
            answers = started.run(2, rank_work.prune_on_disk, folder, "out", {}, how, True)
        assert answers[process] is None
        assert isinstance(answers[1 - process], RankError)
    group.run(2, rank_work.prune_on_disk, folder, "out", {}, None, True)
    assert_same(folder / "out", folder / "whole")
    assert {path.name for path in folder.iterdir()} == {"model", "whole", "out"}


@pytest.fixture
def port():
    """Of a store that outlives the processes, as the one that torchrun starts does."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield store.port
    del store


@pytest.mark.parametrize("extra", [[], ["--from-disk"]])
def test_the_command_that_torchrun_starts_speaks_once(folder, port, extra):
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    sizes = ["--ratio=0.25", "--multiple-of=4", "--sequence-length=32", "--calibration-tokens=512"]
    arguments = [
        "model",
        "--out=out",
        "--calibration=text.txt",
        "--sample-size=64",
        "--device=cpu",
        *sizes,
        *extra,
    ]
    with processes(2) as started:
        first, second = started.run(2, rank_work.command, folder, arguments, port)
    assert first[0] == second[0] == 0
    assert "Saved to out" in first[1]
    assert second[1:] == ("", "")
    assert weights(folder / "out")["model.layers.0.mlp.down_proj.weight"].shape == (16, 32)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--device=cuda:0", "--device: expected cpu or cuda for 2 processes on one machine, got 'cuda:0'"),
        ("--calibration=none.txt", "none.txt"),
        (
            "--calibration-tokens=32",
            "process_group: expected at most as many processes as windows of calibration",
        ),
    ],
)
def test_an_error_of_the_command_is_shown_once(folder, port, argument, message):
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    sizes = ["--ratio=0.25", "--multiple-of=4", "--sequence-length=32", "--sample-size=64"]
    arguments = ["model", "--out=out", "--calibration=text.txt", "--device=cpu", *sizes, argument]
    with processes(2) as started:
        answers = started.run(2, rank_work.command, folder, arguments, port)
    assert [code for code, _, _ in answers] == [1, 1]
    (line,) = "".join(error for _, _, error in answers).splitlines()
    assert line.startswith("mi-prune: ")
    assert message in line
    assert not (folder / "out").exists()
