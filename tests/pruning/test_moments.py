"""Sums of products, block by block."""

import pytest
import torch

from pruning.observe import moments
from pruning.observe.moments import add_gram, mirror


@pytest.mark.parametrize("size", [1, 4, 5, 8, 11])
def test_the_blocks_together_are_the_whole_product(size, monkeypatch):
    monkeypatch.setattr(moments, "BLOCK", 4)
    generator = torch.Generator().manual_seed(size)
    batches = [torch.randn(rows, size, generator=generator, dtype=torch.float64) for rows in (3, 7)]
    total = torch.zeros(size, size, dtype=torch.float64)
    for batch in batches:
        add_gram(total, batch)
    every = torch.cat(batches)
    torch.testing.assert_close(mirror(total), every.T @ every)
    assert torch.equal(total, total.T)
