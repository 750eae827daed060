"""Trying on a few tokens that dropping neurons is what it should be: the kept neurons do not change."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruning.model.device import input_device
from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.ffn import FFN
from pruning.model.forward import BY_NAME, body_of, modalities, without_cache
from pruning.model.knobs import Knob
from pruning.model.snapshot import restored
from pruning.model.surgery import Cut, Solution, prune_ffns
from pruning.observe.batches import TEXT_INPUTS, Batch, model_inputs
from pruning.observe.neurons import Masks, Neurons, observed_neurons

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Relative difference of the kept neurons from rounding, as the products have other sizes; wrong ones differ by 1."""
HALF_PRECISION = 0.05
"""The same for 16-bit weights."""


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative difference of neurons that is from rounding."""
    return TOLERANCE.get(dtype, HALF_PRECISION)


def difference(found: Tensor, expected: Tensor) -> float:
    """The relative difference of neurons; infinite if their shapes differ."""
    if found.shape != expected.shape:
        return torch.inf
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-300))


def reached_knobs(model: PreTrainedModel, ffns: Sequence[FFN], batch: Batch) -> set[Knob]:
    """The knobs of the FFNs that run on the batch.

    Raises:
        ValueError: the model does not run, or the batch reaches only some of the FFNs of a knob. Experts that no token
            reaches do not count.
    """
    try:
        dense = first_neurons(model, ffns, batch)
    except Exception as error:  # of code that we do not know
        kind = "" if isinstance(error, (ValueError, RuntimeError)) else f"{type(error).__name__}: "
        others = [name for name in modalities(model) if name != "text"]
        advice = f"; it also reads {' and '.join(others)}: {BY_NAME}" if others and _is_text(batch) else ""
        raise ValueError(
            f"{type(model).__name__}: expected a model that runs on its calibration, got: {kind}{error}{advice}"
        ) from error
    kinds = {ffn.kind for ffn in dense}
    reached = {ffn.knob for ffn in dense}
    for ffn in ffns:
        if ffn.knob in reached and ffn.kind not in kinds:
            raise ValueError(
                f"{ffn.name}: expected calibration that reaches all FFNs of the config entry {ffn.knob}, got none that "
                f"reaches this one"
            )
    if not reached:
        raise ValueError(
            f"calibration: expected inputs that reach an FFN of {type(model).__name__} that can be pruned, such as "
            f"{ffns[0].name}, got none"
        )
    return reached


def check_neurons(model: PreTrainedModel, ffns: Sequence[FFN], batch: Batch) -> None:
    """Drop every other neuron from one FFN of each kind, and compare the kept neurons with those before, and the output
    of the layer with that of the dense one without the outputs of the dropped neurons.

    The neurons differ if the FFN normalizes over them, mixes them, or stores them in an order that we do not know. The
    outputs differ if the layer uses the neurons, or their number, apart from the output projection. The model is
    unchanged afterwards.

    Args:
        batch: reaches each kind of FFN.

    Raises:
        ValueError: they differ.
    """
    dense = first_neurons(model, ffns, batch)
    for kind in _kinds(ffns):
        stack = next(stack for stack in kind if any(ffn in dense for ffn in stack))
        before, silent = (_first_output(model, stack, batch, silence=silence) for silence in (False, True))
        with restored(stack):
            prune_ffns(_every_other(ffn) for ffn in stack)
            pruned = first_neurons(model, stack, batch)
            after = _first_output(model, stack, batch)
        for ffn in stack:
            if ffn in dense:
                _compare(ffn, dense[ffn].z, pruned.get(ffn))
        if before is not None and silent is not None and after is not None:
            _compare_outputs(stack[0], before, silent, after)


def first_neurons(model: PreTrainedModel, ffns: Sequence[FFN], batch: Batch) -> dict[FFN, Neurons]:
    """Each FFN that runs, in its first call."""
    seen: dict[FFN, Neurons] = {}
    inputs = model_inputs(batch, input_device(model))
    body = body_of(model, inputs)

    def keep_first(part: Neurons) -> None:
        seen.setdefault(part.ffn, part)

    with (
        torch.inference_mode(),
        evaluation_mode(model),
        observed_neurons(model, ffns, Masks.of(inputs), keep_first),
    ):
        body(**inputs, **without_cache(body))
    return seen


def _is_text(batch: Batch) -> bool:
    return isinstance(batch, Tensor) or batch.keys() <= TEXT_INPUTS


def _kinds(ffns: Sequence[FFN]) -> list[list[list[FFN]]]:
    """The FFNs by name without numbers; those that share their parameters, the experts of a stack, together."""
    kinds: dict[str, dict[int, list[FFN]]] = {}
    for ffn in ffns:
        stacks = kinds.setdefault(ffn.kind, {})
        stacks.setdefault(id(ffn.output.parameter), []).append(ffn)
    return [list(stacks.values()) for stacks in kinds.values()]


def _first_output(
    model: PreTrainedModel, stack: Sequence[FFN], batch: Batch, *, silence: bool = False
) -> Tensor | None:
    """The output of the layer of FFNs from its first call; None if it is no tensor.

    Args:
        silence: subtract the outputs of the neurons that `_every_other` drops.
    """
    seen: list[Any] = []
    inputs = model_inputs(batch, input_device(model))
    body = body_of(model, inputs)

    def subtract(part: Neurons) -> Tensor | None:
        return -part.z[:, 1::2] @ part.ffn.output.weight[:, 1::2].t() if silence else None

    handle = stack[0].layer.register_forward_hook(lambda _module, _args, output: seen.append(output))
    everywhere = Masks(None, None, text_only=False)  # padding too, as in the pruned model
    try:
        with (
            torch.inference_mode(),
            evaluation_mode(model),
            observed_neurons(model, stack, everywhere, subtract),
        ):
            body(**inputs, **without_cache(body))
    finally:
        handle.remove()
    output = next(iter(seen), None)
    output = output[0] if isinstance(output, (tuple, list)) and output else output
    return output if isinstance(output, Tensor) else None


def _every_other(ffn: FFN) -> Cut:
    keep = torch.arange(0, ffn.width, 2, device=ffn.output.weight.device)
    return Cut(ffn, keep, Solution(ffn.output.weight.detach()[:, keep], ffn.output.bias))


def _compare(ffn: FFN, dense: Tensor, pruned: Neurons | None) -> None:
    relative = torch.inf if pruned is None else difference(pruned.z, dense[:, ::2])
    if relative > tolerance(dense.dtype):
        raise ValueError(
            f"{ffn.name}: expected neurons that do not depend on each other, got others when every second one was "
            f"dropped (relative difference {relative:.2g}); this architecture cannot be pruned"
        )


def _compare_outputs(ffn: FFN, dense: Tensor, silent: Tensor, pruned: Tensor) -> None:
    """Relative to the effect of the dropped neurons, with a margin for rounding of the hidden states."""
    margin = tolerance(dense.dtype) * (silent.double() - dense.double()).norm()
    margin = margin + 4 * torch.finfo(dense.dtype).eps * silent.double().norm()
    if pruned.shape != silent.shape or (pruned.double() - silent.double()).norm() > margin:
        raise ValueError(
            f"{ffn.name}: expected a layer that uses its neurons only in their output projection, got another output "
            f"when every second one was dropped than without what they add; this architecture cannot be pruned"
        )
