"""The comparisons under pytest-benchmark: `pytest --benchmark-enable benchmarks/speed`, `-k widestats` for one of them.

Rows for tables and plots come from `python -m benchmarks.speed`, where the variants take turns.
"""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.speed.cases import Case, all_series
from benchmarks.speed.errors import errors
from benchmarks.speed.samples import samples
from benchmarks.speed.variants import find

COMPARISONS = [series for series in all_series("cpu", seed=0) if len(series.cases) == 1]


@pytest.mark.parametrize(
    ("case", "variant"),
    [
        pytest.param(series.cases[0], variant, id=f"{find(variant).case(series.cases[0]).id}-{variant}")
        for series in COMPARISONS
        for variant in series.variants
    ],
)
def test_throughput(benchmark: BenchmarkFixture, case: Case, variant: str) -> None:
    chosen = find(variant)
    if benchmark.disabled:
        pytest.skip("runs with --benchmark-enable")
    if reason := chosen.missing():
        pytest.skip(reason)
    mi = benchmark.pedantic(chosen.call(samples(case), case), rounds=3, warmup_rounds=1)
    benchmark.extra_info.update(errors(mi, chosen.case(case), {}), variables_timed=len(mi))
