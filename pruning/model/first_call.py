"""Running a model only up to one of its modules."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn


class Call(NamedTuple):
    """The arguments of a call."""

    args: tuple[Any, ...]
    keywords: dict[str, Any]


class _Stop(Exception):  # noqa: N818, not an error: ends the forward pass
    pass


def first_call(module: nn.Module, run: Callable[[], object]) -> Call:
    """Call `run` until it calls `module`, which is not executed; return the arguments of that call.

    Raises:
        RuntimeError: `run` does not call `module`.
    """
    calls: list[Call] = []

    def stop(_module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        calls.append(Call(args, keywords))
        raise _Stop

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        run()
    except _Stop:
        return calls[0]
    finally:
        handle.remove()
    raise RuntimeError(f"expected a forward pass that calls {type(module).__name__}, got one that does not")
