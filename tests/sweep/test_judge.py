"""The judge calls planted mistakes by their name, and nothing else."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import pruning

from judge import judge
from zoo import Case, cases

KEPT = torch.tensor([neuron for neuron in range(48) if neuron % 4])
KEPT_OF_EXPERT = torch.tensor([neuron for neuron in range(24) if neuron % 6])
CASES = {case.name: case for case in cases()}
Cut = Callable[[PreTrainedModel], None]


def cut(module: nn.Module, name: str, axis: int, kept: Tensor) -> None:
    setattr(module, name, nn.Parameter(getattr(module, name).data.index_select(axis, kept)))


def llama(up: Tensor = KEPT, down: Tensor = KEPT, layers: int = 2, width: int = 36) -> Cut:
    def prune(model: PreTrainedModel) -> None:
        for layer in model.model.layers[:layers]:
            cut(layer.mlp.gate_proj, "weight", 0, KEPT)
            cut(layer.mlp.up_proj, "weight", 0, up)
            cut(layer.mlp.down_proj, "weight", 1, down)
        model.config.intermediate_size = width

    return prune


def touched(model: PreTrainedModel) -> None:
    llama()(model)
    model.model.layers[0].self_attn.o_proj.weight.data[0, 0] += 1e-3


def attention(model: PreTrainedModel) -> None:
    llama()(model)
    cut(model.model.layers[0].self_attn.o_proj, "weight", 0, torch.arange(31))


def fused(kept: Tensor) -> Cut:
    def prune(model: PreTrainedModel) -> None:
        for layer in model.model.layers:
            cut(layer.mlp.gate_up_proj, "weight", 0, kept)
            cut(layer.mlp.down_proj, "weight", 1, KEPT)
        model.config.intermediate_size = len(KEPT)

    return prune


def experts(shift: int) -> Cut:
    """Each expert keeps other neurons; `shift` says how its output projection differs from that."""

    def prune(model: PreTrainedModel) -> None:
        for layer in model.model.layers:
            stack = layer.mlp.experts
            producers, outputs = [], []
            for expert in range(4):
                kept = ((KEPT_OF_EXPERT + expert) % 24).sort().values
                others = ((kept + shift) % 24).sort().values
                producers.append(stack.gate_up_proj.data[expert][torch.cat([kept, kept + 24])])
                outputs.append(stack.down_proj.data[expert][:, others])
            stack.gate_up_proj = nn.Parameter(torch.stack(producers))
            stack.down_proj = nn.Parameter(torch.stack(outputs))
        model.config.moe_intermediate_size = len(KEPT_OF_EXPERT)

    return prune


def normed(scale: float) -> Cut:
    """With the norm over the neurons that BitNet has, which counts them."""

    def prune(model: PreTrainedModel) -> None:
        llama()(model)
        for layer in model.model.layers:
            norm = layer.mlp.ffn_sub_norm
            norm.weight = nn.Parameter(norm.weight.data[KEPT] * scale)

    return prune


HALVES = torch.cat([KEPT, KEPT + 48])
INTERLEAVED = torch.stack([2 * KEPT, 2 * KEPT + 1], 1).flatten()


@pytest.mark.parametrize(
    ("name", "prune", "status", "message"),
    [
        ("LlamaForCausalLM", llama(), "pruned", ""),
        ("LlamaForCausalLM", llama(width=48), "wrong", "does not load"),
        ("LlamaForCausalLM", llama(layers=1), "wrong", "does not load"),
        ("LlamaForCausalLM", llama(up=torch.arange(36)), "wrong", "zeros in place"),
        ("LlamaForCausalLM", llama(down=torch.arange(36)), "wrong", "zeros in place"),
        ("LlamaForCausalLM", llama(up=KEPT.flip(0)), "wrong", "in another order"),
        ("LlamaForCausalLM", touched, "wrong", "other values"),
        ("LlamaForCausalLM", attention, "wrong", "raises RuntimeError"),
        ("LlamaForCausalLM", lambda model: None, "wrong", "nothing was pruned"),
        ("LlavaForConditionalGeneration", lambda model: llama()(language(model)), "partial", "vision_tower"),
        ("Phi3ForCausalLM", fused(HALVES), "pruned", ""),
        ("Phi3ForCausalLM", fused(INTERLEAVED), "wrong", "zeros in place"),
        ("Qwen3MoeForCausalLM", experts(0), "pruned", ""),
        ("Qwen3MoeForCausalLM", experts(1), "wrong", "zeros in place"),
        ("BitNetForCausalLM", normed((48 / 36) ** 0.5), "pruned", ""),
        ("BitNetForCausalLM", normed(1.0), "wrong", "zeros in place"),
    ],
)
def test_verdict(name, prune, status, message, monkeypatch):
    verdict = verdict_on(CASES[name], prune, monkeypatch)
    assert verdict.status == status, verdict.message
    assert message in verdict.message


def language(model: PreTrainedModel) -> SimpleNamespace:
    """The language model of a vision-language model, with the config that `llama` changes."""
    return SimpleNamespace(model=model.model.language_model, config=model.config.text_config)


def verdict_on(case: Case, prune: Cut, monkeypatch):
    def stand_in(model, tokenizer, **options):
        del tokenizer, options
        prune(model)
        return SimpleNamespace(notes={})

    monkeypatch.setattr(pruning, "prune", stand_in)
    return judge(case)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("model: expected one with FFNs"), "refused"),
        (ValueError("two\nlines"), "crash"),
        (KeyError("x"), "crash"),
    ],
)
def test_refusals(error, status, monkeypatch):
    def stand_in(model):
        raise error

    assert verdict_on(CASES["LlamaForCausalLM"], stand_in, monkeypatch).status == status


def test_a_refusal_leaves_the_model_unchanged(monkeypatch):
    def stand_in(model):
        llama()(model)
        raise ValueError("model: too late")

    assert verdict_on(CASES["LlamaForCausalLM"], stand_in, monkeypatch).status == "wrong"
