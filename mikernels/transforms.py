"""Transform samples to what the kernels see: normal scores of ranks, or standardized values.

Under the rank transform every column holds the same M normal scores in some order. Mutual information then does not
change under monotone maps of a neuron, heavy tails do no harm, and all neurons share their margins and kernel
tables. Equal values are ranked at random, independently in each column: ranked by index, two independent neurons
that are mostly zero would seem to share 0.6 nats.

A value that many samples share, such as the zero of a ReLU, is an *atom* (`mikernels.atoms`): it gets a cell of its
own, over which no kernel smooths, and the other samples are ranked among themselves.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mikernels.atoms import Atoms, codes_of_sorted, may_repeat
from mikernels.caches import cached
from mikernels.options import Transform

CPU_CHUNK_BYTES = 2**21
GPU_CHUNK_BYTES = 2**26
"""Size of the sort keys of one chunk of columns: about the cache of a CPU, and on other devices enough for their cores,
since each chunk takes 20 launches. Ranking a chunk with ties takes up to 17 times as much memory."""


OUTSIDE = 10.0
"""Beyond every normal score."""
REACH = 40.0
"""Bandwidths at which a Gaussian kernel is 0 even in float64."""


@dataclass(frozen=True)
class Variables:
    """N transformed variables of M samples.

    Attributes:
        data: `[N, M]`, ranks 0..M-1 as int32 under the rank transform, where a sample in atom a is -1 - a; otherwise
            standardized values (float64 if the input is float64, otherwise float32).
        constant: `[N]` bool, columns with a single value, which carry no information.
        atoms: of the columns; None if no column has any.
    """

    data: Tensor
    constant: Tensor
    atoms: Atoms | None = None

    @property
    def ranked(self) -> bool:
        return not self.data.is_floating_point()

    def __len__(self) -> int:
        return self.data.shape[0]

    def __getitem__(self, columns: slice) -> "Variables":
        """Some of the variables."""
        atoms = None if self.atoms is None else Atoms(*(t[columns] for t in self.atoms))
        return Variables(self.data[columns], self.constant[columns], atoms)

    @property
    def n_samples(self) -> int:
        return self.data.shape[1]

    @property
    def share_margins(self) -> bool:
        """Whether all columns hold the same scores in some order."""
        return self.ranked and self.atoms is None

    @property
    def has_atoms(self) -> bool | Tensor:
        """Whether any column has; not on a CPU a tensor, so that nothing waits for the device."""
        if self.atoms is None:
            return False
        return self.data.device.type == "cpu" or (self.atoms.number > 0).any()

    @property
    def continuous_share(self) -> Tensor:
        """Of the samples, outside of atoms: `[N]` float64."""
        if self.atoms is None:
            return torch.ones(len(self), dtype=torch.float64, device=self.data.device)
        return self.atoms.rest.double() / self.n_samples

    def scores(
        self, columns: slice = slice(None), dtype: torch.dtype = torch.float32, bandwidth: float = 1.0
    ) -> Tensor:
        """The values that the kernels see, `[n, M]`. Atoms lie apart, where a kernel of the bandwidth is 0."""
        data = self.data[columns]
        if not self.ranked:
            return data.to(dtype)
        table = _score_table(self.n_samples, self.data.device, dtype)
        if self.atoms is None:
            return table[data]
        apart = OUTSIDE - REACH * max(1.0, bandwidth) * data.to(dtype)
        return torch.where(data < 0, apart, table[data.clamp(min=0)])


def normal_scores(n_samples: int) -> Tensor:
    """Normal quantiles of the ranks, `Phi^-1((r + 1/2) / M)` for r = 0..M-1: `[M]` float64 on the CPU."""
    ranks = torch.arange(n_samples, dtype=torch.float64)
    return torch.special.ndtri((ranks + 0.5) / n_samples)


@cached(maxsize=8)
def _score_table(n_samples: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return normal_scores(n_samples).to(device, dtype)


def transform_samples(x: Tensor, transform: Transform, *, seed: int, most_atoms: int = 0) -> Variables:
    """Rank or standardize the columns of `x [M, N]`, a few columns at a time.

    `most_atoms`: cells of a column for atoms under the rank transform (`mikernels.atoms`); 0 ranks all together.
    """
    n_samples, n_variables = x.shape
    dtype = transformed_dtype(x.dtype, transform)
    data = x.new_empty(n_variables, n_samples, dtype=dtype)
    constant = torch.empty(n_variables, dtype=torch.bool, device=x.device)
    found: list[Atoms] = []
    has_atoms = False
    for columns in column_chunks(n_variables, n_samples, x.device):
        values = x[:, columns].t().contiguous()  # [n, M]
        low, high = values.aminmax(dim=1)
        constant[columns] = low == high
        if transform == "rank":
            data[columns], atoms = _ranks(values, columns.start, seed, most_atoms)
            has_atoms |= atoms is not None
            found.append(atoms or Atoms.none(len(values), n_samples, x.device))
        else:
            data[columns] = _standardized(values, torch.maximum(low.abs(), high.abs())).to(dtype)
    return Variables(data, constant, Atoms(*map(torch.cat, zip(*found, strict=True))) if has_atoms else None)


def transformed_dtype(dtype: torch.dtype, transform: Transform) -> torch.dtype:
    """Of what `transform_samples` makes of values of a dtype."""
    if transform == "rank":
        return torch.int32
    return torch.float64 if dtype in (torch.float64, torch.int64, torch.uint64) else torch.float32


def _standardized(values: Tensor, largest: Tensor) -> Tensor:
    """Rows of `values [n, M]` with mean 0 and standard deviation 1, or 0 if constant, in float64."""
    # Scale to [-1, 1] first, so that neither the sum nor the squares leave the range of float64.
    centered = values.double() / largest.double().clamp_min(5e-324)[:, None]
    centered -= centered.mean(dim=1, keepdim=True)
    deviation = centered.square().mean(dim=1, keepdim=True).sqrt()
    return centered.div_(deviation.masked_fill(deviation == 0, 1.0))


def column_chunks(n_variables: int, n_samples: int, device: torch.device) -> Iterator[slice]:
    """Slices of columns whose sort keys take about as much as suits the device."""
    step = max(1, (CPU_CHUNK_BYTES if device.type == "cpu" else GPU_CHUNK_BYTES) // (8 * n_samples))
    for start in range(0, n_variables, step):
        yield slice(start, min(start + step, n_variables))


def _ranks(values: Tensor, first_column: int, seed: int, most_atoms: int) -> tuple[Tensor, Atoms | None]:
    """Rank of each value in its row of `values [n, M]`, 0..M-1, random among equal values: int32 `[n, M]`; and atoms.

    One stable sort of integer keys, with the value in the high bits and random bits below, so the result depends
    neither on ties nor on how a device sorts. Keys of 16-bit values have 32 bits, which halves the time.
    """
    index = torch.arange(values.shape[1], device=values.device)
    column = torch.arange(len(values), device=values.device)[:, None] + first_column
    value, random = _ordered_bits(values), hash32(index, column, seed)
    if value.dtype == torch.int16:
        value, random, bits = value.int(), (random >> 16).int(), 16
    else:
        value, bits = value.long(), 32
    key = (value << bits) | random
    order = _stable_order(key, index)
    ranks = torch.empty_like(order, dtype=torch.int32)
    places = torch.arange(values.shape[1], dtype=torch.int32, device=values.device).expand_as(ranks)
    atoms = None
    if may_repeat(value, order, most_atoms):
        places, atoms = codes_of_sorted(value.gather(1, order), most_atoms)
        if atoms.number.device.type == "cpu" and not any(atoms.number.tolist()):
            atoms = None
    return ranks.scatter_(1, order, places), atoms


@functools.cache
def _has_numpy() -> bool:
    try:
        import numpy  # noqa: F401
    except ImportError:
        return False
    return True


def _stable_order(key: Tensor, index: Tensor) -> Tensor:
    """`index [M]` in the order of a stable sort of each row of `key [n, M]`.

    On a CPU NumPy sorts, if it is there: it is vectorized (a third of torch's time) but not stable. Keys of 32 bits
    therefore get the index appended, and keys of 64 bits are all different, since `hash32` is one-to-one in its first
    argument.
    """
    if key.device.type != "cpu" or not _has_numpy():
        return key.sort(dim=1, stable=True).indices
    import numpy as np

    if key.dtype == torch.int32:
        return torch.from_numpy(np.sort(((key.long() << 32) | index).numpy(), axis=1)).bitwise_and_(
            0xFFFFFFFF
        )
    return torch.from_numpy(np.argsort(key.numpy(), axis=1))


def _ordered_bits(values: Tensor) -> Tensor:
    """Integers in the order of `values [n, M]`, equal for equal values: int16 for 16-bit values, otherwise int32."""
    if (
        values.dtype == torch.float64
    ):  # the index among distinct values: 64-bit values would leave no bits for ties
        ordered, order = values.sort(dim=1)
        run = torch.zeros_like(order, dtype=torch.int32)
        torch.cumsum(ordered[:, 1:] != ordered[:, :-1], dim=1, out=run[:, 1:])
        return torch.empty_like(run).scatter_(1, order, run)
    # IEEE numbers are sign and magnitude: flipping the magnitude bits of negative numbers puts them in order.
    bits = (values + 0.0).view(torch.int16 if values.dtype.itemsize == 2 else torch.int32)  # -0.0 becomes 0.0
    info = torch.iinfo(bits.dtype)
    return bits ^ ((bits >> (info.bits - 1)) & info.max)


def hash32(index: Tensor, column: Tensor, seed: int) -> Tensor:
    """32 pseudorandom bits (as int64) that depend only on the arguments: the same on every device and for any chunk.

    The finalizer of MurmurHash3 applied to a sum of multiples of the arguments.
    """
    mask = 0xFFFFFFFF
    bits = index * 0x9E3779B1 + (column * 0x7FEB352D + ((seed * 0x846CA68B) & mask))
    bits &= mask
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits ^= bits >> shift
        bits *= factor
        bits &= mask
    bits ^= bits >> 16
    return bits
