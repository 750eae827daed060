"""The last node of a table of integers is found by subtraction, exactly."""

import pytest
import torch

from mikernels import mutual_information
from mikernels.options import make_problem
from mikernels.tables.node_shares import integer_table
from mikernels.torch_impl.grid import Grid, joint_to_mi
from mikernels.transforms import transform_samples

from samples import correlated


@pytest.mark.parametrize(
    ("n_samples", "nodes", "n_variables"), [(9, 7, 5), (257, 10, 40), (300, 2, 3), (140_000, 16, 3)]
)
def test_matrix_has_the_bits_of_whole_tables(n_samples, nodes, n_variables):
    """With 140,000 samples the margins exceed int32."""
    x = correlated(n_samples, n_variables)
    problem = make_problem("grid", nodes, None, n_samples)
    variables = transform_samples(x, "rank", seed=0)
    table, row_sum = integer_table(n_samples, problem)
    features = table.T[:, variables.data].double()  # [G, n, M], whose products are exact
    joint = torch.einsum("aim,bjm->aibj", features, features).int()
    entropy = Grid(problem, integers=True).panel(variables, slice(0, n_variables)).entropy
    total = torch.tensor(float(row_sum) ** 2 * n_samples, dtype=torch.float64)
    expected = joint_to_mi(joint, total, entropy, entropy)
    upper = torch.ones(n_variables, n_variables, dtype=torch.bool).triu()
    assert torch.equal(mutual_information(x, nodes=nodes, precision="int8")[upper], expected[upper])


def test_the_product_has_no_rows_of_the_last_node():
    problem = make_problem("grid", 10, None, 100)
    panel = Grid(problem, integers=True).panel(
        transform_samples(correlated(100, 4), "rank", seed=0), slice(0, 4)
    )
    assert panel.features.shape == (9, 4, 100)


@pytest.mark.parametrize("nodes", [2, 7, 10, 16, 33, 256])
@pytest.mark.parametrize("integers", [True, False])
def test_products_have_about_2000_columns_a_multiple_of_8(nodes, integers):
    grid = Grid(make_problem("grid", nodes, None, 100), integers=integers)
    columns = grid.tile * grid.columns
    assert 1700 <= columns <= 2040
    assert columns % 8 == 0 or grid.tile < 16
