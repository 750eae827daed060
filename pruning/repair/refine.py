"""Refining a pruned FFN: Adam on all its projections, with the output that it should have as the target.

The closed form only solves for the output projection. The remaining error is in the neurons themselves, so refining
also trains the input projections, through the non-linearity. It needs no labels and no other layer. How well the
result generalizes depends on the number of tokens: it is used only if it also helps on held-back tokens. The closed
form must not have seen these either, since its error on tokens that it was fitted to is too low to compare with.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from mikernels.ranks import ALONE, Ranks
from pruning.model.ffn import FFN
from pruning.model.first_call import first_call
from pruning.observe.batches import Batch
from pruning.observe.trial import difference, first_neurons, tolerance

PASSES = 4
"""Passes over the tokens; more overfit where tokens are few."""
BATCH = 1024
"""Tokens per step."""
PEAK = 5e-3
"""Learning rate after the warm-up."""
WARM_UP = 10
"""Steps over which the learning rate rises; after them it falls to 0 as a cosine."""
BETAS = (0.9, 0.98)
HELD_BACK = 0.1
"""Share of the tokens that are not trained on but decide whether the result is used."""
RUNS = 10
"""Of adjacent tokens that are held back."""
CHUNK = 8192
"""Tokens whose neurons are in memory at a time, outside the steps."""
ADVICE = "use refine=False for this model"


def held_back(n_tokens: int) -> Tensor:
    """Which of the tokens are held back, `[T]`: about a tenth, in up to `RUNS` runs that are spread evenly over all. A
    single token is not."""
    spacing = math.ceil(n_tokens / min(RUNS, max(1, int(n_tokens * HELD_BACK))))
    of_run = min(max(1, int(spacing * HELD_BACK)), n_tokens - 1)
    return torch.arange(n_tokens) % spacing >= spacing - of_run


def refine_ffn(
    ffn: FFN,
    inputs: Tensor,
    target: Tensor,
    weights: Tensor,
    *,
    n_held: int,
    passes: float = PASSES,
    seed: int,
    ranks: Ranks = ALONE,
) -> float:
    """Train `ffn` toward `target`, in place; restore it if the error on held-back tokens does not fall.

    The error is `sum_t weights[t] |ffn(inputs[t]) - target[t]|^2`. If the model is in 16 bits, products are in bfloat16
    and the trained weights in float32. Equal arguments give equal weights on one machine.

    Args:
        ffn: the kept neurons, with the output projection that solves the closed form for the tokens that are not held
            back.
        inputs: `[T, d]`, the inputs of the FFN in the pruned model.
        target: `[T, d]`, the outputs that the FFN should have, in the same order.
        weights: `[T]`, non-negative weights of the tokens.
        n_held: how many tokens, the last ones, are held back.
        passes: there are as many steps of 1,024 tokens as in so many passes over all tokens.
        seed: for the order of the tokens.
        ranks: processes that have tokens of their own: each adds its part of every step, the gradients are summed, and
            each holds back some of its own. A process counts for as much as it has tokens.

    Returns:
        The error on the held-back tokens relative to that before; 1 if the FFN was restored.

    Raises:
        ValueError: mismatched shapes, values that are not finite, weights that are negative or all 0, nothing to train
            on, nothing that is held back on any process, or negative `passes`.
    """
    _validate(ffn, inputs, target, weights, n_held, passes)
    if ranks.total(n_held) == 0:
        raise ValueError(
            f"{ffn.name}: expected tokens that are held back, got none of {ranks.total(len(inputs)):.0f}"
        )
    steps = math.ceil(passes * ranks.total(len(inputs)) / BATCH)
    first = len(inputs) - n_held
    with torch.inference_mode(False), torch.no_grad():  # also if the caller is in inference mode
        originals = [(p, p.detach().clone()) for p in _parameters(ffn)]
        held = inputs[first:], target[first:], weights[first:]
        before = ranks.total(_error(ffn, *held))
        _train(ffn, inputs[:first], target[:first], weights[:first], steps=steps, seed=seed, ranks=ranks)
        after = ranks.total(_error(ffn, *held))
        if not after < before:  # also if it is NaN
            for parameter, original in originals:
                parameter.copy_(original)
            return 1.0
        return after / before


def _train(
    ffn: FFN,
    inputs: Tensor,
    target: Tensor,
    weights: Tensor,
    *,
    steps: int,
    seed: int,
    ranks: Ranks,
) -> None:
    """Adam on all projections."""
    names, parameters = _input_names(ffn), _parameters(ffn)
    masters = [nn.Parameter(p.detach().to(_trained(p.dtype), copy=True)) for p in parameters]
    rows, (columns, *bias) = masters[: len(names)], masters[len(names) :]
    optimizer = torch.optim.Adam(masters, lr=PEAK, betas=BETAS)
    # Adam does not depend on the scale of the loss, except through its epsilon.
    squares = torch.cat([chunk.to(weights.device).float().square().sum(1) for chunk in target.split(CHUNK)])
    scale = ranks.total(float((weights * squares).sum())) or 1.0
    size = math.ceil(BATCH / ranks.count)
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < min(size, len(inputs)):
            order = torch.randperm(len(inputs), generator=generator)
        batch, order = order[:size], order[size:]
        read, wanted, weight = (_rows(values, batch, ffn) for values in (inputs, target, weights))
        for group in optimizer.param_groups:
            warm = min((step + 1) / WARM_UP, 1.0)
            group["lr"] = PEAK * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        with torch.enable_grad(), _mixed_precision(ffn):
            z = neurons(ffn, read, dict(zip(names, rows, strict=True)))
            errors = (F.linear(z, ffn.output.oriented(columns), *bias) - wanted.float()).square().sum(1)
            loss = (weight * errors).mean() * len(inputs) / scale
        gradients = torch.autograd.grad(loss, masters)
        ranks.add(*gradients)
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient
        optimizer.step()
    for parameter, master in zip(parameters, masters, strict=True):
        parameter.copy_(master)


def _error(ffn: FFN, inputs: Tensor, target: Tensor, weights: Tensor) -> float:
    total = 0.0
    for start in range(0, len(inputs), CHUNK):
        chunk = slice(start, start + CHUNK)
        read, wanted, weight = (_rows(values, chunk, ffn) for values in (inputs, target, weights))
        with _mixed_precision(ffn):
            output = F.linear(neurons(ffn, read), ffn.output.weight, ffn.output.bias)
        total += float((weight * (output - wanted.float()).square().sum(1)).sum(dtype=torch.float64))
    return total


def _rows(values: Tensor, which: Tensor | slice, ffn: FFN) -> Tensor:
    """Some of the rows, on the device of the FFN."""
    chosen = which.to(values.device) if isinstance(which, Tensor) else which
    return values[chosen].to(ffn.output.weight.device)


def check_alone(model: PreTrainedModel, ffns: Sequence[FFN], batch: Batch) -> None:
    """Compute the neurons of each FFN that the batch reaches from its inputs alone, and compare them with those that
    the model computes.

    Raises:
        ValueError: they differ, or cannot be computed alone.
    """
    for ffn in ffns:
        _reader(ffn)  # raises
    for ffn, part in first_neurons(model, ffns, batch).items():
        try:
            with torch.no_grad():
                found = neurons(ffn, part.read)
        except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
            raise ValueError(
                f"{ffn.name}: expected an FFN that runs on its inputs alone for refine=True, got: {error}; {ADVICE}"
            ) from error
        if (relative := difference(found, part.z)) > tolerance(part.z.dtype):
            raise ValueError(
                f"{ffn.name}: expected an FFN that depends on its inputs only for refine=True, got other neurons "
                f"than in the model (relative difference {relative:.2g}); {ADVICE}"
            )


def neurons(ffn: FFN, inputs: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
    """The neurons `[T, N]` that the FFN computes from the inputs `[T, d]` of its projections.

    Args:
        parameters: used in place of the reader's own, by name.
    """
    inputs = inputs.to(ffn.output.weight.dtype)[None]  # as one sequence
    reader, output = _reader(ffn), ffn.output.owners[0]
    run = partial(torch.func.functional_call, reader, parameters or {}, (inputs,))
    # A reader may do something else before its projections, such as normalize.
    handles = [p.owners[0].register_forward_pre_hook(lambda _module, _args: (inputs,)) for p in ffn.inputs]
    try:
        z: Tensor = first_call(output, run).args[0] if output in reader.modules() else run()
    finally:
        for handle in handles:
            handle.remove()
    return z.flatten(0, -2)


def _parameters(ffn: FFN) -> list[nn.Parameter]:
    """All trained parameters: those of the input projections, in the order of `_input_names`, then those of the output
    projection."""
    return [*_input_names(ffn).values(), *ffn.output.owners[0].parameters()]


def _input_names(ffn: FFN) -> dict[str, nn.Parameter]:
    own = {id(p) for projection in ffn.inputs for p in projection.owners[0].parameters()}
    return {name: p for name, p in _reader(ffn).named_parameters() if id(p) in own}


def _reader(ffn: FFN) -> nn.Module:
    """The smallest module that computes the neurons from the input of the FFN; it may contain the output projection.

    Raises:
        ValueError: an FFN that is no module of its own.
    """
    inputs = {projection.owners[0] for projection in ffn.inputs}
    children = [
        child for child in ffn.block.children() if inputs <= set(child.modules()) and child not in inputs
    ]
    reader = children[0] if children else ffn.block
    if ffn.is_routed or (reader is ffn.layer and ffn.output.owners[0] in reader.modules()):
        raise ValueError(
            f"{ffn.name}: expected an FFN that is a module of its own for refine=True, got a part of "
            f"{type(reader).__name__}; {ADVICE}"
        )
    return reader


def _trained(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the weights while they are trained."""
    return torch.promote_types(dtype, torch.float32)


