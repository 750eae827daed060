"""Backward elimination of one layer: all N neurons against only those to drop, with the projection and its Gram matrix.

    python -m benchmarks.speed.elimination --neurons 4864 --outputs 896

Appends a row `elimination` to `results/cpu.jsonl` with the processor seconds of one thread, which other work on the
machine hardly changes, and the positions at which the orders differ.
"""

import json
import time

import torch
from torch import Tensor

from benchmarks.record import append, argument_parser, command, row
from pruning.choose import elimination

FORMS = {"projection": elimination._Projection, "gram": elimination._Gram}


def correlated_layer(n_neurons: int, n_outputs: int, seed: int) -> tuple[Tensor, Tensor]:
    """The covariance of rectified mixtures of N / 4 sources, and a random output projection."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(n_neurons // 2, n_neurons // 4, generator=generator)
    mixing = torch.randn(n_neurons // 4, n_neurons, generator=generator) / (n_neurons / 4) ** 0.5
    z = torch.relu(sources @ mixing + 0.5 * torch.randn(len(sources), n_neurons, generator=generator))
    z -= z.mean(0)
    return z.t() @ z / len(z), torch.randn(n_outputs, n_neurons, generator=generator) / n_neurons**0.5


def measure(n_neurons: int, n_outputs: int, ratios: list[float], seed: int) -> dict[str, object]:
    """Seconds by form and ratio, and in how many positions the orders differ from that of all by the projection."""
    layer = correlated_layer(n_neurons, n_outputs, seed)
    whole = None
    result: dict[str, object] = {}
    used = elimination._Projection
    try:
        for ratio in sorted(ratios, reverse=True):
            for name, form in FORMS.items():
                elimination._Projection = form  # type: ignore[misc, assignment]  # the form that the CPU takes
                start = time.process_time()
                order = elimination.conditional_mi(*layer, round(ratio * n_neurons)).order
                seconds = round(time.process_time() - start, 2)
                whole = order if whole is None else whole
                differing = int((order != whole[: len(order)]).sum())
                result[f"{name}, {ratio:g}"] = {"cpu_seconds": seconds, "differing_positions": differing}
    finally:
        elimination._Projection = used  # type: ignore[misc]
    return result


def main() -> None:
    parser = argument_parser("benchmarks.speed.elimination", __doc__, "cpu.jsonl")
    parser.add_argument("--neurons", type=int, default=4864)
    parser.add_argument("--outputs", type=int, default=896)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.5, 1.0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    rerun = command(
        "benchmarks.speed.elimination",
        neurons=args.neurons,
        outputs=args.outputs,
        ratios=args.ratios,
        seed=args.seed,
    )
    case = {"N": args.neurons, "d": args.outputs, "seed": args.seed}
    found = row("elimination", rerun, case, measure(args.neurons, args.outputs, args.ratios, args.seed))
    append([found], args.out)
    print(json.dumps(found["case"]), json.dumps(found["result"]))


if __name__ == "__main__":
    main()
