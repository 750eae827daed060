"""The layers of a model, and where their weights are: in memory, or elsewhere until a layer is needed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from pruning.model.ffn import FFN

Keep = Callable[[Tensor], Tensor]
"""Puts hidden states where they wait until they are needed, and returns them."""


class Layers:
    """Brings the weights of one layer at a time, and takes them away; of a model in memory there is nothing to do."""

    in_memory = True
    """Whether all layers have their weights; otherwise only those that are held."""

    @property
    def scratch(self) -> Path | None:
        """The folder for files without a name; None for that for temporary files."""
        return None

    def fingerprint(self) -> str:
        """Of the weights on disk; empty for a model in memory."""
        return ""

    @contextmanager
    def held(self, _layer: nn.Module, *, write: bool = False) -> Iterator[None]:
        """Within the block the layer has its weights.

        Args:
            write: what the layer is at the end of the block is the result.
        """
        yield

    def go_on(self, _identity: Mapping[str, object]) -> dict[str, Tensor]:
        """What `remember` got in an earlier run that was interrupted, of the layers that are complete.

        Args:
            identity: of the run: everything that determines its result, by name.
        """
        return {}

    def complete_before(self, _n_streams: int, _keep: Keep) -> tuple[int, list[list[Tensor]]]:
        """How many layers an earlier run has completed, and its streams of hidden states behind them."""
        return 0, []

    def remember(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep something about the layer that is held for a run that goes on."""

    def completed(self, layer: nn.Module, streams: Sequence[Sequence[Tensor]]) -> None:
        """A layer was written, and these are the hidden states behind it."""

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Put back what was written if the block raises; not what is written to another folder."""
        yield

    @contextmanager
    def around(self, _body: nn.Module) -> Iterator[None]:
        """Within the block everything of `body`, the model or its base model, but the layers has its weights."""
        yield

    @contextmanager
    def sample(self, _body: nn.Module, ffns: Sequence[FFN]) -> Iterator[list[FFN]]:
        """Within the block `body` runs, maybe with fewer layers, but with every kind of them; yields their FFNs."""
        yield list(ffns)


IN_MEMORY = Layers()


def layer_list(model: nn.Module, ffns: Sequence[FFN]) -> list[nn.Module]:
    """The list of layers that all FFNs are in.

    Raises:
        ValueError: they are in several lists, or in none.
    """
    wanted = {ffn.layer for ffn in ffns}
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and wanted <= set(module):
            return list(module)
    raise ValueError(
        f"{ffns[0].name}: expected all FFNs in one list of layers, which are run one by one, got several or none; with "
        f"the whole model in memory, repair='lstsq' does not need that"
    )


def list_name(model: nn.Module, layers: Sequence[nn.Module]) -> str:
    """The name of the list that consists of these layers."""
    wanted = list(layers)
    return next(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and list(module) == wanted
    )


def first_of_each_kind(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """The first layers, at least two, as many as show each kind of layer."""
    first: dict[object, int] = {}
    for index, layer in enumerate(layers):
        shapes = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
        first.setdefault((type(layer), shapes), index)
    return list(layers[: max(2, 1 + max(first.values()))])


@contextmanager
def only(model: nn.Module, name: str, layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block the list of layers with this name consists of these."""
    parent, _, attribute = name.rpartition(".")
    module = model.get_submodule(parent)
    every = getattr(module, attribute)
    setattr(module, attribute, nn.ModuleList(layers))
    try:
        yield
    finally:
        setattr(module, attribute, every)


def by_layer(ffns: Sequence[FFN]) -> list[list[FFN]]:
    """The FFNs of each layer, in their order."""
    layers: dict[nn.Module, list[FFN]] = {}
    for ffn in ffns:
        layers.setdefault(ffn.layer, []).append(ffn)
    return list(layers.values())
