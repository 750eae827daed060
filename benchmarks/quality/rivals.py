"""Structured pruning of FFNs with other packages, as their users would do it and with their own code.

A rival chooses the neurons and writes the weights. The neurons it kept are identified by the rows of the input
projections, which no rival changes. Packages are imported where they are used.
"""

import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.ffn import FFN, find_ffns
from pruning.model.knobs import set_entry
from pruning.model.surgery import Cut, Solution, prune_ffns, update_config

BATCH = 4  # windows per forward pass, where the rival does not prescribe it

Run = Callable[[PreTrainedModel, Tensor, int], None]


@dataclass(frozen=True)
class Rival:
    """A pruning method of another package."""

    package: str  # the distribution that must be installed
    label: str  # in tables
    run: Run  # prune every FFN in place, given windows [n, L] and the number of neurons to keep
    gated: bool = False  # supports gated FFNs only
    causal: bool = False  # supports causal language models only
    repairs: bool = False  # also updates the weights of the kept neurons
    slow: bool = False  # gets only a part of the calibration windows

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        try:
            version(self.package)
        except PackageNotFoundError:
            return f"{self.package} is not installed"
        return None

    def obstacle(self, model: PreTrainedModel) -> str | None:
        """Why it cannot prune this model, or None."""
        if self.gated and len(find_ffns(model)[0].inputs) < 2:
            return f"{self.package}: expected gated FFNs, {type(model).__name__} has none"
        if self.causal and not model.can_generate():
            return f"{self.package}: expected a causal language model, got {type(model).__name__}"
        return None

    def versions(self) -> dict[str, str]:
        return {self.package: version(self.package)}

    def prune(self, model: PreTrainedModel, windows: Tensor, n_keep: int) -> list[Tensor]:
        """Prune a dense model in place, calibrated on `windows [n, L]`.

        Returns:
            For each FFN the ascending indices of the kept neurons, `[n_keep]`.

        Raises:
            ValueError: the rival does not support the model, or `n_keep` is out of range.
        """
        ffns = find_ffns(model)
        if reason := self.obstacle(model):
            raise ValueError(reason)
        if not 0 < n_keep < ffns[0].width:
            raise ValueError(f"n_keep: expected 1 to {ffns[0].width - 1}, got {n_keep}")
        dense = [_rows(ffn) for ffn in ffns]
        with evaluation_mode(model):
            self.run(model, windows.to(model.device), n_keep)
        set_entry(model.config, ffns[0].knob.path, n_keep)
        pruned = find_ffns(model)  # raises where a width is not the one asked for
        update_config(model, pruned)
        return [_positions(before, _rows(after)) for before, after in zip(dense, pruned, strict=True)]


def osscar(*, dampening: float = 0.01) -> Run:
    """OSSCAR as run by the modifier of fmchisel: one neuron at a time, without local search.

    Blocks are pruned in order, each given the outputs of the pruned blocks before it. The damping (by default that of
    the modifier) is a fraction of the mean second moment of the neurons of a layer.
    Source: Meng, Ibrahim, Behdin, Hazimeh, Ponomareva, Mazumder, OSSCAR, arXiv 2403.12983.
    """

    def run(model: PreTrainedModel, windows: Tensor, n_keep: int) -> None:
        code = _osscar_code()

        def compress(ffn: FFN, z: Tensor) -> None:
            empty = torch.zeros(ffn.width, ffn.width, device=z.device)
            linear = ffn.output.owners[0]
            hessian, _ = code.accumulate_hessian(z, linear, empty, 0)
            _, weight = code.sparsify_weight(
                module=linear,
                hessians_dict={linear: hessian},
                num_keep=n_keep,
                num_cin=ffn.width,
                update_iter=1,
                percdamp=dampening,
            )
            keep = weight.norm(dim=0).nonzero().flatten()  # as in `pack` of fmchisel
            bias = None if ffn.output.bias is None else ffn.output.bias.detach()
            prune_ffns([Cut(ffn, keep, Solution(weight[:, keep], bias))])

        _in_sequence(model, windows, compress)

    return run


def torch_pruning_magnitude(model: PreTrainedModel, windows: Tensor, n_keep: int) -> None:
    """Squared norms of all weights of a neuron: the default of Torch-Pruning and of its LLM example."""
    import torch_pruning as tp

    with _single_precision(model):
        _torch_pruning(model, windows, n_keep, tp.importance.GroupMagnitudeImportance(p=2))


def torch_pruning_activation(model: PreTrainedModel, windows: Tensor, n_keep: int) -> None:
    """Mean absolute activation of a neuron, in one batch: the package keeps only the sums of the last batch."""
    import torch_pruning as tp

    importance = tp.importance.ActivationImportance(target_types=[nn.Linear])
    with _single_precision(model):
        with torch.no_grad(), importance.compute_importance(model):
            model.base_model(input_ids=windows)
        _torch_pruning(model, windows, n_keep, importance)
        for module in model.modules():
            if hasattr(module, "_importance"):
                del module._importance


def torch_pruning_taylor(model: PreTrainedModel, windows: Tensor, n_keep: int) -> None:
    """Sum of |weight x gradient| over the weights of a neuron; the loss is next-token prediction."""
    import torch_pruning as tp

    with _single_precision(model):
        for batch in windows.split(1):  # gradients accumulate, and memory stays small
            (model(input_ids=batch, labels=batch, use_cache=False).loss / len(windows)).backward()
        _torch_pruning(model, windows, n_keep, tp.importance.GroupTaylorImportance())


