"""Rows of results: the variants of a case timed in turn, beside accuracy, memory and the machine's own rate."""

import itertools
import json
import math
import os
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import record
from benchmarks.throughput.accuracy import accuracy, references
from benchmarks.throughput.cases import Case, Series
from benchmarks.throughput.memory import peak_bytes
from benchmarks.throughput.rates import matmul_rate, memory_rate, synchronize
from benchmarks.throughput.samples import samples
from benchmarks.throughput.variants import VARIANTS

Row = dict[str, Any]
ESTIMATORS = {"grid", "kde", "renyi2"}  # of mikernels, whose float64 reference takes seconds


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        turns: timed calls of each variant, at most; one that is not timed comes before.
        seconds: for all turns of one variant. Where the first call has used them up, it counts as the only turn.
        cap: in a series, no call is made that is expected to take more seconds than this.
    """

    turns: int = 5
    seconds: float = 8.0
    cap: float = 60.0


def series_rows(series: Series, effort: Effort) -> list[Row]:
    """Rows of all cases, from small to large; a variant that cannot run, or no longer, is said so and left out."""
    rows: list[Row] = []
    names = list(series.variants)
    done: dict[str, tuple[Case, float]] = {}  # the last case of each variant, and its seconds
    for case in series.cases:
        for name in list(names):
            if reason := _obstacle(name, case, done.get(name), effort):
                print(f"skipped from here on: {name} on {case.id}: {reason}", flush=True)
                names.remove(name)
        if series.variants[0] not in names:  # what the others are compared with
            break
        for row in case_rows(series.name, case, names, effort):
            done[row["case"]["variant"]] = case, row["result"]["seconds"]["median"]
            rows.append(row)
            print(_line(row), flush=True)
    return rows


def _obstacle(name: str, case: Case, done: tuple[Case, float] | None, effort: Effort) -> str | None:
    """Why not to run a variant on a case, if so: absent, too large, or too slow by its last case."""
    variant = VARIANTS[name]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if reason := variant.missing():
        return reason
    if variant.bytes(case) > memory / 2:
        return f"needs about {variant.bytes(case) / 1e9:.0f} GB of memory"
    if done is not None:
        last, seconds = done
        expected = (
            seconds * (case.N / last.N) ** 2 * (case.M / last.M) ** (2 if case.estimator == "kde" else 1)
        )
        if expected > effort.cap:
            return f"would take about {expected:.0f} s"
    return None


def case_rows(series: str, case: Case, names: Sequence[str], effort: Effort) -> list[Row]:
    """One row a variant. Speed-ups are ratios of medians of this one run; the first variant is ours."""
    x = samples(case)
    cases = {name: VARIANTS[name].case(case) for name in names}
    calls = {name: VARIANTS[name].call(x, case) for name in names}
    precisions = {cases[name].precision for name in names if VARIANTS[name].ours}
    values, seconds, rates = take_turns(calls, precisions, case.device, effort)
    exact = references(x, case, {c.estimator for c in cases.values()} & ESTIMATORS | {"kde"})
    compared = min(len(mi) for mi in values.values())  # the same pairs for all
    copy_rate = memory_rate(case.device)
    rows: list[Row] = []
    for name in names:
        variant, own = VARIANTS[name], cases[name]
        timed = math.comb(len(values[name]), 2)
        of_all_pairs = [s * own.pairs / timed for s in seconds[name]]
        median = statistics.median(of_all_pairs)
        result: dict[str, Any] = {
            "seconds": record.quantiles(of_all_pairs),
            "turns": len(of_all_pairs),
            "pairs_timed": timed,
            "extrapolated": timed < own.pairs,
            "pairs_per_second": own.pairs / median,
            **accuracy(values[name][:compared, :compared], own, exact),
        }
        if rows:
            result["times_slower_than_ours"] = median / statistics.median(seconds[names[0]])
        if variant.ours:
            roof = statistics.median(rates[own.precision])
            result["flop_per_second"] = own.flops / median
            result["matmul_flop_per_second"] = roof
            result["share_of_matmul_rate"] = own.flops / median / roof
            result["copy_bytes_per_second"] = copy_rate
        if variant.columns is None:
            result["peak_memory_mb"] = peak_bytes(own, name) / 1e6
        described = {"series": series, "variant": name, **asdict(own)}
        command = rerun_command(series, case, names, effort)
        rows.append(
            record.row("throughput", command, described, result, variant.versions(), device=own.device)
        )
    return rows


def take_turns(
    calls: dict[str, Callable[[], Tensor]], precisions: set[str], device: str, effort: Effort
) -> tuple[dict[str, Tensor], dict[str, list[float]], dict[str, list[float]]]:
    """Each call in turn, so that a drift of the machine's speed moves all alike.

    Returns:
        By name the values and the seconds of every turn; by precision the matmul rates between the turns.
    """
    values: dict[str, Tensor] = {}
    first: dict[str, float] = {}
    for name, call in calls.items():
        values[name], first[name] = _timed(call, device)
    turns = {name: min(effort.turns, int(effort.seconds / first[name])) for name in calls}
    seconds: dict[str, list[float]] = {name: [] if turns[name] else [first[name]] for name in calls}
    rates: dict[str, list[float]] = {precision: [] for precision in precisions}
    for turn in range(max(1, *turns.values())):
        for precision in precisions:
            rates[precision].append(matmul_rate(precision, device))
        for name, call in calls.items():
            if turn < turns[name]:
                seconds[name].append(_timed(call, device)[1])
    return values, seconds, rates


def _timed(call: Callable[[], Tensor], device: str) -> tuple[Tensor, float]:
    synchronize(device)
    start = time.perf_counter()
    value = call()
    synchronize(device)
    return value, time.perf_counter() - start


def rerun_command(series: str, case: Case, names: Sequence[str], effort: Effort) -> str:
    """The command that measures one case with the same variants again."""
    options = {"--series": series, "--case": json.dumps(asdict(case)), "--variants": ",".join(names)}
    options["--threads"] = str(torch.get_num_threads())
    options |= {f"--{name}": str(value) for name, value in asdict(effort).items()}
    return shlex.join(["python", "-m", "benchmarks.throughput", *itertools.chain(*options.items())])


def _line(row: Row) -> str:
    case, result = row["case"], row["result"]
    share = result.get("share_of_matmul_rate")
    return (
        f"{case['series']:12} {case['variant']:16} N={case['N']:<6} M={case['M']:<6} "
        f"{result['seconds']['median']:10.4g} s  rms to truth {result['rms_to_truth_nats']:.3f} nats"
        + (f"  {share:.0%} of matmul" if share else "")
    )
