"""The comparison with llama.cpp: it fails where the outputs differ, and tiny models agree in the real one."""

import subprocess
import sys

import pytest
import torch

from benchmarks.consumers import gguf
from benchmarks.record import load
from pruning import prune
from pruning.model.uneven import is_uneven
from pruning.report.save import save_pruned

from tiny import VOCABULARY, tiny_model, tiny_tokenizer

SIZES = {"hidden_size": 64, "head_dim": 32, "intermediate_size": 384, "max_position_embeddings": 512}
PIECES = """
import sys, sentencepiece
sentencepiece.SentencePieceTrainer.train(
    input=sys.argv[1], model_prefix=sys.argv[2], vocab_size=int(sys.argv[3]), model_type="bpe", byte_fallback=True,
    pad_id=-1, minloglevel=2)
"""
"""Trains a vocabulary that llama.cpp's converter knows, in a process that has sentencepiece."""


@pytest.fixture(params=["uniform", "mi"])
def pruned(request, tmp_path):
    """A pruned model of one or of several widths."""
    model = tiny_model("Llama", vocab_size=300, **SIZES)
    windows = torch.randint(3, VOCABULARY, (16, 32), generator=torch.Generator().manual_seed(0))
    options = {
        "ratio": 0.5,
        "multiple_of": 32,
        "budget": request.param,
        "sample_size": 64,
    }
    if request.param == "mi":
        options["max_layer_ratio"] = 0.6
    report = prune(model, None, calibration=windows, **options)
    save_pruned(model, tiny_tokenizer(), report, tmp_path / "pruned")
    assert is_uneven(model.config) is (request.param == "mi")
    return model, tmp_path / "pruned"


def test_other_outputs_are_an_error(pruned, tmp_path, monkeypatch):
    """With transformers in the place of llama.cpp, once to the bit and once with other outputs."""
    model, folder = pruned
    shift, asked, rows = 0.0, [], tmp_path / "rows.jsonl"
    stored = gguf.in_transformers

    def in_llama_cpp(file, ids):
        found = stored(folder, ids)
        return found | {"logits": found["logits"] + shift * torch.eye(*found["logits"].shape)}

    monkeypatch.setattr(gguf, "TOOLS", tmp_path / "tools")
    monkeypatch.setattr(gguf, "convert", lambda _folder, file, uneven: asked.append(uneven) or file.touch())
    monkeypatch.setattr(gguf, "formats", lambda _file: {})
    monkeypatch.setattr(gguf, "in_llama_cpp", in_llama_cpp)
    monkeypatch.setattr(gguf, "in_transformers", lambda _source, ids, **_: stored(folder, ids))
    assert gguf.main([str(folder), f"--out={rows}"]) == 0
    shift = 0.5
    assert gguf.main([str(folder), f"--out={rows}"]) == 1
    assert [row["result"]["agrees"] for row in load(rows)] == [True, False]
    assert asked == [is_uneven(model.config)] * 2


def test_activations_are_rounded_to_8_bits_in_blocks_of_32():
    values = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    rounded = gguf.eight_bits(values)
    steps = values.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
    error = (rounded - values).unflatten(-1, (-1, 32)).abs()
    assert (error <= 0.51 * steps + 127 * steps * 2**-11).all()  # the scale itself is in float16
    assert not torch.equal(rounded, values)


@pytest.mark.skipif(
    not gguf.is_installed(), reason="llama.cpp is not in build/consumers; `make consumer-tools` puts it there"
)
def test_tiny_models_give_the_same_outputs_in_llama_cpp(pruned, tmp_path):
    model, folder = pruned
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{gguf.PROMPT}, {n} or {n * n}." for n in range(400)))
    command = [sys.executable, "-c", PIECES, text, folder / "tokenizer", str(model.config.vocab_size)]
    subprocess.run(command, check=True, env={"PYTHONPATH": str(gguf.TOOLS / "python")})
    for file in folder.glob("tokenizer*.json"):
        file.unlink()
    ids = torch.randint(3, VOCABULARY, (64,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        stored = model(input_ids=ids[None]).logits[0]
    file = tmp_path / "tiny-f32.gguf"
    gguf.convert(folder, file, uneven=is_uneven(model.config))
    assert gguf.divergence(stored, gguf.in_llama_cpp(file, ids)["logits"]) < gguf.ROUNDING
    rounded = gguf.quantize(file, "q8_0")
    assert gguf.formats(rounded) == {"Q8_0": model.config.num_hidden_layers}
    assert gguf.ROUNDING < gguf.divergence(stored, gguf.in_llama_cpp(rounded, ids)["logits"]) < 1e-3
