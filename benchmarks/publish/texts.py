"""The page of texts: perplexity on four kinds of text, by calibration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.publish.page import MODELS, conditions, latest, passage, write_page
from benchmarks.quality.methods import METHODS
from benchmarks.quality.texts import has_own_text
from benchmarks.record import Row
from benchmarks.tables import percent, table

MEASURE = "python -m benchmarks.quality.texts --data DIR"


def publish(path: Path, out: Path) -> None:
    sections = [
        "What pruning costs on four kinds of text, by what the model was calibrated on: perplexity relative to that of "
        "the dense model, in parentheses the standard error over paired windows. *Builtin* is half of the language "
        "reference that ships with CPython (the column *Python reference* is the other half), *self* passages that the "
        "model writes itself, *wikitext* the validation split of WikiText-2 (the column is its test split). Prose is "
        f"news from the development set of RTE; code is that of numpy. Lower is better. {MODELS}",
    ]
    groups: dict[tuple[str, float, str, str, int], list[Row]] = {}
    for row in latest(path):
        case = row["case"]
        # The machine with a GPU has other versions of Python and numpy, which come with other texts.
        where = row["machine"].get("gpu", "CPU")
        key = (case["model"], case["settings"]["ratio"], case["dtype"], where, case["windows"])
        groups.setdefault(key, []).append(row)
    for (model, ratio, dtype, where, _), rows in groups.items():
        case, texts = rows[-1]["case"], rows[-1]["result"]["dense"]
        change = rows[-1]["result"]["parameters"] / case["parameters"] - 1
        dense = ", ".join(f"{text} {value:.2f}" for text, value in texts.items())
        device = "a CPU" if where == "CPU" else f"an {where}"
        sections += [
            f"## {model}, {percent(ratio)} of the neurons dropped, in {dtype} on {device}",
            f"{100 * change:+.1f} % parameters in the whole model. Perplexity of the dense model: {dense}; "
            f"{case['windows']} windows of {case['calibration']['length']} tokens of each. "
            f"{conditions(rows)}",
            _table(rows, list(texts)),
        ]
    write_page(out / "texts.md", "Quality on other text", path.name, MEASURE, sections)


def _calibration(entry: Mapping[str, Any]) -> str:
    own = f", passages of {passage(entry)}" if has_own_text(entry["sources"]) else ""
    return f"{entry['sources']} ({entry['tokens']:,} tokens{own})"


def _table(rows: Sequence[Row], texts: Sequence[str]) -> str:
    lines = []
    for row in rows:
        case, pruned = row["case"], row["result"]["pruned"]
        method = METHODS[case["method"]]
        cells = [pruned["texts"][text] for text in texts]
        lines.append(
            [
                _calibration(case["calibration"]),
                f"{method.label}, {method.group}",
                *(f"{cell['ratio']:.3f} ({cell['log_ratio_standard_error']:.3f})" for cell in cells),
                f"{pruned['geometric_mean']:.3f}",
                f"{pruned['worst']:.3f}",
            ]
        )
    return table(["calibrated on", "method", *texts, "geometric mean", "worst"], lines)
