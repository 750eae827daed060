"""Fixtures for several test files."""

import zlib
from itertools import groupby

import pytest
import torch

GPU = torch.cuda.is_available()

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


def pytest_collection_modifyitems(items):
    """Mark as `interpreted` all cases but one of each test that runs kernels in Triton's interpreter.

    Which one stays differs from test to test, so that together they take every kernel.
    """
    for name, group in groupby(items, key=lambda item: item.nodeid.partition("[")[0]):
        found = [] if GPU else [item for item in group if "triton" in item.nodeid.partition("[")[2]]
        for index, item in enumerate(found):
            if index != zlib.crc32(name.encode()) % len(found):
                item.add_marker("interpreted")
