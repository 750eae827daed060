"""Statistics of the activations of each FFN over the calibration tokens: a sample of tokens, and moments."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.families import FFN
from pruning.model.forward import without_cache
from pruning.observe.batches import Batch, model_inputs, real_positions, select_tokens


@dataclass(frozen=True)
class Statistics:
    """The activations of the neurons of one FFN over the calibration tokens.

    Attributes:
        name: of the FFN.
        sample: `[M, N]`, a uniform random sample of tokens, the same tokens for every FFN.
        n_tokens: number of calibration tokens.
        mean: `[N]` float64.
        covariance: `[N, N]` float32, normalized by `n_tokens`.
    """

    name: str
    sample: Tensor
    n_tokens: int
    mean: Tensor
    covariance: Tensor

    @property
    def second_moment(self) -> Tensor:
        """`E[z z^T]`, `[N, N]` float64."""
        return self.covariance.double() + torch.outer(self.mean, self.mean)


class Recorder:
    """Records the activations of one FFN in bounded memory: a reservoir sample and running central moments."""

    def __init__(self, name: str, width: int, sample_size: int, *, seed: int, device: torch.device) -> None:
        self.name = name
        self.sample_size = sample_size
        self.n_tokens = 0
        # Equal seeds draw equal keys, so that the sample holds the same tokens for every FFN.
        self._generator = torch.Generator().manual_seed(seed)
        self._keys = torch.empty(0)
        self._sample: Tensor | None = None
        self._mean = torch.zeros(width, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(width, width, device=device)  # sum (z - mean) (z - mean)^T

    @classmethod
    def of(cls, ffn: FFN, sample_size: int, *, seed: int) -> "Recorder":
        return cls(ffn.name, ffn.width, sample_size, seed=seed, device=ffn.output.weight.device)

    def add(self, z: Tensor) -> None:
        """Add the activations `z [T, N]` of T tokens.

        Raises:
            ValueError: NaN or infinite activations.
        """
        if not torch.isfinite(z).all():
            nan, infinite = int(torch.isnan(z).sum()), int(torch.isinf(z).sum())
            raise ValueError(
                f"{self.name}: expected finite activations, got {nan} NaN and {infinite} infinite of "
                f"{z.numel()} values"
            )
        self._add_sample(z)
        self._add_moments(z)

    def finish(self) -> Statistics:
        """The statistics of all tokens added.

        Raises:
            ValueError: no tokens were added.
        """
        if self._sample is None:
            raise ValueError(f"{self.name}: expected calibration tokens, got none")
        return Statistics(self.name, self._sample, self.n_tokens, self._mean, self._scatter / self.n_tokens)

    def _add_sample(self, z: Tensor) -> None:
        # Each token draws a random key. Keeping the smallest keys gives a uniform sample without replacement.
        keys = torch.cat([self._keys, torch.rand(len(z), generator=self._generator, dtype=torch.float64)])
        pool = z.detach() if self._sample is None else torch.cat([self._sample, z.detach()])
        kept = keys.argsort()[: self.sample_size]
        self._keys, self._sample = keys[kept], pool[kept.to(pool.device)]

    def _add_moments(self, z: Tensor) -> None:
        # Chan, Golub, LeVeque 1983; the batch is centered first, so that large means cost no precision.
        values = z.detach().float()
        mean = values.mean(0, dtype=torch.float64)
        centered = values - mean.float()
        self._scatter.addmm_(centered.t(), centered)
        shift = mean - self._mean
        total = self.n_tokens + len(z)
        between = shift * (self.n_tokens * len(z) / total) ** 0.5
        self._scatter.addr_(between.float(), between.float())
        self._mean += shift * (len(z) / total)
        self.n_tokens = total


def capture(
    model: PreTrainedModel, ffns: list[FFN], batches: Iterable[Batch], *, sample_size: int, seed: int = 0
) -> list[Statistics]:
    """Run the model over batches of tokens `[B, L]` and record the statistics of every FFN; padding does not count.

    Args:
        sample_size: M, tokens to keep per FFN: `sample_size x N` values in the model's dtype.
        seed: of the sample.

    Raises:
        ValueError: NaN or infinite activations (the message names the layer), or no tokens.
    """
    recorders = [Recorder.of(ffn, sample_size, seed=seed) for ffn in ffns]
    body = model.base_model  # without the language-model head, whose output is not needed
    real: list[Tensor | None] = [None]  # of the current batch
    with _recording(ffns, recorders, real), torch.inference_mode(), evaluation_mode(model):
        for batch in batches:
            inputs = model_inputs(batch, model.device)
            real[0] = real_positions(inputs)
            body(**inputs, **without_cache(body))
    return [recorder.finish() for recorder in recorders]


@contextmanager
def _recording(ffns: list[FFN], recorders: list[Recorder], real: Sequence[Tensor | None]) -> Iterator[None]:
    """Pass the input of each FFN's output projection, at the positions `real[0]`, to its recorder; the hooks are
    removed also after an error."""

    def hook_for(recorder: Recorder):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            recorder.add(select_tokens(args[0], real[0]))

        return hook

    handles = []
    try:
        for ffn, recorder in zip(ffns, recorders, strict=True):
            handles.append(ffn.output.register_forward_pre_hook(hook_for(recorder)))
        yield
    finally:
        for handle in handles:
            handle.remove()
