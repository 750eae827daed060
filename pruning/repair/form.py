"""What a layer does with the outputs of its FFNs, found by experiment.

Four forms are known:

- sum: the layer outputs `skipped + scale * added` (Llama; Granite has a scale that is not 1).
- mixture: it outputs `skipped + sum_k gain_k * added_k` over its experts k, with a gain for each token.
- normalized sum: it outputs a norm of `read + added` (BERT). We fit the sum in front of the norm.
- normalized: it outputs `skipped + norm(added)`, with an RMS norm (Gemma 2 and 3, OLMo 2). Linearized at the output of
  the FFN, token t has the gain `weight / rms(added_t)`, another one in each dimension.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.model.ffn import FFN
from pruning.observe.batches import select_tokens
from pruning.observe.neurons import Neurons, OnNeurons

ADVICE = "use repair='lstsq' for this model"
TINY = torch.finfo(torch.float32).tiny
TOLERANCE = 0.1
"""Largest relative deviation from a form that counts as rounding in 16 bits."""

Run = Callable[[OnNeurons], Tensor]
"""Runs the layer on a batch and returns its output `[T, d]`, without padding."""


@dataclass(frozen=True)
class Form:
    """What a layer does with the outputs of its FFNs.

    Attributes:
        scale: by which the output of the only FFN is multiplied, or those of the routed experts beside their gates.
        is_mixture: whether there are several FFNs.
        normalizes_sum: whether it is a normalized sum.
        norm: `[d]` float32, the weight of the norm of the output of the only FFN, or None.
        epsilon: of that norm, added to the mean square.
        block_is_ffn: whether the block of the only FFN can be run on its own.
    """

    scale: float = 1.0
    is_mixture: bool = False
    normalizes_sum: bool = False
    norm: Tensor | None = None
    epsilon: float = 0.0
    block_is_ffn: bool = False

    def rms(self, added: Tensor) -> Tensor:
        """The root mean square that the norm divides each row by, `[T, 1]` float32."""
        return (added.float().square().mean(1, keepdim=True) + self.epsilon).sqrt().clamp_min(1e-12)

    def outcome(self, after: Tensor, parts: Sequence[Neurons]) -> Tensor:
        """`[T, d]` float32, what repair brings closest to the dense stream: the output of the layer `after`, or the sum
        in front of its norm."""
        if self.normalizes_sum:
            return parts[0].read.float() + parts[0].added.float()
        return after.float()

    def gains(self, parts: Sequence[Neurons], after: Tensor, run: Run) -> list[Tensor]:
        """For each FFN that ran `[t, 1]` or `[t, d]` float32, by what its output is multiplied.

        Args:
            after: `[T, d]`, the output of the layer.
            run: runs it again, to measure the gains of experts that all tokens share.
        """
        gains = []
        for part in parts:
            if self.norm is not None:
                gains.append(self.norm / self.rms(part.added))
            elif part.gates is not None:
                gains.append(self.scale * part.gates.float()[:, None])
            elif self.is_mixture and not part.ffn.is_routed:
                gains.append(_gain_of_each_token(part.ffn, after, run))
            else:
                gains.append(torch.full_like(part.added[:, :1], self.scale, dtype=torch.float32))
        return gains


def find_form(ffns: Sequence[FFN], real: Tensor | None, run: Run) -> Form:
    """What the layer of these FFNs does with their outputs.

    Args:
        real: which positions `[B, L]` of the batch are tokens; None if all are.

    Raises:
        ValueError: none of the known forms.
    """
    parts: list[Neurons] = []
    with _leaf_calls(ffns[0].layer) as calls:
        after = run(lambda part: parts.append(part)).float()
    if any(part.added.shape[1] != after.shape[1] for part in parts):
        raise ValueError(
            f"{ffns[0].name}: expected FFNs that write to the hidden states, got others; {ADVICE}"
        )
    if any(part.ffn.is_routed and part.gates is None and part.n_rows != len(after) for part in parts):
        raise ValueError(f"{ffns[0].name}: expected experts whose routing is known, got others; {ADVICE}")
    if len(ffns) > 1:
        return Form(_scale_of_mixture(ffns, after, run), is_mixture=True)
    if len(parts) != 1:
        raise ValueError(
            f"{ffns[0].name}: expected its layer to run it once, got {len(parts)} times; {ADVICE}"
        )
    part = parts[0]
    added = part.added.float()
    # For each token the addition is as large as the output of the layer; a smaller one would be lost in rounding.
    more = added * (after.norm(dim=1, keepdim=True) / added.norm(dim=1, keepdim=True).clamp_min(TINY))
    if not torch.isfinite(more).all():
        return Form()  # for which the error is raised when the neurons are recorded
    if not more.any():
        return Form(block_is_ffn=_is_ffn(part))
    change = run(lambda _part: more).float() - after
    scale = float((change * more).sum() / more.square().sum())
    if float((change - scale * more).norm()) < TOLERANCE * float(change.norm()):
        return Form(1.0 if abs(scale - 1) < 0.01 else scale, block_is_ffn=_is_ffn(part))
    inputs = [
        (select_tokens(x, real).float(), select_tokens(y, real).float())
        for x, y in calls
        if x.shape == y.shape and _is_of_tokens(x, real, added)
    ]
    if inputs and _close(inputs[-1][0], part.read.float() + added):
        return Form(normalizes_sum=True)
    for x, y in inputs:
        if torch.equal(x, added) and not torch.equal(x, y):
            form = _norm(added, y)
            if form.norm is not None and _close(form.norm * added / form.rms(added), y):
                return form
    raise ValueError(
        f"{part.ffn.name}: expected a layer that adds the output of its FFN, or normalizes it, got neither; {ADVICE}"
    )


def _is_of_tokens(x: Tensor, real: Tensor | None, added: Tensor) -> bool:
    """Whether x is `[B, L, d]` or `[B x L, d]`; a layer may also have modules that read attention scores."""
    n_positions = len(added) if real is None else real.numel()
    return x.ndim in (2, 3) and x.shape[-1] == added.shape[1] and x.shape[:-1].numel() == n_positions


def _norm(added: Tensor, normed: Tensor) -> Form:
    """The RMS norm that makes `normed` of `added`, if it is one."""
    squares = added.square().mean(1)
    large = squares >= squares.median()  # for which epsilon does not matter
    unit = added[large] / squares[large].sqrt()[:, None]
    norm = (normed[large] * unit).sum(0) / unit.square().sum(0).clamp_min(TINY)
    smallest = int(squares.argmin())
    scaled = norm * added[smallest]
    divisor = scaled.square().sum() / (scaled @ normed[smallest]).clamp_min(TINY)
    return Form(norm=norm, epsilon=max(float(divisor.square() - squares[smallest]), 0.0))


def _scale_of_mixture(ffns: Sequence[FFN], after: Tensor, run: Run) -> float:
    """By what the outputs of routed experts are multiplied beside their gates."""
    total = torch.zeros_like(after[:, :1])

    def add(part: Neurons) -> Tensor | None:
        if not part.ffn.is_routed or part.token is None:
            return None
        gates = torch.ones_like(part.added[:, 0]) if part.gates is None else part.gates
        total.index_add_(0, part.token, gates.to(total)[:, None])
        return after[part.token]

    change = run(add).float() - after
    expected = total * after
    if not expected.any():
        return 1.0
    scale = float((change * expected).sum() / expected.square().sum())
    if not _close(scale * expected, change):
        raise ValueError(
            f"{ffns[0].name}: expected a layer that adds the outputs of its experts, got another one"
        )
    return scale


def _gain_of_each_token(ffn: FFN, after: Tensor, run: Run) -> Tensor:
    """By what the layer multiplies the output of one FFN, `[T, 1]`."""
    after = after.float()
    change = run(lambda part: after if part.ffn is ffn else None).float() - after
    return (change * after).sum(1, keepdim=True) / after.square().sum(1, keepdim=True).clamp_min(TINY)


def _close(values: Tensor, expected: Tensor) -> bool:
    return float((values - expected).norm()) < TOLERANCE * float(expected.norm())


def _is_ffn(part: Neurons) -> bool:
    """Whether the block maps the input of the FFN to its output and does nothing else."""
    if part.ffn.block is part.ffn.layer:
        return False
    try:
        with torch.no_grad():
            output = part.ffn.block(part.read)
    except (TypeError, RuntimeError, ValueError):  # it needs other arguments
        return False
    return (
        isinstance(output, Tensor)
        and output.shape == part.added.shape
        and _close(output.float(), part.added.float())
    )


@contextmanager
def _leaf_calls(layer: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The input and output of each module without children that runs, in their order."""
    calls: list[tuple[Tensor, Tensor]] = []

    def record(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor) and args[0].ndim > 1:
            calls.append((args[0], output))

    handles = [m.register_forward_hook(record) for m in layer.modules() if not any(m.children())]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
