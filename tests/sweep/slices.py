"""What a pruned model lacks, found from the two state dicts alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]


class MismatchError(Exception):
    """A tensor of the pruned model is not the dense one without some slices."""


@dataclass(frozen=True)
class Cut:
    """The slices along `axis` that are left of a tensor.

    Attributes:
        kept: increasing indices `[n]`, or for each entry of axis 0, as experts keep neurons of their own, `[E, n]`.
        scale: what the slices were multiplied with: not 1 where a norm over the neurons needs it.
    """

    axis: int
    kept: Tensor
    scale: float = 1.0

    def mask(self, tensor: Tensor) -> Tensor:
        """The dense tensor with zeros in place of the slices that are gone."""
        keep = torch.zeros(tensor.shape[self.axis], dtype=torch.bool)
        if self.kept.ndim == 1:
            keep[self.kept] = True
            keep = keep.view([-1 if i == self.axis else 1 for i in range(tensor.ndim)])
        else:
            keep = keep.repeat(len(tensor), 1).scatter_(1, self.kept, True)
            if tensor.ndim == 3:
                keep = keep.unsqueeze(2 if self.axis == 1 else 1)
        return torch.where(keep, tensor, torch.zeros_like(tensor))


def cuts(dense: State, pruned: State) -> dict[str, Cut]:
    """Of every tensor that differs.

    Raises:
        MismatchError: other names, or a tensor that is not the dense one without some slices along one axis.
    """
    if odd := sorted(set(dense) ^ set(pruned)):
        raise MismatchError(f"tensors appear or vanish: {', '.join(odd[:3])}")
    stacks = {name.rpartition(".")[0] for name, tensor in dense.items() if tensor.ndim == 3}
    found = {}
    for name, before in dense.items():
        after = pruned[name]
        if before.shape == after.shape:
            if not torch.equal(before.nan_to_num(), after.nan_to_num()):
                raise MismatchError(f"{name}: other values in a tensor of the same shape")
            continue
        axes = [i for i, (a, b) in enumerate(zip(before.shape, after.shape, strict=False)) if a != b]
        if before.ndim != after.ndim or len(axes) != 1:
            raise MismatchError(f"{name}: {list(before.shape)} became {list(after.shape)}")
        found[name] = _cut(name, before, after, axes[0], stacked=name.rpartition(".")[0] in stacks)
    return found


def _cut(name: str, before: Tensor, after: Tensor, axis: int, *, stacked: bool) -> Cut:
    """`stacked`: the entries of axis 0 are experts, which may keep slices of their own."""
    if stacked and axis > 0:
        kept = [
            _subsequence(a, b) for a, b in zip(*(t.movedim(axis, 1) for t in (before, after)), strict=True)
        ]
        if all(k is not None for k in kept):
            return Cut(axis, torch.stack(kept))  # type: ignore[arg-type]
        raise MismatchError(f"{name}: an expert has slices that the dense one lacks, or in another order")
    kept_slices = _subsequence(before.movedim(axis, 0), after.movedim(axis, 0))
    if kept_slices is not None:
        return Cut(axis, kept_slices)
    # A norm over n neurons divides by the root of their mean square, which k kept ones change by sqrt(n / k).
    for scale in (math.sqrt(len(before) / len(after)), math.sqrt(len(after) / len(before))):
        if before.ndim == 1 and (kept := _subsequence(before * scale, after, exact=False)) is not None:
            return Cut(axis, kept, scale)
    raise MismatchError(f"{name}: slices along axis {axis} that the dense tensor lacks, or in another order")


def _subsequence(before: Tensor, after: Tensor, *, exact: bool = True) -> Tensor | None:
    """The first increasing indices with `before[indices]` equal to `after`; None if there are none."""
    before, after = before.flatten(1) if before.ndim > 1 else before[:, None], after.reshape(len(after), -1)
    kept, start = [], 0
    for row in after:
        rest = before[start:]
        same = (rest == row).all(1) if exact else torch.isclose(rest, row, rtol=1e-4, atol=1e-7).all(1)
        if not same.any():
            return None
        kept.append(start + int(same.to(torch.uint8).argmax()))
        start = kept[-1] + 1
    return torch.tensor(kept)


def masked(model: nn.Module, found: Mapping[str, Cut]) -> nn.Module:
    """The dense model, in place, with zeros in place of the slices that are gone from the pruned one."""
    tensors = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, cut in found.items():
            tensors[name].copy_(cut.mask(tensors[name]))
    return model
