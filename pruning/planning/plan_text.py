"""A plan in words and a table."""

from pruning.planning.plan import ASSUMPTIONS, Plan, gigabytes
from pruning.report.table import table


def plan_text(found: Plan) -> str:
    """The plan, for people."""
    shapes, settings = found.shapes, found.shapes.settings
    rows = [
        (stage.name, _duration(stage.seconds), gigabytes(stage.disk_bytes), gigabytes(stage.memory))
        for stage in found.stages
    ]
    rows.append(
        (
            "whole run",
            _duration(found.seconds),
            gigabytes(sum(s.disk_bytes for s in found.stages)),
            gigabytes(found.memory),
        )
    )
    how = "one layer at a time from disk" if found.from_disk else "with the whole model in memory"
    lines = [
        f"{shapes.name}, {shapes.parameters[0] / 1e9:,.2f} billion parameters in "
        f"{str(shapes.dtype).removeprefix('torch.')} ({gigabytes(shapes.bytes[0])}), computed in "
        f"{str(found.computing).removeprefix('torch.')} on {found.device}, {how}",
        f"Result at ratio {settings.ratio:.4g}: {shapes.parameters[1] / 1e9:,.2f} billion parameters, "
        f"{gigabytes(shapes.bytes[1])}; {len(shapes.files)} files",
        "",
        table(rows, ("predicted", "time", "disk traffic", "memory")),
        "",
        f"Free: {gigabytes(found.free_memory)} of memory, {gigabytes(found.free_disk)} of disk, of which the run needs "
        f"{gigabytes(found.disk)}",
    ]
    enough = "enough" if found.n_tokens >= found.needed_tokens else "too few"
    lines.append(
        f"Calibration: {found.n_tokens:,} tokens are {enough}; this ratio needs {found.needed_tokens:,}, and "
        f"{found.n_tokens:,} are enough from ratio {found.least_ratio:.2f}"
    )
    rates = found.rates
    lines.append(
        f"Measured: products {_rate(rates.product)} ({_rate(rates.product32)} in float32, {_rate(rates.product64)} in "
        f"float64), Cholesky {_rate(rates.factor32)} and {_rate(rates.factor64)}, memory "
        f"{gigabytes(int(rates.stream))}/s, pairs {1 / rates.pair:,.0f}/s, disk {gigabytes(int(rates.read))}/s read "
        f"and {gigabytes(int(rates.write))}/s written"
    )
    return "\n".join([*lines, *(f"Assumed: {assumption}" for assumption in ASSUMPTIONS)])


def _rate(flop: float) -> str:
    return f"{flop / 1e9:,.0f} GFLOP/s"


def _duration(seconds: float) -> str:
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
