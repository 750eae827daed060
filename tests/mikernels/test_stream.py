"""`GridStream`: counts that only depend on the samples, and the matrix that they give."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mikernels import GridStream, mutual_information
from mikernels.torch_impl import integer

from samples import correlated, gaussian, off_diagonal


def streamed(reference, batches, **keywords):
    stream = GridStream(reference, **keywords)
    for batch in batches:
        stream.update(batch)
    return stream


@pytest.mark.parametrize("activation", [torch.Tensor.clone, torch.relu], ids=["continuous", "ties"])
@given(cuts=st.sets(st.integers(1, 99)))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_cuts_between_batches_change_nothing(activation, cuts):
    samples = activation(correlated(100, 5))
    edges = [0, *sorted(cuts), 100]
    batches = samples.split([b - a for a, b in pairwise(edges)])
    cut, whole = streamed(samples[:50], batches), streamed(samples[:50], [samples])
    assert cut.n_samples == whole.n_samples == 100
    assert torch.equal(cut.mutual_information(), whole.mutual_information())


def test_batches_of_one_sample():
    samples = correlated(30, 4)
    one_by_one = streamed(samples, samples.split(1)).mutual_information()
    assert torch.equal(one_by_one, streamed(samples, [samples]).mutual_information())


@pytest.mark.parametrize("n_samples", [8, 257, 5000])
@pytest.mark.parametrize("nodes", [2, 16])
def test_stream_of_its_own_reference_is_the_matrix(n_samples, nodes):
    x = correlated(n_samples, 5).double()
    mi = streamed(x, x.split(999), nodes=nodes).mutual_information()
    torch.testing.assert_close(mi, mutual_information(x, nodes=nodes), rtol=0, atol=1e-5)


def test_rows_of_the_matrix_made_in_several_steps():
    x = correlated(40, 70)
    mi = streamed(x, [x], nodes=64).mutual_information()
    assert torch.equal(mi, mi.T)
    torch.testing.assert_close(mi, mutual_information(x, nodes=64), rtol=0, atol=1e-5)


def test_one_batch_of_more_rows_than_are_counted_at_once():
    x = correlated(9001, 3).relu()
    whole, cut = streamed(x[:500], [x]), streamed(x[:500], x.split(1000))
    assert whole.n_samples == 9001
    assert torch.equal(whole.mutual_information(), cut.mutual_information())


def test_slow_products_give_the_same_bits(monkeypatch):
    x = correlated(200, 4)
    fast = streamed(x, [x]).mutual_information()
    for product in ("integer", "byte"):
        monkeypatch.setattr(integer, f"has_{product}_products", lambda: False)
    assert torch.equal(streamed(x, [x]).mutual_information(), fast)


def test_samples_outside_the_reference_count_at_its_ends():
    x = correlated(100, 3).double()
    low, high = x.aminmax(dim=0)
    beyond = torch.where(x == high, 1e300, torch.where(x == low, -1e300, x))
    assert torch.equal(streamed(x, [beyond]).mutual_information(), streamed(x, [x]).mutual_information())


def test_typical_reference_is_enough():
    x = correlated(8000, 6)
    mi = streamed(gaussian(2000, 6, seed=9), x.split(1000)).mutual_information()
    expected = mutual_information(x, bandwidth=2000 ** (-1 / 6))
    torch.testing.assert_close(off_diagonal(mi), off_diagonal(expected), rtol=0, atol=0.003)


def test_ties_carry_no_information_of_their_own():
    zeros = torch.relu(gaussian(2000, 8) - 1.5)
    mi = off_diagonal(streamed(zeros, zeros.split(300)).mutual_information())
    independent = off_diagonal(mutual_information(gaussian(2000, 8)))
    assert mi.max() < 1.3 * independent.max()


def test_seed_decides_the_order_of_equal_values_only():
    x = correlated(100, 3)
    zeros = torch.cat([x[:50], x[:50]])  # too few equal values for an atom
    assert torch.equal(
        streamed(x, [x], seed=1).mutual_information(), streamed(x, [x], seed=2).mutual_information()
    )
    first, again, other = (streamed(zeros, [zeros], seed=s).mutual_information() for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_constant_column_has_no_information_until_it_varies():
    x = correlated(100, 3)
    x[:, 1] = 2.0
    stream = streamed(x, x.split(30))
    mi = stream.mutual_information()
    assert (mi[1] == 0).all()
    assert (mi[:, 1] == 0).all()
    assert mi[0, 2] > 0
    stream.update(torch.tensor([[0.0, 3.0, 0.0]]))
    assert stream.mutual_information()[1, 1] > 0


def test_column_that_is_constant_in_the_stream_alone():
    x = correlated(100, 3)
    still = x.clone()
    still[:, 1] = 0.5
    assert streamed(x, [still]).mutual_information()[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_batches_of_any_float_type(dtype):
    x = correlated(60, 4).bfloat16().clamp(min=2**-14)
    mixed = streamed(x.float(), [x.to(dtype)]).mutual_information()
    assert torch.equal(mixed, streamed(x.float(), [x.float()]).mutual_information())


def test_numpy_batches():
    x = correlated(60, 4)
    mi = streamed(x.numpy(), [x.numpy()]).mutual_information()
    assert np.array_equal(mi, streamed(x, [x]).mutual_information())


def test_reading_the_matrix_changes_nothing():
    x = correlated(60, 4)
    stream = streamed(x, [x[:30]])
    stream.mutual_information()
    stream.update(x[30:])
    assert torch.equal(stream.mutual_information(), streamed(x, [x]).mutual_information())


def test_no_update_is_an_error():
    with pytest.raises(ValueError, match="at least one call of update"):
        GridStream(gaussian(20, 2)).mutual_information()


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (gaussian(5, 3), ValueError, r"batch: expected 4 variables \(columns\), got 3"),
        (gaussian(5, 4).fill_(float("nan")), ValueError, "batch: expected finite values, got 20 NaN"),
        (gaussian(0, 4), ValueError, r"batch: expected at least 1 samples \(rows\), got 0"),
        (gaussian(4, 1)[:, 0], ValueError, r"batch: expected 4 variables \(columns\), got 1"),
        (gaussian(5, 4)[None], ValueError, "batch: expected shape"),
        (torch.ones(5, 4, dtype=torch.complex64), TypeError, "batch: expected real numbers"),
    ],
)
def test_bad_batch_is_refused_and_not_counted(batch, error, message):
    x = gaussian(20, 4)
    stream = streamed(x, [x])
    before = stream.mutual_information()
    with pytest.raises(error, match=message):
        stream.update(batch)
    assert stream.n_samples == 20
    assert torch.equal(stream.mutual_information(), before)


@pytest.mark.parametrize(
    ("reference", "keywords", "message"),
    [
        (gaussian(7, 4), {}, r"reference: expected at least 8 samples \(rows\), got 7"),
        (gaussian(20, 1), {}, r"reference: expected at least 2 variables \(columns\), got 1"),
        (
            gaussian(20, 2).fill_(float("inf")),
            {},
            "reference: expected finite values, got 0 NaN and 40 infin",
        ),
        (gaussian(20, 2), {"nodes": 1}, "nodes: expected an integer from 2 to 256, got 1"),
        (gaussian(20, 2), {"nodes": None}, "nodes: expected an integer from 2 to 256, got None"),
        (gaussian(20, 2), {"bandwidth": -1.0}, "bandwidth: expected None"),
        (gaussian(20, 2), {"memory_budget": 8 * 32**2}, "memory_budget: expected at least 356352 bytes"),
    ],
)
def test_bad_arguments(reference, keywords, message):
    with pytest.raises(ValueError, match=message):
        GridStream(reference, **keywords)


def test_budget_that_the_error_names_is_enough():
    x = gaussian(20, 2)
    assert streamed(x, [x], memory_budget=356352).mutual_information().shape == (2, 2)
