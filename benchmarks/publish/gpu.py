"""The page of a GPU: errors, speed beside torch's own products, what each choice is worth, pruning by stage."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.publish.page import latest, machine, write_page
from benchmarks.record import Row
from benchmarks.tables import duration, percent, plural, table


def publish(path: Path, out: Path) -> None:
    rows = latest(path)
    sections = [
        f"Measured on one {machine(rows[-1])}: {_versions(rows[-1])}; {plural('commit', _commits(rows))}, "
        f"{rows[-1]['date']}.",
        "## Speed of whole calls",
        "From samples on the GPU to the matrix, ranks and features included. *Of torch* is the rate of the operations "
        "that the estimate needs, each pair once, relative to that of torch's own product of two matrices of 8,192 "
        "rows in the same precision and in fp16. The floor is from the data sheet (`benchmarks.gpu.cost`).",
        _speed([r for r in rows if r["benchmark"] == "gpu-speed"]),
        *_notes(rows),
        "## Errors",
        "Against the float64 reference, with 200 variables and 1,024 samples: the largest, in nats, and the rank "
        "agreement over pairs (Spearman).",
        _errors([r for r in rows if r["benchmark"] == "gpu-accuracy"]),
        "## What each choice is worth",
        "The same launch with one choice undone, in turn with the others; times relative to the first line of each "
        "group. *As shipped* is what was shipped then: in int8 tiles of 128 x 256 with blocks of 256 bytes of K. Two "
        "programs of 128 x 128 on a multiprocessor, with blocks of 128 bytes, have taken their place since.",
        _choices([r for r in rows if r["benchmark"] in ("gpu-choice", "gpu-int8-rate")]),
        "## Pruning",
        "Models of the shape of Llama with random weights in bfloat16, which lie on the GPU: 20 % of the neurons, the "
        "default criterion and repair, random tokens. Memory is what torch has had at once. A stage ends when the CPU "
        "has launched it: what is left to run counts in the next stage that waits, and only the sum is exact.",
        _plans([r for r in rows if r["benchmark"] == "plan"]),
    ]
    write_page(out / "gpu.md", "On a GPU", path.name, "make gpu", sections)


def _versions(row: Row) -> str:
    versions = row["versions"]
    return f"torch {versions['torch']}, Python {versions['python']}, transformers {versions['transformers']}"


def _commits(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["commit"] for row in rows))


def _speed(rows: Sequence[Row]) -> str:
    lines = []
    for row in sorted(rows, key=lambda row: (row["case"]["n"], row["case"]["estimator"])):
        case, found = row["case"], row["result"]
        memory = found.get("peak_memory_mb")
        lines.append(
            [
                case["estimator"],
                f"{case['n']:,}",
                f"{case['m']:,}",
                case["precision"] + (f" ({case['tiles_before']})" if "tiles_before" in case else ""),
                f"{found['seconds']['median'] * 1e3:.0f} ms",
                f"{found['operations_per_second'] / 1e12:,.0f}",
                percent(round(found["share_of_matmul_same_precision"], 2)),
                percent(round(found["share_of_matmul_fp16"], 2)),
                f"{found['predicted_floor_seconds'] * 1e3:.0f} ms",
                f"{memory / 1e3:.1f} GB" if memory else "",
            ]
        )
    names = [
        "",
        "N",
        "M",
        "operands",
        "time",
        "Tops/s",
        "of torch, same",
        "of torch, fp16",
        "floor",
        "memory",
    ]
    return table(names, lines)


def _notes(rows: Sequence[Row]) -> list[str]:
    """What the table of speeds does not say by itself."""
    notes = []
    if any("tiles_before" in row["case"] for row in rows):
        notes.append("In parentheses, tiles that are no longer the default.")
    for row in rows:
        case, found = row["case"], row["result"]
        if "source" in found:
            milliseconds = found["seconds"]["median"] * 1e3
            notes.append(
                f"`{case['estimator']}` in {case['precision']} in {milliseconds:.0f} ms: {found['source']}."
            )
        if row["benchmark"] == "gpu-broadcasting":
            notes.append(
                f"`kde` of {case['N']} variables takes {duration(found['seconds']['median'])}, plain broadcasting in "
                f"torch {found['times_slower']:.1f} times as long: so small, it waits for its launches."
            )
    return notes


def _errors(rows: Sequence[Row]) -> str:
    kinds = list(dict.fromkeys(row["case"]["data"] for row in rows))
    by_case: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        case, found = row["case"], row["result"]
        cells = by_case.setdefault((case["estimator"], case["precision"]), {})
        cells[case["data"]] = f"{found['max_error_nats']:.1e}, {found['spearman']:.4f}"
    return table(
        ["", "operands", *kinds], [[*key, *(cells[k] for k in kinds)] for key, cells in by_case.items()]
    )


def _choices(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        case, found = row["case"], row["result"]
        rate = found.get("operations_per_second")
        of = ", ".join(
            str(value) for name, value in case.items() if name in ("precision", "whole call", "size")
        )
        lines.append(
            [
                f"product, {of}" if row["benchmark"] == "gpu-int8-rate" else of,
                case["choice"],
                f"{found['seconds']['median'] * 1e3:.2f} ms",
                f"{found['ratio']:.2f}",
                f"{rate / 1e12:,.0f}" if rate else "",
            ]
        )
    return table(["of", "choice", "time", "relative", "Tops/s"], lines)


def _plans(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        case, found = row["case"], row["result"]
        seconds = found["measured_seconds"]
        whole = sum(seconds.values())
        lines.append(
            [
                case["model"],
                str(case["layers"]),
                f"{case['tokens']:,}",
                *(f"{seconds[stage]:.1f} s" for stage in ("capture", "measure", "select", "repair")),
                f"{whole:.1f} s",
                f"{whole / case['layers']:.2f} s",
                f"{found['measured_memory_gb']:.1f} GB",
            ]
        )
    stages = ["capture", "measure", "select", "repair"]
    return table(["shape", "layers", "tokens", *stages, "sum", "a layer", "memory"], lines)
