"""Refining a pruned FFN against what it should add to the stream: Adam on one block, no labels, no other layer.

The closed form solves for the output projection alone. What is left of the error is in the neurons themselves, so
here the input projections move too, through the non-linearity, and the output projection moves with them. How far
other tokens gain depends on how many tokens there are to learn from: `HELD_BACK` decides.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.model.families import FFN

BATCH = 1024
"""Tokens of a step."""
PEAK = 5e-3
"""Learning rate after the warm-up."""
WARM_UP = 10
"""Steps over which the learning rate rises; then it falls to 0 as a cosine."""
BETAS = (0.9, 0.98)
HELD_BACK = 0.1
"""Share of the tokens, the last ones, that are not learned from but decide whether the result is taken."""
CHUNK = 8192
"""Tokens whose neurons are in memory at a time, outside the steps."""


def refine_ffn(ffn: FFN, inputs: Tensor, target: Tensor, weights: Tensor, *, steps: int, seed: int) -> None:
    """Move `ffn` closer to `target`, in place; where held-back tokens do not confirm it, leave it as it was.

    The error is `sum_t weights[t] |ffn(inputs[t]) - target[t]|^2`. Products are in bfloat16 where the model is not
    in float32, the weights that learn in float32. Equal arguments give equal weights on one machine.

    Args:
        ffn: its kept neurons, with an output projection that is already solved for.
        inputs: `[T, d]`, what the FFN reads in the pruned model. Tokens of one text should be neighbours, since
            the last tenth is held back.
        target: `[T, d]`, what the FFN should add, in the same order.
        weights: `[T]`, of the tokens, not negative.
        steps: of Adam, on 1,024 tokens each.
        seed: of the order of the tokens.

    Raises:
        ValueError: shapes that do not fit, fewer than two tokens, values that are not finite, weights that are
            negative or all 0, or negative `steps`.
    """
    _validate(ffn, inputs, target, weights, steps)
    held = max(1, int(len(inputs) * HELD_BACK))
    with torch.inference_mode(False), torch.no_grad():  # also for callers in inference mode
        target, weights = target.float(), weights.float()
        begin = [(p, p.detach().clone()) for p in _parameters(ffn)]
        before = _error(ffn, inputs[-held:], target[-held:], weights[-held:])
        learned = inputs[:-held], target[:-held], weights[:-held]
        if float(learned[2].sum()) > 0:
            _descend(ffn, *learned, steps=steps, seed=seed)
        after = _error(ffn, inputs[-held:], target[-held:], weights[-held:])
        if not after < before:  # also where it is NaN
            for parameter, value in begin:
                parameter.copy_(value)


def _descend(ffn: FFN, inputs: Tensor, target: Tensor, weights: Tensor, *, steps: int, seed: int) -> None:
    """Adam on all projections."""
    names, parameters = _input_names(ffn), _parameters(ffn)
    masters = [nn.Parameter(p.detach().float().clone()) for p in parameters]
    rows, columns = masters[: len(names)], masters[len(names) :]
    optimizer = torch.optim.Adam(masters, lr=PEAK, betas=BETAS)
    # Any scale of the target serves Adam, but for its epsilon.
    scale = float((weights * target.square().sum(1)).mean().clamp_min(torch.finfo(torch.float32).tiny))
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < min(BATCH, len(inputs)):
            order = torch.randperm(len(inputs), generator=generator)
        batch, order = order[:BATCH].to(inputs.device), order[BATCH:]
        for group in optimizer.param_groups:
            warm = min((step + 1) / WARM_UP, 1.0)
            group["lr"] = PEAK * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        with torch.enable_grad(), _products(ffn):
            neurons = _neurons(ffn, inputs[batch], dict(zip(names, rows, strict=True)))
            errors = (F.linear(neurons, *columns).float() - target[batch]).square().sum(1)
            loss = (weights[batch] * errors).mean() / scale
        gradients = torch.autograd.grad(loss, masters)
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient
        optimizer.step()
    for parameter, master in zip(parameters, masters, strict=True):
        parameter.copy_(master)


def _error(ffn: FFN, inputs: Tensor, target: Tensor, weights: Tensor) -> float:
    total = 0.0
    for start in range(0, len(inputs), CHUNK):
        part = slice(start, start + CHUNK)
        with _products(ffn):
            output = F.linear(_neurons(ffn, inputs[part]), ffn.output.weight, ffn.output.bias)
        total += float(
            (weights[part] * (output.float() - target[part]).square().sum(1)).sum(dtype=torch.float64)
        )
    return total


class _Neurons(Exception):  # noqa: N818, it ends a forward pass that has done its work
    pass


def _neurons(ffn: FFN, inputs: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
    """The input of the output projection `[T, N]`, with `parameters` in the place of the reader's own."""

    def stop(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        raise _Neurons(args[0])

    handle = ffn.output.register_forward_pre_hook(stop)
    try:  # a reader without the output projection in it ends with the neurons anyway
        neurons: Tensor = torch.func.functional_call(
            ffn.reader, parameters or {}, (inputs.to(ffn.output.weight.dtype),)
        )
    except _Neurons as found:
        neurons = found.args[0]
    finally:
        handle.remove()
    return neurons


def _parameters(ffn: FFN) -> list[nn.Parameter]:
    """All that learns: of the input projections, as `_input_names`, then of the output projection."""
    return [*_input_names(ffn).values(), *ffn.output.parameters()]


def _input_names(ffn: FFN) -> dict[str, nn.Parameter]:
    own = {id(p) for linear in ffn.inputs for p in linear.parameters()}
    return {name: p for name, p in ffn.reader.named_parameters() if id(p) in own}


def _products(ffn: FFN) -> torch.autocast:
    weight = ffn.output.weight
    return torch.autocast(weight.device.type, torch.bfloat16, enabled=weight.dtype != torch.float32)


def _validate(ffn: FFN, inputs: Tensor, target: Tensor, weights: Tensor, steps: int) -> None:
    tokens, d_in, d_out = len(inputs), ffn.inputs[0].in_features, ffn.output.out_features
    for name, tensor, shape in (
        ("inputs", inputs, (tokens, d_in)),
        ("target", target, (tokens, d_out)),
        ("weights", weights, (tokens,)),
    ):
        if tensor.shape != shape:
            raise ValueError(f"{ffn.name}: expected {name} of shape {shape}, got {tuple(tensor.shape)}")
        if not torch.isfinite(tensor).all():
            wrong = int((~torch.isfinite(tensor)).sum())
            raise ValueError(
                f"{ffn.name}: expected finite {name}, got {wrong} NaN or infinite of {tensor.numel()} values"
            )
    if tokens < 2:
        raise ValueError(f"{ffn.name}: expected at least two tokens, got {tokens}")
    if float(weights.min()) < 0 or float(weights.sum()) == 0:
        raise ValueError(f"{ffn.name}: expected weights that are not negative and not all 0")
    if steps < 0:
        raise ValueError(f"{ffn.name}: expected steps >= 0, got {steps}")
