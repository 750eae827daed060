"""Which tiles a matrix is cut into."""

from collections.abc import Iterator


def cut(length: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover `length`."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def tiles(
    n_rows: int, n_cols: int, size: int, *, upper: bool, halvings: int = 0
) -> Iterator[tuple[slice, slice]]:
    """Tiles of a matrix, row by row; with `upper` only those on or above the diagonal.

    Tiles on the diagonal are halved `halvings` times, which leaves out all but `2^-halvings` of what lies below it.
    """
    for rows in cut(n_rows, size):
        for cols in cut(n_cols, size):
            if upper and rows == cols:
                yield from _triangle(rows, halvings)
            elif not upper or cols.start > rows.start:
                yield rows, cols


def _triangle(span: slice, halvings: int) -> Iterator[tuple[slice, slice]]:
    middle = (span.start + span.stop) // 2
    if halvings == 0 or middle == span.start:
        yield span, span
        return
    first, second = slice(span.start, middle), slice(middle, span.stop)
    yield from _triangle(first, halvings - 1)
    yield first, second
    yield from _triangle(second, halvings - 1)
