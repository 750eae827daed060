"""Measure how reliably each estimator ranks the pairs of real neurons, and how long it takes.

    python -m benchmarks.reliability MODEL TEXT
    python -m benchmarks.reliability MODEL TEXT --layers 10 --estimators grid adaptive
    python -m benchmarks.publish reliability

A row of `results/reliability.jsonl` is one estimator on one layer at M tokens: the Spearman correlation over pairs
between the matrices of two disjoint halves, and the seconds of one of them. Tokens are sampled at random from the text,
so that neighboring tokens do not make the halves alike.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.record import append, argument_parser, command, row, timed
from benchmarks.reliability import TARGET
from mikernels import mutual_information, samples_for
from mikernels.statistics.reliability import reliability_of_halves
from mikernels.transforms import transform_samples
from pruning import load_model
from pruning.model.ffn import find_ffns
from pruning.observe.capture import capture
from pruning.observe.text import read_text, token_windows

TOKENS = (1024, 2048, 4096, 8192, 16384, 32768)
WINDOW = 512


def linear(x: Tensor, *, seed: int) -> Tensor:
    """Squared correlations of normal scores, `[N, N]`: these rank pairs like the MI of a Gaussian copula."""
    scores = transform_samples(x, "rank", seed=seed).scores(dtype=torch.float64)
    return torch.corrcoef(scores).square()


ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    name: partial(mutual_information, estimator=name) for name in ("grid", "adaptive", "kde", "renyi2")
} | {"linear": linear}
QUADRATIC = ("kde", "renyi2")  # estimators whose time grows as M^2


def activations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    layers: Sequence[int],
    n_tokens: int,
    n_neurons: int,
    seed: int,
) -> dict[int, Tensor]:
    """`[M, n_neurons]` float32 by layer: the same neurons and tokens for all layers, in random order.

    Raises:
        ValueError: the text has fewer tokens.
    """
    length = min(WINDOW, model.config.max_position_embeddings)
    windows = token_windows(tokenizer, text, length, limit=-(-n_tokens // length))
    if windows.numel() < n_tokens:
        raise ValueError(f"text: expected at least {n_tokens} tokens, got {windows.numel()}")
    ffns = find_ffns(model)
    statistics = capture(model, [ffns[i] for i in layers], windows.split(4), sample_size=n_tokens, seed=seed)
    chosen = torch.randperm(ffns[0].width, generator=torch.Generator().manual_seed(seed))[:n_neurons]
    return {i: s.sample[:, chosen].float() for i, s in zip(layers, statistics, strict=True)}


def measure(name: str, x: Tensor, tokens: Sequence[int], cap: float) -> dict[int, dict[str, float]]:
    """The `result` at each number of tokens, up to the first whose matrix is expected to take over `cap` seconds."""
    estimate = ESTIMATORS[name]
    results: dict[int, dict[str, float]] = {}
    last = 0.0
    for i, n in enumerate(tokens):
        if i > 0 and last * (n / tokens[i - 1]) ** (2 if name in QUADRATIC else 1) > cap:
            break
        halves = x[: n // 2], x[n // 2 : n]
        estimate(halves[0][:, :3], seed=0)  # warm-up: computes what depends on M alone
        # Different seeds: ties must not be ordered alike in both halves.
        found = [timed(partial(estimate, half, seed=seed)) for seed, half in enumerate(halves)]
        matrices, seconds = zip(*found, strict=True)
        last = min(seconds)
        reliability = reliability_of_halves(*matrices, n)
        predicted = samples_for(reliability, TARGET) if reliability.halves > 0 else float("inf")
        results[n] = {
            "halves": round(reliability.halves, 4),
            "full": round(reliability.full, 4),
            "tokens_for_target": predicted,
            "seconds_of_a_half": round(last, 4),
        }
    return results


def main() -> None:
    parser = argument_parser("benchmarks.reliability", __doc__, "reliability.jsonl")
    parser.add_argument("model", help="as for mi-prune")
    parser.add_argument("text", type=Path, help="a UTF-8 text of more than 32,768 tokens")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 10, 20, 29])
    parser.add_argument("--neurons", type=int, default=128, help="sampled at random, the same in each layer")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    parser.add_argument("--cap", type=float, default=30.0, help="skip matrices expected to take more seconds")
    args = parser.parse_args()
    model, tokenizer = load_model(args.model)
    text = read_text(args.text)
    samples = activations(model, tokenizer, text, args.layers, max(args.tokens), args.neurons, args.seed)
    del model
    shared = {"seed": args.seed, "cap": args.cap}
    for layer, x in samples.items():
        for name in args.estimators:
            case = {
                "model": Path(args.model).name,
                "text": "/".join(args.text.parts[-2:]),
                "layer": layer,
                "N": x.shape[1],
                "estimator": name,
            } | shared
            options = {"layers": layer, "neurons": x.shape[1], "estimators": name, "tokens": args.tokens}
            rerun = command("benchmarks.reliability", args.model, str(args.text), **options, **shared)
            for n, result in measure(name, x, args.tokens, args.cap).items():
                append([row("reliability", rerun, case | {"M": n}, result)], args.out)
                print(layer, name, n, result, flush=True)


if __name__ == "__main__":
    main()
