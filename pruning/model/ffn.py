"""The feed-forward networks (FFNs) of a model in memory, bound to its parameters (`pruning.model.knobs`)."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from pruning.model.forward import modalities
from pruning.model.headers import DTYPES
from pruning.model.knobs import UNSET, Knob, Knobs, find_knobs, read_entry, set_entry
from pruning.model.places import Place, Slot

WIDTHS = "ffn_widths"
"""Our own config entry, beside that of the only knob: the number of neurons of each FFN where they differ, for
`pruning.load_model`; the knob is then the largest."""
BIAS_SWITCHES = ("mlp_bias",)
"""Config entries that make a class store biases in FFNs that have none."""
EXPERTS_OF_TOKEN = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k", "num_selected_experts")
"""Config entries that say how many experts a token is routed to."""


@dataclass(frozen=True, eq=False)
class Projection:
    """A projection of an FFN, or that of one expert in a stack of them.

    Attributes:
        owners: the modules that hold its weight; several if it is tied.
        weight_name, bias_name: of their parameters.
        axis: of the weight, over the neurons (behind the axis of the experts).
        contracts: whether the neurons are its inputs, instead of its outputs.
        copies, interleaved: see `pruning.model.places.Slot`.
        expert: index in the stack; None for a single projection.
    """

    owners: tuple[nn.Module, ...]
    weight_name: str
    bias_name: str
    axis: int
    contracts: bool
    copies: int = 1
    interleaved: bool = False
    expert: int | None = None

    @property
    def parameter(self) -> nn.Parameter:
        """The weight as its module stores it."""
        parameter: nn.Parameter = getattr(self.owners[0], self.weight_name)
        return parameter

    @property
    def weight(self) -> Tensor:
        """A view `[out, in]`."""
        return self.oriented(self.parameter if self.expert is None else self.parameter[self.expert])

    @property
    def bias_parameter(self) -> nn.Parameter | None:
        """The bias as its module stores it."""
        return getattr(self.owners[0], self.bias_name, None)

    @property
    def bias(self) -> Tensor | None:
        """`[out]`."""
        bias = self.bias_parameter
        return bias if bias is None or self.expert is None else bias[self.expert]

    @property
    def width(self) -> int:
        """N, the number of neurons."""
        return self.weight.shape[1 if self.contracts else 0] // self.copies

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    def oriented(self, weight: Tensor) -> Tensor:
        """A view `[out, in]` of a matrix in the layout of the parameter."""
        return weight if (self.axis == 1) is self.contracts else weight.t()

    def entries(self, neurons: Tensor) -> Tensor:
        """Indices along the axis of the entries that belong to `neurons`, in the order of the pruned projection."""
        if self.copies == 1:
            return neurons
        if self.interleaved:
            return (
                neurons[:, None] * self.copies + torch.arange(self.copies, device=neurons.device)
            ).flatten()
        return torch.cat([neurons + copy * self.width for copy in range(self.copies)])

    def by_neuron(self) -> Tensor:
        """The weight as `[N, values]`."""
        rows = self.weight.t() if self.contracts else self.weight
        if self.copies == 1:
            return rows
        if self.interleaved:
            return rows.reshape(self.width, -1)
        return rows.reshape(self.copies, self.width, -1).transpose(0, 1).flatten(1)


@dataclass(frozen=True, eq=False)
class FFN:
    """One FFN of a model; the experts of a mixture are FFNs of their own.

    Attributes:
        name: of the smallest module that contains it, with the index of the expert; of its output projection, if there
            are several in that module.
        block: that module.
        layer: the outermost repeated module around it: its output is the input of the next layer.
        inputs: projections `[N, d]`, or `[2 N, d]` for a fused gate and up projection.
        output: projection `[d, N]`.
        vectors: other parameters `[N]`, such as a scale of each neuron: module and name.
        knob: the config entry that sets its width.
        scale: neurons per unit of that entry.
        attributes: integer attributes of modules that follow the width: module, name, change per neuron.
        can_store_bias: whether a model with a bias in `output` can be loaded again as its stock class.
        had_bias: whether the class stores one with this config.
        reads_text: whether it is in a part of the model that reads text, maybe among other inputs.
        share: of the tokens that reach it, if they are spread evenly over the experts of a stack; otherwise 1.
    """

    name: str
    block: nn.Module
    layer: nn.Module
    inputs: tuple[Projection, ...]
    output: Projection
    vectors: tuple[tuple[nn.Module, str], ...]
    knob: Knob
    scale: Fraction
    attributes: tuple[tuple[nn.Module, str, Fraction], ...]
    can_store_bias: bool
    had_bias: bool
    reads_text: bool
    share: float

    @property
    def width(self) -> int:
        """N, the number of neurons."""
        return self.output.width

    @property
    def kind(self) -> str:
        """Its name without numbers: the FFNs of one kind differ only by layer and expert."""
        return re.sub(r"\d+", "#", self.name)

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The input projections, then the output projection."""
        return (*self.inputs, self.output)

    @property
    def is_routed(self) -> bool:
        """Whether it is one of a stack of experts, which must keep equally many neurons."""
        return self.output.expert is not None


