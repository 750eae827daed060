"""`adata.varp` of AnnData itself, from dense and sparse counts, through a file."""

import numpy as np
import pytest
import scipy.sparse
import torch

from mikernels import mutual_information

pytest.importorskip("anndata")

import anndata

from mikernels.integrations.anndata import mutual_information_of_genes


@pytest.fixture
def counts():
    """`[300, 6]` counts of cells, two thirds of them 0; the first two genes share a program."""
    generator = np.random.default_rng(0)
    rate = np.exp(generator.normal(-1, 0.5, (300, 6)))
    rate[:, 1] = rate[:, 0] = np.exp(generator.normal(-1, 1.5, 300))
    return generator.poisson(rate).astype(np.float32)


def test_the_matrix_of_genes_is_stored_and_read_back(counts, tmp_path):
    names = [f"gene{i}" for i in range(6)]
    adata = anndata.AnnData(scipy.sparse.csr_matrix(counts))
    adata.var_names = names
    adata.layers["dense"] = counts
    assert mutual_information_of_genes(adata, estimator="adaptive") is None
    mutual_information_of_genes(
        adata, layer="dense", key_added="again", estimator="adaptive", seed=0, device="cpu"
    )
    expected = mutual_information(torch.from_numpy(counts), estimator="adaptive").numpy()
    assert np.array_equal(adata.varp["mutual_information"], expected)
    assert np.array_equal(adata.varp["again"], expected)
    np.fill_diagonal(expected, 0)
    assert expected.argmax() == 1
    with anndata.settings.override(allow_write_nullable_strings=True):  # as the names of pandas 3 are
        adata.write_h5ad(tmp_path / "cells.h5ad")
    stored = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert np.array_equal(stored.varp["again"], adata.varp["again"])
    assert stored.uns["again"]["params"]["estimator"] == "adaptive"
    assert stored.uns["again"]["params"]["device"] == "cpu"
    assert stored[:, ["gene0", "gene1"]].varp["again"].shape == (2, 2)


def test_a_sparse_matrix_in_a_file_is_read(counts, tmp_path):
    adata = anndata.AnnData(scipy.sparse.csr_matrix(counts))
    with anndata.settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    mutual_information_of_genes(backed)
    assert np.array_equal(backed.varp["mutual_information"], mutual_information(counts))
    backed.file.close()


def test_bad_input_is_named(counts):
    with pytest.raises(ValueError, match="adata: expected a matrix X, got None; name a layer"):
        mutual_information_of_genes(anndata.AnnData(shape=(300, 6)))
    with pytest.raises(KeyError, match="raw"):
        mutual_information_of_genes(anndata.AnnData(counts), layer="raw")
    with pytest.raises(ValueError, match="estimator: expected one of"):
        mutual_information_of_genes(anndata.AnnData(counts), estimator="ksg")
