"""Torch-Pruning: the importance of channels by the mutual information of their activations.

A channel is worth what the layers that read it would lose. With the weights `w_c` that read channel c, dropping it
costs them the error `|w_c|^2 Var(z_c | what is kept)`:

* `"mi"`: given the kept channel that tells most about it, whose mutual information I leaves `exp(-2 I)` of the
  variance, exactly so for Gaussian activations;
* `"conditional-mi"`: given all kept channels, by their covariance, after least squares on the kept channels has moved
  its weights to them. For Gaussian activations and an output with noise it is monotone in the conditional mutual
  information of the channel and the output.

Channels are dropped one by one, the cheapest first; the importance of a channel is its cost when its turn comes, as a
share of the variance of the outputs, and at least that of the channel before it.

Source: Huang, Song, Pao, Large Language Model Pruning, arXiv 2406.00030; Hassibi, Stork, Second order derivatives for
network pruning: Optimal Brain Surgeon, NIPS 1992. Torch-Pruning: Fang et al., DepGraph, arXiv 2301.12900.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch_pruning.pruner import function
from torch_pruning.pruner.importance import Importance

from mikernels.api import mutual_information
from mikernels.numbers import integer
from mikernels.options import choose
from mikernels.validation import MIN_SAMPLES

Method = Literal["mi", "conditional-mi"]
Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
READS = (function.prune_conv_in_channels, function.prune_linear_in_channels)

VARIANCE_RIDGE = 0.01
"""Share of each channel's variance that is added to it, so that copies of a channel do no harm."""


