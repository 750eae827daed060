"""Fixtures that several files use."""

import pytest
import torch

# One thread: the inputs are small, and threads that wait for each other stall where the cores are shared.
torch.set_num_threads(1)


@pytest.fixture
def small_tiles(monkeypatch):
    """16 variables in a tile (32 with kernels), so that small inputs have several, a ragged one among them."""
    from mikernels import torch_impl, triton_impl

    for implementation, size in ((torch_impl, 16), (triton_impl, 32)):
        for estimator in (implementation.kde.Kde, implementation.renyi2.Renyi2):
            monkeypatch.setattr(estimator, "tile", size)
    monkeypatch.setattr(triton_impl.grid.Grid, "tile", 32)
    grid = torch_impl.grid.Grid

    def with_small_tile(self, *args, **keywords):
        initialise(self, *args, **keywords)
        self.tile = 16

    initialise = grid.__init__
    monkeypatch.setattr(grid, "__init__", with_small_tile)
