"""The Triton kernels: that they run, their two ways to load operands, their memory, and their errors."""

import os
import subprocess
import sys

import pytest
import torch

from mikernels import memory
from mikernels.options import Problem
from mikernels.tables.node_shares import ShareTable
from mikernels.transforms import Variables, column_chunks
from mikernels.triton_impl import adaptive_kernels, grid, launch
from mikernels.triton_impl.configs import CHIPS, Config, configs, constants

from samples import (
    GPU,
    Method,
    correlated,
    gaussian,
    mutual_information,
    options,
    over_methods,
    rounding,
    smallest_budget,
    top_pairs,
)

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero")  # log2(0) in padding that is never stored

INT8 = Method("triton", "grid", "rank", "int8")


@pytest.fixture
def launched(monkeypatch):
    """Names of the tile kernels launched so far."""
    names = []
    original = launch.Launcher.run_tiles

    def run_tiles(self, kernel, *args, **keywords):
        names.append(kernel.__name__)
        original(self, kernel, *args, **keywords)

    monkeypatch.setattr(launch.Launcher, "run_tiles", run_tiles)
    return names


@over_methods("triton")
def test_impl_triton_launches_the_kernel_of_the_estimator(method, launched):
    mutual_information(gaussian(20, 3), **options(method))
    assert set(launched) == {f"{method.estimator}_kernel"}


def test_impl_torch_launches_no_kernel(launched):
    mutual_information(gaussian(20, 3), impl="torch")
    assert launched == []


@pytest.mark.parametrize("n_samples", [8, 37, 1000])
def test_int8_matrix_equals_that_of_the_torch_implementation(n_samples):
    x = correlated(n_samples, 10)
    mi = mutual_information(x, **options(INT8))
    torch.testing.assert_close(mi, mutual_information(x, impl="torch"), rtol=0, atol=2e-6)


@pytest.mark.skipif(GPU, reason="a GPU loads in one way only")
@over_methods("triton", "grid")  # the interpreter cannot add to a descriptor, as the other kernels do
def test_tensor_descriptors_load_the_same_as_pointers(method, monkeypatch):
    x = correlated(37, 10)
    expected = mutual_information(x, **options(method))
    monkeypatch.setattr(launch, "has_descriptors", lambda chip: True)
    assert torch.equal(mutual_information(x, **options(method)), expected)


@over_methods("triton")
def test_kernels_overwrite_all_memory_that_they_return(method, monkeypatch):
    x, y = correlated(9, 9).split([4, 5], dim=1)
    expected = [mutual_information(x, **options(method)), mutual_information(x, y, **options(method))]
    empty = torch.Tensor.new_empty

    def poisoned(self, *args, **keywords):
        tensor = empty(self, *args, **keywords)
        if tensor.dtype == torch.float8_e4m3fn:
            tensor.view(torch.uint8).fill_(0x7F)  # its NaN
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 99)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    again = [mutual_information(x, **options(method)), mutual_information(x, y, **options(method))]
    for got, clean in zip(again, expected, strict=True):
        assert torch.equal(got, clean)


@over_methods("triton")
def test_memory_budget_changes_no_bit(method):
    x = correlated(9, 5)
    needed = smallest_budget(x, **options(method))
    tight = mutual_information(x, memory_budget=2 * needed, **options(method))
    roomy = mutual_information(x, **options(method))
    if GPU or method.precision == "int8":
        assert torch.equal(tight, roomy)
    else:  # the interpreter multiplies with NumPy, whose order of summation depends on the shape
        torch.testing.assert_close(tight, roomy, **rounding(method))


@pytest.mark.parametrize("nodes", [100, 250])
def test_tables_of_several_blocks_are_added_up_over_several_tiles(nodes, monkeypatch):
    monkeypatch.setattr(grid.Grid, "tile", 2)
    x = correlated(40, 3)
    mi = mutual_information(x, nodes=nodes, **options(INT8))
    torch.testing.assert_close(mi, mutual_information(x, nodes=nodes, impl="torch"), rtol=0, atol=5e-6)


def test_chunks_shrink_if_a_gpu_is_full(monkeypatch, small_tiles):
    x = correlated(20, 40)
    keywords = options(INT8)
    expected = mutual_information(x, **keywords)
    limit = []

    def can_allocate(n_bytes, device):
        limit.append(n_bytes)
        return n_bytes < limit[0] / 3

    monkeypatch.setattr(memory, "can_allocate", can_allocate)
    monkeypatch.setattr(memory, "allocates_eagerly", lambda device: True)
    with pytest.warns(UserWarning, match="GB are not free on (cpu|cuda:0); using chunks of"):
        assert torch.equal(mutual_information(x, memory_budget=2**20, **keywords), expected)
    assert len(limit) > 1


