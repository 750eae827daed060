"""Taking neurons out of a model, so that its config describes what is left."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.model.families import FFN, WIDTH, WIDTHS, bias_switch, text_config
from pruning.observe.capture import Statistics
from pruning.repair.closed_form import Projection, Repair, repair_projection


def prune_ffn(ffn: FFN, keep: Tensor, projection: Projection) -> None:
    """Keep the neurons `keep` of one FFN, in place, with `projection` as its output projection."""
    for linear in ffn.inputs:
        _replace(
            linear, linear.weight.detach()[keep], None if linear.bias is None else linear.bias.detach()[keep]
        )
    _replace(ffn.output, projection.weight, projection.bias)


def prune_separately(
    ffns: Sequence[FFN],
    kept: Iterable[Tensor],
    statistics: Iterable[Statistics],
    repair: Repair,
) -> None:
    """Prune the FFNs in place, each repaired from the moments of the dense model alone: all of them or none.

    A bias is fitted where there is one, and added only by the repair that is nothing else.

    Args:
        kept: for each FFN the neurons that stay, ascending.
        repair: as `pruning.repair.closed_form.repair_projection`.

    Raises:
        ValueError: as that.
    """
    plans = [
        (
            ffn,
            keep,
            repair_projection(
                ffn.output.weight,
                ffn.output.bias,
                keep,
                gathered,
                repair,
                intercept=repair == "bias" or ffn.output.bias is not None,
            ).to(ffn.output.weight.dtype),
        )
        for ffn, keep, gathered in zip(ffns, kept, statistics, strict=True)
    ]
    for ffn, keep, projection in plans:
        prune_ffn(ffn, keep, projection)


def resize_ffn(ffn: FFN, width: int) -> None:
    """Give an FFN room for the weights of `width` neurons, in place; what they are is undefined."""
    for linear in ffn.inputs:
        bias = None if linear.bias is None else linear.bias.new_empty(width)
        _replace(linear, linear.weight.new_empty(width, linear.in_features), bias)
    output = ffn.output
    bias = None if output.bias is None else output.bias.detach()
    _replace(output, output.weight.new_empty(output.out_features, width), bias)


def update_config(model: PreTrainedModel, ffns: list[FFN]) -> None:
    """Write the new width, and the switch for biases that were added, into the config.

    A class that switches all biases of its FFN together gets zeros where there were none.
    """
    config = text_config(model)
    widths = [ffn.width for ffn in ffns]
    setattr(config, WIDTH, max(widths))
    if len(set(widths)) > 1:
        setattr(config, WIDTHS, widths)
    elif hasattr(config, WIDTHS):
        delattr(config, WIDTHS)
    switch = bias_switch(ffns[0])
    added = ffns[0].output.bias is not None and ffns[0].inputs[0].bias is None
    if added and switch is not None:
        setattr(config, switch, True)
    for ffn in ffns:
        if hasattr(ffn.block, WIDTH):
            setattr(ffn.block, WIDTH, ffn.width)
        if added:
            for linear in ffn.inputs:
                _replace(linear, linear.weight.detach(), linear.weight.new_zeros(ffn.width))


@contextmanager
def restored(ffns: Sequence[FFN]) -> Iterator[None]:
    """Give the FFNs back the weights that they had, whatever is done to them."""
    before = _remember(ffns)
    try:
        yield
    finally:
        _recall(before)


@contextmanager
def restored_on_error(ffns: Sequence[FFN]) -> Iterator[None]:
    """Give the FFNs back the weights that they had when what is done to them raises."""
    before = _remember(ffns)
    try:
        yield
    except BaseException:
        _recall(before)
        raise


Remembered = list[tuple[nn.Linear, dict[str, nn.Parameter]]]


def _remember(ffns: Sequence[FFN]) -> Remembered:
    """The parameters of the FFNs, which surgery replaces and never changes in place."""
    return [(linear, dict(linear.named_parameters())) for ffn in ffns for linear in (*ffn.inputs, ffn.output)]


def _recall(before: Remembered) -> None:
    """Put remembered parameters back."""
    for linear, parameters in before:
        linear.out_features, linear.in_features = parameters["weight"].shape
        for name in ("weight", "bias"):
            linear.register_parameter(name, parameters.get(name))


def _replace(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    old = linear.weight
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.to(old).contiguous(), requires_grad=old.requires_grad)
    new_bias = None if bias is None else nn.Parameter(bias.to(old), requires_grad=old.requires_grad)
    linear.register_parameter("bias", new_bias)


def count_parameters(model: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the parameters, shared ones once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())
