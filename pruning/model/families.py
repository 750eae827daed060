"""Where a model's feed-forward networks (FFNs) are; all knowledge about architectures is in this file.

A neuron of an FFN is one input channel of its output projection: `act(gate) * up` in a gated FFN, the output of the
activation function otherwise. Dropping a neuron removes a row of each input projection and a column of the output
projection.
"""

from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Layout:
    """How a block names the parts of its FFN in some model families.

    Attributes:
        inputs: paths, within the block, of the projections whose rows are neurons.
        output: path of the projection whose columns are neurons.
        reader: path of the smallest module that computes the neurons from the input of the FFN, "" for the block.
        bias_switch: config entry that makes the class store biases in a block that has none.
        normed_after: whether the block adds the input of the FFN to its output and normalizes the sum (BERT).
    """

    inputs: tuple[str, ...]
    output: str
    reader: str
    bias_switch: str | None = None
    normed_after: bool = False


LAYOUTS = (
    # Llama, Mistral, Qwen2, Qwen3, SmolLM, Gemma 2, OLMo 2, Granite
    Layout(("gate_proj", "up_proj"), "down_proj", "", "mlp_bias"),
    Layout(("intermediate.dense",), "output.dense", "intermediate", normed_after=True),  # BERT
)
WIDTH = "intermediate_size"
"""The config entry with the number of neurons per FFN."""
WIDTHS = "ffn_widths"
"""Our own config entry: the number of neurons of each FFN where they differ, for `pruning.load_model`; `WIDTH` is then
the largest."""


@dataclass(frozen=True)
class FFN:
    """One FFN of a model.

    Attributes:
        name: of the block within the model.
        block: the module that holds the FFN.
        layer: the transformer layer of the block; its output is the input of the next layer.
        inputs: projections `[N, d]`.
        output: projection `[d, N]`.
        reader: the smallest module that computes the neurons from the input of the FFN; it may contain `output`.
        can_store_bias: whether a model with a bias in `output` can be loaded again as its stock class.
        normed_after: see `Layout`.
    """

    name: str
    block: nn.Module
    layer: nn.Module
    inputs: tuple[nn.Linear, ...]
    output: nn.Linear
    reader: nn.Module
    can_store_bias: bool
    normed_after: bool

    @property
    def width(self) -> int:
        """N, the number of neurons."""
        return self.output.in_features

    @property
    def projections(self) -> tuple[nn.Linear, ...]:
        """The input projections, then the output projection."""
        return (*self.inputs, self.output)


def find_ffns(model: PreTrainedModel) -> list[FFN]:
    """The FFNs of `model`, in the order of its layers.

    Raises:
        ValueError: a wrapped or compiled model, no FFN of a known layout, a width that differs from the config, or
            weights that are quantized or not in memory.
    """
    _refuse_wrappers(model)
    config = text_config(model)
    found = [
        ffn
        for name, block in model.named_modules()
        for layout in LAYOUTS
        if (ffn := _match(model, name, block, layout))
    ]
    if not found:
        linears = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
        expected = " or ".join(" + ".join((*layout.inputs, layout.output)) for layout in LAYOUTS)
        raise ValueError(
            f"{type(model).__name__}: expected blocks with {expected} as torch.nn.Linear, got "
            f"{'linear layers named ' + ', '.join(sorted(linears)) if linears else 'no linear layer'}"
        )
    widths = getattr(config, WIDTHS, None) or [getattr(config, WIDTH, None)] * len(found)
    for ffn, width in zip(found, widths, strict=True):
        if ffn.width != width:
            raise ValueError(
                f"{ffn.name}: expected {WIDTH}={width} as in the config, got {ffn.width} neurons"
            )
        for linear in ffn.projections:
            if not linear.weight.is_floating_point() or linear.weight.is_meta:
                raise ValueError(
                    f"{ffn.name}: expected floating-point weights in memory, got {linear.weight.dtype} on "
                    f"{linear.weight.device}; load the model de-quantized and without offloading"
                )
    return found


def text_config(model: PreTrainedModel) -> PretrainedConfig:
    """The part of the config that describes the language model."""
    return model.config.get_text_config()


def bias_switch(ffn: FFN) -> str | None:
    """The config entry to set when `ffn` gets biases that it did not have."""
    return next(
        (layout.bias_switch for layout in LAYOUTS if _submodule(ffn.block, layout.output) is ffn.output), None
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


def _match(model: PreTrainedModel, name: str, block: nn.Module, layout: Layout) -> FFN | None:
    inputs = tuple(_submodule(block, path) for path in layout.inputs)
    output = _submodule(block, layout.output)
    linears = tuple(m for m in inputs if isinstance(m, nn.Linear))
    if len(linears) < len(inputs) or not isinstance(output, nn.Linear):
        return None
    switchable = layout.bias_switch is not None and hasattr(text_config(model), layout.bias_switch)
    return FFN(
        name=name,
        block=block,
        layer=block if layout.normed_after else model.get_submodule(name.rpartition(".")[0]),
        inputs=linears,
        output=output,
        reader=block.get_submodule(layout.reader),
        can_store_bias=output.bias is not None or switchable,
        normed_after=layout.normed_after,
    )


def _submodule(block: nn.Module, path: str) -> nn.Module | None:
    try:
        return block.get_submodule(path)
    except AttributeError:
        return None
