"""Cutting a matrix into panels and tiles."""

from collections.abc import Iterator


def cut(length: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover `length`."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def tiles(n_rows: int, n_cols: int, size: int, *, upper: bool) -> Iterator[tuple[slice, slice]]:
    """Tiles of a matrix, row by row; only those on or above the diagonal where `upper`."""
    for rows in cut(n_rows, size):
        for cols in cut(n_cols, size):
            if not upper or cols.start >= rows.start:
                yield rows, cols
