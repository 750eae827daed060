"""Statistics of the activations of each FFN over the calibration tokens: a sample of tokens, and moments."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mikernels.ranks import ALONE, Ranks
from pruning.model.device import input_device
from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.ffn import FFN
from pruning.model.forward import body_of, without_cache
from pruning.observe.batches import Batch, count_tokens, model_inputs
from pruning.observe.moments import add_gram, mirror
from pruning.observe.neurons import Masks, Neurons, observed_neurons

MIN_TOKENS = 64
"""With fewer tokens, the neurons of an expert are ranked by their weights and not repaired."""


@dataclass(frozen=True)
class Statistics:
    """The activations of the neurons of one FFN over the calibration tokens.

    Attributes:
        name: of the FFN.
        sample: `[M, N]`, a uniform random sample of tokens, the same tokens for every FFN that all tokens pass.
        n_tokens: number of calibration tokens; of an expert, those routed to it.
        mean: `[N]` float64.
        covariance: `[N, N]` float32, normalized by `n_tokens`; tokens of an expert weigh as much as its gate squared.
        tokens: `[M]` int64 on the CPU, which tokens of the calibration the sample holds (`pruning.observe.excerpts`);
            -1 for rows that are no tokens, None if unknown.
        is_enough: whether these are enough tokens to rank and repair neurons by; an expert may get fewer.
    """

    name: str
    sample: Tensor
    n_tokens: int
    mean: Tensor
    covariance: Tensor
    is_enough: bool = True
    tokens: Tensor | None = None

    def covariance_of(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Of the neurons `rows` with the neurons `columns`, `[rows, columns]` float64."""
        return self.covariance[rows][:, columns].double()

    def second_moment(self, rows: Tensor, columns: Tensor) -> Tensor:
        """`E[z z^T]` of the neurons `rows` with the neurons `columns`, `[rows, columns]` float64."""
        return self.covariance_of(rows, columns).addr_(self.mean[rows], self.mean[columns])

    @property
    def mean_square(self) -> Tensor:
        """`E[z^2]`, `[N]` float64."""
        return self.covariance.diagonal().double() + self.mean.square()


