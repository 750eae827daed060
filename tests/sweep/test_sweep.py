"""Pruning of every architecture, judged from outside. `make test` takes a sample, `make sweep` all."""

import functools

import pytest
from transformers.models.auto import modeling_auto

from judge import judge
from overrides import UNBUILT
from table import README, readme_text, stored_statuses, stored_types, update_readme
from zoo import MAPPINGS, Case, cases

SAMPLE = (
    "LlamaForCausalLM[biases]",
    "MistralForSequenceClassification",
    "GPT2LMHeadModel",
    "BloomForCausalLM",
    "AlbertModel",
    "BertForMaskedLM",
    "ZambaForCausalLM[one shared layer]",
    "BitNetForCausalLM",
    "Qwen2MoeForCausalLM[shared as wide as dense]",
    "DeepseekV3ForCausalLM[shared as wide as dense]",
    "GptOssForCausalLM",
    "T5ForConditionalGeneration[gated]",
    "WhisperForConditionalGeneration",
    "Dinov2Model",
    "LlavaForConditionalGeneration[image]",
)
LEAST_CASES, LEAST_PRUNED = 200, 150


@functools.cache
def by_name() -> dict[str, Case]:
    return {case.name: case for case in cases()}


def assert_right(name: str) -> None:
    verdict = judge(by_name()[name])
    assert verdict.status in ("pruned", "refused"), f"{verdict.status}: {verdict.message}"
    assert verdict.status == stored_statuses().get(name), "expected the result in docs/architectures.md"


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(name):
    assert_right(name)


@pytest.mark.sweep
@pytest.mark.parametrize("name", [case.name for case in cases()])
def test_all(name):
    assert_right(name)


def test_every_class_has_a_case_or_a_reason():
    listed = {
        class_
        for mapping in MAPPINGS
        for class_ in getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").values()
    }
    tried = {case.class_name for case in by_name().values()}
    assert listed == (listed & tried) | set(UNBUILT)
    assert len(by_name()) == len(cases()) >= LEAST_CASES


def test_the_stored_table_is_complete_and_meets_the_targets():
    stored = stored_statuses()
    assert stored.keys() == by_name().keys()
    assert set(stored.values()) <= {"pruned", "refused"}
    assert sum(status == "pruned" for status in stored.values()) >= LEAST_PRUNED


def test_the_readme_says_what_the_stored_table_says():
    assert update_readme(readme_text(stored_types())) == README.read_text(encoding="utf-8")
