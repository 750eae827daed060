"""What the processes of `test_ranks` do."""

import contextlib
import io
import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist

from mikernels.ranks import Ranks
from pruning import Settings, prune, prune_folder
from pruning.cli import main
from pruning.model.ffn import find_ffns
from pruning.model.on_disk import LayersOnDisk
from pruning.model.surgery import Cut, Solution, prune_ffns
from pruning.observe.capture import Recorder
from pruning.repair.refine import held_back, neurons, refine_ffn

from tiny import ARCHITECTURES, VOCABULARY, tiny, tiny_model

OPTIONS = {"ratio": 0.25, "multiple_of": 4, "sample_size": 128}
N_TOKENS = 24 * 16


def windows():
    return torch.randint(3, VOCABULARY, (24, 16), generator=torch.Generator().manual_seed(1))


def model_of(name, seed=0):
    return tiny(name, seed=seed) if name in ARCHITECTURES else tiny_model(name, seed=seed)


def prune_one(group, name, options):
    """The state of the pruned model, its report, and how many tokens this process has run through a layer."""
    model, seen = model_of(name), []
    last = max(find_ffns(model), key=lambda ffn: ffn.name).layer
    last.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape[:2].numel()))
    report = prune(model, None, calibration=windows(), process_group=group, **(OPTIONS | options))
    return model.state_dict(), report, sum(seen)


def prune_with_others(group, what):
    """Process 1 has something else than the others."""
    other = dist.get_rank(group) == 1
    model = model_of("Llama", seed=int(other and what == "weights"))
    options = OPTIONS | ({"ratio": 0.5} if other and what == "settings" else {})
    calibration = windows()[: 20 if other and what == "calibration" else 24]
    if what == "few windows":
        calibration = calibration[:1]
    if what == "file" and other:
        calibration = Path("/no/such/file.txt")
    add = Recorder.add

    def overflow(self, z, *rest):
        add(self, z / 0 if self.name == "model.layers.1.mlp" else z, *rest)

    if what == "overflow" and other:  # of the tokens of this process only
        Recorder.add = overflow
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        return prune(model, None, calibration=calibration, process_group=group, **options)
    finally:
        Recorder.add = add
        after = model.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def die_while_pruning(group):
    model = model_of("Llama")
    layer = find_ffns(model)[1].layer
    if dist.get_rank(group) == 1:
        layer.register_forward_pre_hook(
            lambda _module, args: os.kill(os.getpid(), signal.SIGKILL) if len(args[0]) > 2 else None
        )
    prune(model, None, calibration=windows(), process_group=group, **OPTIONS)


def refine(group, sizes=(2000,), contradicted=None):
    """Refine an FFN of which every second neuron was dropped.

    Args:
        sizes: how many of 2,000 tokens each process has.
        contradicted: a process whose held-back tokens should have another output than the others.

    Returns:
        What `refine_ffn` says, the error over all tokens before and after, and the parameters.
    """
    ranks, ffn = Ranks(group), find_ffns(model_of("Llama"))[0]
    inputs = torch.randn(2000, 16, generator=torch.Generator().manual_seed(1))
    weights = torch.linspace(0.5, 1.5, 2000)

    def outputs():
        with torch.no_grad():
            return neurons(ffn, inputs) @ ffn.output.weight.t()

    target, keep = outputs(), torch.arange(0, 40, 2)
    prune_ffns([Cut(ffn, keep, Solution(ffn.output.weight.detach()[:, keep], None))])
    before = float((weights * (outputs() - target).square().sum(1)).sum())
    end = sum(sizes[: ranks.index + 1])
    n_held = int(held_back(sizes[ranks.index]).sum())
    wanted = target.clone()
    if ranks.index == contradicted:
        wanted[end - n_held : end] = 20 * outputs()[end - n_held : end] - 19 * target[end - n_held : end]
    mine = slice(end - sizes[ranks.index], end)
    relative = refine_ffn(
        ffn, inputs[mine], wanted[mine], weights[mine], n_held=n_held, passes=20, seed=0, ranks=ranks
    )
    after = float((weights * (outputs() - target).square().sum(1)).sum())
    return relative, before, after, [part.parameter.detach() for part in ffn.projections]


def record(group, values, gates, sizes, sample_size):
    """The statistics of the rows `values`, of which each process gets so many."""
    ranks = Ranks(group)
    recorder = Recorder("ffn", values.shape[1], sample_size, seed=0, device=torch.device("cpu"), ranks=ranks)
    start = sum(sizes[: ranks.index])
    mine = slice(start, start + sizes[ranks.index])
    for part in range(2):
        g = None if gates is None else gates[mine][part::2]
        recorder.add(values[mine][part::2], g, torch.arange(sizes[ranks.index])[part::2])
    return recorder.finish()


class StopError(Exception):
    """Something that goes wrong."""


def prune_on_disk(group, folder, out, options, how=None, resume=False):
    """Prune the model in `folder`. `how`: a process, a layer, and whether it fails or is killed behind it."""
    completed = LayersOnDisk.completed

    def interrupt(self, layer, streams):
        process, index, killed, before = how
        now = (dist.get_rank(group), self._layers.index(layer)) == (process, index)
        if not (now and before):
            completed(self, layer, streams)
        if now and killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if now:
            raise StopError(f"behind layer {index}")

    LayersOnDisk.completed = interrupt if how else completed
    try:
        settings = Settings(**(OPTIONS | options))
        return prune_folder(
            folder / "model",
            folder / out,
            calibration=windows(),
            settings=settings,
            device="cpu",
            process_group=group,
            resume=resume,
        )
    finally:
        LayersOnDisk.completed = completed


def command(group, folder, arguments, port):
    """Run `mi-prune` as `torchrun` starts it; what it returns and prints."""
    rank, count = str(dist.get_rank(group)), str(dist.get_world_size(group))
    os.chdir(folder)
    os.environ |= {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    dist.destroy_process_group()
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as error,
    ):
        code = main([a for a in arguments if rank == "1" or not a.startswith("only-1:")])
    return code, out.getvalue(), error.getvalue()
