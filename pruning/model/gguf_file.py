"""A GGUF file, of which one weight is de-quantized at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from torch import Tensor, nn
from transformers import modeling_gguf_pytorch_utils as mapping

from pruning.model.checkpoint import Checkpoint


class GgufFile(Checkpoint):
    """Weights by the names that transformers has for them, which maps and de-quantizes each on its own.

    Raises:
        ValueError: an architecture that transformers does not de-quantize, or one with weights of several experts in
            one tensor, which it does not read one by one.
    """

    def __init__(self, path: Path, model: nn.Module, dtype: torch.dtype) -> None:
        """Args:
        model: of the class of the weights; may be without them.
        dtype: to de-quantize to.
        """
        self.path, self._dtype = path, dtype
        reader = GGUFReader(path)
        stacked = [tensor.name for tensor in reader.tensors if "_exps" in tensor.name]
        if stacked:
            raise ValueError(
                f"{path}: expected a tensor for each weight to prune a GGUF file from disk, got the stacked experts of "
                f"{stacked[0]}; load it into memory, or de-quantize it to safetensors first"
            )
        self._start = int(reader.data_offset)
        self._parsed = mapping.load_gguf_checkpoint(str(path))
        architecture = mapping.read_field(reader, "general.architecture")[0]
        kind = mapping.TENSOR_PROCESSORS.get(architecture, mapping.TensorProcessor)
        self._processor = kind(config=self._parsed["config"])
        self._names = mapping.get_gguf_hf_weights_map(model, self._processor)
        self._tensors = {
            self._names[tensor.name]: tensor for tensor in reader.tensors if tensor.name in self._names
        }
        self.files = dict.fromkeys(self._tensors, path)

    @contextmanager
    def read(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        yield {name: _GgufWeight(self, name) for name in names}

    def header_size(self, _file: Path) -> int:
        return self._start

    def weight(self, name: str) -> Tensor:
        """As `from_pretrained` reads it."""
        tensor, apart = self._tensors[name], dict[str, Tensor]()
        found = self._processor.process(
            weights=dequantize(tensor.data, tensor.tensor_type),
            name=tensor.name,
            tensor_key_mapping=self._names,
            parsed_parameters=self._parsed | {"tensors": apart},
        )
        value = apart[name] if found.name is None else torch.from_numpy(np.copy(found.weights))
        return value.to(self._dtype)


class _GgufWeight:
    def __init__(self, file: GgufFile, name: str) -> None:
        self._file, self._name = file, name

    def __getitem__(self, _all: Any) -> Tensor:
        return self._file.weight(self._name)