class Recorder:
    """Records the activations of one FFN in bounded memory: a reservoir sample and running central moments.

    Of several processes each adds its own tokens, and all get the statistics of all tokens. Each one draws keys of its
    own for the sample, so that it depends on their number which tokens are in it.
    """

    def __init__(
        self,
        name: str,
        width: int,
        sample_size: int,
        *,
        seed: int,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.name = name
        self._ranks = ranks
        self.sample_size = sample_size
        self.n_tokens = 0
        self._weight = 0.0
        # Equal seeds draw equal keys, so that the sample holds the same tokens for every FFN.
        self._generator = torch.Generator().manual_seed(seed + ranks.index)
        self._keys = torch.empty(0, dtype=torch.float64)
        self._tokens = torch.empty(0, dtype=torch.int64)
        self._sample: Tensor | None = None
        self._mean = torch.zeros(width, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(width, width, device=device)  # sum (z - mean) (z - mean)^T

    @classmethod
    def of(cls, ffn: FFN, sample_size: int, *, seed: int, ranks: Ranks = ALONE) -> "Recorder":
        return cls(ffn.name, ffn.width, sample_size, seed=seed, device=ffn.output.weight.device, ranks=ranks)

    def add(self, z: Tensor, gates: Tensor | None = None, tokens: Tensor | None = None) -> None:
        """Add the activations `z [T, N]` of T tokens.

        Args:
            tokens: `[T]`, which tokens of the calibration of this process these are.
            gates: `[T]`, by which a mixture multiplies the outputs of this expert. The moments weigh each token by the
                square of its gate, which is how much its error counts in the output of the mixture.

        Raises:
            ValueError: NaN or infinite activations.
        """
        if not torch.isfinite(z).all():
            nan, infinite = int(torch.isnan(z).sum()), int(torch.isinf(z).sum())
            raise ValueError(
                f"{self.name}: expected finite activations, got {nan} NaN and {infinite} infinite of "
                f"{z.numel()} values"
            )
        if len(z):
            self._add_sample(z, torch.full((len(z),), -1) if tokens is None else tokens.cpu())
            self._add_moments(z, gates)

    def finish(self) -> Statistics:
        """The statistics of all tokens added, by all processes."""
        sample = self._mean.new_empty(0, len(self._mean)) if self._sample is None else self._sample
        if self._ranks.count > 1:
            sample = self._merge(sample)
        covariance = mirror(self._scatter).div_(self._weight or 1)
        del self._scatter  # nothing can be added any more
        return Statistics(self.name, sample, self.n_tokens, self._mean, covariance, tokens=self._tokens)

    def _merge(self, sample: Tensor) -> Tensor:
        """Make the moments those of all processes; returns the sample of all tokens."""
        weight = self._ranks.total(self._weight)
        mean = self._mean * (self._weight / (weight or 1))
        self._ranks.add(mean)
        apart = (self._mean - mean) * self._weight**0.5
        self._scatter.addr_(apart.float(), apart.float())
        self._ranks.add(self._scatter)
        self._mean, self._weight = mean, weight
        self.n_tokens = int(self._ranks.total(self.n_tokens))
        keys = self._ranks.rows(self._keys)
        order = keys.argsort()[: self.sample_size]
        # Rows travel only if their keys are among the smallest of all.
        before = sum(self._ranks.gather(len(self._keys))[: self._ranks.index])
        mine = order[(order >= before) & (order < before + len(self._keys))].sort().values
        places = order.argsort().argsort()
        tokens = torch.where(self._tokens < 0, -1, self._tokens * self._ranks.count + self._ranks.index)
        self._tokens = self._ranks.rows(tokens[mine - before])[places]
        rows = self._ranks.rows(sample[(mine - before).to(sample.device)])
        return rows[places.to(rows.device)]

    def _add_sample(self, z: Tensor, tokens: Tensor) -> None:
        # Each token draws a random key. Keeping the smallest keys gives a uniform sample without replacement.
        keys = torch.cat([self._keys, torch.rand(len(z), generator=self._generator, dtype=torch.float64)])
        pool = z.detach() if self._sample is None else torch.cat([self._sample, z.detach()])
        kept = keys.argsort()[: self.sample_size]
        self._keys, self._sample = keys[kept], pool[kept.to(pool.device)]
        self._tokens = torch.cat([self._tokens, tokens])[kept]

    def _add_moments(self, z: Tensor, gates: Tensor | None) -> None:
        # Chan, Golub, LeVeque 1983; the batch is centered first, so that large means cost no precision.
        self.n_tokens += len(z)
        values = z.detach().float()
        if gates is None:
            weight = float(len(z))
            mean = values.mean(0, dtype=torch.float64)
            centered = values - mean.float()
        else:
            squares = gates.detach().double().square()
            weight = float(squares.sum())
            if weight == 0:
                return
            mean = (squares @ values.double()) / weight
            centered = (values - mean.float()) * squares.sqrt().float()[:, None]
        shift = mean - self._mean
        total = self._weight + weight
        between = shift * (self._weight * weight / total) ** 0.5
        add_gram(self._scatter, torch.cat([centered, between.float()[None]]))
        self._mean += shift * (weight / total)
        self._weight = total


def capture(
    model: PreTrainedModel,
    ffns: list[FFN],
    batches: Iterable[Batch],
    *,
    sample_size: int,
    seed: int = 0,
    among: Sequence[FFN] | None = None,
    ranks: Ranks = ALONE,
) -> list[Statistics]:
    """Run the model over batches of tokens `[B, L]` and record the statistics of some FFNs; padding does not count.

    Args:
        sample_size: M, tokens to keep per FFN: `sample_size x N` values in the model's dtype.
        seed: of the sample.
        among: all FFNs that are captured, in this run of the model or in others.
        ranks: processes that have batches of their own; all get the statistics of all batches.

    Raises:
        ValueError: NaN or infinite activations (the message names the layer), or an FFN that no token reaches and that
            is not an expert.
    """
    recorders = {ffn: Recorder.of(ffn, sample_size, seed=seed, ranks=ranks) for ffn in ffns}
    n_tokens = dict.fromkeys(ffns if among is None else among, 0)
    start = end = 0

    def observe(part: Neurons) -> None:
        n_tokens[part.ffn] += len(part.z)
        if part.ffn in recorders:
            recorders[part.ffn].add(part.z, part.gates, part.tokens(start, end))

    with torch.inference_mode(), evaluation_mode(model):
        for batch in batches:
            start, end = end, end + count_tokens(batch)
            inputs = model_inputs(batch, input_device(model))
            body = body_of(model, inputs)
            with observed_neurons(model, list(n_tokens), Masks.of(inputs), observe):
                body(**inputs, **without_cache(body))
    statistics = [recorder.finish() for recorder in recorders.values()]
    counts = zip(*ranks.gather(list(n_tokens.values())), strict=True)
    n_tokens = {ffn: sum(found) for ffn, found in zip(n_tokens, counts, strict=True)}
    reached = {ffn.kind for ffn, count in n_tokens.items() if count}
    for ffn in ffns:
        if ffn.kind not in reached:
            raise ValueError(f"{ffn.name}: expected calibration that reaches this FFN, got no tokens")
    return prepare_experts(ffns, statistics, most=max(n_tokens.values()))


def prepare_experts(ffns: Sequence[FFN], statistics: Sequence[Statistics], *, most: int) -> list[Statistics]:
    """Find the experts, which fewer tokens may reach than other FFNs, and decide which of them have enough.

    Their samples are cut to a power of two, so that few null distributions serve them all.

    Args:
        most: tokens that reached an FFN.
    """
    result = []
    for ffn, layer in zip(ffns, statistics, strict=True):
        if ffn.is_routed or layer.n_tokens < most:
            size = 1 << len(layer.sample).bit_length() >> 1
            layer = replace(
                layer,
                sample=layer.sample[:size],
                tokens=None if layer.tokens is None else layer.tokens[:size],
                is_enough=layer.n_tokens >= MIN_TOKENS,
            )
        result.append(layer)
    return result
