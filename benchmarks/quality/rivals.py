"""Structured pruning of FFNs as users of other packages would do it, by those packages' own code.

A rival chooses the neurons and writes the weights. Which neurons it kept is read off the rows of the input
projections, which none of them changes. Packages are imported where they are used.
"""

import importlib.util
import logging
import re
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
from pruning.model.families import FFN, WIDTH, find_ffns, text_config
from pruning.model.surgery import Projection, prune_ffn, update_config

BATCH = 4
"""Windows that go through the model together, where the rival leaves it open."""

Run = Callable[[PreTrainedModel, Tensor, int], None]


@dataclass(frozen=True)
class Rival:
    """A way of another package to prune FFNs.

    Attributes:
        package: the distribution that must be installed.
        run: shrinks every FFN of the model, in place, from windows of tokens `[n, L]` to so many neurons.
        gated: takes gated FFNs only.
        causal: takes causal language models only.
    """

    package: str
    run: Run
    gated: bool = False
    causal: bool = False

    def missing(self) -> str | None:
        """Why it cannot run here, if so."""
        try:
            version(self.package)
        except PackageNotFoundError:
            return f"{self.package} is not installed"
        return None

    def unfit(self, model: PreTrainedModel) -> str | None:
        """Why it cannot prune this model, if so."""
        if self.gated and len(find_ffns(model)[0].inputs) < 2:
            return f"{self.package}: expected gated FFNs, {type(model).__name__} has none"
        if self.causal and not model.can_generate():
            return f"{self.package}: expected a causal language model, got {type(model).__name__}"
        return None

    def versions(self) -> dict[str, str]:
        return {self.package: version(self.package)}

    def prune(self, model: PreTrainedModel, windows: Tensor, n_keep: int) -> list[Tensor]:
        """Prune a dense model in place; `windows [n, L]` are what it may be calibrated on.

        Returns:
            For each FFN the indices of the neurons that it kept, ascending `[n_keep]`.

        Raises:
            ValueError: a model that the rival does not take, or a width that is none.
        """
        ffns = find_ffns(model)
        if reason := self.unfit(model):
            raise ValueError(reason)
        if not 0 < n_keep < ffns[0].width:
            raise ValueError(f"n_keep: expected 1 to {ffns[0].width - 1}, got {n_keep}")
        dense = [_rows(ffn) for ffn in ffns]
        with evaluation_mode(model):
            self.run(model, windows.to(model.device), n_keep)
        setattr(text_config(model), WIDTH, n_keep)
        pruned = find_ffns(model)  # raises where a width is not the one asked for
        update_config(model, pruned)
        return [_positions(before, _rows(after)) for before, after in zip(dense, pruned, strict=True)]


def osscar(*, dampening: float = 0.01) -> Run:
    """OSSCAR as fmchisel's modifier runs it: one neuron at a time, without local search.

    Blocks are pruned in their order, each from what those before it give once pruned. The damping (by default
    the modifier's) is a share of the mean second moment of a layer's neurons.
    Source: Meng, Ibrahim, Behdin, Hazimeh, Ponomareva, Mazumder, OSSCAR, arXiv 2403.12983.
    """

    def run(model: PreTrainedModel, windows: Tensor, n_keep: int) -> None:
        code = _osscar_code()

        def compress(ffn: FFN, z: Tensor) -> None:
            empty = torch.zeros(ffn.width, ffn.width, device=z.device)
            hessian, _ = code.accumulate_hessian(z, ffn.output, empty, 0)
            _, weight = code.sparsify_weight(
                module=ffn.output,
                hessians_dict={ffn.output: hessian},
                num_keep=n_keep,
                num_cin=ffn.width,
                update_iter=1,
                percdamp=dampening,
            )
            keep = weight.norm(dim=0).nonzero().flatten()  # fmchisel's `pack` finds them like this
            bias = None if ffn.output.bias is None else ffn.output.bias.detach()
            prune_ffn(ffn, keep, Projection(weight[:, keep], bias))

        _in_sequence(model, windows, compress)

    return run


def torch_pruning_magnitude(model: PreTrainedModel, windows: Tensor, n_keep: int) -> None:
    """Squared norms of all weights of a neuron: the default of Torch-Pruning, and of its example for LLMs."""
    import torch_pruning as tp

    with _single_precision(model):
        _torch_pruning(model, windows, n_keep, tp.importance.GroupMagnitudeImportance(p=2))


def torch_pruning_activation(model: PreTrainedModel, windows: Tensor, n_keep: int) -> None:
    """Mean absolute activation of a neuron. One batch: the package keeps only the sums of the last."""
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
    """Sum of |weight x gradient| over a neuron's weights, the gradient being that of predicting the next token."""
    import torch_pruning as tp

    with _single_precision(model):
        for batch in windows.split(1):  # a window at a time: the gradients add up, and memory stays small
            (model(input_ids=batch, labels=batch, use_cache=False).loss / len(windows)).backward()
        _torch_pruning(model, windows, n_keep, tp.importance.GroupTaylorImportance())


