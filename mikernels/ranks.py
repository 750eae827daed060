"""Processes that compute together: those of a group of torch.distributed, or this one alone."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mikernels.errors import RankError

T = TypeVar("T")


class Ranks:
    """The processes of a group, each of which has a rank, and what they exchange.

    All of them call the same methods in the same order. Each exchange begins with a vote: where one process has failed,
    all others raise a `RankError` with its message instead of waiting for it. With one process every method is trivial.

    Attributes:
        group: of `torch.distributed`; None for this process alone.
        index: the rank of this process, from 0.
        count: how many processes there are.

    Raises:
        TypeError: not a group.
        ValueError: a group that this process is not in.
    """

    def __init__(self, group: Any = None) -> None:
        """Args: group: of `torch.distributed`; None for this process alone."""
        self.index, self.count, self.group = 0, 1, group
        if group is None:
            return
        if not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
            raise TypeError(
                f"process_group: expected a group of torch.distributed or None, got {type(group).__name__}"
            )
        self.index, self.count = dist.get_rank(group), dist.get_world_size(group)
        if self.index < 0:
            raise ValueError("process_group: expected a group that this process is in, got another")
        only_cuda = "cpu" not in dist.get_backend_config(group)
        self._device = torch.device("cuda", torch.cuda.current_device()) if only_cuda else torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and decides."""
        return self.index == 0

    def share(self, items: T) -> T:
        """Every `count`-th of a sequence, beginning at the rank: together the processes have all of it."""
        return items if self.count == 1 else items[self.index :: self.count]  # type: ignore[index]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that all processes complete or none does: the error of one is raised on all.

        Processes that are killed, and interrupts, are noticed when their connection ends.
        """
        try:
            yield
            self.wait()
        except Exception as error:
            if self.count > 1 and not _is_known_to_all(error):
                self._vote(error)
            raise

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            self._vote()

    def add(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes, in place."""
        if self.count > 1:
            self._vote()
            for tensor in tensors:
                dense = tensor.contiguous()
                self._exchange(dist.all_reduce, dense)
                if dense is not tensor:
                    tensor.copy_(dense)

    def total(self, number: float) -> float:
        """The sum of a number over all processes, exact for integers below 2^53."""
        if self.count == 1:
            return number
        found = torch.tensor([number], dtype=torch.float64, device=self._device)
        self.add(found)
        return float(found)

    def least(self, *numbers: int) -> list[int]:
        """Of each number the least of all processes."""
        return [min(column) for column in zip(*self.gather(numbers), strict=True)]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks; any that can be pickled, on the CPU."""
        if self.count == 1:
            return [value]
        self._vote()
        return self._gather(value)

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first process, which alone calls it, on all of them."""
        if self.count == 1:
            return make()
        box: list[Any] = [None]
        if self.is_first:
            try:
                box[0] = make()
            except Exception as error:
                self._vote(error)
                raise
        self._vote()
        self._exchange(dist.broadcast_object_list, box, group_src=0, device=self._device)
        return box[0]

    def each_once(
        self, makes: Sequence[Callable[[], Sequence[Tensor]]], device: torch.device
    ) -> list[Sequence[Tensor]]:
        """What each of the functions returns, tensors on `device`; one process calls it, the first one the first."""
        if self.count == 1:
            return [make() for make in makes]
        parts = self.gather([[t.cpu() for t in make()] for make in self.share(makes)])
        return [[t.to(device) for t in parts[i % self.count][i // self.count]] for i in range(len(makes))]

    def copy_first(self, *tensors: Tensor) -> None:
        """Overwrite contiguous tensors with those of the first process."""
        if self.count > 1:
            self._vote()
            for tensor in tensors:
                self._exchange(dist.broadcast, tensor.detach().view(torch.uint8), group_src=0)

    def rows(self, values: Tensor) -> Tensor:
        """The rows of the tensors `[n, ...]` of all processes one after the other; n may differ."""
        if self.count == 1:
            return values
        sizes = self.gather((len(values), values.dtype))
        most, dtype = max(n for n, _ in sizes), max(sizes, key=lambda size: size[0])[1]
        padded = torch.zeros(most, *values.shape[1:], dtype=dtype, device=self._device)
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in sizes]
        self._exchange(dist.all_gather, [p.view(torch.uint8) for p in parts], padded.view(torch.uint8))
        return torch.cat([part[:n] for part, (n, _) in zip(parts, sizes, strict=True)]).to(values.device)

    def check_same(self, values: Mapping[str, object]) -> None:
        """Raise unless all processes have equal values, by name.

        Raises:
            ValueError: they differ.
        """
        expected, *others = self.gather(dict(values))
        for index, got in enumerate(others, 1):
            for name in sorted(expected.keys() | got.keys()):
                if expected.get(name) != got.get(name):
                    error = ValueError(
                        f"{name}: expected the same on all processes, got {expected.get(name)} on rank 0 and "
                        f"{got.get(name)} on rank {index}"
                    )
                    raise _known_to_all(error)

    def _vote(self, error: Exception | None = None) -> None:
        """Tell the other processes whether this one has failed.

        Raises:
            RankError: another one has, and this one has not.
        """
        failed = torch.tensor([error is not None], dtype=torch.int32, device=self._device)
        self._exchange(dist.all_reduce, failed, op=dist.ReduceOp.MAX)
        if not failed:
            return
        told = self._gather(None if error is None else f"{error}" or type(error).__name__)
        if error is not None:
            _known_to_all(error)
            return
        index, text = next((i, text) for i, text in enumerate(told) if text is not None)
        raise _known_to_all(RankError(f"rank {index} of {self.count}: {text}"))

    def _gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.count
        self._exchange(dist.all_gather_object, found, value)
        return found

    def _exchange(self, call: Callable[..., object], *arguments: object, **options: object) -> None:
        """Call a function of `torch.distributed` on the group.

        Raises:
            RankError: it fails.
        """
        try:
            call(*arguments, group=self.group, **options)
        except RuntimeError as error:
            raise _known_to_all(
                RankError(
                    f"process_group: expected an answer of all {self.count} processes, got an error, as when one of "
                    f"them has ended: {str(error).split('. ')[0].strip()}"
                )
            ) from error


ALONE = Ranks()


def checksum(values: Tensor) -> str:
    """A digest of the shape, the dtype and the sums of the bits of a matrix along both dimensions."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = values.detach().view(integers[values.element_size()])
    digest = hashlib.sha256(f"{list(values.shape)} {values.dtype}".encode())
    for dim in range(values.ndim):
        digest.update(bits.sum(dim, dtype=torch.int64).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _known_to_all(error: Exception) -> Exception:
    """The error, marked as one that every process has raised or learned of: there is no other vote on it."""
    error.is_known_to_all = True  # type: ignore[attr-defined]
    return error


def _is_known_to_all(error: BaseException | None) -> bool:
    """Whether it, or what it was raised from, is marked."""
    return error is not None and (
        getattr(error, "is_known_to_all", False) or _is_known_to_all(error.__cause__ or error.__context__)
    )
