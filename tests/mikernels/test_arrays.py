"""What people hand in: every array with one meaning is accepted, the rest is refused by name before any work."""

import numpy as np
import pytest
import torch

from mikernels import (
    GridStream,
    Reliability,
    bits,
    information_correlation,
    mutual_information,
    null_distribution,
    pairs_above,
    samples_for,
    split_half_reliability,
    top_pairs,
)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).integers(-40, 40, (64, 4)).astype(np.float64)


@pytest.fixture(scope="module")
def expected(values) -> np.ndarray:
    return mutual_information(values)


class Frame:
    """What pandas, xarray and JAX have in common."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype=dtype)


class BFloat16Array(np.ndarray):
    """Stands in for an array of ml_dtypes, whose dtype NumPy does not know: the same bits, the same name."""


@pytest.mark.parametrize(
    "convert",
    [
        lambda v: v.astype(np.int8),
        lambda v: v.astype(np.int64),
        lambda v: (v + 40).astype(np.uint16),
        lambda v: v.astype(">f4"),
        lambda v: np.asfortranarray(v),
        lambda v: v[::-1][::-1],
        lambda v: np.ma.masked_array(v, mask=False),
        lambda v: Frame(v),
        lambda v: v.tolist(),
        lambda v: torch.from_numpy(v).int(),
        lambda v: torch.from_numpy(v).to(torch.float8_e5m2),
        lambda v: torch.from_numpy(v).requires_grad_(),
    ],
    ids=[
        "int8",
        "int64",
        "uint16",
        "big-endian",
        "fortran",
        "flipped",
        "unmasked",
        "frame",
        "list",
        "int32",
        "float8",
        "grad",
    ],
)
def test_arrays_of_one_meaning_give_the_same_as_their_values(values, convert):
    array = convert(values)
    plain = (
        array.detach().double() if isinstance(array, torch.Tensor) else np.asarray(array, dtype=np.float64)
    )
    assert np.array_equal(mutual_information(array), mutual_information(plain))


def test_numpy_bfloat16_of_ml_dtypes_is_read_exactly():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    array = x.float().numpy().astype(ml_dtypes.bfloat16)
    assert np.array_equal(mutual_information(array), mutual_information(x))


def test_booleans_are_zeros_and_ones():
    x = torch.rand(100, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    assert np.array_equal(mutual_information(x), mutual_information(x.double()))
    assert np.array_equal(mutual_information(x.numpy()), mutual_information(x.double()))


def test_one_dimension_is_one_variable(values):
    column = mutual_information(values, values[:, 1])
    assert column.shape == (4, 1)
    assert np.array_equal(column, mutual_information(values, values[:, 1:2]))
    assert np.array_equal(mutual_information(values[:, 0], values), mutual_information(values[:, :1], values))


@pytest.mark.parametrize(
    ("convert", "error", "words"),
    [
        (lambda v: np.ma.masked_array(v, mask=v > 30), ValueError, "masked"),
        (lambda v: torch.from_numpy(v).to_sparse(), TypeError, "to_dense"),
        (lambda v: torch.from_numpy(v).to_sparse_csr(), TypeError, "to_dense"),
        (lambda v: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]), TypeError, "nested"),
        (lambda v: torch.from_numpy(v).to(torch.complex64), TypeError, "complex64"),
        (lambda v: v.astype(complex), TypeError, "complex128"),
        (lambda v: v.astype(object), TypeError, "object"),
        (lambda v: v.astype(str), TypeError, "<U"),
        (lambda v: v.astype("datetime64[s]"), TypeError, "datetime64"),
        (lambda v: [[1.0, 2.0], [3.0]], TypeError, "list"),
        (lambda v: "text", TypeError, "str"),
        (lambda v: None, TypeError, "None"),
        (lambda v: (v + 2.0**60).astype(np.int64) + 1, ValueError, "2\\^53"),
        (lambda v: torch.full((16, 2), 2**60), ValueError, "2\\^53"),
        (lambda v: v[None], ValueError, "3 dimensions"),
        (lambda v: np.float64(3), ValueError, "0 dimensions"),
    ],
)
def test_other_inputs_are_refused_by_name(values, convert, error, words):
    with pytest.raises(error, match=rf"x: .*{words}"):
        mutual_information(convert(values))


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3), torch.tensor(3)])
def test_integers_of_other_libraries_are_settings(values, number):
    assert np.array_equal(top_pairs(values, number).mi, top_pairs(values, 3).mi)
    assert np.array_equal(mutual_information(values, nodes=number), mutual_information(values, nodes=3))
    assert np.array_equal(mutual_information(values, seed=number), mutual_information(values, seed=3))


@pytest.mark.parametrize("number", [np.float32(0.25), np.float64(0.25), torch.tensor(0.25), np.array(0.25)])
def test_numbers_of_other_libraries_are_settings(values, number):
    assert np.array_equal(
        mutual_information(values, bandwidth=number), mutual_information(values, bandwidth=0.25)
    )
    assert np.array_equal(pairs_above(values, number).mi, pairs_above(values, 0.25).mi)


@pytest.mark.parametrize("name", ["nodes", "seed", "memory_budget"])
@pytest.mark.parametrize("value", [4.0, "4", True, [4], np.array([4, 4]), float("nan")])
def test_what_is_no_integer_is_refused_by_name(values, name, value):
    with pytest.raises((TypeError, ValueError), match=f"{name}: expected"):
        mutual_information(values, **{name: value})


@pytest.mark.parametrize("value", [1.5, "2", True, None])
def test_k_is_an_integer(values, value):
    with pytest.raises((TypeError, ValueError), match="k: expected"):
        top_pairs(values, value)


@pytest.mark.parametrize("value", ["high", None, [0.1, 0.2], 1j, float("nan")])
def test_threshold_is_a_number(values, value):
    with pytest.raises((TypeError, ValueError), match="threshold: expected"):
        pairs_above(values, value)


def test_streams_read_the_same_arrays(values):
    stream, plain = GridStream(values.astype(np.int16)), GridStream(values.astype(np.float32))
    stream.update(values.astype(np.int16))
    plain.update(values.astype(np.float32))
    assert np.array_equal(stream.mutual_information(), plain.mutual_information())


def test_streams_do_not_round_a_batch_to_the_type_of_the_reference(values):
    shifted = values + 2.0**20 + np.arange(64)[:, None] / 1024  # different in float64 only
    stream, plain = GridStream(values.astype(np.int16)), GridStream(values)
    stream.update(shifted)
    plain.update(shifted)
    assert np.array_equal(stream.mutual_information(), plain.mutual_information())


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint64])
def test_wide_integers_of_a_compiled_graph_are_read_exactly(dtype):
    x = (torch.arange(40)[:, None] * torch.tensor([1, 3, 7]) % 41 + 2**52).to(dtype)
    compiled = torch.compile(lambda v: mutual_information(v), fullgraph=True, backend="eager")
    assert np.array_equal(compiled(x), mutual_information(x.double()))


@pytest.mark.parametrize(
    "call", [GridStream, split_half_reliability, lambda x: mutual_information(x, device="cpu")]
)
def test_the_meta_device_has_no_values(call):
    with pytest.raises(ValueError, match="meta device"):
        call(torch.empty(64, 4, device="meta"))


@pytest.mark.parametrize("device", ["quantum", "cuda:99", torch.float16, 1.5])
def test_devices_that_are_not_there_are_refused_by_name(values, device):
    with pytest.raises(ValueError, match="device: expected"):
        mutual_information(values, device=device)


def test_statistics_take_the_same_numbers(values):
    null = null_distribution(np.int64(64), draws=torch.tensor(30), estimator="grid", nodes=np.int32(5))
    same = null_distribution(64, draws=30, estimator="grid", nodes=5)
    assert torch.equal(null.values, same.values)
    assert null.made_with == same.made_with
    assert null.quantile(np.float32(0.5)) == null.quantile(0.5)
    mi = mutual_information(values, nodes=5)
    assert null.fdr_threshold(torch.from_numpy(mi), np.float32(0.5)) == null.fdr_threshold(mi, 0.5)
    assert np.array_equal(null.p_value(mi.tolist()), null.p_value(mi))
    reliability = Reliability(1000, 0.5, 2 / 3)
    assert samples_for(reliability, np.float64(0.9)) == samples_for(reliability, 0.9)
    with pytest.raises(ValueError, match="mi: expected estimates in nats, got NaN"):
        null.p_value(torch.tensor(float("nan")))
    for wrong in ({"n_samples": 64.0}, {"n_samples": 64, "draws": True}, {"n_samples": 64, "seed": [1]}):
        with pytest.raises(ValueError, match=f"{list(wrong)[-1]}: expected an integer"):
            null_distribution(**wrong)


def test_flags_of_other_libraries_are_flags(values):
    for true in (np.True_, torch.tensor(True), 1):
        assert np.array_equal(
            mutual_information(values, calibrate=true), mutual_information(values, calibrate=True)
        )
    with pytest.raises(ValueError, match="autotune: expected True or False, got 'no'"):
        mutual_information(values, autotune="no")


def test_tables_of_pandas_are_read_with_their_missing_values():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(np.random.default_rng(0).integers(-9, 9, (64, 3)))
    expected = mutual_information(table.to_numpy())
    for dtype in ("int8", "Int64", "Float64", "float32"):
        assert np.array_equal(mutual_information(table.astype(dtype)), expected)
    assert np.array_equal(mutual_information(table, table[1]), mutual_information(table, table[[1]]))
    mixed = table.astype({0: "float32", 1: "Int64", 2: "int8"}).assign(flag=table[0] > 0)
    assert np.array_equal(np.asarray(mutual_information(mixed))[:3, :3], expected)
    missing = table.astype("Int64")
    missing.iloc[3, 1] = pandas.NA
    with pytest.raises(ValueError, match=r"x: expected finite values, got 1 NaN .* column 1"):
        mutual_information(missing)
    with pytest.raises(ValueError, match=r"x: expected integers between"):
        mutual_information(table.astype("Int64") + 2**60 + 1)
    with pytest.raises(TypeError, match="x: expected"):
        mutual_information(table.assign(text="a"))


def test_values_of_mutual_information_are_read_like_samples(values):
    mi = mutual_information(values)
    for array in (torch.from_numpy(mi), mi.astype(float), mi.tolist()):
        assert np.allclose(bits(array), bits(mi), rtol=1e-6, atol=0)  # of two roundings
        assert np.allclose(information_correlation(array), information_correlation(mi), rtol=1e-5)
    null = null_distribution(64, draws=30, estimator="grid")
    assert null.p_value(0.25) == null.p_value(torch.tensor(0.25))
