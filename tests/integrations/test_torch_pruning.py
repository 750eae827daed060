"""Importance by mutual information in Torch-Pruning itself, on convolutions, a ResNet and a vision transformer."""

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

pytest.importorskip("torch_pruning")

import torch_pruning as tp

from mikernels.integrations.torch_pruning import (
    VARIANCE_RIDGE,
    MutualInformationImportance,
    conditional_order,
    pairwise_order,
)

METHODS = ["mi", "conditional-mi"]
IMAGES = list(torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def residual(z, w, kept):
    """Squared error of the outputs `z w^T` when ridge regression on the kept channels replaces all channels."""
    covariance = torch.cov(z.t())
    covariance = covariance + VARIANCE_RIDGE * covariance.diagonal().diag()
    inside = covariance[kept][:, kept]
    best = torch.linalg.solve(inside, covariance[kept] @ w.t()).t() if kept else w[:, :0]
    change = w.clone()
    change[:, kept] -= best
    return float(torch.einsum("oi,ij,oj->", change, covariance, change))


def test_conditional_order_drops_what_least_squares_misses_least():
    torch.manual_seed(0)
    z = torch.randn(300, 7).double() @ torch.randn(7, 7).double()
    w = torch.randn(4, 7).double()
    order, cost = conditional_order(torch.cov(z.t()), w.t() @ w)
    kept, error = list(range(7)), 0.0
    for d, paid in zip(order.tolist(), cost.tolist(), strict=True):
        errors = {c: residual(z, w, [i for i in kept if i != c]) for c in kept}
        assert errors[d] == pytest.approx(min(errors.values()))
        assert paid == pytest.approx(errors[d] - error, rel=1e-4)
        error = errors[d]
        kept.remove(d)


def test_pairwise_order_keeps_one_of_each_pair_of_copies():
    mi = torch.full((4, 4), 0.01)
    mi[0, 2] = mi[2, 0] = 2.0
    order, cost = pairwise_order(mi, torch.tensor([3.0, 1.0, 4.0, 2.0]))
    assert order.tolist() == [0, 1, 3, 2]  # 0 is told by 2, and then 2 by no other
    assert cost[0] == pytest.approx(3 * torch.exp(torch.tensor(-4.0)).item())
    assert cost[3] == 4.0


def redundant(flatten=False, groups=1):
    """A convolution whose last 4 of 8 channels are noisy copies of the first, read by another layer; and outputs."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        first.weight[4:] = 0.7 * first.weight[:4] + 0.02 * torch.randn(4, 3, 3, 3)
        first.bias[4:] = 0.7 * first.bias[:4]
    if flatten:
        return nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(8, 6, 3, groups=groups))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [{}, {"flatten": True}], ids=["convolution", "flattened"])
def test_a_pruner_drops_one_channel_of_each_pair_of_copies(method, kind):
    model = redundant(**kind)
    original = model[0].weight.clone()
    importance = MutualInformationImportance(model, IMAGES, method=method)
    pruner = tp.pruner.BasePruner(model, IMAGES[0], importance, pruning_ratio=0.5, ignored_layers=[model[-1]])
    pruner.step()
    assert model[0].out_channels == 4
    kept = [int((original - w).abs().flatten(1).sum(1).argmin()) for w in model[0].weight]
    assert sorted(c % 4 for c in kept) == [0, 1, 2, 3]
    assert model(IMAGES[0]).shape[0] == 8


def test_weights_of_grouped_convolutions_count_where_they_are():
    model = redundant(groups=2)
    importance = MutualInformationImportance(model, IMAGES, samples=64)
    graph = tp.DependencyGraph().build_dependency(model, IMAGES[0])
    group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, list(range(8)))
    item = next(i for i in group if i.dep.target.module is model[2])
    z, gram = importance._read(model[2], item.idxs, item.root_idxs)
    assert z.shape == (64, 8)
    own = (
        model[2].weight.square().sum((2, 3)).unflatten(0, (2, 3)).sum(1).flatten()
    )  # [groups, channels of one]
    torch.testing.assert_close(gram.diagonal(), own)
    assert (gram[:4, 4:] == 0).all()


def resnet():
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic")
    model = ResNetForImageClassification(config)
    return model, [model.classifier], "convolution"  # every channel, those of the residual stream too


def vision_transformer():
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    model = ViTForImageClassification(config)
    return (
        model,
        [m for name, m in model.named_modules() if name.endswith(("classifier", "attention"))],
        "fc1",
    )


@pytest.mark.filterwarnings("ignore:Unwrapped parameters")  # Torch-Pruning's note on position embeddings
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [resnet, vision_transformer])
def test_vision_models_are_pruned(make, method):
    torch.manual_seed(0)
    model, ignored, pruned = make()
    model.eval()

    def widths():
        return [len(m.weight) for name, m in model.named_modules() if name.endswith(f".{pruned}")]

    before = widths()
    random_state = torch.get_rng_state()
    importance = MutualInformationImportance(model, IMAGES, method=method, samples=256)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(m._forward_pre_hooks for m in model.modules())
    pruner = tp.pruner.BasePruner(
        model,
        IMAGES[0],
        importance,
        pruning_ratio=0.5,
        ignored_layers=ignored,
        output_transform=lambda output: output.logits,
    )
    pruner.step()
    assert widths() == [width // 2 for width in before]
    assert model(IMAGES[0]).logits.isfinite().all()


def test_observe_again_between_the_steps():
    model = redundant()
    importance = MutualInformationImportance(model, IMAGES, samples=64)
    pruner = tp.pruner.BasePruner(
        model, IMAGES[0], importance, pruning_ratio=0.5, iterative_steps=2, ignored_layers=[model[-1]]
    )
    pruner.step()
    with pytest.raises(
        ValueError, match=r"group: expected layers as they were observed, with 8 inputs, got 6"
    ):
        pruner.step()
    importance.observe(model, IMAGES)
    pruner.current_step = 1
    pruner.step()
    assert model[0].out_channels == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batches": []}, "batches: expected at least one input"),
        ({"samples": 4}, "samples: expected at least 8, got 4"),
        ({"method": "magnitude"}, "method: expected one of 'mi', 'conditional-mi', got 'magnitude'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        MutualInformationImportance(redundant(), **({"batches": IMAGES} | settings))
