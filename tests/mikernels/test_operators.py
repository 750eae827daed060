"""The operators under `torch.compile`, `torch.export` and torch's own checks of operators."""

import pytest
import torch

from mikernels import mutual_information, pairs_above, top_pairs

from samples import GPU, correlated, gaussian

CALLS = {
    "matrix": lambda x: mutual_information(x),
    "matrix of two": lambda x: mutual_information(x, x.square()),
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
    def forward(self, x):
        return mutual_information(x.relu() + x)


def test_torch_export_keeps_the_operator():
    x = on_device(correlated(40, 5))
    exported = torch.export.export(Network(), (x,))
    assert any("mikernels.mutual_information" in str(node.target) for node in exported.graph.nodes)
    assert torch.equal(exported.module()(x), Network()(x))


@pytest.mark.parametrize("with_y", [False, True])
@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize(
    ("operator", "last"), [("mutual_information", ()), ("top_pairs", (4,)), ("pairs_above", (0.01,))]
)
def test_operators_pass_the_checks_of_torch(operator, last, impl, with_y):
    x = on_device(gaussian(20, 4))
    y = on_device(gaussian(20, 3, seed=1)) if with_y else None
    settings = ("grid", 16, 0.5, "rank", False, impl, "int8", None, 0, False)
    torch.library.opcheck(getattr(torch.ops.mikernels, operator).default, (x, y, *settings, *last))


def test_meta_tensors_give_shapes_without_computing():
    x = torch.empty(64, 7, device="meta")
    assert mutual_information(x).shape == (7, 7)
    assert mutual_information(x, torch.empty(64, 3, device="meta")).shape == (7, 3)
