"""The operators under `torch.compile`, `torch.export` and torch's own checks of operators."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mikernels import mutual_information, pairs_above, top_pairs
from mikernels.engine import compute_blocks
from mikernels.options import resolve, to_operator

from samples import GPU, correlated, gaussian

CALLS = {
    "matrix": lambda x: mutual_information(x),
    "matrix of two": lambda x: mutual_information(x, x.square()),
    "leave one out": lambda x: mutual_information(x, bandwidth="loo"),
    "kde": lambda x: mutual_information(x, estimator="kde", bandwidth="silverman"),
    "top pairs": lambda x: top_pairs(x, 3),
    "more than all pairs": lambda x: top_pairs(x, 100),
    "pairs above": lambda x: pairs_above(x, 0.05),
    "triton": lambda x: mutual_information(x, impl="triton"),
}


def on_device(x):
    return x.cuda() if GPU else x


@pytest.mark.parametrize("name", CALLS)
def test_torch_compile_keeps_the_graph_whole(name):
    x = on_device(correlated(40, 5))
    call = CALLS[name]
    compiled = torch.compile(lambda x: [2 * t for t in call(2 * x + 1)], fullgraph=True, backend="eager")
    for got, expected in zip(compiled(x), call(2 * x + 1), strict=True):
        assert torch.equal(got, 2 * expected)


class Network(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, x):
        return mutual_information(x.relu() + x, **self.options)


@pytest.mark.parametrize("bandwidth", [None, "loo"])
def test_torch_export_keeps_the_operator(bandwidth):
    x = on_device(correlated(40, 5))
    network = Network(bandwidth=bandwidth)
    exported = torch.export.export(network, (x,))
    assert any("mikernels.mutual_information" in str(node.target) for node in exported.graph.nodes)
    assert torch.equal(exported.module()(x), network(x))


@pytest.mark.parametrize("with_y", [False, True])
@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize(
    ("operator", "last"), [("mutual_information", ()), ("top_pairs", (4,)), ("pairs_above", (0.01,))]
)
def test_operators_pass_the_checks_of_torch(operator, last, impl, with_y):
    x = on_device(gaussian(20, 4))
    y = on_device(gaussian(20, 3, seed=1)) if with_y else None
    settings = to_operator(resolve({"bandwidth": 0.5, "impl": impl, "precision": "int8"}, 20))
    torch.library.opcheck(getattr(torch.ops.mikernels, operator).default, (x, y, *settings, *last))


def test_meta_tensors_give_shapes_without_computing():
    x = torch.empty(64, 7, device="meta")
    assert mutual_information(x).shape == (7, 7)
    assert mutual_information(x, torch.empty(64, 3, device="meta")).shape == (7, 3)


@pytest.mark.parametrize("name", ["mutual_information", "top_pairs", "pairs_above"])
def test_no_operator_is_recorded_in_a_cuda_graph(name):
    assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.mikernels, name).default.tags


class Waits(TorchDispatchMode):
    """Calls of operators whose result on a GPU the CPU waits for."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique"):
            self.calls.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("with_y", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("estimator", ["grid", "kde", "renyi2"])
def test_without_the_finite_check_nothing_waits_for_the_device(estimator, dtype, with_y):
    x = (8 * correlated(64, 5)).to(dtype)
    y = x[:, :3] if with_y else None

    def waits(**given):
        options = resolve({"estimator": estimator, "impl": "torch", **given}, 64)
        list(compute_blocks(x, y, options))  # fills the caches of constant tables
        with Waits() as found:
            list(compute_blocks(x, y, options))
        return found.calls

    assert waits()
    assert not waits(check_finite=False)
    assert not waits(check_finite=False, calibrate=True)


def test_without_the_finite_check_the_estimates_are_the_same():
    x = on_device(correlated(64, 5))
    assert torch.equal(mutual_information(x, check_finite=False), mutual_information(x))
    x[3, 1] = torch.nan
    assert mutual_information(x, check_finite=False).shape == (5, 5)


def test_out_is_an_operator_that_torch_knows():
    x, out = correlated(40, 5), torch.empty(5, 5)
    arguments = (x, None, *to_operator(resolve({}, 40)), out)
    torch.library.opcheck(
        torch.ops.mikernels.mutual_information_out.default,
        arguments,
        test_utils=("test_schema", "test_faketensor"),
    )

    @torch.compile(fullgraph=True, backend="eager")
    def doubled(x, out):
        mutual_information(2 * x, out=out)
        return 2 * out

    assert torch.equal(doubled(x, out), 2 * mutual_information(x))
    assert torch.equal(out, mutual_information(x))


def test_a_bandwidth_may_be_a_number_that_is_traced():
    x = correlated(40, 5)
    call = torch.compile(
        lambda x, h: mutual_information(x, bandwidth=h), fullgraph=True, dynamic=True, backend="eager"
    )
    for bandwidth in (0.4, 0.7):
        assert torch.equal(call(x, bandwidth), mutual_information(x, bandwidth=bandwidth))
