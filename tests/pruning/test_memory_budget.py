"""Hidden states that exceed the memory budget are elsewhere, and the result is the same."""

import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from results import weights

from pruning import Settings, prune, prune_folder
from pruning.cli import main
from pruning.model.on_disk import LayersOnDisk
from pruning.repair.memory_budget import MemoryBudget

from tiny import tiny, tiny_model, tiny_tokenizer

OPTIONS = {"ratio": 0.25, "multiple_of": 4, "sample_size": 128}
BATCH = 4 * 16 * 16 * 4
"""Bytes of the hidden states of a batch of `windows` in a tiny model."""


def is_in_file(tensor):
    """Whether its memory is that of a file without a name."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(address, 16) for address in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return ".hidden-states." in line and line.endswith("(deleted)")
    raise AssertionError


@pytest.fixture
def counts(monkeypatch):
    """How many tensors were kept within a budget, and how many of them in a file."""
    found = {"join": 0, "_in_file": 0}

    def count(name):
        call = getattr(MemoryBudget, name)

        def spy(self, parts):
            found[name] += self._left is not None
            return call(self, parts)

        monkeypatch.setattr(MemoryBudget, name, spy)

    for name in found:
        count(name)
    return found


@pytest.mark.parametrize("budget", [1, 5 * BATCH, 100 * BATCH])
def test_at_most_the_budget_is_in_memory_at_a_time(tmp_path, budget):
    kept, values = MemoryBudget(budget, tmp_path), torch.arange(BATCH // 4).view(4, 16, 16)
    for _ in range(2):
        tensors = [kept.keep((values + i).to(torch.bfloat16)) for i in range(20)]
        sizes = [0 if is_in_file(t) else t.numel() * t.element_size() for t in tensors]
        assert sum(sizes) == min(budget // (BATCH // 2) * (BATCH // 2), 10 * BATCH)
        for i, tensor in enumerate(tensors):
            assert torch.equal(tensor, (values + i).to(torch.bfloat16))
        del tensors, tensor  # gives the budget back
    joined = kept.join([values[1:], values[:1]])
    assert torch.equal(joined, torch.cat([values[1:], values[:1]]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "budget"),
    [
        ("LlamaForCausalLM", {}, 1),
        ("LlamaForCausalLM", {"refine": True}, 5 * BATCH),
        ("LlamaForCausalLM", {"repair": "lstsq", "budget": "mi"}, 1),
        ("Qwen2MoeForCausalLM", {"only": "moe_intermediate_size"}, 5 * BATCH),
    ],
)
def test_the_result_in_memory_is_the_same(windows, counts, name, options, budget):
    padded = {"input_ids": windows, "attention_mask": torch.ones_like(windows)}
    padded["attention_mask"][::2, :5] = 0
    whole, limited = tiny(name), tiny(name)
    prune(whole, None, calibration=padded, **OPTIONS, **options)
    assert counts == {"join": 0, "_in_file": 0}
    prune(limited, None, calibration=padded, memory_budget=budget, **OPTIONS, **options)
    assert counts["join"] >= counts["_in_file"] > 0
    assert (counts["join"] == counts["_in_file"]) is (budget == 1)
    state = limited.state_dict()
    for parameter, value in whole.state_dict().items():
        assert torch.equal(value, state[parameter]), parameter


class Interrupt(BaseException):
    """Not an error that anything handles."""


@pytest.mark.parametrize("repair", ["sequential", "lstsq"])
def test_from_disk_with_a_smaller_budget_after_an_interruption(tmp_path, windows, monkeypatch, repair):
    tiny_model("Llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")

    def run(out, budget):
        settings = Settings(**OPTIONS, repair=repair, memory_budget=budget)
        options = {"calibration": windows, "settings": settings, "device": "cpu", "resume": True}
        return prune_folder(tmp_path / "model", tmp_path / out, **options)

    expected = run("whole", None)
    completed, seen = LayersOnDisk.completed, []

    def interrupt(self, layer, streams):
        completed(self, layer, streams)
        seen.append([is_in_file(hidden) for stream in streams for hidden in stream])
        if len(seen) == 1:
            raise Interrupt

    monkeypatch.setattr(LayersOnDisk, "completed", interrupt)
    with pytest.raises(Interrupt):
        run("out", 3 * BATCH)
    report = run("out", 1)
    assert set(seen[0]) == {False, True}
    assert all(all(layer) for layer in seen[1:])
    assert [layer.as_json() for layer in report.layers] == [layer.as_json() for layer in expected.layers]
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert {path.name for path in tmp_path.iterdir()} == {"model", "whole", "out"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


@contextmanager
def files_of_at_most(n_bytes):
    """Writing more is an error of the operating system, as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_ends_with_one_clear_line_and_the_model_as_it_was(windows, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = tiny_model("Llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with files_of_at_most(BATCH - 1), pytest.raises(OSError, match="memory_budget: expected room") as caught:
        prune(model, None, calibration=windows, memory_budget=1, **OPTIONS)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0", "mi-prune: memory_budget: expected a positive integer, got 0"),
        ("0.5", "mi-prune: memory_budget: expected a positive integer, got 0"),
        ("-1", "argument --memory-budget: expected a number of bytes, such as 512M or 2G, got '-1'"),
        ("much", "argument --memory-budget: expected a number of bytes, such as 512M or 2G, got 'much'"),
    ],
)
def test_the_command_refuses_a_budget_that_is_none(given, message, capsys):
    try:
        code = main(["model", "--out=out", "--memory-budget", given])
    except SystemExit as stopped:
        code = stopped.code
    assert code != 0
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("given", [0, -1, 2.5, "1G", True])
def test_settings_refuse_a_budget_that_is_none(given):
    with pytest.raises(ValueError, match="memory_budget: expected a"):
        Settings(memory_budget=given)
