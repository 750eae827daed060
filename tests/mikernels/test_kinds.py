"""Results come back in the kind of array that came in, with its names; other libraries are used for real."""

import gc
import sys
import types

import numpy as np
import pytest
import torch

from mikernels import (
    GridStream,
    Pairs,
    bits,
    gaussian_conditional_information,
    information_correlation,
    mutual_information,
    null_distribution,
    pairs_above,
    provenance,
    split_half_reliability,
    top_pairs,
)
from mikernels.selection import mrmr, mrmr_from_matrix

NAMES = ["height", "weight", "age", "income"]


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    """`[64, 4]` float32 small integers, of which the first two columns depend on each other."""
    values = np.random.default_rng(0).integers(-20, 20, (64, 4)).astype(np.float32)
    values[:, 1] += 2 * values[:, 0]
    return values


@pytest.fixture(scope="module")
def expected(values) -> np.ndarray:
    return mutual_information(torch.from_numpy(values)).numpy()


def jax_array(values):
    return pytest.importorskip("jax.numpy").asarray(values)


def strict_array(values):
    return pytest.importorskip("array_api_strict").asarray(values)


class Shared:
    """An array of a library of its own: nothing but DLPack."""

    def __init__(self, values, device=None):
        self.values, self.device = values, device

    def __dlpack__(self, **keywords):
        return self.values.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.device or self.values.__dlpack_device__()


ROUNDING = 2e-6 if torch.cuda.is_available() else 0.0
"""Nats; jax has its arrays on a GPU if there is one, and then other kernels take them."""
ARRAYS = [jax_array, strict_array, np.asarray, torch.from_numpy]


@pytest.mark.parametrize("make", ARRAYS, ids=["jax", "array_api_strict", "numpy", "torch"])
def test_every_function_answers_in_the_kind_of_array_that_came(make, values, expected):
    x = make(values)
    mi = mutual_information(x)
    pairs = top_pairs(x, 2)
    null = null_distribution(64, draws=50)
    stream = GridStream(x)
    stream.update(x)
    results = [
        mi,
        mutual_information(x, x[:, 0] if make is not strict_array else make(values[:, 0])),
        gaussian_conditional_information(x, make(values[:, 3:])),
        stream.mutual_information(),
        bits(mi),
        information_correlation(mi),
        null.p_value(mi),
        *pairs,
        *pairs_above(x, 0.1),
    ]
    assert {type(result) for result in results} == {type(x)}
    assert isinstance(pairs, Pairs)
    assert np.allclose(np.asarray(mi), expected, rtol=0, atol=ROUNDING)
    assert [int(pairs.first[0]), int(pairs.second[0])] == [0, 1]


@pytest.mark.parametrize("dtype", ["bool", "int8", "float16", "bfloat16"])
def test_types_of_jax_are_read_exactly(values, dtype):
    x = jax_array(values).astype(dtype)
    expected = mutual_information(np.asarray(x, dtype=np.float32))
    assert np.allclose(mutual_information(x), expected, rtol=0, atol=ROUNDING)


def test_arrays_that_numpy_alone_can_read_give_those_of_numpy(values, expected):
    for array in (values.tolist(), Shared(values)):
        mi = mutual_information(array)
        assert type(mi) is np.ndarray
        assert np.array_equal(mi, expected)


def test_a_library_with_dlpack_alone_gives_its_own_arrays(values, expected, monkeypatch):
    """As CuPy and MLX: no namespace of the standard, but a module with `from_dlpack`."""
    other = types.ModuleType("other")
    other.Array = type("Array", (Shared,), {"__module__": "other.core"})
    other.from_dlpack = lambda t: other.Array(np.from_dlpack(t))
    monkeypatch.setitem(sys.modules, "other", other)
    mi = mutual_information(other.Array(values))
    assert type(mi) is other.Array
    assert np.array_equal(mi.values, expected)


def test_dlpack_of_any_strides_is_read(values, expected):
    """torch ends the process at a negative stride."""
    for view in (values[::-1][::-1], values[:, ::-1], np.asfortranarray(values), values[::2, 1:]):
        assert np.array_equal(mutual_information(Shared(view)), mutual_information(view.copy()))


