"""A model by its config alone: its weights, and those of the pruned one, without memory for them."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import build_glob_alternation, revert_weight_conversion
from transformers.modeling_utils import local_torch_dtype

from pruning.choose.target import adds_bias, kept_widths
from pruning.model.architecture import class_with_code, empty_model
from pruning.model.ffn import FFN, bind_ffns, set_widths, widths_in_config
from pruning.model.headers import stored_dtype
from pruning.model.layers import layer_list, list_name
from pruning.model.precision import set_dtypes, weight_dtypes
from pruning.model.quantized import dequantize
from pruning.model.surgery import resize_ffns
from pruning.model.uneven import check_even
from pruning.planning.work import FFNShape, LayerShape
from pruning.prepare import check_shapes, chosen_ffns
from pruning.repair.refine import neurons
from pruning.settings import Settings


@dataclass(frozen=True)
class ModelShapes:
    """What a model and its pruned version consist of.

    Attributes:
        name: of the class.
        settings: with the repair that "auto" stands for, and the ratio that reaches a target.
        layers: all layers, also those without FFNs to prune.
        rest: bytes of what is in no layer, in the files.
        body: of these, what runs before the layers.
        files: of the pruned model as a run from disk writes it: the bytes of each weight, by file and name.
        parameters, bytes: of the model and of the pruned one.
    """

    name: str
    settings: Settings
    layers: tuple[LayerShape, ...]
    rest: int
    body: int
    files: dict[str, dict[str, int]]
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    dtype: torch.dtype


def model_shapes(
    source: str | Path,
    settings: Settings,
    dtype: torch.dtype | None = None,
    *,
    from_disk: bool = False,
    trust_remote_code: bool = False,
) -> ModelShapes:
    """The shapes of the model in the folder `source`, whose config is enough.

    Args:
        dtype: of the weights; by default that of most stored ones, or that in the config.
        from_disk: whether the run has one layer in memory at a time.

    Raises:
        FileNotFoundError: no config.
        ValueError: see `plan`.
    """
    path = Path(source)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{source}: expected a folder with config.json to plan for, got none")
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    if from_disk:
        check_even(str(source), config)
    dequantize(str(source), config)
    class_ = class_with_code(str(path), config, trust_remote_code=trust_remote_code)
    in_config = getattr(config, "dtype", None)
    found = (
        dtype or stored_dtype(path) or (in_config if isinstance(in_config, torch.dtype) else torch.float32)
    )
    before = _empty_model(class_, config, found)
    bound = bind_ffns(before, class_)
    widths = widths_in_config(config, bound)
    resize_ffns(bound, widths)
    ffns, _ = chosen_ffns(before, bound, settings)
    settings = check_shapes(before, ffns, settings)
    if settings.refine:
        for ffn in ffns:
            neurons(ffn, ffn.output.weight.new_empty(1, ffn.inputs[0].in_features))  # raises if it cannot
    try:
        layers = layer_list(before, ffns)
    except ValueError as error:
        raise ValueError(
            f"{class_.__name__}: expected FFNs in one list of layers to plan for, got several or none; a run with the "
            f"whole model in memory may work"
        ) from error
    if settings.repair == "auto":
        settings = Settings(**vars(settings) | {"repair": "sequential"})
    kept = kept_widths(ffns, settings.ratio, settings)
    pruned = copy.deepcopy(config)
    set_widths(pruned, ffns, kept, adds_bias=adds_bias(ffns, settings))
    after = _empty_model(class_, pruned, found)
    remaining = bind_ffns(after, class_)
    new = dict(zip(ffns, kept, strict=True))
    resize_ffns(remaining, [new.get(ffn, width) for ffn, width in zip(bound, widths, strict=True)])
    files_before, files_after = _files(before, layers), _files(after, layer_list(after, remaining))
    shard_bytes = [
        [sum(weights.values()) for weights in files.values()] for files in (files_before, files_after)
    ]
    pairs = list(zip(ffns, kept, strict=True))
    shapes = [
        _layer_shape(layer, [pair for pair in pairs if pair[0].layer is layer], config, b, a)
        for layer, b, a in zip(layers, *(sizes[1:] for sizes in shard_bytes), strict=True)
    ]
    prefix = f"{before.base_model_prefix}."
    rest = next(iter(files_before.values()))
    is_body = not any(name.startswith(prefix) for name in rest)
    return ModelShapes(
        name=class_.__name__,
        settings=settings,
        layers=tuple(shapes),
        rest=shard_bytes[0][0],
        body=sum(size for name, size in rest.items() if is_body or name.startswith(prefix)),
        files=files_after,
        parameters=(_count(before), _count(after)),
        bytes=(sum(shard_bytes[0]), sum(shard_bytes[1])),
        dtype=found,
    )


def _empty_model(
    class_: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """An instance without memory for weights, whose dtypes are those of loading it in `dtype`: some classes keep some
    weights in float32."""
    config = copy.deepcopy(config)
    config.dtype = dtype
    with local_torch_dtype(dtype):
        model = empty_model(class_, config)
    dtypes = weight_dtypes(model)
    if kept := model._get_dtype_plan(dtype):
        pattern, names, _ = build_glob_alternation(list(kept))
        for name in dtypes:
            if match := pattern.search(name):
                dtypes[name] = kept[names[match.lastgroup]]
    set_dtypes(model, dtypes, dtype)
    return model


def _files(model: PreTrainedModel, layers: Sequence[nn.Module]) -> dict[str, dict[str, int]]:
    """The bytes of each weight by file: one for what is in no layer, and one for each layer."""
    name = list_name(model, layers)
    once = {n for n, _ in model.named_parameters()} | {n for n, _ in model.named_buffers()}
    parts: list[dict[str, Tensor]] = [{} for _ in range(len(layers) + 1)]
    for weight, value in model.state_dict().items():
        if weight in once:
            inside = weight.removeprefix(f"{name}.")
            parts[0 if inside == weight else 1 + int(inside.split(".")[0])][weight] = value
    files = {}
    for number, part in enumerate(parts):
        stored: Mapping[str, Tensor] = revert_weight_conversion(model, part)
        files[f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"] = {
            weight: value.numel() * value.element_size() for weight, value in stored.items()
        }
    return files


def _layer_shape(
    layer: nn.Module,
    ffns: Sequence[tuple[FFN, int]],
    config: PretrainedConfig,
    before: int,
    after: int,
) -> LayerShape:
    weights = sum(parameter.numel() for parameter in layer.parameters())
    stacks: dict[int, list[tuple[FFN, int]]] = {}
    for ffn, kept in ffns:
        stacks.setdefault(id(ffn.output.parameter), []).append((ffn, kept))
    shapes, active = [], float(weights)
    for stack in stacks.values():
        first, kept = stack[0]
        size = sum(projection.parameter.numel() for projection in first.projections)
        active -= (1 - first.share) * size
        shapes.append(FFNShape(first.width, kept, first.output.out_features, len(stack), first.share, size))
    hidden = config.get_text_config().hidden_size
    return LayerShape(tuple(shapes), weights, active, hidden, before, after)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
