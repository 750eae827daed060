"""Keeping the weights of FFNs and putting them back.

A snapshot holds references, not copies: `pruning.model.surgery` replaces parameters and never changes them in place.
It costs memory only once the FFNs have other weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn

from pruning.model.ffn import FFN


class Snapshot(NamedTuple):
    """Of each module, its own parameters, and its integer attributes that follow the widths."""

    parameters: list[tuple[nn.Module, dict[str, nn.Parameter | None]]]
    attributes: list[tuple[nn.Module, str, int]]


def take_snapshot(ffns: Sequence[FFN]) -> Snapshot:
    """The current parameters of the FFNs."""
    owners = dict.fromkeys(owner for ffn in ffns for part in ffn.projections for owner in part.owners)
    owners |= dict.fromkeys(owner for ffn in ffns for owner, _ in ffn.vectors)
    attributes = dict.fromkeys(
        [(module, name) for ffn in ffns for module, name, _ in ffn.attributes]
        + [
            (owner, name)
            for owner in owners
            if isinstance(owner, nn.Linear)
            for name in ("in_features", "out_features")
        ]
    )
    return Snapshot(
        [(owner, dict(owner._parameters)) for owner in owners],
        [(module, name, getattr(module, name)) for module, name in attributes],
    )


def put_back(snapshot: Snapshot) -> None:
    """Give the FFNs the parameters of the snapshot."""
    for owner, parameters in snapshot.parameters:
        for name, parameter in parameters.items():
            owner.register_parameter(name, parameter)
    for module, name, value in snapshot.attributes:
        setattr(module, name, value)


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
