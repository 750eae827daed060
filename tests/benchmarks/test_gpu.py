"""The script for a GPU runs without one on tiny shapes, and the cost model gives the numbers of a small case."""

import os
import subprocess
import sys

import pytest

from benchmarks.gpu import checks, cost
from benchmarks.gpu.__main__ import until_an_error
from mikernels.triton_impl.configs import CHIPS, Config

DRY_RUN = """
import runpy, sys
for name in ("matplotlib", "psutil", "scipy", "sklearn", "tabulate"):
    sys.modules[name] = None  # a GPU machine may lack them
sys.argv = ["benchmarks.gpu", "--dry-run"]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


def test_dry_run_passes_with_only_torch_triton_numpy_and_transformers():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRY_RUN],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "41 results, 0 failed" in done.stdout


@pytest.mark.parametrize(
    ("estimator", "m", "expected"),
    [("grid", 4096, 1.27e14), ("kde", 1024, 1.27e14), ("renyi2", 1024, 6.35e13)],
)
def test_operations_of_a_layer_of_7b(estimator, m, expected):
    """N^2 / 2 pairs of 2 G^2 M, 2 M^2 or M^2 operations, and at most a tenth more for tiles on the diagonal."""
    counted = cost.work(estimator, 11008, m, "fp16", "sm_90").matrix_ops
    assert expected * 0.98 < counted < 1.1 * expected


def test_an_error_of_a_part_is_a_result_and_loses_none():
    def part():
        yield {"part": "speed", "ok": True}
        raise ValueError("no such row")

    assert list(until_an_error("speed", part)) == [
        {"part": "speed", "ok": True},
        {"part": "speed", "ok": False, "said": "ValueError: no such row"},
    ]


@pytest.fixture
def wide_tiles(monkeypatch):
    """Tiles of 128 x 256, whatever is shipped."""
    monkeypatch.setattr(cost, "configs", lambda *_: [Config(128, 256, 128, 8, 3)])


def test_work_of_a_small_case_is_the_one_counted_by_hand(wide_tiles):
    """`grid`, 32 variables of 16 nodes: 512 x 512 results in 4 x 2 tiles, 2 of which are below the diagonal."""
    counted = cost.work("grid", 32, 128, "int8", "sm_90")
    assert counted == cost.Work(
        matrix_ops=6 * 2 * 128 * 256 * 128,
        memory_bytes=4 * 32 * 128 + 2 * 512 * 128 + 4 * 32 * 32,  # ranks, features twice, results
        l2_bytes=6 * (128 + 256) * 128,
        special=6 * 128 * 256,
    )


def test_floor_of_a_small_case_is_the_time_of_its_slowest_resource(wide_tiles):
    """On an H100: 50.3 Mops at 1979 T/s, 152 kB at 3.35 TB/s, 295 kB at 10.7 TB/s, 197 k logarithms at 3.7 T/s."""
    seconds = cost.work("grid", 32, 128, "int8", "sm_90").seconds(cost.CHIP["H100"], "int8")
    assert seconds == pytest.approx(
        {"tensor cores": 25.4e-9, "memory": 45.2e-9, "L2": 27.6e-9, "special functions": 53.0e-9}, rel=2e-3
    )
    assert cost.floor("grid", 32, 128, "int8", "H100") == (seconds["special functions"], "special functions")
    # a data sheet does not state the rate of L2
    fp16, _ = cost.floor("grid", 32, 128, "fp16", "H100")  # twice the bytes of features
    assert fp16 == pytest.approx((4 * 32 * 128 + 4 * 512 * 128 + 4 * 32 * 32) / 3.35e12)


@pytest.mark.parametrize("case", checks.SPEED, ids=str)
def test_every_speed_that_is_measured_has_an_expected_one(case):
    """The counts of the tiles that are shipped are recorded."""
    for name, chip in cost.CHIP.items():
        if case.precision in CHIPS[chip.family]:
            assert cost.expected(*case[:4], name, case.nodes)[0] > 0


def test_expected_time_charges_the_instructions_that_follow_a_product(wide_tiles, monkeypatch):
    """6 tiles of 1000 instructions in 8 warps on 4 schedulers of 132 multiprocessors at 1.755 GHz, after 25.4 ns."""
    counts = {"instructions_after_loop": 1000, "instructions_in_branch": 0, "instructions_per_round": 10}
    counts |= {"logarithms": 0, "draining_waits_in_loop": 0}
    monkeypatch.setattr(cost, "compiled", lambda *_: counts | {"programs_per_multiprocessor": 1})
    seconds, limit = cost.expected("grid", 32, 128, "int8", "H100")
    assert limit == "product and what follows"
    assert seconds == pytest.approx(25.4e-9 + 6 * 2000 / (132 * 1.755e9), rel=2e-3)
    monkeypatch.setattr(cost, "compiled", lambda *_: counts | {"programs_per_multiprocessor": 2})
    found = cost.expected("grid", 32, 128, "int8", "H100")  # one hides behind the other
    assert found == (pytest.approx(53.0e-9, rel=2e-3), "special functions")
