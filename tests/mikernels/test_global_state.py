"""Results do not depend on torch's global state, and the state is the same afterwards."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mikernels import (
    GridStream,
    mutual_information,
    null_distribution,
    split_half_reliability,
    top_pairs,
    torch_impl,
)
from mikernels.isolation import isolated
from mikernels.statistics.null import Null
from mikernels.statistics.surrogates import _simulate

from global_states import STATES, default_dtype, fp32_precision, precisions, products_in, state


def results(x: torch.Tensor) -> list[torch.Tensor]:
    stream = GridStream(x)
    stream.update(x)
    _simulate.cache_clear()
    return [
        *(
            mutual_information(x, estimator=estimator, calibrate=True)
            for estimator in ("grid", "kde", "renyi2", "adaptive")
        ),
        mutual_information(x, transform="standardize"),
        mutual_information(x, bandwidth="loo"),
        mutual_information(x, estimator="adaptive", impl="reference"),
        mutual_information(x, impl="reference"),
        top_pairs(x, 3).mi,
        stream.mutual_information(),
        null_distribution(64, draws=20).values,
        torch.tensor(split_half_reliability(x).halves, dtype=torch.float64, device="cpu"),
        torch.tensor([tail_of_null()], dtype=torch.float64, device="cpu"),
    ]


def tail_of_null() -> float:
    """A quantile in the fitted tail of a null, whose draws are made up."""
    values = torch.linspace(0, 1, 20_000, dtype=torch.float64, device="cpu").log1p()
    return Null(null_distribution(64, draws=20).made_with, values).quantile(0.9999)


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(64, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def expected(x) -> list[torch.Tensor]:
    return results(x)


@pytest.mark.parametrize("name", STATES)
def test_no_state_changes_a_result(name, x, expected):
    with STATES[name]():
        before = state()
        found = results(x)
        assert state() == before
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", [name for name in STATES if "TF32" in name or "products" in name])
def test_products_in_fp32_are_not_rounded(name, x, monkeypatch):
    """What a GPU would do shows in the settings that the products run under."""
    seen = []
    compute = torch_impl.grid.Grid.compute

    def recorded(self, *args, **keywords):
        seen.append((*precisions()[:4], torch.backends.cuda.matmul.allow_tf32))
        return compute(self, *args, **keywords)

    monkeypatch.setattr(torch_impl.grid.Grid, "compute", recorded)
    with STATES[name]():
        mutual_information(x, precision="fp32", impl="torch")
    assert seen
    assert {*seen[0]} <= {"none", "ieee", False}


def test_threads_restore_what_the_first_one_found():
    with default_dtype(torch.float64), products_in("medium"):
        before = state()

        def nested(depth: int) -> None:
            with isolated():
                assert torch.get_default_dtype() == torch.float32
                assert set(precisions()[:4]) <= {"none", "ieee"}
                if depth:
                    nested(depth - 1)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(nested, range(64)))
        assert state() == before


@pytest.mark.parametrize("name", STATES)
def test_state_is_restored_after_an_error(name, x):
    with STATES[name]():
        before = state()
        with pytest.raises(ValueError, match="x: expected finite values"):
            mutual_information(x.masked_fill(x > 1, torch.inf))
        with pytest.raises(KeyboardInterrupt), isolated():
            raise KeyboardInterrupt
        assert state() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_fork_while_another_thread_is_inside_restores_and_isolates(x):
    inside, done = threading.Event(), threading.Event()

    def stay() -> None:
        with isolated():
            inside.set()
            done.wait()

    with default_dtype(torch.float64):
        thread = threading.Thread(target=stay)
        thread.start()
        inside.wait()
        child = os.fork()
        if not child:
            restored = torch.get_default_dtype() == torch.float64
            with isolated():
                isolates = torch.get_default_dtype() == torch.float32
            os._exit(0 if restored and isolates and torch.get_default_dtype() == torch.float64 else 1)
        done.set()
        thread.join()
        assert os.waitpid(child, 0)[1] == 0


def test_what_is_inherited_is_still_inherited_afterwards():
    products = torch.backends.mkldnn.matmul
    with fp32_precision(products, "none"), fp32_precision(torch.backends, "tf32"):
        with isolated():
            assert products.fp32_precision == "ieee"
        assert products.fp32_precision == "tf32"
        torch.backends.fp32_precision = "none"
        assert products.fp32_precision == "none"


def test_what_was_made_in_inference_mode_works_outside(x, expected):
    with torch.inference_mode():
        _simulate.cache_clear()
        found = results(x)
        stream = GridStream(x)
    stream.update(x)
    assert not any(result.is_inference() for result in found[:-2])  # the last two are made here
    assert torch.equal(stream.mutual_information(), found[9])


def test_a_result_in_a_tensor_of_inference_mode_is_refused(x):
    with (
        torch.inference_mode(),
        pytest.raises(
            ValueError, match=r"out: expected a tensor that was made outside of torch.inference_mode"
        ),
    ):
        mutual_information(x, out=torch.empty(x.shape[1], x.shape[1]))


def test_inference_tensors_are_inputs(x, expected):
    with torch.inference_mode():
        inferred = x.clone()
    assert all(torch.equal(a, b) for a, b in zip(results(inferred), expected, strict=True))
