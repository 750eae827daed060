"""Measure the variants of a case in turn: time, errors, memory and the rates of the machine."""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks import record
from benchmarks.record import Row, timed
from benchmarks.speed.cases import Case, Series
from benchmarks.speed.errors import errors, references
from benchmarks.speed.memory import peak_bytes
from benchmarks.speed.rates import copy_rate, matmul_rate
from benchmarks.speed.samples import samples
from benchmarks.speed.variants import find

ESTIMATORS = {"grid", "kde", "renyi2"}  # those of mikernels whose float64 reference takes seconds
UNLIMITED = 1e9  # seconds of an `Effort` that runs every turn


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    turns: int = 5  # maximum number of timed calls of each variant, after a warm-up call
    seconds: float = 8.0  # for all turns of a variant; a warm-up call that takes longer is the only turn
    cap: float = 60.0  # within a series, skip calls that are expected to take more seconds


def series_rows(series: Series, effort: Effort) -> list[Row]:
    """Rows of all cases from small to large; a variant that cannot run is reported and dropped from there on."""
    rows: list[Row] = []
    names = list(series.variants)
    previous: dict[str, tuple[Case, float]] = {}  # of each variant, with its seconds
    for case in series.cases:
        for name in list(names):
            if reason := _obstacle(name, case, previous.get(name), effort):
                print(f"skipped from here on: {name} on {case.id}: {reason}", flush=True)
                names.remove(name)
        if series.variants[0] not in names:  # the baseline of the comparison
            break
        for row in case_rows(series.name, case, names, effort):
            previous[row["case"]["variant"]] = case, row["result"]["seconds"]["median"]
            rows.append(row)
            print(_line(row), flush=True)
    return rows


def case_rows(series: str, case: Case, names: Sequence[str], effort: Effort) -> list[Row]:
    """One row per variant. Speed-ups are ratios of medians within this run, relative to the first variant."""
    x = samples(case)
    cases = {name: find(name).case(case) for name in names}
    calls = {name: find(name).call(x, case) for name in names}
    precisions = {cases[name].precision for name in names if find(name).ours}
    values, seconds, rates = take_turns(calls, effort, precisions, case.device)
    exact = references(x, case, {c.estimator for c in cases.values()} & ESTIMATORS | {"kde"})
    compared = min(len(mi) for mi in values.values())  # the same pairs for all variants
    copied = copy_rate(case.device)
    rows: list[Row] = []
    for name in names:
        variant, own = find(name), cases[name]
        timed_pairs = math.comb(len(values[name]), 2)
        of_all_pairs = [s * own.pairs / timed_pairs for s in seconds[name]]
        typical = median(of_all_pairs)
        result: dict[str, Any] = {
            "seconds": record.quantiles(of_all_pairs),
            "turns": len(of_all_pairs),
            "pairs_timed": timed_pairs,
            "extrapolated": timed_pairs < own.pairs,
            "pairs_per_second": own.pairs / typical,
            **errors(values[name][:compared, :compared], own, exact),
        }
        if rows:
            result["times_slower_than_ours"] = typical / median(seconds[names[0]])
        if variant.ours:
            roof = median(rates[own.precision])
            result["flop_per_second"] = own.flops / typical
            result["matmul_flop_per_second"] = roof
            result["share_of_matmul_rate"] = own.flops / typical / roof
            result["copy_bytes_per_second"] = copied
        if variant.columns is None:
            result["peak_memory_mb"] = peak_bytes(own, name) / 1e6
        described = {"series": series, "variant": name, **asdict(own)}
        rerun = rerun_command(series, case, names, effort)
        rows.append(record.row("throughput", rerun, described, result, variant.versions(), device=own.device))
    return rows


def take_turns(
    calls: dict[str, Callable[[], Any]],
    effort: Effort,
    precisions: set[str] = frozenset(),
    device: str = "cpu",
) -> tuple[dict[str, Tensor], dict[str, list[float]], dict[str, list[float]]]:
    """Run the calls in turn, so that a drift in the speed of the machine affects all of them alike.

    Returns:
        By name the values and the seconds of every turn; by precision the matmul rates between the turns.
    """
    values: dict[str, Tensor] = {}
    first: dict[str, float] = {}
    for name, call in calls.items():
        values[name], first[name] = timed(call, device)
    turns = {name: min(effort.turns, int(effort.seconds / first[name])) for name in calls}
    seconds: dict[str, list[float]] = {name: [] if turns[name] else [first[name]] for name in calls}
    rates: dict[str, list[float]] = {precision: [] for precision in precisions}
    for turn in range(max(1, *turns.values())):
        for precision in precisions:
            rates[precision].append(matmul_rate(precision, device))
        for name, call in calls.items():
            if turn < turns[name]:
                seconds[name].append(timed(call, device)[1])
    return values, seconds, rates


def rerun_command(series: str, case: Case, names: Sequence[str], effort: Effort) -> str:
    """The command that measures one case with the same variants again."""
    return record.command(
        "benchmarks.speed",
        series=series,
        case=json.dumps(asdict(case)),
        variants=",".join(names),
        threads=torch.get_num_threads(),
        **asdict(effort),
    )


def _obstacle(name: str, case: Case, previous: tuple[Case, float] | None, effort: Effort) -> str | None:
    """Why a variant cannot run on a case (missing, too large, or too slow judging by its last case), or None."""
    variant = find(name)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if reason := variant.missing():
        return reason
    if variant.workspace(case) > memory / 2:
        return f"needs about {variant.workspace(case) / 1e9:.0f} GB of memory"
    if previous is not None:
        last, seconds = previous
        growth = (case.N / last.N) ** 2 * (case.M / last.M) ** (2 if case.estimator == "kde" else 1)
        if seconds * growth > effort.cap:
            return f"would take about {seconds * growth:.0f} s"
    return None


def _line(row: Row) -> str:
    case, result = row["case"], row["result"]
    share = result.get("share_of_matmul_rate")
    return (
        f"{case['series']:12} {case['variant']:16} N={case['N']:<6} M={case['M']:<6} "
        f"{result['seconds']['median']:10.4g} s  RMS error {result['rms_to_truth_nats']:.3f} nats"
        + (f"  {share:.0%} of matmul" if share else "")
    )
