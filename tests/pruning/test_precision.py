"""The dtype to compute in follows what the processor multiplies fast."""

import pytest
import torch

from pruning.model.precision import computing_dtype, working_dtype


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True}, torch.float32),
        ({"avx2": True, "avx512_f": True}, torch.float32),  # products of bfloat16 take four times as long
        ({"avx2": True, "avx512_f": True, "avx512_bf16": True}, torch.bfloat16),
        ({"neon": True}, torch.float32),
    ],
)
def test_a_cpu_computes_in_bfloat16_only_if_it_has_instructions_for_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert working_dtype("cpu") is computing_dtype(torch.bfloat16, "cpu") is expected
    assert working_dtype("cuda") is computing_dtype(torch.bfloat16, "cuda") is torch.bfloat16


@pytest.mark.parametrize(
    ("stored", "device", "expected"),
    [
        (torch.float16, "cpu", torch.float32),
        (torch.float16, "cuda", torch.float16),
        (torch.float32, "cpu", torch.float32),
        (torch.float64, "cpu", torch.float64),
    ],
)
def test_other_dtypes_do_not_depend_on_the_cpu(stored, device, expected):
    assert computing_dtype(stored, device) is expected
