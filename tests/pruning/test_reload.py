"""`reload_difference`: a fresh process confirms a checkpoint, or notices what is wrong with it.

That it finds no difference where there is none, with equal and with different widths, the tests of `--verify` in
`test_cli` show, one of them with a fresh process.
"""

import pytest
import torch

from pruning.model.reload import reload_difference

from tiny import reload_here, tiny_model


def test_a_checkpoint_with_other_weights_is_noticed(windows, tmp_path, monkeypatch):
    reload_here(monkeypatch)
    model = tiny_model("Llama", tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)  # of the outputs in memory, the saved ones are half
    assert reload_difference(model, tmp_path, {"input_ids": windows[:1]}) == pytest.approx(0.5, abs=0.01)


def test_a_checkpoint_without_weights_is_an_error(llama, windows, tmp_path, monkeypatch):
    reload_here(monkeypatch)
    llama.config.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="fresh process could not load"):
        reload_difference(llama, tmp_path, {"input_ids": windows[:1]})
