"""What the plugs of `mikernels.integrations` take beyond the bare call, on the same samples in turn.

    python -m benchmarks.applications.plugs

Appends a row to `results/applications.jsonl`: the ratio of the times of each plug and of the bare call, turn by turn.
"""

import json

import numpy as np
import torch
from anndata import AnnData

from benchmarks.record import append, argument_parser, command, quantiles, row
from benchmarks.speed.measure import UNLIMITED, Effort, take_turns
from mikernels import mutual_information
from mikernels.integrations.anndata import mutual_information_of_genes
from mikernels.integrations.scikit_learn import MutualInformationSelector, mutual_info_matrix
from mikernels.selection import mrmr

CHOSEN = 10


def main() -> None:
    parser = argument_parser("benchmarks.applications.plugs", __doc__, "applications.jsonl")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--variables", type=int, default=256)
    args = parser.parse_args()
    x = np.random.default_rng(args.seed).normal(size=(2000, args.variables)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)
    tensor, adata = torch.from_numpy(x), AnnData(x)
    selector = MutualInformationSelector(CHOSEN)
    calls = {
        "matrix": lambda: mutual_information(tensor),
        "scikit-learn matrix": lambda: mutual_info_matrix(x, estimator="grid"),
        "AnnData": lambda: mutual_information_of_genes(adata),
        "mrmr": lambda: mrmr(tensor, torch.from_numpy(y), CHOSEN),
        "scikit-learn selector": lambda: selector.fit(x, y),
    }
    _, seconds, _ = take_turns(calls, Effort(args.turns, UNLIMITED))
    pairs = {"scikit-learn matrix": "matrix", "AnnData": "matrix", "scikit-learn selector": "mrmr"}
    result = {
        "seconds": {name: quantiles(values) for name, values in seconds.items()},
        "ratio": {
            plug: quantiles([a / b for a, b in zip(seconds[plug], seconds[bare], strict=True)])
            for plug, bare in pairs.items()
        },
    }
    case = {"M": 2000, "N": args.variables, "estimator": "grid", "chosen": CHOSEN, "seed": args.seed}
    rerun = command(
        "benchmarks.applications.plugs", turns=args.turns, variables=args.variables, seed=args.seed
    )
    append([row("plugs", rerun, case, result)], args.out)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