@pytest.mark.parametrize(("device", "words"), [((8, 0), "8 0"), ((2, 0), "2 0"), ((99, 1), "99 1")])
def test_arrays_on_devices_that_torch_does_not_have_are_refused_by_name(values, device, words):
    if torch.cuda.is_available() and device[0] == 2:
        pytest.skip("torch has this device")
    with pytest.raises(TypeError, match=rf"x: expected an array on a device .*Shared on {words}; copy it"):
        mutual_information(Shared(values, device))


def test_nothing_is_copied_that_torch_can_address(values):
    from mikernels.arrays import to_tensor

    frozen = values.copy()
    frozen.flags.writeable = False
    for array in (values, np.asfortranarray(values), values[::2, 1:], frozen, Shared(values)):
        source = array.values if isinstance(array, Shared) else array
        assert to_tensor(array, "x").data_ptr() == source.ctypes.data
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(values)
    assert np.shares_memory(to_tensor(table, "x").numpy(), table.to_numpy())


def pandas_table(values):
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(values, columns=NAMES)


def polars_table(values):
    polars = pytest.importorskip("polars")
    return polars.DataFrame(values, schema=NAMES, orient="row")


def arrow_table(values):
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.table([pyarrow.array(column.copy()) for column in values.T], names=NAMES)


def columns_of(table):
    return list(table.column_names if hasattr(table, "column_names") else table.columns)


TABLES = pytest.mark.parametrize(
    "make", [pandas_table, polars_table, arrow_table], ids=["pandas", "polars", "pyarrow"]
)


@TABLES
def test_tables_give_tables_with_their_names(make, values, expected):
    x = make(values)
    mi = mutual_information(x)
    assert type(mi) is type(x)
    assert columns_of(mi) == NAMES
    assert np.array_equal(np.asarray(mi), expected)
    for function in (bits, information_correlation, null_distribution(64, draws=50).p_value):
        assert columns_of(function(mi)) == NAMES
        assert np.allclose(np.asarray(function(mi)), function(expected), atol=1e-6)
    crossed = mutual_information(x, make(values)[["age"]] if make is pandas_table else x.select(["age"]))
    assert columns_of(crossed) == ["age"]
    assert columns_of(mutual_information(x, values[:, :2])) == (
        [0, 1] if make is pandas_table else ["0", "1"]
    )
    assert columns_of(gaussian_conditional_information(x, values[:, :1])) == NAMES


@TABLES
def test_pairs_of_a_table_are_a_table_of_names(make, values):
    x = make(values)
    for found in (top_pairs(x, 3), pairs_above(x, 0.0)):
        assert type(found) is type(x)
        assert columns_of(found) == ["first", "second", "mi"]
        assert [str(found["first"][0]), str(found["second"][0])] == ["height", "weight"]
    assert np.allclose(np.asarray(top_pairs(x, 3)["mi"]), top_pairs(values, 3).mi)
    crossed = top_pairs(x, 1, values[:, :1])
    assert [str(crossed["first"][0]), int(str(crossed["second"][0]))] == ["height", 0]


def test_pandas_labels_rows_and_columns_as_its_corr_does(values):
    x = pandas_table(values)
    mi = mutual_information(x)
    assert mi.index.equals(x.corr().index)
    assert mi.columns.equals(x.corr().columns)
    numbered = x.set_axis(range(4), axis=1)
    assert list(top_pairs(numbered, 1)["first"]) == [0]
    column = mutual_information(x, x["income"])
    assert list(column.columns) == ["income"]
    p_values = null_distribution(64, draws=50).p_value(mi["age"])
    assert p_values.name == "age"
    assert list(p_values.index) == NAMES