def _mixed_precision(ffn: FFN) -> torch.autocast:
    weight = ffn.output.weight
    return torch.autocast(weight.device.type, torch.bfloat16, enabled=weight.dtype != _trained(weight.dtype))


def _validate(ffn: FFN, inputs: Tensor, target: Tensor, weights: Tensor, n_held: int, passes: float) -> None:
    tokens, d_in, d_out = len(inputs), ffn.inputs[0].in_features, ffn.output.out_features
    for name, tensor, shape in (
        ("inputs", inputs, (tokens, d_in)),
        ("target", target, (tokens, d_out)),
        ("weights", weights, (tokens,)),
    ):
        if tensor.shape != shape:
            raise ValueError(f"{ffn.name}: expected {name} of shape {shape}, got {tuple(tensor.shape)}")
        # By chunks, since the whole may be larger than the memory.
        if wrong := sum(int((~torch.isfinite(chunk)).sum()) for chunk in tensor.split(CHUNK)):
            raise ValueError(
                f"{ffn.name}: expected finite {name}, got {wrong} NaN or infinite of {tensor.numel()} values"
            )
    if not 0 <= n_held < tokens:
        raise ValueError(f"{ffn.name}: expected n_held from 0 to {tokens - 1}, got {n_held}")
    if float(weights.min()) < 0 or float(weights.sum()) == 0:
        raise ValueError(
            f"{ffn.name}: expected non-negative weights that are not all 0, got {float(weights.min()):g} "
            f"to {float(weights.max()):g}"
        )
    if passes < 0:
        raise ValueError(f"{ffn.name}: expected passes >= 0, got {passes}")
