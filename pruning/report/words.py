"""What the report says of a result in words: the verdict, and the conditions."""

import math
from typing import Any

from pruning.report.comparison import MAX_GROWTH, warnings_of
from pruning.report.result import Quality, Result, entry, number

NOT_MEASURED = "not measured"


def verdict(result: Result) -> str:
    """What was dropped, what it cost, and whether the ratio is past what repair holds, in a few sentences."""
    sentences = [
        f"{result.n_before - result.n_after:,} of {result.n_before:,} FFN neurons were dropped "
        f"({result.dropped_share:.1%})" + _of_parameters(result) + "."
    ]
    grown = [quality for quality in result.quality if not math.isnan(quality.growth)]
    if grown:
        parts = [
            f"{change(q.growth)}{plus_minus(q.error)} on {q.text}"
            + (" (like the calibration)" if q.is_near else "")
            for q in grown
        ]
        sentences.append(f"The perplexity changed by {' and by '.join(parts)}.")
        most = max(q.growth for q in grown)
        limit = f"growth of up to {MAX_GROWTH - 1:.0%}"
        if most <= MAX_GROWTH:
            sentences.append(f"That is within what closed-form repair holds ({limit}).")
        else:
            sentences.append(
                f"That is past what closed-form repair holds ({limit}): go back to a smaller ratio."
            )
        if all(q.is_near for q in grown):
            sentences.append("Other kinds of text were not evaluated and may lose more.")
    elif result.quality:
        parts = [f"{q.cosine:.4f} on {q.text}" for q in result.quality]
        sentences.append(
            f"The hidden states have a mean cosine of {' and '.join(parts)} with those of the dense model."
        )
    else:
        sentences.append("What it costs was not measured; mi-prune --evaluate TEXT does that.")
    return " ".join(sentences)


def standing(result: Result) -> str:
    """The verdict in a word or two."""
    growth = [q.growth for q in result.quality if not math.isnan(q.growth)]
    if not growth:
        return "evaluated" if result.quality else NOT_MEASURED
    return "within limits" if max(growth) <= MAX_GROWTH else "past the limit"


def warnings(result: Result) -> list[str]:
    """What the run warned of, and what its evaluation warns of."""
    growth = {q.text: q.growth for q in result.quality if not math.isnan(q.growth)}
    found = warnings_of(growth, [q.text for q in result.quality if q.is_near])
    return [str(text) for text in entry(result.manifest, "warnings") or ()] + [
        text.removeprefix("Warning: ") for text in found
    ]


def conditions(result: Result) -> list[tuple[str, str]]:
    """Everything needed to repeat the run, as names and values."""
    manifest = result.manifest
    calibration = entry(manifest, "calibration") or {}
    settings = entry(manifest, "settings") or {}
    rows: list[tuple[str, Any]] = [
        ("model", entry(manifest, "model")),
        ("fingerprint of the dense model", entry(manifest, "model_fingerprint")),
        ("command", entry(manifest, "command")),
        ("calibration", calibration.get("source")),
        ("calibration, tokens", entry(manifest, "calibration_tokens")),
        ("calibration, SHA-256 of the tokens", calibration.get("sha256")),
        ("statistics", calibration.get("statistics")),
        ("FFNs complete before it was resumed", entry(manifest, "resumed", "complete_ffns")),
    ]
    rows += [(f"option {name}", value) for name, value in settings.items() if value is not None]
    rows += [(f"version of {name}", value) for name, value in (entry(manifest, "versions") or {}).items()]
    return [
        (name, f"{value:,}" if type(value) is int else str(value))
        for name, value in rows
        if value is not None
    ]


def stages(result: Result) -> list[tuple[str, str, str]]:
    """The time of each stage, and the memory where it grew."""
    peaks = entry(result.manifest, "peak_bytes") or {}
    return [
        (str(stage), f"{float(seconds):,.1f}", f"{peaks[stage] / 1e6:,.0f}" if stage in peaks else "")
        for stage, seconds in (entry(result.manifest, "seconds") or {}).items()
    ]


def columns(result: Result) -> list[dict[str, str]]:
    """The numbers of each layer by name, as text, without those that were measured of none."""
    rows = [
        {
            "kept": f"{layer.n_kept:,} of {layer.n_neurons:,}",
            "sensitivity": short(layer.sensitivity),
            "median MI": short(layer.median_mi),
            "null": short(layer.null_mi),
            "predicted": percent(layer.predicted),
            "error": percent(layer.repair_error),
        }
        for layer in result.layers
    ]
    unknown = {name for name in rows[0] if all(row[name] == NOT_MEASURED for row in rows)}
    return [{name: text for name, text in row.items() if name not in unknown} for row in rows]


def costs(result: Result) -> list[tuple[str, str, str, str]]:
    """Quality, speed and size: what, of the dense model, of the pruned one, and the change."""
    rows = []
    for q in result.quality:
        near = " (like the calibration)" if q.is_near else ""
        if math.isnan(q.cosine):
            rows.append((f"perplexity, {q.text}{near}", f"{q.dense:.2f}", f"{q.pruned:.2f}", quality(q)))
        else:
            rows.append((f"hidden-state cosine, {q.text}{near}", "1", f"{q.cosine:.4f}", ""))
    evaluation = entry(result.manifest, "evaluation")
    if not math.isnan(result.speed):
        speeds = [number(entry(evaluation, f"tokens_per_second_{model}")) for model in ("dense", "pruned")]
        low, high = entry(evaluation, "tokens_per_second_ratio", "quartiles")
        spread = f"{change(result.speed)} (quartiles {change(low)} to {change(high)})"
        rows.append(("tokens/s", f"{speeds[0]:,.0f}", f"{speeds[1]:,.0f}", spread))
    rows.append(
        ("FFN neurons", f"{result.n_before:,}", f"{result.n_after:,}", f"{-result.dropped_share:+.1%}")
    )
    for name, title, unit in (("parameters", "parameters (M)", 1e6), ("weight_bytes", "weights (MB)", 1e6)):
        before, after = result.change(name)
        if not math.isnan(before):
            rows.append((title, f"{before / unit:,.1f}", f"{after / unit:,.1f}", change(after / before)))
    return rows


def quality(found: Quality) -> str:
    """The change on a text."""
    if math.isnan(found.cosine):
        return change(found.growth) + plus_minus(found.error)
    return f"cosine {found.cosine:.4f}"


def change(ratio: float) -> str:
    """A ratio as a change, such as +14.6%."""
    return "" if math.isnan(ratio) else f"{ratio - 1:+.1%}"


def plus_minus(error: float) -> str:
    return "" if math.isnan(error) else f" ± {error:.1%}"


def percent(share: float) -> str:
    return NOT_MEASURED if math.isnan(share) else f"{share:.1%}"


def chance(p_value: float) -> str:
    """A p-value; far in the fitted tail of the null only its order is known."""
    return "< 1e-9" if p_value < 1e-9 else f"{p_value:.1g}"


def short(value: float) -> str:
    return NOT_MEASURED if math.isnan(value) else f"{value:.3g}"


def megabytes(size: float) -> str:
    return "" if math.isnan(size) else f"{size / 1e6:,.1f}"


def _of_parameters(result: Result) -> str:
    before, after = result.change("parameters")
    return "" if math.isnan(number(before)) else f", {1 - after / before:.1%} of all parameters"