def test_top_pairs_allocate_no_matrix(monkeypatch, small_tiles):
    x = correlated(20, 70)
    top_pairs(x, 5, **options(INT8))  # makes the constant tables
    seen = []
    original = torch.empty

    def recorded(*args, **keywords):
        tensor = original(*args, **keywords)
        seen.append(tensor.numel())
        return tensor

    monkeypatch.setattr(memory, "allocates_eagerly", lambda device: False)  # which tries with bytes
    monkeypatch.setattr(torch, "empty", recorded)
    assert len(top_pairs(x, 5, **options(INT8)).mi) == 5
    assert seen
    assert max(seen) < 70 * 70


def run_without_interpreter(script):
    """The last line that a script writes to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip().splitlines()[-1]


def test_triton_on_a_cpu_without_the_interpreter_is_an_error():
    script = "import torch, mikernels; mikernels.mutual_information(torch.randn(20, 3), impl='triton')"
    message = run_without_interpreter(script)
    assert message.startswith(
        "mikernels.errors.UnsupportedError: impl: 'triton' expects data on a GPU, or Triton's interpreter"
    )
    assert message.endswith("got device 'cpu'; use impl='torch' or 'auto'")


@pytest.mark.skipif(GPU, reason="the interpreter stands in for a chip without fp8")
def test_precision_that_a_chip_lacks_is_an_error(monkeypatch):
    monkeypatch.setitem(CHIPS, "interpreter", CHIPS["sm_80"])
    with pytest.raises(ValueError, match=r"expected one of 'int8', 'fp16', 'fp32' for 'grid' .* got 'fp8'"):
        mutual_information(gaussian(20, 3), impl="triton", precision="fp8")


@pytest.mark.parametrize(
    ("transform", "n_samples"), [("rank", 2_000_000), ("standardize", 2_000_000), ("rank", 5_000_000)]
)
def test_many_samples_launch_programs_along_one_axis(transform, n_samples, monkeypatch):
    """CUDA allows 65,535 along the others. Meta tensors stand in for the samples, which would take gigabytes."""
    grids = []
    monkeypatch.setattr(
        launch.Launcher, "run", lambda self, kernel, grid, *args, **keywords: grids.append(grid)
    )
    launcher = launch.Launcher("sm_90", "int8" if transform == "rank" else "fp16", autotune=False)
    dtype = torch.int32 if transform == "rank" else torch.float32
    variables = Variables(
        torch.empty(3, n_samples, dtype=dtype, device="meta"), torch.zeros(3, dtype=torch.bool, device="meta")
    )
    table = torch.empty(n_samples, 256, dtype=torch.int8, device="meta")
    shares = ShareTable(table, torch.empty((), device="meta"), 1.0, 1.0)
    monkeypatch.setattr(grid.Grid, "_table", lambda *args: shares)
    ladder = adaptive_kernels.LadderTables(table, table, table)
    monkeypatch.setattr(adaptive_kernels, "_tables", lambda *args: ladder)
    grid.Grid(Problem("grid", 256, 0.1), launcher).panel(variables, slice(0, 3))
    if transform == "rank":
        adaptive_kernels.Adaptive(launcher).panel(variables, slice(0, 3))
    assert grids
    for (programs,) in grids:
        assert programs < 2**31


def test_block_sizes_divide_the_padding_and_hold_a_joint_table():
    for chip, precisions in CHIPS.items():
        for precision in precisions:
            for kernel in ("grid_kernel", "kde_kernel", "renyi2_kernel", "counts_kernel"):
                for config in configs(kernel, chip, precision):
                    itemsize = launch.DTYPES[precision].itemsize
                    assert launch.PADDING % (config.bytes_k // itemsize) == 0
                    assert min(config.block_m, config.block_n) >= grid.MAX_BLOCK_NODES


@pytest.mark.parametrize(("chip", "tile", "expected"), [("sm_90", (128, 256), 16), ("sm_80", (128, 128), 8)])
def test_programs_that_run_at_once_read_few_operands(chip, tile, expected):
    """On 132 multiprocessors 16 x 128 + 132 / 16 x 256 = 4160 rows, with groups of 8 a quarter more."""
    assert constants(Config(*tile, 128, 8, 3), chip, "int8")["GROUP"] == expected


def test_a_gpu_ranks_a_layer_in_few_chunks():
    """N = 11008, M = 4096: 172 chunks on a CPU, 20 launches each."""
    chunks = {d: len(list(column_chunks(11008, 4096, torch.device(d)))) for d in ("cpu", "cuda")}
    assert chunks == {"cpu": 172, "cuda": 6}