def optipfair(method: str, *, calibrated: bool = False) -> Run:
    """OptiPFair's selection by the weights of `gate_proj` and `up_proj`, or with activation norms too."""

    def run(model: PreTrainedModel, windows: Tensor, n_keep: int) -> None:
        import optipfair as package

        logging.getLogger("optipfair").setLevel(logging.WARNING)  # it tells the root logger to print all
        width = find_ffns(model)[0].width
        package.prune_model(
            model,
            neuron_selection_method=method,
            pruning_percentage=100 * (width - n_keep + 0.5) / width,  # it rounds the number that goes down
            dataloader=[{"input_ids": batch} for batch in windows.split(BATCH)] if calibrated else None,
            show_progress=False,
        )

    return run


RIVALS = {
    "fmchisel-osscar": Rival("fmchisel", osscar()),
    # In its favour: where one neuron is massive, as in layer 11 of SmolLM2, a hundredth of the mean swamps the others.
    "fmchisel-osscar-1e-4": Rival("fmchisel", osscar(dampening=1e-4)),
    "torch-pruning-magnitude": Rival("torch-pruning", torch_pruning_magnitude),
    "torch-pruning-activation": Rival("torch-pruning", torch_pruning_activation),
    "torch-pruning-taylor": Rival("torch-pruning", torch_pruning_taylor, causal=True),
    "optipfair-maw": Rival("optipfair", optipfair("MAW"), gated=True),
    "optipfair-vow": Rival("optipfair", optipfair("VOW"), gated=True),
    "optipfair-pon": Rival("optipfair", optipfair("PON"), gated=True),
    "optipfair-l2": Rival("optipfair", optipfair("L2"), gated=True),
    "optipfair-maw-calibrated": Rival("optipfair", optipfair("MAW", calibrated=True), gated=True),
}


def _osscar_code() -> ModuleType:
    """fmchisel's file with the algorithm, by itself.

    The package imports llmcompressor, which has no version for transformers 5; of it this file wants the name of
    a dtype.
    """
    path = distribution("fmchisel").locate_file("fmchisel/pruning/osscar/utils/osscar_sparsify.py")
    spec = importlib.util.spec_from_file_location("fmchisel_osscar", str(path))
    module = importlib.util.module_from_spec(spec)
    wanted = {"llmcompressor.modifiers.obcq.sgpt_sparsify": SimpleNamespace(SGPT_PRECISION=torch.float32)}
    with patch.dict(sys.modules, wanted):
        spec.loader.exec_module(module)
    return module


def _in_sequence(model: PreTrainedModel, windows: Tensor, compress: Callable[[FFN, Tensor], None]) -> None:
    """Run the model once; each block's FFN is compressed from its activations, and the block then runs again."""
    handles = []

    def watch(ffn: FFN) -> None:
        activations: list[Tensor] = []
        recorder = ffn.output.register_forward_pre_hook(lambda _module, args: activations.append(args[0]))

        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> Any:
            recorder.remove()
            compress(ffn, activations.pop())
            return block.forward(*args, **kwargs)

        block = model.get_submodule(re.match(r".*?\.\d+", ffn.name)[0])  # up to the number of the layer
        handles.extend([recorder, block.register_forward_hook(hook, with_kwargs=True)])

    try:
        for ffn in find_ffns(model):
            watch(ffn)
        with torch.no_grad():
            model.base_model(input_ids=windows, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


def _torch_pruning(model: PreTrainedModel, windows: Tensor, n_keep: int, importance: Any) -> None:
    """Prune the groups whose roots are the FFNs' input projections: the same number in each."""
    import torch_pruning as tp

    ffns = find_ffns(model)
    roots = {linear for ffn in ffns for linear in ffn.inputs}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unwrapped parameters")  # of norms, which keep their width
        pruner = tp.pruner.MetaPruner(
            model.base_model,
            example_inputs={"input_ids": windows[:1, :8], "use_cache": False},
            importance=importance,
            pruning_ratio=1 - (n_keep + 0.5) / ffns[0].width,  # it rounds the number that stays down
            ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear) and m not in roots],
        )
        pruner.step()


@contextmanager
def _single_precision(model: nn.Module) -> Iterator[None]:
    """Parameters in float32, and back: Torch-Pruning ranks in the dtype of the weights, which makes ties of bfloat16.

    Buffers are left alone: those of rotary embeddings are in float32 whatever the dtype of the model.
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
    """What the input projections hold for each neuron, `[N, d]`; a copy."""
    return torch.cat([linear.weight.detach() for linear in ffn.inputs], 1).clone()


def _positions(dense: Tensor, pruned: Tensor) -> Tensor:
    """Where the rows of `pruned` stand in `dense`, in which they come in the same order.

    Raises:
        ValueError: they do not.
    """
    found: list[int] = []
    rows = iter(enumerate(dense))
    for wanted in pruned:
        found += next(([i] for i, row in rows if torch.equal(row, wanted)), [])
    if len(found) < len(pruned):
        raise ValueError("expected neurons in their old order, with their input weights as they were")
    return torch.tensor(found, device=dense.device)
