"""Rank the pairs of neurons behind a ReLU, with a cell of their own for zeros and without.

    python -m benchmarks.reliability.rectified MODEL TEXT

A row of `results/rectified.jsonl` is one layer and estimator. The neurons are `relu(gate) * up` of the gated FFN; the
model itself goes on with its own activation. Estimates of M tokens are compared with a histogram of the other tokens,
which has a cell for zero and equally filled cells for the other values. Without the cell, equal values are put in
random order first, so that no two are equal.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.record import append, argument_parser, command, row
from mikernels import mutual_information
from mikernels.statistics.reliability import reliability_of_halves
from mikernels.transforms import transform_samples
from pruning import load_model
from pruning.observe.text import read_text, token_windows

WINDOW = 512
CELLS = 16
"""Of the histogram, besides that of zero."""
ESTIMATORS = {"grid": {}, "grid, calibrated": {"calibrate": True}, "adaptive": {"estimator": "adaptive"}}


@torch.inference_mode()
def rectified(
    model: PreTrainedModel, windows: Tensor, layers: Sequence[int], chosen: Tensor
) -> dict[int, Tensor]:
    """`relu(gate) * up` of the chosen neurons by layer, `[M, N]` float32."""
    found: dict[int, list[Tensor]] = {i: [] for i in layers}

    def keep(ffn: torch.nn.Module, inputs: tuple[Tensor, ...], layer: int) -> None:
        z = torch.relu(ffn.gate_proj(inputs[0])) * ffn.up_proj(inputs[0])
        found[layer].append(z.flatten(0, 1)[:, chosen].float())

    hooks = [
        model.model.layers[i].mlp.register_forward_pre_hook(lambda ffn, inputs, i=i: keep(ffn, inputs, i))
        for i in layers
    ]
    for batch in windows.split(4):
        model.model(batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return {i: torch.cat(parts) for i, parts in found.items()}


def histogram_information(x: Tensor) -> Tensor:
    """Mutual information `[N, N]` of a histogram of `x [M, N]`, less Miller's bias; nats."""
    n_samples, n_variables = x.shape
    one_hot = torch.zeros(n_variables, CELLS + 1, n_samples)
    for column, cells in zip(x.T, one_hot, strict=True):
        rest = column != 0
        place = torch.full((n_samples,), CELLS)
        place[rest] = column[rest].argsort().argsort() * CELLS // int(rest.sum())
        cells.scatter_(0, place[None], 1.0)
    flat = one_hot.flatten(0, 1)
    joint = (
        (flat @ flat.T / n_samples).double().unflatten(0, (n_variables, -1)).unflatten(2, (n_variables, -1))
    )
    p = one_hot.double().mean(2)
    product = p[:, :, None, None] * p
    return torch.special.xlogy(joint, joint / product.clamp(min=1e-300)).sum((1, 3)) - CELLS**2 / (
        2 * n_samples
    )


def untied(x: Tensor) -> Tensor:
    """Ranks with equal values in random order, `[M, N]` float32."""
    return transform_samples(x, "rank", seed=1).data.T.float()


def compare(mi: Tensor, reference: Tensor) -> dict[str, float]:
    """How an estimate `[N, N]` ranks the pairs."""
    first, second = torch.triu_indices(len(mi), len(mi), offset=1)
    ours, theirs = mi[first, second].double(), reference[first, second]
    n_best = len(ours) // 100
    best = set(theirs.topk(n_best).indices.tolist())
    return {
        "rank_correlation": round(reliability_of_halves(mi.double(), reference, 2).halves, 4),
        "best_percent_found": round(len(best & set(ours.topk(n_best).indices.tolist())) / n_best, 4),
        "mean_difference": round(float((ours - theirs).mean()), 5),
        "mean_difference_of_best": round(float((ours - theirs)[list(best)].mean()), 5),
    }


def main() -> None:
    parser = argument_parser("benchmarks.reliability.rectified", __doc__, "rectified.jsonl")
    parser.add_argument("model", help="a llama-like model, as for mi-prune")
    parser.add_argument("text", type=Path, help="a UTF-8 text")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 12])
    parser.add_argument("--neurons", type=int, default=96, help="sampled at random, the same in each layer")
    parser.add_argument("--samples", type=int, default=4096, help="tokens of an estimate")
    parser.add_argument("--tokens", type=int, default=32768, help="of the text")
    args = parser.parse_args()
    model, tokenizer = load_model(args.model)
    model.model.layers = model.model.layers[: max(args.layers) + 1]
    generator = torch.Generator().manual_seed(args.seed)
    chosen = torch.randperm(model.config.intermediate_size, generator=generator)[: args.neurons]
    windows = token_windows(tokenizer, read_text(args.text), WINDOW, limit=args.tokens // WINDOW)
    order = torch.randperm(windows.numel(), generator=generator)
    for layer, z in rectified(model, windows, args.layers, chosen).items():
        x, others = z[order[: args.samples]], z[order[args.samples :]]
        reference = histogram_information(others)
        options = {"layers": layer, "neurons": args.neurons, "samples": args.samples, "tokens": args.tokens}
        rerun = command(
            "benchmarks.reliability.rectified",
            Path(args.model).name,
            args.text.name,
            **options,
            seed=args.seed,
        )
        for name, keywords in ESTIMATORS.items():
            case = {"model": Path(args.model).name, "text": "/".join(args.text.parts[-2:]), "layer": layer}
            case |= {"N": args.neurons, "M": args.samples, "tokens": windows.numel(), "estimator": name}
            result = {
                "zeros": round(float((x == 0).double().mean()), 3),
                "with_atoms": compare(mutual_information(x, **keywords), reference),
                "without": compare(mutual_information(untied(x), **keywords), reference),
            }
            append([row("rectified", rerun, case | {"seed": args.seed}, result)], args.out)
            print(layer, name, result, flush=True)


if __name__ == "__main__":
    main()
