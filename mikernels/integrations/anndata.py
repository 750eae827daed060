"""AnnData and scanpy: mutual information of genes in `adata.varp`."""

from typing import TYPE_CHECKING, Unpack

import torch

from mikernels.api import mutual_information
from mikernels.frames import in_memory
from mikernels.options import Options, plain, shows_options

if TYPE_CHECKING:
    from anndata import AnnData

KEY = "mutual_information"


@shows_options()
def mutual_information_of_genes(
    adata: "AnnData", *, layer: str | None = None, key_added: str = KEY, **options: Unpack[Options]
) -> None:
    """Estimate the mutual information of every pair of variables of `adata`, in place.

    Zeros, which many cells share, have a cell of their own (`mikernels.mutual_information`), so counts need no
    transformation; normalize cells of different depth first.

    Args:
        adata: cells in rows and genes in columns, dense or sparse.
        layer: of `adata.layers` in place of `adata.X`.
        key_added: name of the results.
        options: see `mikernels.mutual_information`.

    Writes `adata.varp[key_added]`, `[n_vars, n_vars]` float32, nats, and what it was made with to
    `adata.uns[key_added]`. Memory: a sparse matrix is made dense, `4 n_obs n_vars` bytes for 32-bit values, and
    `4 n_vars^2` bytes of results.

    Raises:
        KeyError: no such layer.
        ValueError: `adata` has no matrix; for others see `mikernels.mutual_information`.
    """
    values = adata.X if layer is None else adata.layers[layer]
    if values is None:
        raise ValueError("adata: expected a matrix X, got None; name a layer")
    mi = mutual_information(in_memory(values), **options)
    adata.varp[key_added] = torch.as_tensor(mi).cpu().numpy()
    params = {"layer": layer, **plain(options)}
    if "device" in params:
        params["device"] = str(params["device"])  # a file takes no device of torch
    adata.uns[key_added] = {"params": params}
