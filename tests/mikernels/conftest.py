"""Fixtures for several test files."""

import pytest
import torch

# Inputs are small, and threads that wait for each other stall on shared cores.
torch.set_num_threads(1)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 16 variables (32 in Triton), so that small inputs span several tiles, some of them ragged."""
    from mikernels import torch_impl, triton_impl

    for implementation, size in ((torch_impl, 16), (triton_impl, 32)):
        for estimator in (implementation.kde.Kde, implementation.renyi2.Renyi2):
            monkeypatch.setattr(estimator, "tile", size)
    monkeypatch.setattr(triton_impl.grid.Grid, "tile", 32)
    grid = torch_impl.grid.Grid

    def with_small_tile(self, *args, **keywords):
        original_init(self, *args, **keywords)
        self.tile = 16

    original_init = grid.__init__
    monkeypatch.setattr(grid, "__init__", with_small_tile)
