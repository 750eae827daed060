"""Products of 8-bit integers are exact on every path, and the 8-bit table holds shares."""

import pytest
import torch

from mikernels import mutual_information
from mikernels.options import make_problem
from mikernels.reference.grid import node_shares
from mikernels.tables.node_shares import integer_table
from mikernels.torch_impl import integer
from mikernels.transforms import normal_scores

from samples import correlated

paths = pytest.mark.parametrize("fast", [True, False], ids=["as on this machine", "without VNNI"])


def choose_path(monkeypatch, fast):
    if not fast:
        monkeypatch.setattr(integer, "has_fast_int8", lambda device: False)


def random_int8(n_rows, n_columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 128, (n_rows, n_columns), generator=generator, dtype=torch.int8)


@paths
@pytest.mark.parametrize("n_rows", [1, 7, 8, 1024, 1025, 5000])
@pytest.mark.parametrize("shape", [(2, 2), (3, 5), (16, 16), (33, 130)])
def test_products_are_exact(n_rows, shape, fast, monkeypatch):
    choose_path(monkeypatch, fast)
    a, b = random_int8(n_rows, shape[0]), random_int8(n_rows, shape[1], seed=1)
    product = integer.integer_gram(a, b)
    assert product.dtype == torch.int32
    assert torch.equal(product.long(), a.long().T @ b.long())


@paths
@pytest.mark.parametrize("n_columns", [1, 5])
def test_product_of_a_single_column_is_exact(n_columns, fast, monkeypatch):
    choose_path(monkeypatch, fast)
    a, b = random_int8(9, 1), random_int8(9, n_columns, seed=1)
    assert torch.equal(integer.integer_gram(a, b).long(), a.long().T @ b.long())


@paths
def test_products_of_strided_columns_are_exact(fast, monkeypatch):
    choose_path(monkeypatch, fast)
    wide = random_int8(257, 64)
    a, b = wide[:, 16:33], wide[:, 40:]
    assert torch.equal(integer.integer_gram(a, b).long(), a.long().T @ b.long())


def test_matrix_has_the_same_bits_without_vnni(monkeypatch):
    x = correlated(2000, 20)
    expected = mutual_information(x)
    monkeypatch.setattr(integer, "has_fast_int8", lambda device: False)
    assert torch.equal(mutual_information(x), expected)


@paths
def test_products_are_exact_under_autocast(fast, monkeypatch):
    choose_path(monkeypatch, fast)
    a = random_int8(257, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = integer.integer_gram(a, a)
    assert torch.equal(product.long(), a.long().T @ a.long())


tables = pytest.mark.parametrize(
    ("n_samples", "nodes", "bandwidth"),
    [
        (8, 16, None),
        (9, 2, None),
        (37, 7, None),
        (257, 16, None),
        (1000, 16, None),
        (1000, 256, None),
        (1000, 3, 0.01),
        (1000, 16, 9.0),
    ],
)


@tables
def test_table_rows_sum_to_the_same_number(n_samples, nodes, bandwidth):
    table, row_sum = integer_table(n_samples, make_problem("grid", nodes, bandwidth, n_samples))
    assert table.shape == (n_samples, nodes)
    assert table.dtype == torch.int8
    assert table.min() >= 0
    assert (table.sum(1, dtype=torch.int64) == row_sum).all()


@tables
def test_table_uses_the_full_range_of_8_bits(n_samples, nodes, bandwidth):
    table, _ = integer_table(n_samples, make_problem("grid", nodes, bandwidth, n_samples))
    assert table.max() >= 120


@tables
def test_table_entries_are_within_one_of_the_shares(n_samples, nodes, bandwidth):
    problem = make_problem("grid", nodes, bandwidth, n_samples)
    table, row_sum = integer_table(n_samples, problem)
    shares = node_shares(normal_scores(n_samples), problem)
    assert (table - row_sum * shares).abs().max() < 1


@tables
def test_table_margins_are_no_further_off_than_by_random_rounding(n_samples, nodes, bandwidth):
    problem = make_problem("grid", nodes, bandwidth, n_samples)
    table, row_sum = integer_table(n_samples, problem)
    shares = node_shares(normal_scores(n_samples), problem)
    assert (table.double() - row_sum * shares).sum(0).abs().max() < n_samples**0.5


@pytest.mark.parametrize("n_samples", [100_000, 133_145, 1_000_000])
def test_sums_over_any_number_of_samples_fit_32_bits(n_samples):
    table, row_sum = integer_table(n_samples, make_problem("grid", 2, None, n_samples))
    assert n_samples * int(table.max()) ** 2 < 2**31
    assert (table.sum(1, dtype=torch.int64) == row_sum).all()
    assert int(table.max()) > 0.9 * min(127, (2**31 / n_samples) ** 0.5)