@TABLES
def test_missing_values_and_several_types_in_one_table(make, values):
    x = make(values)
    flags = values[:, 2] > 0
    if make is pandas_table:
        mixed = x.astype({"height": "int8", "weight": "Int32"}).assign(flag=flags)
        hole = mixed.assign(flag=mixed["flag"].astype("boolean").where(mixed.index != 3))
        text = x.assign(text="a", more="b")
    elif make is polars_table:
        polars = pytest.importorskip("polars")
        mixed = x.with_columns(polars.col("height").cast(polars.Int8), flag=flags)
        hole = mixed.with_columns(flag=polars.Series([None, *flags[1:].tolist()]))
        text = x.with_columns(text=polars.lit("a"), more=polars.lit("b"))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        mixed = x.append_column("flag", pyarrow.array(flags))
        hole = x.append_column("flag", pyarrow.array([None, *flags[1:].tolist()]))
        text = x.append_column("text", [["a"] * 64]).append_column("more", [["b"] * 64])
    plain = np.column_stack([values, flags])
    assert np.array_equal(np.asarray(mutual_information(mixed)), mutual_information(plain))
    with pytest.raises(ValueError, match=r"x: expected finite values, got 1 NaN .* column 4"):
        mutual_information(hole)
    with pytest.raises(
        TypeError, match=r"x: expected columns of real numbers, got \w+ in 'text', and 2 such of 6"
    ):
        mutual_information(text)


def test_levels_of_names_and_extension_types_of_pandas(values, expected):
    pandas = pytest.importorskip("pandas")
    levels = pandas.MultiIndex.from_product([["a", "b"], [1, 2]])
    x = pandas.DataFrame(values, columns=levels)
    assert mutual_information(x).columns.equals(levels)
    assert top_pairs(x, 1)["first"][0] == ("a", 1)
    for dtype in ("Float32", "float[pyarrow]"):
        assert np.array_equal(mutual_information(x.astype(dtype)), expected)
    zeros = pandas.DataFrame({"counts": [0, 1] * 32, "x": values[:, 0]})
    sparse = zeros.astype({"counts": pandas.SparseDtype("int64", 0)})
    assert np.array_equal(mutual_information(sparse), mutual_information(zeros))
    wide = pandas_table(values).assign(large=np.arange(64) + 2**53 + 1)  # float64 holds every second of them
    with pytest.raises(ValueError, match="x: expected integers between"):
        mutual_information(wide)


def test_batches_of_a_stream_have_the_columns_of_its_reference(values):
    x = pandas_table(values)
    stream = GridStream(x)
    stream.update(x)
    with pytest.raises(ValueError, match="batch: expected the columns of the reference in their order"):
        stream.update(x[NAMES[::-1]])


def test_rows_of_two_tables_with_their_labels_in_another_order_are_refused(values):
    x = pandas_table(values).set_axis([f"person {i}" for i in range(64)])
    y = x["age"] > 0
    calls = {
        "y": (lambda other: mutual_information(x, other), lambda other: mrmr(x, other, 1)),
        "given": (lambda other: gaussian_conditional_information(x, other),),
        "groups": (lambda other: split_half_reliability(x, groups=other),),
    }
    for name, functions in calls.items():
        for call in functions:
            with pytest.raises(
                ValueError, match=f"{name}: expected the rows of the other table, got labels of them in"
            ):
                call(y[::-1])
            with pytest.raises(ValueError, match="labels of them in other places"):  # one row further on
                call(y.set_axis([f"person {i + 1}" for i in range(64)]))
    relevance = mutual_information(x, y)
    mi = mutual_information(x)
    with pytest.raises(ValueError, match="relevance: expected the rows of the other table"):
        mrmr_from_matrix(mi, relevance[::-1], 2)
    expected = mutual_information(values, y.to_numpy())
    # Other labels, or numbers by default, say nothing.
    for other in (y, y.reset_index(drop=True), y.set_axis(y.index + "!")):
        assert np.array_equal(mutual_information(x, other), expected)
    assert (
        mrmr_from_matrix(mi, relevance, 2).features.tolist()
        == mrmr_from_matrix(mi.to_numpy(), expected, 2)[0].tolist()
    )


def test_numbers_by_default_are_labels_only_of_the_same_rows(values):
    """Sorted or reversed rows keep their numbers; a lag, and rows that were dropped, have others."""
    x = pandas_table(values).reset_index(drop=True)
    by_age = x.sort_values("age")
    for one, other in ((x, by_age["age"]), (by_age, x["age"]), (x, x["age"][::-1])):
        with pytest.raises(
            ValueError, match="y: expected the rows of the other table, got labels of them in"
        ):
            mutual_information(one, other)
    expected = mutual_information(values[1:], values[:-1])
    for other in (x[:-1], x[:-1].set_axis(range(5, 68)), x[:-1].set_axis([*range(62), 99])):
        assert np.array_equal(mutual_information(x[1:], other), expected)
    assert np.array_equal(mutual_information(x, x.loc[[*range(64)]]), mutual_information(values, values))


