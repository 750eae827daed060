"""Keeping the weights of FFNs and putting them back.

A snapshot holds references, not copies: `pruning.model.surgery` replaces parameters and never changes them in place.
It costs memory only once the FFNs have other weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from pruning.model.families import FFN

Snapshot = list[tuple[nn.Linear, dict[str, nn.Parameter]]]


def take_snapshot(ffns: Sequence[FFN]) -> Snapshot:
    """The current parameters of the FFNs."""
    return [(linear, dict(linear.named_parameters())) for ffn in ffns for linear in ffn.projections]


def put_back(snapshot: Snapshot) -> None:
    """Give the FFNs the parameters of the snapshot."""
    for linear, parameters in snapshot:
        linear.out_features, linear.in_features = parameters["weight"].shape
        for name in ("weight", "bias"):
            linear.register_parameter(name, parameters.get(name))


@contextmanager
def restored(ffns: Sequence[FFN]) -> Iterator[None]:
    """Restore the weights of the FFNs after the block."""
    snapshot = take_snapshot(ffns)
    try:
        yield
    finally:
        put_back(snapshot)


@contextmanager
def restored_on_error(ffns: Sequence[FFN]) -> Iterator[None]:
    """Restore the weights of the FFNs if the block raises."""
    snapshot = take_snapshot(ffns)
    try:
        yield
    except BaseException:
        put_back(snapshot)
        raise
