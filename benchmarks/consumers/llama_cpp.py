"""What runs in llama.cpp, in a process that has cyllama: `python -m benchmarks.consumers.llama_cpp`.

quantize SOURCE TARGET TYPE    write the GGUF file SOURCE to TARGET, as TYPE, such as q4_k_m
run FILE REQUEST RESULT        the outputs of FILE for what is in REQUEST (`run`)
"""

import sys
from typing import Any

import numpy as np
from cyllama.llama import llama_cpp as lib

Array = np.ndarray[Any, Any]

TYPES = {"q4_0": 2, "q8_0": 7, "q4_k_m": 15, "q6_k": 18}
"""llama.cpp's `llama_ftype`."""
F32 = 0
OFF = 0


class Model(lib.LlamaModel):  # type: ignore[misc]
    """With the attribute that cyllama 0.2.18 reads before it returns logits, but does not have."""

    @property
    def n_vocab(self) -> int:
        return self.get_vocab().n_vocab


def quantize(source: str, target: str, kind: str) -> None:
    """Write the GGUF file `source` to `target` with llama.cpp's quantizer."""
    params = lib.LlamaModelQuantizeParams()
    params.ftype, params.nthread = TYPES[kind], 1
    lib.model_quantize(source, target, params)


def run(file: str, request: str, result: str) -> None:
    """Read a model's outputs, with attention and its cache in float32.

    Args:
        request: an .npz file: `ids` `[L]`, `prompt` and `n_tokens`, how many to continue it by.
        result: where to write `logits` `[L, V]`, `prompt_ids`, and `continuation`, the ids that llama.cpp chooses.
    """
    asked = np.load(request)
    ids, n_tokens = asked["ids"].tolist(), int(asked["n_tokens"])
    params = lib.LlamaModelParams()
    params.n_gpu_layers = 0
    model = Model(file, params, False)
    vocabulary = model.get_vocab()
    prompt = list(vocabulary.tokenize(str(asked["prompt"]), True, False))
    continuation: list[int] = []
    while len(continuation) < n_tokens:
        token = int(_logits(model, prompt + continuation)[-1].argmax())
        if vocabulary.is_eog(token):
            break
        continuation.append(token)
    np.savez(result, logits=_logits(model, ids), prompt_ids=prompt, continuation=continuation)


def _logits(model: Model, ids: list[int]) -> Array:
    """`[L, V]` float32."""
    params = lib.LlamaContextParams()
    params.n_ctx = params.n_batch = params.n_ubatch = len(ids)
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = F32
    params.flash_attn_type = OFF
    context = lib.LlamaContext(model, params, False)
    batch = lib.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
    for position, token in enumerate(ids):
        batch.add(token, position, [0], True)
    context.decode(batch)
    rows = [np.asarray(context.get_logits_ith(position), np.float32) for position in range(len(ids))]
    return np.stack(rows)


if __name__ == "__main__":
    lib.disable_logging()
    lib.llama_backend_init()
    lib.ggml_backend_load_all()
    {"quantize": quantize, "run": run}[sys.argv[1]](*sys.argv[2:])
