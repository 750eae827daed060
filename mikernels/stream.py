"""`grid` for samples that arrive in batches: one table of exact counts, whose memory does not grow with M."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mikernels.arrays import Samples, kind_of
from mikernels.atoms import codes_of_sorted, spread
from mikernels.devices import require_float64
from mikernels.errors import SamplesValueError, WorkspaceError
from mikernels.isolation import isolated
from mikernels.memory import CPU_MEMORY_BUDGET
from mikernels.options import make_problem, plain
from mikernels.pairs import Block, fill_matrix
from mikernels.tables.node_shares import entropy, gathered, largest_share, share_table, table_rows
from mikernels.tiling import tiles
from mikernels.torch_impl.grid import joint_to_mi
from mikernels.torch_impl.integer import byte_gram, product_bytes
from mikernels.transforms import hash32
from mikernels.validation import as_samples, read_values

VALUE_BYTES = 48
"""Memory for one value of a batch while its rank is found: six 64-bit numbers."""


class GridStream:
    """Estimate mutual information over a stream of samples, with ranks and the `grid` estimator.

    A `reference` sample fixes how values map to ranks, and which values are atoms (`mikernels.atoms`). After that,
    batches only add to integer counts, so the result does not depend on how the samples are cut into batches. If the
    stream is the reference sample itself, and all equal values of a column are atoms, the counts are those of
    `mutual_information` to the bit.

    Args:
        reference: `[R, N]` samples that are typical of the stream, R >= 8, N >= 2; a few thousand are plenty.
        nodes, bandwidth, device, seed: see `mutual_information`, with R in place of M.
        memory_budget: bytes beyond inputs and result. The counts alone take `8 (N nodes)^2`: 1 GB for 700 variables
            at 16 nodes. For more variables keep a sample of the stream and call `mutual_information`.

    Raises:
        TypeError, ValueError: see `mutual_information`; ValueError if the counts and the work on
            64 samples exceed the budget.
    """

    @isolated()
    def __init__(
        self,
        reference: Samples,
        *,
        nodes: int = 16,
        bandwidth: float | str | None = None,
        device: torch.device | str | None = None,
        memory_budget: int = CPU_MEMORY_BUDGET,
        seed: int = 0,
    ) -> None:
        options = plain({"nodes": nodes, "device": device, "memory_budget": memory_budget, "seed": seed})
        samples = as_samples(reference, "reference", options["device"])
        require_float64(samples.device)
        samples = read_values(samples, "reference")
        self._kind = kind_of(reference)
        n_samples, n_variables = samples.shape
        if n_variables < 2:
            raise SamplesValueError(f"reference: expected at least 2 variables (columns), got {n_variables}")
        problem = make_problem("grid", nodes, bandwidth, n_samples)
        nodes = problem.nodes
        self._nodes = nodes
        self._tile = min(n_variables, max(1, 1024 // nodes))  # variables along one side of a product
        counts = 8 * (n_variables * nodes) ** 2 + product_bytes(self._tile * nodes)
        sample = n_variables * (nodes + VALUE_BYTES)
        budget = CPU_MEMORY_BUDGET if options["memory_budget"] is None else options["memory_budget"]
        if counts + 64 * sample > budget:
            raise WorkspaceError(
                f"memory_budget: expected at least {counts + 64 * sample} bytes for the counts of {n_variables} "
                f"variables at {nodes} nodes, got {budget}"
            )
        # Few enough samples at a time that no int32 sum overflows.
        self._part = min(4096, (budget - counts) // sample)
        self._sorted = samples.t().contiguous().sort(dim=1).values  # [N, R]
        codes, atoms = codes_of_sorted(self._sorted, nodes)
        tied = atoms.number > 0
        table = share_table(n_samples, problem, "int8", samples.device, atoms=bool(tied.any()))
        self._table = table.shares.t().contiguous()  # [G, R or more]
        q = float(largest_share(n_samples))
        self._row_sum = torch.where(tied, q, math.sqrt(table.total)).double()  # [N]
        # Table rows of values that equal the sorted ones, and of values just below them, which no atom takes in.
        before = (codes >= 0).cumsum(1) - (codes >= 0).long()
        rest = atoms.rest[:, None]
        below = torch.where(rest > 0, spread(before.minimum(rest - 1), rest, n_samples), codes)
        self._rows, self._rows_below = (
            table_rows(c, atoms if bool(tied.any()) else None, nodes) for c in (codes, below)
        )
        self._counts = torch.zeros(
            n_variables * nodes, n_variables * nodes, dtype=torch.int64, device=samples.device
        )  # filled on and above the diagonal; each tile is [G, n, G, k]
        self._constant = torch.ones(n_variables, dtype=torch.bool, device=samples.device)
        self._first: Tensor | None = None  # [N] first sample of the stream
        self._seed = options["seed"]
        self.n_samples = 0
        """Samples seen so far."""

    @isolated()
    def update(self, batch: Samples) -> None:
        """Add `batch [B, N]`, of any B >= 1 and any dtype that `mutual_information` accepts.

        Raises:
            TypeError, ValueError: see `mutual_information`; ValueError for another number of variables than in the
                reference.
        """
        n_variables = len(self._sorted)
        samples = read_values(as_samples(batch, "batch", self._sorted.device, min_samples=1), "batch")
        names = kind_of(batch).names
        if names is not None and self._kind.names is not None and list(names) != list(self._kind.names):
            raise SamplesValueError("batch: expected the columns of the reference in their order, got others")
        if samples.shape[1] != n_variables:
            raise SamplesValueError(
                f"batch: expected {n_variables} variables (columns), got {samples.shape[1]}"
            )
        # The wider dtype of both: rounding a batch to the reference's would make other values equal.
        dtype = torch.promote_types(samples.dtype, self._sorted.dtype)
        samples, self._sorted = samples.to(dtype), self._sorted.to(dtype)
        if self._first is None:
            self._first = samples[0].clone()
        for part in samples.split(self._part):
            self._constant &= (part == self._first).all(0)
            features = gathered(self._table, self._table_rows(part))  # [G, N, B]
            for rows, cols in self._tiles():
                counts = self._counts[self._nodes_of(rows), self._nodes_of(cols)]
                counts += byte_gram(features[:, rows], features[:, cols])
            self.n_samples += len(part)

    def mutual_information(self) -> Any:
        """The estimate over all samples seen so far: `[N, N]` float32, in nats, of the kind of the reference.

        Raises:
            ValueError: no samples were added yet.
        """
        return self._kind.matrix(self._estimate())

    @isolated()
    def _estimate(self) -> Tensor:
        if self.n_samples == 0:
            raise ValueError(
                "stream: expected at least one call of update before mutual_information, got none"
            )
        n_variables = len(self._sorted)
        # The table of a variable with itself sums to its margin, times the sum of a row of features.
        margins = [
            self._joint(rows, cols).diagonal(0, 1, 3).sum(1).t()
            for rows, cols in self._tiles()
            if rows == cols
        ]
        h = entropy(torch.cat(margins))
        total = self._row_sum[:, None] * self._row_sum * self.n_samples
        blocks = (
            Block(
                rows.start,
                cols.start,
                joint_to_mi(self._joint(rows, cols), total[rows, cols], h[rows], h[cols]),
            )
            for rows, cols in self._tiles()
        )
        out = torch.empty(n_variables, n_variables, dtype=torch.float32, device=h.device)
        fill_matrix(blocks, out, symmetric=True)
        return out.masked_fill_(self._constant[:, None] | self._constant, 0.0)

    def _tiles(self) -> Iterator[tuple[slice, slice]]:
        """Tiles of the matrix, on and above the diagonal."""
        return tiles(len(self._sorted), len(self._sorted), self._tile, upper=True)

    def _nodes_of(self, variables: slice) -> slice:
        """Rows or columns of the counts."""
        return slice(variables.start * self._nodes, variables.stop * self._nodes)

    def _joint(self, rows: slice, cols: slice) -> Tensor:
        """Joint tables `[G, n, G, k]`."""
        counts = self._counts[self._nodes_of(rows), self._nodes_of(cols)]
        return counts.unflatten(0, (self._nodes, -1)).unflatten(2, (self._nodes, -1))

    def _table_rows(self, samples: Tensor) -> Tensor:
        """Table rows `[N, B]` of `samples [B, N]`, by their places in the reference; random among equal values."""
        values = samples.t().contiguous()  # [N, B]
        low = torch.searchsorted(self._sorted, values)
        equals = torch.searchsorted(self._sorted, values, right=True) - low
        index = torch.arange(self.n_samples, self.n_samples + len(samples), device=values.device)
        column = torch.arange(len(values), device=values.device)[:, None]
        low += (hash32(index, column, self._seed) * equals) >> 32
        low.clamp_(max=self._sorted.shape[1] - 1)
        return torch.where(equals > 0, self._rows.gather(1, low), self._rows_below.gather(1, low))
