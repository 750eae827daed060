"""Generated blocks of the README: what stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""

from pathlib import Path


def markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def between_markers(text: str, name: str, block: str) -> str:
    """`text` with what stands between the markers replaced.

    Raises:
        ValueError: the text lacks a marker.
    """
    begin, end = markers(name)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"expected the markers {begin} and {end} in the README, got a text without them")
    return f"{before}{begin}\n{block}\n{end}{after}"


def write_block(readme: Path, name: str, block: str) -> None:
    """Replace a block of a README in place."""
    text = readme.read_text(encoding="utf-8")
    readme.write_text(between_markers(text, name, block), encoding="utf-8")
