"""The comparisons under pytest-benchmark: `pytest --benchmark-enable benchmarks`, `-k widestats` for some.

Rows for tables and plots come from `python -m benchmarks.throughput`, where variants take turns.
"""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.throughput.accuracy import accuracy
from benchmarks.throughput.cases import Case, all_series
from benchmarks.throughput.samples import samples
from benchmarks.throughput.variants import VARIANTS

COMPARISONS = [series for series in all_series("cpu", seed=0) if len(series.cases) == 1]


@pytest.mark.parametrize(
    ("case", "variant"),
    [
        pytest.param(series.cases[0], variant, id=f"{VARIANTS[variant].case(series.cases[0]).id}-{variant}")
        for series in COMPARISONS
        for variant in series.variants
    ],
)
def test_throughput(benchmark: BenchmarkFixture, case: Case, variant: str) -> None:
    chosen = VARIANTS[variant]
    if benchmark.disabled:
        pytest.skip("runs with --benchmark-enable")
    if reason := chosen.missing():
        pytest.skip(reason)
    own = chosen.case(case)
    mi = benchmark.pedantic(chosen.call(samples(case), case), rounds=3, warmup_rounds=1)
    benchmark.extra_info.update(accuracy(mi, own, {}), variables_timed=len(mi))
