"""A model on disk, of which one layer is in memory at a time, and the pruned one, which is written layer by layer.

The model is built without weights; the tensors of a layer are read from the checkpoint when it is held.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from mikernels.ranks import ALONE, Ranks
from mikernels.written import settle
from pruning.model.architecture import class_with_code, without_weights
from pruning.model.checkpoint import Checkpoint, SafetensorsFolder
from pruning.model.device import find_device
from pruning.model.ffn import FFN, bind_ffns
from pruning.model.free import release_free_memory
from pruning.model.headers import INDEX, data_bytes, stored_dtype
from pruning.model.layers import Keep, Layers, first_of_each_kind, layer_list, list_name, only
from pruning.model.loaded import check_loaded, name_some
from pruning.model.loading import (
    class_of_folder,
    class_of_gguf,
    generation_config,
    load_gguf_tokenizer,
    load_tokenizer,
)
from pruning.model.output_folder import share_of
from pruning.model.precision import Dtypes, computing_dtype, set_dtypes, weight_dtypes, working_dtype
from pruning.model.quantized import find_quantizer, forget_quantization
from pruning.model.state import STATE, State, write_tensors
from pruning.model.uneven import check_even

SAMPLES = 1000
"""Places in a file whose bytes tell it from another one."""


class Opened(NamedTuple):
    """What `open_folder` returns; the model has no weights in its layers."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layers: "LayersOnDisk"


def open_folder(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Opened:
    """Open a folder of safetensors, or a GGUF file, without reading the layers.

    Args:
        dtype: of the weights, to compute in and to save; by default the stored one, computed in float32 where a CPU is
            slow with 16 bits, and for a GGUF file `working_dtype`.
        device: to compute on; by default a GPU if there is one.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: see `pruning.load_model`; or layers of different widths, an index that names weights that no file
            has, layers with FFNs in several lists, or a GGUF file with stacked experts.
        ImportError: accelerate is not installed.
    """
    path, device = Path(source), find_device(device)
    if path.suffix == ".gguf" and path.is_file():
        return _open_gguf(path, dtype or working_dtype(device), device)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{source}: expected a folder of safetensors or a GGUF file to prune from disk, got none"
        )
    config, _ = class_of_folder(path, trust_remote_code=trust_remote_code)
    check_even(str(source), config)
    stored = dtype or stored_dtype(path) or torch.float32
    computing = computing_dtype(stored, device) if dtype is None else stored
    class_ = class_with_code(str(path), config, trust_remote_code=trust_remote_code)
    model = without_weights(class_, config, stored)
    if model.can_generate():
        model.generation_config = generation_config(path)
    layers = LayersOnDisk(model, SafetensorsFolder(path), stored, computing, device)
    tokenizer = load_tokenizer(str(path), model, trust_remote_code=trust_remote_code)
    return Opened(model, tokenizer, layers)


def _open_gguf(path: Path, dtype: torch.dtype, device: str) -> Opened:
    from pruning.model.gguf_file import GgufFile  # needs gguf, which is an extra

    config, class_ = class_of_gguf(path)
    tokenizer = load_gguf_tokenizer(path)
    model = without_weights(class_, config, dtype)
    layers = LayersOnDisk(model, GgufFile(path, model, dtype), dtype, dtype, device)
    return Opened(model, tokenizer, layers)


