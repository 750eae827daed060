"""The page of one or several results: a single HTML file that loads nothing."""

import base64
import hashlib
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mikernels.written import complete_file
from pruning.report import words
from pruning.report.manifest import Report
from pruning.report.result import Layer, Result, load_result
from pruning.report.swept import Row, cells, furthest, read_rows

PACKAGES = ("jinja2", "matplotlib")
TEMPLATE, SCRIPT, STYLE = "page.html.jinja", "page.js", "page.css"
SHARES = {"kept": "kept_share", "predicted": "predicted", "error": "repair_error"}
"""Columns of the table of layers that are shares of 1; the bars of others are relative to the largest."""
RELATIVE = {"sensitivity": "sensitivity", "median MI": "median_mi"}


def check_packages() -> None:
    """Raise an ImportError unless a page can be made."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ImportError(
            f"report: expected {', '.join(missing)} to be installed; run: pip install 'mikernels[report]'"
        )


def write_html(
    results: Report | str | Path | Sequence[Report | str | Path],
    path: str | Path,
    *,
    sweep: Sequence[Any] = (),
    text: bool = True,
) -> None:
    """Write a page that shows what was pruned, why, what it cost, and how far one may go.

    Args:
        results: the report of a run, or the folder of a saved result; several are compared.
        path: of the HTML file, which is replaced; it appears complete or not at all.
        sweep: rows of `pruning.sweep`, or of `mi-prune --sweep --json`, for the curve of quality against the ratio.
        text: whether to show the words of the calibration that a result holds.

    Raises:
        ImportError: without jinja2 or matplotlib.
        OSError: no such folder, or from writing.
        ValueError: a folder without a result, one of a later version, nothing to show, or a sweep of another model.
    """
    check_packages()
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    sources = [results] if isinstance(results, (Report, str, Path)) else list(results)
    loaded = [load_result(source, text=text) for source in sources]
    rows = read_rows(sweep)
    if not loaded and not rows:
        raise ValueError("results: expected at least one, or a sweep, got none")
    before = {result.n_before for result in loaded}
    if rows and before and rows[0]["neurons"] not in before:
        raise ValueError(
            f"sweep: expected one of the same model, with {' or '.join(f'{n:,}' for n in sorted(before))} neurons, got "
            f"one with {rows[0]['neurons']:,}"
        )
    environment = Environment(
        loader=PackageLoader("pruning.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = {name: environment.loader.get_source(environment, name)[0] for name in (SCRIPT, STYLE)}  # type: ignore[union-attr]
    digest = base64.b64encode(hashlib.sha256(source[SCRIPT].encode()).digest()).decode()
    page = environment.get_template(TEMPLATE).render(
        title=_title(loaded),
        results=loaded,
        sweep=cells(rows) if rows else [],
        furthest=furthest(rows),
        chart=_quality_chart(loaded, rows),
        chart_of=_layer_charts,
        bars_of=_bars,
        words=words,
        script=Markup(source[SCRIPT]),  # noqa: S704, a file of this package
        script_digest=digest,
        style=Markup(source[STYLE]),  # noqa: S704
    )
    with complete_file(Path(path)) as partial:
        partial.write_text(page, encoding="utf-8")


def _title(results: Sequence[Result]) -> str:
    if len(results) == 1:
        return f"Pruned: {results[0].label}"
    return "Pruned models compared" if results else "What each ratio would cost"


def _quality_chart(results: Sequence[Result], sweep: Sequence[Row]) -> str | None:
    from pruning.report.charts import quality_by_ratio

    return quality_by_ratio(results, sweep)


def _layer_charts(layer: Layer) -> dict[str, str | None]:
    """The charts of a layer, as data URIs; None for what was not measured."""
    from pruning.report.charts import damage_curve, information_map

    return {
        "map": information_map(layer) if layer.mi and not math.isnan(layer.null_mi) else None,
        "damage": damage_curve(layer) if len(layer.steps) > 1 else None,
    }


def _bars(result: Result) -> list[dict[str, float]]:
    """For each layer the lengths of the bars, by column, in percent."""
    largest = {
        name: max((v for layer in result.layers if not math.isnan(v := getattr(layer, field))), default=0.0)
        for name, field in RELATIVE.items()
    }
    rows = []
    for layer in result.layers:
        row = {name: getattr(layer, field) for name, field in SHARES.items()}
        row |= {
            name: getattr(layer, field) / largest[name] if largest[name] > 0 else 0.0
            for name, field in RELATIVE.items()
        }
        rows.append({n: 0.0 if math.isnan(v) else 100 * min(max(v, 0.0), 1.0) for n, v in row.items()})
    return rows
