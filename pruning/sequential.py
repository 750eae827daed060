"""Repair in the order of the layers: each pruned FFN is fitted to what the dense model has after its layer."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruning.capture import evaluation_mode
from pruning.families import FFN
from pruning.lockstep import Step, Stream
from pruning.repair import Projection
from pruning.surgery import prune_ffn, restored_on_error

RIDGE = 0.3
"""Share of each kept neuron's own second moment that pulls its column towards the dense weights. Strong, since what
earlier layers lost is in great part noise to this one; chosen on text that no table reports."""


def repair_in_sequence(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    kept: Iterable[Tensor],
    batches: Sequence[Tensor],
    *,
    intercept: bool,
    refine: bool = False,
    seed: int = 0,
) -> None:
    """Prune the FFNs in place, each with the projection that brings the hidden states back to the dense ones.

    The dense and the pruned stream run side by side. With z the kept neurons in the pruned stream and t what is
    missing to the dense residual, the projection minimises `sum |t - W z - b|^2 / |h|^2` over tokens, h being the
    dense residual (without that weight a few tokens of massive norm decide), with a ridge towards the dense weights.
    It is ridge least squares: closed form, without labels, gradients or hyper-parameters that depend on the model.

    Args:
        kept: for each FFN the neurons that stay, ascending.
        batches: windows of tokens `[B, L]`.
        intercept: whether to fit b.

    Memory: the hidden states of all tokens, twice, on the model's device.

    Raises:
        ValueError: activations that are not finite. The model is then as it was.
    """
    with restored_on_error(ffns), evaluation_mode(model):
        dense = Stream(model, ffns, batches)
        pruned = dense.copy()
        for index, (ffn, keep) in enumerate(zip(ffns, kept, strict=True)):
            hidden, residuals = [], []
            for step in dense.steps(index):
                hidden.append(step.hidden)
                residuals.append(step.residual)
            dense.hidden = hidden
            projection = fit(ffn, keep, pruned.steps(index), residuals, intercept=intercept)
            prune_ffn(ffn, keep, projection)
            pruned.advance(index)


def fit(
    ffn: FFN, keep: Tensor, steps: Iterable[Step], residuals: Iterable[Tensor], *, intercept: bool
) -> Projection:
    """The output projection of the kept neurons that comes closest to the dense residuals `[T, d]`.

    Raises:
        ValueError: activations that are not finite.
    """
    weight = ffn.output.weight.detach()[:, keep].float()  # [d, kept]
    bias = None if ffn.output.bias is None else ffn.output.bias.detach().float()
    size = len(keep) + intercept
    gram = weight.new_zeros(size, size)
    cross = weight.new_zeros(size, len(weight))
    for step, residual in zip(steps, residuals, strict=True):
        z = step.z[:, keep].float()
        missing = residual - step.skipped - z @ weight.t()
        if bias is not None:
            missing -= bias
        if intercept:
            z = torch.cat([z, z.new_ones(len(z), 1)], dim=1)
        importance = residual.square().mean(1, keepdim=True).clamp_min(1e-12).reciprocal()
        gram.addmm_((z * importance).t(), z)
        cross.addmm_((z * importance).t(), missing)
    if not (torch.isfinite(gram).all() and torch.isfinite(cross).all()):
        raise ValueError(
            f"{ffn.name}: expected finite activations in the pruned model, got NaN or infinite ones"
        )
    change = _ridge(gram, cross, n_penalised=len(keep)).t()  # [d, size]
    if intercept:
        bias = change[:, -1] if bias is None else bias + change[:, -1]
    return Projection(weight + change[:, : len(keep)], bias)


def _ridge(gram: Tensor, cross: Tensor, *, n_penalised: int) -> Tensor:
    """Solve in float64, in units in which each regressor has a second moment of 1; the last may be free."""
    gram, cross = gram.double(), cross.double()
    scale = gram.diagonal().sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    system = gram / torch.outer(scale, scale)
    system.diagonal()[:n_penalised] += RIDGE
    solution = torch.cholesky_solve(cross / scale[:, None], torch.linalg.cholesky(system))
    return (solution / scale[:, None]).float()
