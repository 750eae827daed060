"""How often independent variables exceed the quantiles of a null: its false positive rates.

    python -m benchmarks.reliability.null_rates

A row of `results/null.jsonl` is one estimator, kind of data and null: for each nominal rate the share of fresh pairs of
independent variables above that quantile. The null and the pairs come from different seeds.
"""

import torch
from torch import Tensor

from benchmarks.record import append, argument_parser, command, row
from mikernels import Null, mutual_information, null_distribution, shifted_null

RATES = (0.05, 0.01, 0.001)
DATA = ("iid", "ar 0.5", "ar 0.9", "60 % zero")


def independent(kind: str, n_samples: int, n_variables: int, seed: int) -> Tensor:
    """Independent columns `[M, N]`: of independent samples, of a stationary autoregressive series, or rectified."""
    x = torch.randn(
        n_samples, n_variables, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    if kind == "60 % zero":
        return torch.relu(x - 0.2533)
    if kind.startswith("ar "):
        memory = float(kind.removeprefix("ar "))
        for step in range(1, n_samples):
            x[step] = memory * x[step - 1] + (1 - memory**2) ** 0.5 * x[step]
    return x


def rates(null: Null, mi: Tensor) -> dict[str, float]:
    row, col = torch.triu_indices(len(mi), len(mi), offset=1)
    estimates = mi[row, col]
    return {
        f"{rate:g}": round(float((estimates > null.quantile(1 - rate)).double().mean()), 6) for rate in RATES
    }


def main() -> None:
    parser = argument_parser("benchmarks.reliability.null_rates", __doc__, "null.jsonl")
    parser.add_argument("--estimators", nargs="+", default=["grid", "adaptive"])
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--variables", type=int, default=1500)
    args = parser.parse_args()
    shared = {"samples": args.samples, "variables": args.variables, "seed": args.seed}
    for estimator in args.estimators:
        simulated = null_distribution(args.samples, estimator=estimator, seed=args.seed)
        for kind in args.data:
            x = independent(kind, args.samples, args.variables, args.seed + 1)
            mi = mutual_information(x, estimator=estimator)
            nulls = {"null_distribution": simulated}
            if kind != "iid":
                nulls["shifted_null"] = shifted_null(x, estimator=estimator, seed=args.seed)
            rerun = command("benchmarks.reliability.null_rates", estimators=estimator, data=kind, **shared)
            for name, null in nulls.items():
                case = {"estimator": estimator, "M": args.samples, "data": kind, "null": name}
                case |= {"draws": len(null.values), "N": args.variables, "seed": args.seed}
                result = {"rates": rates(null, mi)}
                append([row("null", rerun, case, result)], args.out)
                print(case, result, flush=True)


if __name__ == "__main__":
    main()