def find_ffns(model: PreTrainedModel, *, in_memory: bool = True) -> list[FFN]:
    """The FFNs of `model`, in the order of its layers.

    Args:
        in_memory: whether their weights have to be there.

    Raises:
        ValueError: a wrapped or compiled model, no config entry that sets the width of FFNs, a width that differs from
            the config, or weights that are quantized or not in memory.
    """
    _refuse_wrappers(model)
    ffns = bind_ffns(model, type(model))
    _check_widths(model, ffns, in_memory=in_memory)
    if in_memory:  # the first weight, such as of the embeddings, says where inputs go
        name, first = next(model.named_parameters())
        _refuse_offloaded(name, first)
    return ffns


def bind_ffns(model: PreTrainedModel, class_: type[PreTrainedModel]) -> list[FFN]:
    """The FFNs of an instance of `class_`, whatever their widths and wherever their weights are.

    Raises:
        ValueError: no config entry sets the width of FFNs, or the model has other weights than its config describes.
    """
    knobs = find_knobs(class_, model.config)
    check_found(class_.__name__, knobs)
    owners = _owners(model)
    modules = dict(model.named_modules())
    places = [(knob, place) for knob in knobs.found for place in knob.places]
    order = {name: index for index, name in enumerate(modules)}
    places.sort(key=lambda pair: order.get(pair[1].output.name.rpartition(".")[0], 0))
    ffns = [ffn for knob, place in places for ffn in _bind(model, modules, owners, knob, place)]
    names = Counter(ffn.name for ffn in ffns)
    outputs = {module: name for name, module in modules.items()}
    return [replace(ffn, name=outputs[ffn.output.owners[0]]) if names[ffn.name] > 1 else ffn for ffn in ffns]


def knobs_of(ffns: Sequence[FFN]) -> list[Knob]:
    """The knobs of some FFNs, each once."""
    return list(dict.fromkeys(ffn.knob for ffn in ffns))


def check_found(class_name: str, knobs: Knobs) -> None:
    """Raise unless a knob was found.

    Raises:
        ValueError: with what was found instead.
    """
    if knobs.found:
        return
    reasons = [f"; {entry}: {reason}" for entry, reason in knobs.rejected.items()]
    unknown = sorted(knobs.unknown.items(), key=lambda item: item[0].rpartition(".")[2] not in UNSET)
    reasons += [f"; {entry} sets the shape of {name}, whose layout is not known" for entry, name in unknown]
    raise ValueError(
        f"{class_name}: expected a config entry that sets the width of its feed-forward networks and of nothing else, "
        f"got none{''.join(reasons[:1])}; this architecture cannot be pruned"
    )


def text_config(model: PreTrainedModel) -> PretrainedConfig:
    """The part of the config that describes the language model."""
    return model.config.get_text_config()


def set_widths(
    config: PretrainedConfig, ffns: Sequence[FFN], widths: Sequence[int], *, adds_bias: bool
) -> dict[Knob, int]:
    """Let a config describe FFNs of these widths, those of one knob by the largest, in place.

    Args:
        adds_bias: whether the class has to store biases in them.

    Returns:
        What each knob is set to.
    """
    entries: dict[Knob, int] = {}
    for ffn, width in zip(ffns, widths, strict=True):
        entries[ffn.knob] = max(entries.get(ffn.knob, 0), int(width / ffn.scale))
    for knob, entry in entries.items():
        set_entry(config, knob.path, knob.entry(entry))
    if adds_bias:
        text = config.get_text_config()
        for switch in BIAS_SWITCHES:
            if hasattr(text, switch):
                setattr(text, switch, True)
    return entries


def widths_in_config(config: PretrainedConfig, ffns: Sequence[FFN]) -> list[int]:
    """The width of each FFN that the config describes."""
    listed = {knob: iter(getattr(read_entry(config, knob.path[:-1]), WIDTHS, ())) for knob in knobs_of(ffns)}
    return [next(listed[ffn.knob], int(ffn.scale * ffn.knob.value)) for ffn in ffns]


def has_own_widths(model: PreTrainedModel, knob: Knob) -> bool:
    """Whether `WIDTHS` beside the knob can only mean its FFNs: no other knob is in the same part of the config."""
    return [other.path[:-1] for other in knobs_of(find_ffns(model, in_memory=False))].count(
        knob.path[:-1]
    ) == 1


