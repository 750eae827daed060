"""Checking that a checkpoint can be loaded again as what is in memory: before it is written, and after."""

import copy
from collections.abc import Sequence
from pathlib import Path

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from pruning.model.architecture import empty_model
from pruning.model.ffn import FFN, set_widths
from pruning.model.headers import DTYPES, read_headers
from pruning.model.loaded import name_some

Shapes = dict[str, tuple[int, ...]]


def check_config(
    model: PreTrainedModel, ffns: Sequence[FFN], widths: Sequence[int], *, adds_bias: bool = False
) -> None:
    """Build the class with pruned FFNs from its config, without memory for weights, and compare it to the model.

    Args:
        widths: of the pruned FFNs; FFNs of one knob are compared at its largest width.
        adds_bias: whether pruning will give the FFNs biases that they do not have yet.

    Raises:
        ValueError: a config entry also drives weights outside of the FFNs, or does not drive those of an FFN, or the
            model has other weights or ties than its config describes. No checkpoint could then be loaded.
    """
    class_name = type(model).__name__
    config: PretrainedConfig = copy.deepcopy(model.config)
    entries = set_widths(config, ffns, widths, adds_bias=adds_bias)
    change = ", ".join(f"{knob}={entry}" for knob, entry in entries.items())
    try:
        stock = empty_model(type(model), config)
    except Exception as error:
        raise ValueError(f"{class_name} cannot be built with {change}: {error}") from error
    largest = [int(ffn.scale * entries[ffn.knob]) for ffn in ffns]
    of_ffns = pruned_shapes(model, ffns, largest, adds_bias=adds_bias)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()} | of_ffns
    got = {name: tuple(value.shape) for name, value in stock.state_dict().items()}
    if different := expected.keys() ^ got.keys():
        advice = "; call merge_and_unload() first" if any("lora_" in name for name in different) else ""
        raise ValueError(
            f"{class_name}: expected the weights that its config describes, got a difference in "
            f"{name_some(different)}{advice}"
        )
    for name, shape in expected.items():
        if got[name] == shape:
            continue
        if name in of_ffns:
            raise ValueError(
                f"{name}: expected its width to follow the config, but with {change} {class_name} gives it the shape "
                f"{got[name]} instead of {shape}; this model cannot be pruned"
            )
        raise ValueError(
            f"{name}: expected only FFNs to change with the config, which also drives this weight of {class_name}: "
            f"{shape} in the model, {got[name]} with {change}; this model cannot be pruned"
        )
    if shared := [names for names in _shared(model) if not any(names <= other for other in _shared(stock))]:
        raise ValueError(
            f"{class_name}: expected weights that are tied as in its config, got one parameter for "
            f"{name_some(shared[0])}"
        )


def check_saved(folder: Path, model: PreTrainedModel) -> None:
    """Compare the files in `folder` with the model in memory, by the headers of the weights.

    Raises:
        OSError: config or weights are absent, or have other names, shapes or dtypes.
    """
    if not (folder / "config.json").is_file():
        raise OSError(f"{folder}: expected config.json to be written, got none")
    state = {name: value.to("meta") for name, value in model.state_dict().items()}
    expected = {
        name: (tuple(value.shape), value.dtype)
        for name, value in revert_weight_conversion(model, state).items()
    }
    try:
        headers = read_headers(folder)
    except ValueError as error:
        raise OSError(str(error)) from error
    written = {name: (entry.shape, DTYPES.get(entry.dtype)) for name, entry in headers.items()}
    for names in _shared(model):  # only one of them is written
        absent = {name for name in names if name in expected and name not in written}
        for name in absent if len(absent) < len(names) else ():
            del expected[name]
    if absent := expected.keys() ^ written.keys():
        raise OSError(
            f"{folder}: expected {len(expected)} weights to be written, got {len(written)}; they differ in "
            f"{name_some(absent)}"
        )
    for name, (shape, dtype) in expected.items():
        got_shape, got_dtype = written[name]
        if shape != got_shape or (dtype.is_floating_point and dtype != got_dtype):
            raise OSError(
                f"{folder}: expected {name} to be written as {dtype} {list(shape)}, got {headers[name].dtype} "
                f"{list(got_shape)}"
            )


def pruned_shapes(
    model: PreTrainedModel, ffns: Sequence[FFN], widths: Sequence[int], *, adds_bias: bool
) -> Shapes:
    """The shapes of all weights of the FFNs with these widths, by name."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    shapes: Shapes = {}
    for ffn, width in zip(ffns, widths, strict=True):
        for owner, name in ffn.vectors:
            shapes |= dict.fromkeys(names[id(getattr(owner, name))], (width,))
        for projection in ffn.projections:
            stacked = int(projection.expert is not None)
            shape = list(projection.parameter.shape)
            shape[stacked + projection.axis] = width * projection.copies
            rows = projection.out_features if projection.contracts else width * projection.copies
            for name in names[id(projection.parameter)]:
                shapes[name] = tuple(shape)
                if projection.bias is not None or adds_bias:
                    bias = name.removesuffix(projection.weight_name) + projection.bias_name
                    shapes[bias] = (*shape[:stacked], rows)
    return shapes


def _shared(model: nn.Module) -> list[set[str]]:
    """The names of parameters that are one and the same."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return [group for group in names.values() if len(group) > 1]
