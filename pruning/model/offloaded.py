"""A model that accelerate has offloaded: weights are on the CPU or on disk until a module runs.

The hooks of accelerate bring the weights of a module before its forward pass and take them away behind it. While a
layer is held, all its modules have their weights, and the hooks leave them there.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import (  # type: ignore[import-untyped]
    OffloadedWeightsLoader,
    PrefixedDataset,
    align_module_device,
    has_offloaded_params,
)
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.accelerate import offload_weight

from pruning.model.ffn import FFN
from pruning.model.layers import Layers, first_of_each_kind, layer_list, list_name, only


class _Place(NamedTuple):
    """Where accelerate keeps a weight: `entries[name]` is the weight itself, or says in which file it is."""

    entries: dict[str, Any]
    name: str
    loader: OffloadedWeightsLoader | None

    @property
    def on_disk(self) -> bool:
        return self.loader is not None and self.entries is self.loader.index


class OffloadedLayers(Layers):
    """The layers of a model whose weights accelerate has offloaded."""

    in_memory = False

    def __init__(self, model: PreTrainedModel, ffns: Sequence[FFN]) -> None:
        """Args: ffns: all of the model.

        Raises:
            ValueError: layers that cannot be run one by one; weights that cannot be brought, or whose place cannot
                take other ones.
        """
        self._model, self._layers = model, layer_list(model, ffns)
        self._name = list_name(model, self._layers)
        self._held: set[nn.Module] = set()
        self._folder: str | None = None  # of pruned weights on disk
        self._undo: list[Callable[[], object]] = []
        names = {module: name for name, module in model.named_modules()}
        tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
        for ffn in ffns:
            for projection in ffn.projections:
                owner = projection.owners[0]
                name = f"{names[owner]}.{projection.weight_name}"
                if projection.parameter.is_meta:
                    self._check(owner, projection.weight_name, name)
                    if name in tied:
                        raise ValueError(
                            f"{name}: expected a weight of its own, got one that is tied to another and offloaded; "
                            f"load the model without a device_map that offloads it"
                        )
        for layer in self._layers:
            for module in layer.modules():
                for name, parameter in module.named_parameters(recurse=False):
                    if parameter.is_meta:
                        self._check(module, name, f"{names[module]}.{name}", write=False)

    @contextmanager
    def held(self, layer: nn.Module, *, write: bool = False) -> Iterator[None]:
        if layer in self._held:
            yield
            return
        with ExitStack() as stack:
            brought = {}
            for module in layer.modules():
                if has_offloaded_params(module):
                    stack.enter_context(align_module_device(module))
                    stack.enter_context(_left_there(module))
                    brought[module] = dict(module.named_parameters(recurse=False))
            self._held.add(layer)
            try:
                yield
                if write:
                    for module, before in brought.items():
                        self._write(module, before)
            finally:
                self._held.remove(layer)

    @contextmanager
    def sample(self, _body: nn.Module, ffns: Sequence[FFN]) -> Iterator[list[FFN]]:
        chosen = first_of_each_kind(self._layers)
        with ExitStack() as stack:
            for layer in chosen:
                stack.enter_context(self.held(layer))
            stack.enter_context(only(self._model, self._name, chosen))
            yield [ffn for ffn in ffns if ffn.layer in chosen]

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        self._undo, self._folder = [], None
        try:
            yield
        except BaseException:
            for undo in reversed(self._undo):
                undo()
            raise
        finally:
            self._undo = []  # which holds the weights from before

    def _check(self, module: nn.Module, name: str, full_name: str, *, write: bool = True) -> None:
        """Raise unless a weight that is elsewhere can be brought, and with `write` replaced."""
        if not has_offloaded_params(module):
            raise ValueError(
                f"{full_name}: expected a weight in memory, or one that a hook of accelerate at its own module brings, "
                f"got none; load the model without preload_module_classes, or without a device_map that offloads it"
            )
        if not write:
            return
        place = _place_of(module, name, name)
        if not isinstance(place.entries, dict):
            raise ValueError(
                f"{full_name}: expected a weight that accelerate keeps in a state dict or in an offload folder, got a "
                f"{type(place.entries).__name__}; load the model without a device_map that offloads it"
            )
        folder = None if place.loader is None else place.loader.save_folder
        if place.on_disk and (folder is None or not Path(folder).is_dir()):
            raise ValueError(
                f"{full_name}: expected an offload folder for the pruned weights, got none; load the model with "
                f"offload_folder='...'"
            )

    def _write(self, module: nn.Module, before: Mapping[str, nn.Parameter]) -> None:
        """Put the parameters of a module that have been replaced where accelerate keeps them."""
        devices: dict[str, torch.device] = module._hf_hook.original_devices  # type: ignore[union-attr, assignment]
        first = next(iter(before))
        for name, parameter in module.named_parameters(recurse=False):
            if parameter is before.get(name):
                continue
            self._put(_place_of(module, name, name if name in before else first), parameter.detach())
            if name not in devices:  # a new bias; where it goes when the hook is removed
                devices[name] = devices[first]
                self._undo.append(partial(devices.pop, name))

    def _put(self, place: _Place, value: torch.Tensor) -> None:
        entries, name, loader = place
        if name in entries:
            self._undo.append(partial(entries.__setitem__, name, entries[name]))
        else:
            self._undo.append(partial(entries.pop, name, None))
            if loader is not None:
                loader.all_keys.append(name)
                self._undo.append(partial(loader.all_keys.remove, name))
        if not place.on_disk:
            entries[name] = value.to("cpu")
            return
        assert loader is not None  # noqa: S101, for the type checker
        if self._folder is None:  # a new one, so that no file from before is overwritten
            self._folder = tempfile.mkdtemp(prefix="pruned.", dir=loader.save_folder)
            self._undo.append(partial(shutil.rmtree, self._folder, ignore_errors=True))
        try:
            offload_weight(value.to("cpu"), name, self._folder, entries)
        except (SafetensorError, OSError) as error:
            raise OSError(f"{self._folder}: the pruned {name} could not be written: {error}") from error


@contextmanager
def _left_there(module: nn.Module) -> Iterator[None]:
    """Within the block a module that runs keeps its weights."""
    hook: Any = module._hf_hook
    hook.offload = False
    try:
        yield
    finally:
        hook.offload = True


def _place_of(module: nn.Module, name: str, beside: str) -> _Place:
    """Where accelerate keeps a parameter of a module, or a new one with the parameter `beside`."""
    entries: Any = module._hf_hook.weights_map  # type: ignore[union-attr]
    while isinstance(entries, PrefixedDataset):
        name, beside, entries = entries.prefix + name, entries.prefix + beside, entries.dataset
    if not isinstance(entries, OffloadedWeightsLoader):
        return _Place(entries, name, None)
    return _Place(entries.state_dict if beside in entries.state_dict else entries.index, name, entries)