def _bind(
    model: PreTrainedModel,
    modules: Mapping[str, nn.Module],
    owners: Mapping[int, list[nn.Module]],
    knob: Knob,
    place: Place,
) -> list[FFN]:
    """The FFN at a place, or each expert of the stack there."""
    switch = any(getattr(text_config(model), name, None) is not None for name in BIAS_SWITCHES)
    stacked = place.experts is not None
    weights = [slot for slot in place.inputs if _parameter(modules, slot.name).ndim > 1 + stacked]
    ffns = []
    for expert in [None] if place.experts is None else range(place.experts):
        output = _projection(modules, owners, place.output, True, expert)
        ffns.append(
            FFN(
                name=place.name if expert is None else f"{place.name}.{expert}",
                block=modules[place.name],
                layer=modules[_layer_name(modules, place.name)],
                inputs=tuple(_projection(modules, owners, slot, False, expert) for slot in weights),
                output=output,
                vectors=tuple(_vectors(modules, place, weights)),
                knob=knob,
                scale=place.scale,
                attributes=tuple(
                    (modules[name], attribute, change) for name, attribute, change in place.attributes
                ),
                can_store_bias=place.output_bias or (switch and not stacked),
                had_bias=place.output_bias,
                reads_text=_reads_text(modules, place.name),
                share=1.0 if place.experts is None else min(1.0, _experts_of_token(model) / place.experts),
            )
        )
    return ffns


def _experts_of_token(model: PreTrainedModel) -> int:
    """How many experts a token is routed to; the fewest if layers differ, 1 if the config does not say."""
    text = text_config(model)
    entry = next(filter(None, (getattr(text, name, None) for name in EXPERTS_OF_TOKEN)), 1)
    return int(min(entry) if isinstance(entry, (list, tuple)) else entry)


def _vectors(
    modules: Mapping[str, nn.Module], place: Place, weights: Sequence[Slot]
) -> Iterator[tuple[nn.Module, str]]:
    """The parameters of a place that are neither weights nor their biases."""
    biases = {slot.name.removesuffix("weight") + "bias" for slot in weights}
    for slot in place.inputs if place.experts is None else ():
        if slot not in weights and slot.name not in biases:
            module, _, name = slot.name.rpartition(".")
            yield modules[module], name


def _projection(
    modules: Mapping[str, nn.Module],
    owners: Mapping[int, list[nn.Module]],
    slot: Slot,
    contracts: bool,
    expert: int | None,
) -> Projection:
    name = slot.name.rpartition(".")[2]
    parameter = _parameter(modules, slot.name)
    return Projection(
        owners=tuple(owners[id(parameter)]),
        weight_name=name,
        bias_name="bias" if expert is None else f"{name}_bias",
        axis=slot.axis,
        contracts=contracts,
        copies=slot.copies,
        interleaved=slot.interleaved,
        expert=expert,
    )


def _parameter(modules: Mapping[str, nn.Module], name: str) -> nn.Parameter:
    module, _, attribute = name.rpartition(".")
    parameter = getattr(modules.get(module), attribute, None)
    if not isinstance(parameter, nn.Parameter):
        raise ValueError(
            f"{name}: expected the weights that the config of the model describes, got none of this name"
        )
    return parameter


def _owners(model: nn.Module) -> dict[int, list[nn.Module]]:
    """For each parameter, the modules that hold it; tied parameters have several."""
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(module)
    return owners


def _layer_name(modules: Mapping[str, nn.Module], name: str) -> str:
    """The outermost item of a list of modules on the way to `name`; `name` if there is none."""
    steps = name.split(".")
    for depth in range(1, len(steps)):
        if isinstance(modules[".".join(steps[:depth])], nn.ModuleList):
            return ".".join(steps[: depth + 1])
    return name


def _reads_text(modules: Mapping[str, nn.Module], name: str) -> bool:
    """Whether the innermost model around a module reads text."""
    steps = name.split(".")
    paths = (".".join(steps[:depth]) for depth in range(len(steps), -1, -1))
    model = next(modules[path] for path in paths if isinstance(modules[path], PreTrainedModel))
    return "text" in modalities(model)


def _check_widths(model: PreTrainedModel, ffns: Sequence[FFN], *, in_memory: bool) -> None:
    for ffn, width in zip(ffns, widths_in_config(model.config, ffns), strict=True):
        for projection in ffn.projections:
            if projection.width != width:
                raise ValueError(
                    f"{ffn.name}: expected {width} neurons as {ffn.knob} in the config says, got {projection.width}"
                )
            weight = projection.parameter
            if weight.dtype not in DTYPES.values():
                raise ValueError(
                    f"{ffn.name}: expected floating-point weights of 16 bits or more, got {weight.dtype}; load the "
                    f"model de-quantized"
                )
            if in_memory:
                _refuse_offloaded(ffn.name, weight)


def _refuse_offloaded(name: str, weight: Tensor) -> None:
    if weight.is_meta:
        raise ValueError(
            f"{name}: expected weights in memory, got none, as after offloading by accelerate; load the model without "
            f"a device_map that offloads them, or prune its folder from disk with pruning.prune_folder"
        )


def _refuse_wrappers(model: nn.Module) -> None:
    """Raise for models whose wrapper would keep using the old weights, or would not run the hooks that observe them."""
    kind = type(model).__name__
    if hasattr(model, "merge_and_unload"):
        raise ValueError(f"model: expected a transformers model, got {kind}; pass model.merge_and_unload()")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ValueError(f"model: expected a transformers model, got {kind}; pass model.module")
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            where = f"its module {name}" if name else kind
            raise ValueError(
                f"model: expected one that is not compiled, got {where} from torch.compile; pass the model before it "
                f"was compiled"
            )
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"model: expected a transformers.PreTrainedModel, got {kind}")