class LayersOnDisk(Layers):
    """The layers of a model in a folder."""

    in_memory = False

    def __init__(
        self,
        model: PreTrainedModel,
        checkpoint: Checkpoint,
        stored: torch.dtype,
        computing: torch.dtype,
        device: str,
    ) -> None:
        """Divide the weights into layers; nothing is read yet.

        Args:
            model: without weights.
            stored: the dtype of the weights in the checkpoint and in the result.
            computing: that of a layer that is held.

        Raises:
            ValueError: see `open_folder`.
        """
        self._model, self._checkpoint = model, checkpoint
        self._stored, self._computing, self._device = stored, computing, device
        self._layers = layer_list(model, bind_ffns(model, type(model)))
        self._name = list_name(model, self._layers)
        self._body_prefix = f"{model.base_model_prefix}."
        self._quantizer = find_quantizer(model.config)
        forget_quantization(model)
        self._mapping = get_model_conversion_mapping(model, hf_quantizer=self._quantizer)
        self._places: dict[str, str] = {}  # where each name in the files is in the model
        self._parts = self._divide()  # by layer, and None for the rest: the names in the files
        self._held: set[int] = set()
        self._around: nn.Module | None = None  # what has its weights but the layers, while `around`
        self._dtypes: Dtypes = {}
        self._out: Path | None = None
        self._ranks = ALONE
        self._weight_map: dict[str, str] = {}
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(device)

    @property
    def bytes(self) -> int:
        """Of all weights in the stored dtype, de-quantized."""
        return sum(p.numel() for p in self._model.parameters()) * self._stored.itemsize

    @contextmanager
    def held(self, layer: nn.Module, *, write: bool = False) -> Iterator[None]:
        index = self._layers.index(layer)
        if index in self._held:
            yield
            return
        self._load(self._parts[index])
        dtypes = weight_dtypes(layer)
        self._set_computing(layer)
        self._held.add(index)
        try:
            yield
            if write:
                set_dtypes(layer, dtypes, self._stored)
                self._write(index, layer)
        finally:
            self._held.remove(index)
            _drop_weights(layer, dtypes, self._stored)
            release_free_memory()

    @contextmanager
    def around(self, body: nn.Module) -> Iterator[None]:
        if self._around is not None:
            yield
            return
        names = self._parts[None]
        if body is not self._model:  # the head is not needed
            names = [name for name in names if self._places[name].startswith(self._body_prefix)]
        with only(self._model, self._name, []):
            self._load(names)
            self._model.tie_weights(recompute_mapping=False)
            self._set_computing(body)
        self._around = body
        try:
            yield
        finally:
            self._around = None
            self._let_go()

    @contextmanager
    def sample(self, body: nn.Module, ffns: Sequence[FFN]) -> Iterator[list[FFN]]:
        chosen = first_of_each_kind(self._layers)
        with self.around(body), ExitStack() as stack:
            for layer in chosen:
                stack.enter_context(self.held(layer))
            stack.enter_context(only(self._model, self._name, chosen))
            yield [ffn for ffn in ffns if ffn.layer in chosen]

    def begin(self, out: Path, ranks: Ranks = ALONE) -> None:
        """Write the result to the folder `out`, beginning with all that is in no layer, or go on with it.

        Args:
            ranks: processes that prune together: the first one writes.
        """
        self._out, self._ranks = out, ranks
        shard = out / self._shard(0)
        with only(self._model, self._name, []):
            self._load(self._parts[None])
            # Weights that are to be tied, but are stored with different values, are not tied from here on.
            self._model.tie_weights(missing_keys=set(self._absent), recompute_mapping=False)
            self._dtypes = weight_dtypes(self._model)
            self._model.config.dtype = str(self._model.dtype).removeprefix("torch.")
            self._model.config.architectures = [type(self._model).__name__]
            if ranks.is_first and not (out / STATE).is_file():
                with _quiet():  # this also writes the configs, and the code of a model that comes with some
                    self._model.save_pretrained(
                        out, state_dict=self._model.state_dict(), max_shard_size="1000TB"
                    )
                settle(out / "model.safetensors")
                (out / "model.safetensors").rename(shard)
        self._let_go()
        self._note(shard)

    def _let_go(self) -> None:
        """Leave only the shapes of what is in no layer."""
        with only(self._model, self._name, []):
            _drop_weights(self._model, self._dtypes, self._stored)
            self._model.tie_weights(recompute_mapping=False)
        release_free_memory()

    def go_on(self, identity: Mapping[str, object]) -> dict[str, Tensor]:
        assert self._out is not None  # noqa: S101, for the type checker
        identity = {**identity, "model": self.fingerprint(), "processes": self._ranks.count}
        self._state = State(self._out / STATE, identity, self._ranks)
        for number in range(1, self._state.done + 1):
            self._note(self._out / self._shard(number))
        return self._state.remembered

    @property
    def scratch(self) -> Path | None:
        if self._out is None or self._ranks.is_first:
            return self._out
        share = share_of(self._out, self._ranks.index)
        share.mkdir(parents=True, exist_ok=True)
        return share

    def complete_before(self, n_streams: int, keep: Keep) -> tuple[int, list[list[Tensor]]]:
        return self._state.done, self._state.streams(n_streams, self._device, keep)

    def remember(self, tensors: Mapping[str, Tensor]) -> None:
        self._state.remembered |= tensors

    def completed(self, layer: nn.Module, streams: Sequence[Sequence[Tensor]]) -> None:
        self._state.write(self._layers.index(layer) + 1, streams)

    def fingerprint(self) -> str:
        """Of the config and the code of the model, the headers and sizes of its files, and some bytes of each."""
        digest = hashlib.sha256(repr((self._stored, self._computing)).encode())
        for file in self._checkpoint.descriptions:
            digest.update(f"{file.name} ".encode() + file.read_bytes())
        for file in sorted(set(self._checkpoint.files.values())):
            size = file.stat().st_size
            with file.open("rb") as handle:
                header = handle.read(self._checkpoint.header_size(file))
                digest.update(f"{file.name} {size} ".encode() + header)
                for start in range(0, size, max(1, size // SAMPLES)):
                    handle.seek(start)
                    digest.update(handle.read(64))
        return digest.hexdigest()

    def finish(self) -> None:
        """Write the config and the index of the result, whose layers were all held with `write`."""
        assert self._out is not None  # noqa: S101, for the type checker
        self._model.config.save_pretrained(self._out)
        size = sum(data_bytes(self._out / name) for name in set(self._weight_map.values()))
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(self._weight_map.items()))}
        (self._out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _divide(self) -> dict[int | None, list[str]]:
        """The names in the files by layer.

        Raises:
            ValueError: weights are missing, or the model has no place for some of the body.
        """
        state = self._model.state_dict()
        renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        targets = {pattern: c.target_patterns for c in converters for pattern in c.source_patterns}
        parts: dict[int | None, list[str]] = {index: [] for index in (None, *range(len(self._layers)))}
        found: set[str] = set()
        for name in self._checkpoint.files:
            given, pattern = rename_source_key(
                name, renamings, converters, self._model.base_model_prefix, state
            )
            if given not in state and name in state:
                given, pattern = name, None
            first, *others = targets[pattern] if pattern is not None else [given]
            found |= {given, *(given.replace(first, other) for other in others)}
            inside = given.removeprefix(f"{self._name}.")
            parts[int(inside.split(".")[0]) if inside != given and given in state else None].append(name)
            self._places[name] = given
        self._absent = state.keys() - found
        tied = set(self._model.all_tied_weights_keys)
        ignored = self._model._keys_to_ignore_on_load_unexpected or ()
        check_loaded(
            str(self._checkpoint.path),
            self._model,
            {
                "missing_keys": self._absent - tied,
                "unexpected_keys": {n for n in found - state.keys() if not _matches(n, ignored)},
                "mismatched_keys": set(),
                "error_msgs": [],
            },
        )
        return parts

    def _load(self, names: Sequence[str]) -> None:
        """Read some of the weights in the stored dtype."""
        options = LoadStateDictConfig(
            dtype=self._stored,
            dtype_plan=self._model._get_dtype_plan(self._stored),
            hf_quantizer=self._quantizer,
            weight_mapping=self._mapping,
            device_map={"": self._device},
        )
        with self._checkpoint.read(names) as weights, _quiet():
            info, _ = convert_and_load_state_dict_in_model(self._model, weights, options)
        if self._quantizer is not None:
            forget_quantization(self._model)
        problems = [
            f"{name}: {tuple(got)} instead of {tuple(shape)}" for name, got, shape in info.mismatched_keys
        ]
        problems += [f"{name}: {error}" for name, error in info.conversion_errors.items()]
        if problems:
            raise ValueError(
                f"{self._checkpoint.path}: expected the weights of {type(self._model).__name__} with this config, got "
                f"{name_some(problems)}"
            )

    def _set_computing(self, part: nn.Module) -> None:
        """Convert the weights of a part of the model to the dtype to compute in. If that is the stored one, those that
        a class keeps in float32 stay so, as in a model in memory."""
        if self._computing != self._stored:
            set_dtypes(part, {}, self._computing)

    def _write(self, index: int, layer: nn.Module) -> None:
        if self._out is None or not self._ranks.is_first:
            return
        prefix = f"{self._name}.{index}."
        state = {prefix + name: value for name, value in layer.state_dict().items()}
        stored = revert_weight_conversion(self._model, state)
        shard = self._out / self._shard(index + 1)
        write_tensors({n: v.detach().cpu().contiguous() for n, v in stored.items()}, shard, {"format": "pt"})
        self._note(shard)

    def _note(self, shard: Path) -> None:
        """Add a complete file to the index, which the first process writes."""
        if not self._ranks.is_first:
            return
        with safe_open(shard, "pt") as file:
            self._weight_map |= dict.fromkeys(file.keys(), shard.name)

    def _shard(self, number: int) -> str:
        return f"model-{number + 1:05d}-of-{len(self._layers) + 1:05d}.safetensors"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of transformers, of which there would be one for each layer."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _drop_weights(layer: nn.Module, dtypes: Dtypes, default: torch.dtype) -> None:
    """Leave only the shapes and the stored dtypes of the parameters of a layer, and its buffers, which are small."""
    for path, module in layer.named_modules():
        for name, old in module._parameters.items():
            if old is not None:
                dtype = dtypes.get(f"{path}.{name}".lstrip("."), default)
                empty = torch.empty_like(old, dtype=dtype, device="meta")
                module._parameters[name] = nn.Parameter(empty, requires_grad=old.requires_grad)
        for name, buffer in module._buffers.items():
            stored = dtypes.get(f"{path}.{name}".lstrip("."))
            if stored is not None and buffer is not None:
                module._buffers[name] = buffer.to(stored)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)
