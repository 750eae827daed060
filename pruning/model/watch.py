"""Observing the products with a model's projections as it runs, whatever kind of module holds them.

Modules call functions of torch with their parameters: `linear`, `addmm`, `matmul` with one expert of a stack, `bmm`
with all of them. So we watch the parameters. That also finds weights that several modules share.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from pruning.model.ffn import Projection

OPERANDS = {
    "linear": (0, 1),
    "matmul": (0, 1),
    "__matmul__": (0, 1),
    "mm": (0, 1),
    "bmm": (0, 1),
    "addmm": (1, 2),
    "baddbmm": (1, 2),
}
"""Positions of the values and the weight among the arguments of the functions that multiply."""

OnProduct = Callable[[Projection, Tensor, Tensor], Tensor | None]
"""Gets a projection, its operand `[..., in]` and the product `[..., out]`; may return another product."""


class Watch(TorchFunctionMode):
    """While active, calls `on_product` for every product with one of the projections."""

    def __init__(self, projections: Sequence[Projection], on_product: OnProduct) -> None:
        super().__init__()
        self._on_product = on_product
        self._by_start: dict[tuple[int, int], Projection] = {}  # by storage and offset in it
        self._stacks: dict[int, list[Projection]] = {}  # by storage
        for projection in projections:
            parameter, expert = projection.parameter, projection.expert
            storage = parameter.untyped_storage().data_ptr()
            offset = 0 if expert is None else expert * parameter.stride(0)
            self._by_start[storage, int(parameter.storage_offset() + offset)] = projection
            if expert is not None:
                self._stacks.setdefault(storage, []).append(projection)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        operands = OPERANDS.get(getattr(func, "__name__", ""))
        if operands is None or len(args) <= operands[1] or not isinstance(args[operands[1]], Tensor):
            return result
        values, weight = (args[i] for i in operands)
        storage = weight.untyped_storage().data_ptr()
        stack = self._stacks.get(storage)
        if stack is not None and weight.ndim == stack[0].parameter.ndim:  # all experts in one product
            for projection in stack:
                changed = self._on_product(projection, values[projection.expert], result[projection.expert])
                if changed is not None:
                    result[projection.expert] = changed
            return result
        found = self._by_start.get((storage, weight.storage_offset()))
        if found is None or weight.numel() != found.weight.numel():
            return result  # another part of the same storage
        changed = self._on_product(found, values, result)
        return result if changed is None else changed


@contextmanager
def one_by_one(model: Any) -> Iterator[None]:
    """Run the experts of a mixture one by one, so that each product can be observed."""
    if not hasattr(model, "set_experts_implementation"):
        yield
        return
    if hasattr(model, "get_experts_implementation"):
        before = model.get_experts_implementation()
    else:  # transformers 5.17
        before = model.config._experts_implementation
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)
