"""Fewer products on the diagonal of a symmetric matrix."""

from mikernels.tiling import tiles

HALVINGS = 3


def product_tiles(n_rows: int, n_cols: int, *, upper: bool) -> list[tuple[slice, slice]]:
    """Rows and columns of blocks that cover a tile, or its upper triangle and 1/8 of the lower one if `upper`."""
    return list(tiles(n_rows, n_cols, max(n_rows, n_cols), upper=upper, halvings=HALVINGS))
