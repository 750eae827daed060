"""Products of 8-bit integers are exact on every path, and the 8-bit table holds shares."""

import pytest
import torch

from mikernels import mutual_information
from mikernels.options import make_problem
from mikernels.reference.grid import node_shares
from mikernels.tables.node_shares import integer_table
from mikernels.torch_impl import integer
from mikernels.torch_impl.grid import Grid
from mikernels.transforms import normal_scores, transform_samples

from samples import correlated

PATHS = {"as on this machine": (), "bytes": ("integer",), "float32": ("integer", "byte")}
"""The products that a CPU lacks."""
paths = pytest.mark.parametrize("path", PATHS)


def choose_path(monkeypatch, path):
    for product in PATHS[path]:
        monkeypatch.setattr(integer, f"has_{product}_products", lambda: False)


def random_int8(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 128, shape, generator=generator, dtype=torch.int8)


def exact_product(a, b):
    return a.flatten(0, -2).double() @ b.flatten(0, -2).double().T


@paths
@pytest.mark.parametrize("n_samples", [1, 7, 8, 1024, 1025, 5000])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2), (3, 5), (16, 16), (33, 130)])
def test_products_are_exact(n_samples, shape, path, monkeypatch):
    choose_path(monkeypatch, path)
    a, b = random_int8(shape[0], n_samples), random_int8(shape[1], n_samples, seed=1)
    product = integer.byte_gram(a, b)
    assert product.dtype == torch.int32
    assert torch.equal(product.double(), exact_product(a, b))


@paths
@pytest.mark.parametrize("n_samples", [2, 1024, 1025, 100_000])
def test_largest_products_do_not_saturate(n_samples, path, monkeypatch):
    """Pairs of products of 127 and 127 fit 16 bits, and 1024 of them float32."""
    choose_path(monkeypatch, path)
    a = torch.full((3, n_samples), 127, dtype=torch.int8)
    assert (integer.byte_gram(a, a) == n_samples * 127**2).all()
    if n_samples <= integer.BLOCK:
        assert (integer.byte_gram(a, a, small=True) == n_samples * 127**2).all()


@paths
def test_products_of_parts_of_an_array_are_exact(path, monkeypatch):
    choose_path(monkeypatch, path)
    wide = random_int8(3, 64, 1500)
    a, b = wide[:, 16:33], wide[:2, 40:]
    assert torch.equal(integer.byte_gram(a, b).double(), exact_product(a, b))
    a, b = a[..., ::2], b[..., 1::2]
    assert torch.equal(integer.byte_gram(a, b, small=True).double(), exact_product(a, b))
    a = random_int8(1025, 5).t()  # whose last block is a column
    assert torch.equal(integer.byte_gram(a, a).double(), exact_product(a, a))


@pytest.mark.parametrize(("n_samples", "nodes"), [(2000, 20), (9000, 2), (70_000, 3)])
@pytest.mark.parametrize("path", ["bytes", "float32"])
def test_a_matrix_has_the_same_bits_by_any_product(n_samples, nodes, path, monkeypatch):
    """Joint counts that fit float32, that do not, and of too many samples for one product."""
    x = correlated(n_samples, 9)
    expected = mutual_information(x, nodes=nodes)
    choose_path(monkeypatch, path)
    assert torch.equal(mutual_information(x, nodes=nodes), expected)


@pytest.mark.parametrize("n_samples", [2000, 3000])
def test_sums_are_small_where_float32_holds_the_largest(n_samples):
    """Those of a variable with itself."""
    variables = transform_samples(correlated(n_samples, 1), "rank", seed=0)
    panel = Grid(make_problem("grid", 2, None, n_samples), integers=True).panel(variables, slice(0, 1))
    assert panel.small == (exact_product(panel.features, panel.features).max() < integer.EXACT)


@paths
@pytest.mark.parametrize("n_samples", [1, 64])
@pytest.mark.parametrize("first", [True, False], ids=["a", "b"])
def test_one_row_with_the_strides_of_a_column_is_read_right(n_samples, first, path, monkeypatch):
    """Torch calls it contiguous."""
    choose_path(monkeypatch, path)
    a, b = random_int8(n_samples, 1).t(), random_int8(16, n_samples, seed=1)
    a, b = (a, b) if first else (b, a)
    assert torch.equal(integer.byte_gram(a, b).double(), exact_product(a, b))


def test_what_onednn_can_do_is_not_asked_while_it_is_switched_off():
    """Torch's own loop, which is exact, would answer for it."""
    integer._is_exact.cache_clear()
    with torch.backends.mkldnn.flags(enabled=False):
        assert not integer.has_integer_products()
    assert integer.has_integer_products() == integer._is_exact.__wrapped__(integer._integer_product)


@paths
def test_products_are_exact_under_autocast(path, monkeypatch):
    choose_path(monkeypatch, path)
    a = random_int8(16, 257)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = integer.byte_gram(a, a)
    assert torch.equal(product.double(), exact_product(a, a))


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
    shares = node_shares(normal_scores(n_samples) + 0j, problem)
    assert (table - row_sum * shares).abs().max() < 1


@tables
def test_table_margins_are_no_further_off_than_by_random_rounding(n_samples, nodes, bandwidth):
    problem = make_problem("grid", nodes, bandwidth, n_samples)
    table, row_sum = integer_table(n_samples, problem)
    shares = node_shares(normal_scores(n_samples) + 0j, problem)
    assert (table.double() - row_sum * shares).sum(0).abs().max() < n_samples**0.5


@pytest.mark.parametrize("n_samples", [100_000, 133_145, 1_000_000])
def test_sums_over_any_number_of_samples_fit_32_bits(n_samples):
    table, row_sum = integer_table(n_samples, make_problem("grid", 2, None, n_samples))
    assert n_samples * int(table.max()) ** 2 < 2**31
    assert (table.sum(1, dtype=torch.int64) == row_sum).all()
    assert int(table.max()) > 0.9 * min(127, (2**31 / n_samples) ** 0.5)
