"""Markdown tables and the numbers in them."""

from collections.abc import Sequence

from tabulate import tabulate


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, all others are right-aligned."""
    alignment = ("left", *["right"] * (len(head) - 1))
    cells = [[cell.replace("|", "\\|") for cell in line] for line in body]
    return tabulate(cells, head, tablefmt="pipe", colalign=alignment, disable_numparse=True)


def duration(seconds: float) -> str:
    """Two or three digits and a unit."""
    units = {"h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3}
    unit = next((u for u, size in units.items() if seconds >= size), "ms")
    value = seconds / units[unit]
    return f"{value:.{1 if value < 10 else 0}f} {unit}"


def percent(ratio: float) -> str:
    return f"{100 * ratio:g} %"


def plural(noun: str, values: Sequence[object]) -> str:
    """`noun a` or `nouns a, b`."""
    return f"{noun}{'s' * (len(values) > 1)} {', '.join(map(str, values))}"
