"""Which weights look like FFNs, by their shapes and places alone.

Deliberately naive and independent of `pruning`, since it judges what that found. It relies on the zoo: every residual
stream is as wide as one of `STREAMS`, and no FFN is.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

STREAMS = (32, 96)
"""96 is for LiLT, which divides its width by 6."""
NARROWEST = 20
"""Less is a pair of low-rank factors, or the expansion of a narrow FFN read backwards."""
NOT_AN_FFN = re.compile(
    # Attention, and what takes its place: its value and output projections have the shapes of an FFN, too.
    r"attn|attention|mamba|ssm_|lstm|rglru|recurrent|retention|delta_?net|short_?conv|linear_conv|kda"
    # Pairs of factors without neurons between them, and small adapters.
    r"|lora|laurel|low_?rank|adapter"
    # Gates, indexers and embeddings: their inner axis is one of experts or positions.
    r"|router|indexer|embed|altup|hyper_|position|per_layer",
    re.IGNORECASE,
)
"""In the names of modules below the layer, and of their classes."""
SURELY_AN_FFN = re.compile(r"MLP$|Mlp$|FFN$|FeedForward|Experts$|MoE$|Moe$|Layer$|Block$")
"""Classes, whatever else their names hold: `HyperCLOVAXMLP`, `ZambaAttentionDecoderLayer`."""


@dataclass(frozen=True)
class Block:
    """A pair of projections d -> n -> d; of experts in one tensor `[E, ...]`, all of them.

    Attributes:
        output: name of the output projection's weight.
        axis: of that weight along which the neurons lie.
        producers: names of the weights that make the neurons or their gates.
        width: n.
        experts: how many FFNs there are in the weight.
    """

    output: str
    axis: int
    producers: tuple[str, ...]
    width: int
    experts: int


@dataclass(frozen=True)
class _Weight:
    name: str
    tensor: Tensor
    transposed: bool  # stored as [in, out]

    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs."""
        rows, columns = self.tensor.shape[-2:]
        return (columns, rows) if self.transposed else (rows, columns)


def blocks(model: nn.Module) -> list[Block]:
    """What looks like the FFN of a layer. Tied weights count once."""
    weights = list(_weights(model))
    found: dict[int, Block] = {}
    for weight in weights:
        outputs, n = weight.sizes()
        if outputs not in STREAMS or n in STREAMS or n < NARROWEST:
            continue
        # Beside it: `mlp.gate_proj` and `mlp.down_proj`; or, if there is nothing, as in BERT one level up:
        # `layer.0.intermediate.dense` and `layer.0.output.dense`.
        for level in (1, 2):
            scope = _above(weight.name, level)
            producers = tuple(
                other.name
                for other in weights
                if scope in (_above(other.name, 1), _above(other.name, 2))
                and other.tensor.ndim == weight.tensor.ndim
                and other.sizes()[1] == outputs
                and other.sizes()[0] in (n, 2 * n)
            )
            if producers:
                experts = len(weight.tensor) if weight.tensor.ndim == 3 else 1
                axis = weight.tensor.ndim - (2 if weight.transposed else 1)
                found.setdefault(weight.tensor.data_ptr(), Block(weight.name, axis, producers, n, experts))
                break
    return list(found.values())


def _above(name: str, level: int) -> str:
    """The module `level` above the one that holds the weight; a bare parameter is a module of its own."""
    path = name.removesuffix(".weight")
    for _ in range(level):
        path = path.rpartition(".")[0]
    return path


def _weights(model: nn.Module) -> Iterator[_Weight]:
    """The matrices of numbered layers that may belong to an FFN: of linear modules, and stacks of experts."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.modules.conv._ConvNd) or not _may_be_ffn(model, path):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}"
            if name == "weight" and parameter.ndim == 2:
                yield _Weight(full, parameter, isinstance(module, Conv1D))
            elif parameter.ndim == 3 and STREAMS[0] in parameter.shape[1:]:
                # Producers and outputs of stacks are told apart by their names, the orientation by the stream's axis.
                label = full.removesuffix(".weight").rpartition(".")[2]
                is_output = re.search(r"down|w2|output|wo$|out_proj|fc2", label) is not None
                stream_first = parameter.shape[1] == STREAMS[0]
                yield _Weight(full, parameter, transposed=stream_first != is_output)


def _may_be_ffn(model: nn.Module, path: str) -> bool:
    """Whether the module is in a numbered layer, and neither it nor a module between them is something else."""
    parts = path.split(".")
    layer = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if layer is None:
        return False
    for i in range(layer + 1, len(parts)):
        class_name = type(model.get_submodule(".".join(parts[: i + 1]))).__name__
        if NOT_AN_FFN.search(parts[i]):
            return False
        if NOT_AN_FFN.search(class_name) and not SURELY_AN_FFN.search(class_name):
            return False
    return True
