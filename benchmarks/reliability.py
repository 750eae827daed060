"""How reliably each estimator ranks the pairs of real neurons, for its time: two halves of the tokens, compared.

python -m benchmarks.reliability MODEL TEXT
python -m benchmarks.reliability MODEL TEXT --layers 10 --estimators grid adaptive

One row of `results/reliability.jsonl` is one estimator on one layer at M tokens: Spearman's correlation over
pairs between the matrices of two disjoint halves, and the seconds of one of them. Tokens are a random sample
of those of the text, so that neighbours in the text do not make the halves alike. Ends with table and plot.
"""

import argparse
import shlex
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks import reliability_report
from benchmarks.record import RESULTS, append, row
from mikernels import mutual_information, samples_for
from mikernels.statistics.reliability import reliability_of_halves
from mikernels.transforms import transform_samples
from pruning import load_model
from pruning.model.families import find_ffns
from pruning.observe.capture import capture
from pruning.observe.text import read_text, token_windows

TOKENS = (1024, 2048, 4096, 8192, 16384, 32768)
WINDOW = 512
Estimate = Callable[..., Tensor]


def linear(x: Tensor, *, seed: int) -> Tensor:
    """Squared correlations of normal scores, `[N, N]`: the Gaussian copula's order of pairs."""
    scores = transform_samples(x, "rank", seed=seed).scores(dtype=torch.float64)
    return torch.corrcoef(scores).square()


ESTIMATORS: dict[str, Estimate] = {
    "grid": partial(mutual_information, estimator="grid"),
    "adaptive": partial(mutual_information, estimator="adaptive"),
    "kde": partial(mutual_information, estimator="kde"),
    "renyi2": partial(mutual_information, estimator="renyi2"),
    "linear": linear,
}
QUADRATIC = ("kde", "renyi2")
"""Their time grows as M^2."""


def activations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    layers: Sequence[int],
    n_tokens: int,
    n_neurons: int,
    seed: int,
) -> dict[int, Tensor]:
    """`[M, n_neurons]` float32 of each layer: the same neurons and tokens of all, in random order.

    Raises:
        ValueError: the text has fewer tokens.
    """
    length = min(WINDOW, model.config.max_position_embeddings)
    windows = token_windows(tokenizer, text, length, limit=-(-n_tokens // length))
    if windows.numel() < n_tokens:
        raise ValueError(f"TEXT: expected {n_tokens} tokens, got {windows.numel()}")
    ffns = find_ffns(model)
    statistics = capture(model, [ffns[i] for i in layers], windows.split(4), sample_size=n_tokens, seed=seed)
    chosen = torch.randperm(ffns[0].width, generator=torch.Generator().manual_seed(seed))[:n_neurons]
    return {i: s.sample[:, chosen].float() for i, s in zip(layers, statistics, strict=True)}


def measure(name: str, x: Tensor, tokens: Sequence[int], cap: float) -> dict[int, dict[str, float]]:
    """The `result` of each number of tokens up to the first whose matrix would take more than `cap` seconds."""
    estimate = ESTIMATORS[name]
    results: dict[int, dict[str, float]] = {}
    last = 0.0
    for i, n in enumerate(tokens):
        if i > 0 and last * (n / tokens[i - 1]) ** (2 if name in QUADRATIC else 1) > cap:
            break
        halves = x[: n // 2], x[n // 2 : n]
        estimate(halves[0][:, :3], seed=0)  # what depends on M alone is made once
        seconds, matrices = [], []
        for seed, half in enumerate(halves):  # equal values are not to be ordered alike in both
            start = time.perf_counter()
            matrices.append(estimate(half, seed=seed))
            seconds.append(time.perf_counter() - start)
        last = min(seconds)
        found = reliability_of_halves(*matrices, n)
        results[n] = {
            "halves": round(found.halves, 4),
            "full": round(found.full, 4),
            "tokens_for_target": samples_for(found, reliability_report.TARGET)
            if found.halves > 0
            else float("inf"),
            "seconds_of_a_half": round(last, 4),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="as for mi-prune")
    parser.add_argument("text", type=Path, help="a UTF-8 text of more than 32,768 tokens")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 10, 20, 29])
    parser.add_argument("--neurons", type=int, default=128, help="a random choice, in each layer the same")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    parser.add_argument("--seed", type=int, default=0, help="of the neurons and tokens")
    parser.add_argument("--cap", type=float, default=30.0, help="no matrix that should take more seconds")
    parser.add_argument("--out", type=Path, default=RESULTS / "reliability.jsonl")
    args = parser.parse_args()
    model, tokenizer = load_model(args.model)
    text = read_text(args.text)
    samples = activations(model, tokenizer, text, args.layers, max(args.tokens), args.neurons, args.seed)
    del model
    for layer, x in samples.items():
        for name in args.estimators:
            rows = rows_of(name, layer, x, args)
            append(rows, args.out)
            for r in rows:
                print(layer, name, r["case"]["M"], r["result"], flush=True)
    reliability_report.write(args.out)


def rows_of(name: str, layer: int, x: Tensor, args: argparse.Namespace) -> list[dict[str, Any]]:
    case = {
        "model": Path(args.model).name,
        "text": "/".join(args.text.parts[-2:]),
        "layer": layer,
        "N": x.shape[1],
        "seed": args.seed,
        "cap": args.cap,
        "estimator": name,
    }
    options = {"layers": layer, "neurons": x.shape[1], "estimators": name, "seed": args.seed, "cap": args.cap}
    command = f"python -m benchmarks.reliability {shlex.join([args.model, str(args.text)])} " + " ".join(
        f"--{key} {value}" for key, value in options.items()
    )
    command += f" --tokens {' '.join(map(str, args.tokens))}"
    results = measure(name, x, args.tokens, args.cap)
    return [row("reliability", command, case | {"M": n}, result) for n, result in results.items()]


if __name__ == "__main__":
    main()