class MutualInformationImportance(Importance):  # type: ignore[misc]  # Torch-Pruning has no types
    """Importance of channels for any pruner of Torch-Pruning.

    Args:
        model: runs on the batches once, without gradients, in the mode it is in (call `eval()` first).
        batches: inputs of the model, unlabeled. Tens of images are enough; every channel of a convolution has as many
            samples as positions.
        method: `"mi"` or `"conditional-mi"`.
        samples: activations that are kept of each layer's input, spread evenly over the batches. Memory: 4 bytes for
            each and every input channel of all layers.
        forward: `forward(model, batch)`, by default `model(batch)`.
        seed: for the choice of the samples, and the order of equal values.

    Call `observe(model, batches)` again between the steps of an iterative pruner.

    Raises:
        ValueError: no batch, fewer than 8 samples, or an unknown method.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        *,
        method: Method = "conditional-mi",
        samples: int = 2048,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        seed: int = 0,
    ) -> None:
        choose("method", method, ("mi", "conditional-mi"))
        self._samples = integer(samples, "samples")
        if self._samples < MIN_SAMPLES:
            raise ValueError(f"samples: expected at least {MIN_SAMPLES}, got {self._samples}")
        self._method, self._forward, self._seed = method, forward, seed
        self._inputs: dict[nn.Module, list[Tensor]] = {}
        self.observe(model, batches)

    @torch.no_grad()
    def observe(self, model: nn.Module, batches: Sequence[Any]) -> None:
        """Run the model, and keep a sample of what each layer reads in place of an earlier one."""
        if len(batches) == 0:
            raise ValueError("batches: expected at least one input of the model, got none")
        self._inputs = {}
        share = -(-self._samples // len(batches))
        generator = torch.Generator().manual_seed(self._seed)

        def keep(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            rows = inputs[0].detach()
            if not isinstance(layer, nn.Linear):  # channels last; an image may come without a batch
                rows = rows.movedim(1 - cast(Tensor, layer.weight).ndim, -1)
            rows = rows.flatten(0, -2)
            chosen = torch.randperm(len(rows), generator=generator)[:share].to(rows.device)
            self._inputs.setdefault(layer, []).append(rows[chosen].float())

        hooks = [m.register_forward_pre_hook(keep) for m in model.modules() if isinstance(m, LAYERS)]
        try:
            for batch in batches:
                if self._forward is None:
                    model(batch)
                else:
                    self._forward(model, batch)
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor | None:
        """Importance of the channels of a group, `[C]`; None if no observed layer reads them."""
        rows, gram = [], None
        for item in group:
            layer = item.dep.target.module
            if item.dep.handler not in READS or layer not in self._inputs:
                continue
            z, own = self._read(layer, item.idxs, item.root_idxs)
            rows.append(z)
            gram = own if gram is None else gram + own
        if gram is None:
            return None
        z = torch.cat(rows)
        if self._method == "conditional-mi":
            order, cost = conditional_order(torch.cov(z.t()).reshape(gram.shape), gram)
        else:
            mi = mutual_information(z, seed=self._seed) if z.shape[1] > 1 else z.new_zeros(1, 1)
            order, cost = pairwise_order(mi, gram.diagonal() * z.var(0))
        total = (gram.diagonal() * z.var(0)).sum().clamp_min(1e-30)
        return torch.empty_like(cost).index_copy_(0, order, cost.cummax(0).values / total)

    def _read(self, layer: Layer, idxs: list[int], roots: list[int]) -> tuple[Tensor, Tensor]:
        """Samples `[M, C]` of the channels of a group that a layer reads, and `W^T W [C, C]` of the weights.

        A layer behind a flattened image reads every channel several times: those are more samples.
        """
        z = torch.cat(self._inputs[layer])
        weight = _dense(layer).float()  # [outputs, inputs]
        if weight.shape[1] != z.shape[1]:
            raise ValueError(
                f"group: expected layers as they were observed, with {z.shape[1]} inputs, got {weight.shape[1]}; call "
                f"observe(model, batches) after each step of pruning"
            )
        place = torch.tensor(roots).argsort(stable=True)
        columns = torch.tensor(idxs)[place].to(z.device)
        each = len(columns) // len(set(roots))
        z = z[:, columns].unflatten(1, (-1, each)).transpose(1, 2).flatten(0, 1)
        weight = weight[:, columns].unflatten(1, (-1, each)).transpose(1, 2).flatten(0, 1)
        return z, weight.t() @ weight


def _dense(layer: Layer) -> Tensor:
    """The weights of a layer as a matrix `[outputs, inputs]`; every offset of a kernel is an output."""
    if isinstance(layer, nn.Linear):
        return layer.weight
    kernel = layer.weight.flatten(2)  # [out, in / groups, offsets]
    parts = [part.permute(0, 2, 1).flatten(0, 1) for part in kernel.chunk(layer.groups)]
    return torch.block_diag(*parts)


def pairwise_order(mi: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the channel with the least energy that its nearest kept channel does not explain, until none is left.

    Args:
        mi: `[C, C]` nats.
        energy: `[C]` what each channel adds to the variance of the outputs alone.

    Returns:
        `[C]` int64, the order of dropping, and the cost of each in this order; `[C]` float32.
    """
    left = (-2 * mi.float().clamp(min=0)).exp().fill_diagonal_(1.0)
    order, cost = [], []
    alive = torch.ones(len(mi), dtype=torch.bool, device=mi.device)
    for _ in range(len(mi)):
        unexplained = energy * left.masked_fill(~alive, 1.0).amin(1)
        order.append(unexplained.masked_fill(~alive, torch.inf).argmin())
        cost.append(unexplained[order[-1]])
        alive[order[-1]] = False
    return torch.stack(order), torch.stack(cost)


def conditional_order(covariance: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the channel whose loss costs the outputs least given all kept ones, until none is left.

    Without channel d least squares changes the weights to `W - w_d r^T`, `r = (C^-1)_d / (C^-1)_dd`, and the error
    grows by `|w_d|^2 / (C^-1)_dd`.

    Args:
        covariance: `C [C, C]` of the channels.
        gram: `W^T W [C, C]` of the weights that read them.

    Returns:
        As `pairwise_order`.
    """
    covariance, gram = covariance.double(), gram.double()
    variance = covariance.diagonal()
    floor = variance.mean().clamp_min(1e-30) * 1e-12
    ridge = torch.diag(VARIANCE_RIDGE * variance + floor)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance + ridge))
    order, cost = [], []
    alive = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    for _ in range(len(gram)):
        price = (gram.diagonal() / inverse.diagonal()).masked_fill(~alive, torch.inf)
        d = price.argmin()
        order.append(d)
        cost.append(price[d])
        alive[d] = False
        share = (inverse[d] / inverse[d, d]).masked_fill(~alive, 0.0)
        share[d] = 1.0
        gram = (
            gram - torch.outer(gram[d], share) - torch.outer(share, gram[d]) + gram[d, d] * share.outer(share)
        )
        inverse = inverse - inverse[d].outer(inverse[d]) / inverse[d, d]
        inverse.diagonal().masked_fill_(~alive, 1.0)
    return torch.stack(order), torch.stack(cost).float()