def optipfair(method: str, *, calibrated: bool = False) -> Run:
    """OptiPFair: selection by the weights of `gate_proj` and `up_proj`, with `calibrated` by activation norms too."""

    def run(model: PreTrainedModel, windows: Tensor, n_keep: int) -> None:
        import optipfair as package

        logging.getLogger("optipfair").setLevel(
            logging.WARNING
        )  # it sets the root logger to print everything
        width = find_ffns(model)[0].width
        package.prune_model(
            model,
            neuron_selection_method=method,
            pruning_percentage=100
            * (width - n_keep + 0.5)
            / width,  # it rounds the number of dropped neurons down
            dataloader=[{"input_ids": batch} for batch in windows.split(BATCH)] if calibrated else None,
            show_progress=False,
        )

    return run


TORCH_PRUNING, OPTIPFAIR, FMCHISEL = "torch-pruning", "optipfair", "fmchisel"
RIVALS = {
    "torch-pruning-magnitude": Rival(TORCH_PRUNING, "Torch-Pruning, magnitude", torch_pruning_magnitude),
    "torch-pruning-activation": Rival(TORCH_PRUNING, "Torch-Pruning, activation", torch_pruning_activation),
    "torch-pruning-taylor": Rival(
        TORCH_PRUNING, "Torch-Pruning, Taylor", torch_pruning_taylor, causal=True, slow=True
    ),
    "optipfair-maw": Rival(OPTIPFAIR, "OptiPFair, MAW", optipfair("MAW"), gated=True),
    "optipfair-vow": Rival(OPTIPFAIR, "OptiPFair, VOW", optipfair("VOW"), gated=True),
    "optipfair-pon": Rival(OPTIPFAIR, "OptiPFair, PON", optipfair("PON"), gated=True),
    "optipfair-l2": Rival(OPTIPFAIR, "OptiPFair, L2", optipfair("L2"), gated=True),
    "optipfair-maw-calibrated": Rival(
        OPTIPFAIR, "OptiPFair, MAW with activations", optipfair("MAW", calibrated=True), gated=True
    ),
    "fmchisel-osscar": Rival(FMCHISEL, "OSSCAR (fmchisel)", osscar(), repairs=True, slow=True),
    # In its favor: where one neuron dominates, as in layer 11 of SmolLM2, a hundredth of the mean swamps the others.
    "fmchisel-osscar-1e-4": Rival(
        FMCHISEL, "OSSCAR (fmchisel), damping 1e-4", osscar(dampening=1e-4), repairs=True, slow=True
    ),
}


def _osscar_code() -> ModuleType:
    """The module of fmchisel that contains the algorithm, imported without the package.

    The package imports llmcompressor, which does not support transformers 5; this module only needs the name of a
    dtype from it.
    """
    path = distribution("fmchisel").locate_file("fmchisel/pruning/osscar/utils/osscar_sparsify.py")
    spec = importlib.util.spec_from_file_location("fmchisel_osscar", str(path))
    module = importlib.util.module_from_spec(spec)
    stub = {"llmcompressor.modifiers.obcq.sgpt_sparsify": SimpleNamespace(SGPT_PRECISION=torch.float32)}
    with patch.dict(sys.modules, stub):
        spec.loader.exec_module(module)
    return module


def _in_sequence(model: PreTrainedModel, windows: Tensor, compress: Callable[[FFN, Tensor], None]) -> None:
    """Run the model once; compress the FFN of each block given its activations, then run that block again."""
    handles = []

    def watch(ffn: FFN) -> None:
        activations: list[Tensor] = []
        recorder = ffn.output.owners[0].register_forward_pre_hook(
            lambda _module, args: activations.append(args[0])
        )

        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> Any:
            recorder.remove()
            compress(ffn, activations.pop())
            return block.forward(*args, **kwargs)

        handles.extend([recorder, ffn.layer.register_forward_hook(hook, with_kwargs=True)])

    try:
        for ffn in find_ffns(model):
            watch(ffn)
        with torch.no_grad():
            model.base_model(input_ids=windows, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


def _torch_pruning(model: PreTrainedModel, windows: Tensor, n_keep: int, importance: Any) -> None:
    """Prune the groups whose roots are the input projections of the FFNs, the same number in each."""
    import torch_pruning as tp

    ffns = find_ffns(model)
    roots = {projection.owners[0] for ffn in ffns for projection in ffn.inputs}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unwrapped parameters")  # norms, whose width does not change
        pruner = tp.pruner.MetaPruner(
            model.base_model,
            example_inputs={"input_ids": windows[:1, :8], "use_cache": False},
            importance=importance,
            pruning_ratio=1 - (n_keep + 0.5) / ffns[0].width,  # it rounds the number of kept neurons down
            ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear) and m not in roots],
        )
        pruner.step()


@contextmanager
def _single_precision(model: nn.Module) -> Iterator[None]:
    """Convert parameters to float32 and back: Torch-Pruning ranks in the dtype of the weights, where bfloat16 has ties.

    Buffers stay as they are: those of rotary embeddings are float32 whatever the dtype of the model.
    """
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.grad = None
            parameter.data = parameter.data.to(dtypes[name])


def _rows(ffn: FFN) -> Tensor:
    """A copy of the rows of all input projections for each neuron, `[N, d]`."""
    return torch.cat([linear.weight.detach() for linear in ffn.inputs], 1).clone()


def _positions(dense: Tensor, pruned: Tensor) -> Tensor:
    """Indices in `dense` of the rows of `pruned`, which must be in the same order.

    Raises:
        ValueError: they are not.
    """
    indices: list[int] = []
    rows = iter(enumerate(dense))
    for kept in pruned:
        indices += next(([i] for i, row in rows if torch.equal(row, kept)), [])
    if len(indices) < len(pruned):
        raise ValueError("rival: expected kept neurons in their original order with unchanged input weights")
    return torch.tensor(indices, device=dense.device)