def test_rows_are_told_apart_by_labels_of_any_kind(values):
    pandas = pytest.importorskip("pandas")
    table = pandas_table(values)
    times = pandas.date_range("2026-01-01", periods=65)
    several = pandas.MultiIndex.from_product([["a", "b"], range(32)])
    indexes = [times[:64], times[:64].to_period(), pandas.timedelta_range("1h", periods=64), several]
    for first in indexes:
        for second in indexes:  # nothing in common but with itself
            mutual_information(table.set_axis(first), table.set_axis(second))
        with pytest.raises(ValueError, match=r"as for lags: y\.to_numpy"):
            mutual_information(table.set_axis(first)[1:], table.set_axis(first)[:-1])
    mutual_information(table.set_axis(times[1:])[1:], table.set_axis(times[1:])[:-1].to_numpy())


def test_columns_of_one_name_are_refused(values):
    table = pandas_table(values).set_axis(["a", "b", "b", "c"], axis=1)
    with pytest.raises(
        ValueError, match="x: expected columns of different names, got 'b' more than once; rename"
    ):
        top_pairs(table, 1)


@TABLES
def test_empty_tables_are_refused(make, values):
    for empty in (make(values[:0]), type(make(values))() if make is not arrow_table else make(values)[:0]):
        with pytest.raises(ValueError, match=r"x: expected at least 8 samples \(rows\), got 0"):
            mutual_information(empty)


@pytest.mark.parametrize("form", ["csr_matrix", "csc_array", "coo_array"])
def test_sparse_matrices_are_read_a_few_columns_at_a_time(values, form, monkeypatch):
    sparse = pytest.importorskip("scipy.sparse")
    x = np.where(values > 0, values, 0)
    monkeypatch.setattr("mikernels.frames.CHUNK_BYTES", 64 * 4 * 3)  # three columns and one
    mi = mutual_information(getattr(sparse, form)(x))
    assert type(mi) is np.ndarray
    assert np.array_equal(mi, mutual_information(x))
    with pytest.raises(TypeError, match=r"x: expected a sparse matrix of real numbers .* complex64"):
        mutual_information(getattr(sparse, form)(x.astype(np.complex64)))


def test_a_sparse_matrix_beyond_the_memory_is_refused():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(
        ValueError, match=r"x: expected a sparse matrix of at most .* GB when dense, got 40000 GB"
    ):
        mutual_information(sparse.csc_array((10**8, 10**5), dtype=np.float32))


@pytest.mark.parametrize("is_sparse", [False, True])
def test_the_variables_of_an_anndata_keep_their_names(values, is_sparse):
    anndata, sparse = pytest.importorskip("anndata"), pytest.importorskip("scipy.sparse")
    cells = anndata.AnnData(sparse.csr_matrix(values) if is_sparse else values)
    cells.var_names = NAMES
    mi = mutual_information(cells)
    assert list(mi.index) == list(mi.columns) == NAMES
    assert np.array_equal(mi.to_numpy(), mutual_information(values))
    cells.varp["mutual_information"] = mi
    assert list(top_pairs(cells, 1).iloc[0])[:2] == NAMES[:2]
    cells.var_names = ["a", "a", "b", "c"]
    with pytest.raises(ValueError, match="'a' more than once; call var_names_make_unique"):
        mutual_information(cells)
    with pytest.raises(TypeError, match="x: expected an AnnData with values in X"):
        mutual_information(anndata.AnnData(shape=(64, 3)))


@pytest.mark.parametrize("make", [np.asarray, pandas_table, polars_table, arrow_table, jax_array])
def test_every_kind_remembers_what_it_was_made_with(make, values):
    mi = mutual_information(make(values), nodes=8)
    with pytest.raises(ValueError, match=r"mi: expected estimates made with .*nodes=16.* got .*nodes=8"):
        null_distribution(64, draws=50).p_value(mi)
    kept = len(provenance._notes)
    del mi
    gc.collect()
    assert len(provenance._notes) < kept
