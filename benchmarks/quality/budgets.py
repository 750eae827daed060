"""Compare statistics of a layer as weights of budgets: which one tells best how sensitive the model is to that layer?

    python -m benchmarks.quality.budgets --data DIR [--model [NAME=]FOLDER] [--ratio 0.5]

For each statistic: its rank correlation, over the layers, with the effect of halving a layer on the output of the
model, and the quality of the model pruned by that budget. The criterion is always conditional MI and the repair least
squares, so that only the budgets differ. A comparison with plain correlations tells whether budgets gain anything from
the non-linear part of the mutual information.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.quality.calibrated import ESTIMATE, add_divergence, observe
from benchmarks.quality.measure import Plan, Source, add_sources, make_task, sources
from benchmarks.record import Row, append, argument_parser, command, row
from benchmarks.tables import table
from mikernels.transforms import transform_samples
from pruning import Settings
from pruning.choose import sensitivity
from pruning.choose.budget import allocate, uniform_width
from pruning.choose.evidence import Evidence
from pruning.model.ffn import find_ffns
from pruning.model.snapshot import restored
from pruning.model.surgery import complement
from pruning.repair.separate import prune_separately

CHI2_MEDIAN = 0.4549  # of one degree of freedom: the median of M rho^2 for independent variables


def weights_by_statistic(evidence: Sequence[Evidence]) -> dict[str, list[float]]:
    """A weight for each layer, by the name of the statistic."""
    samples = [e.statistics.sample for e in evidence]
    depth = [abs(2 * i / max(len(evidence) - 1, 1) - 1) for i in range(len(evidence))]
    return {
        "uniform": [],
        "median MI": sensitivity.by_mi(evidence, **ESTIMATE),
        "median of correlated ranks": sensitivity.roots([gaussian_mi(s, ranks=True) for s in samples]),
        "median of correlations": sensitivity.roots([gaussian_mi(s, ranks=False) for s in samples]),
        "distance from the middle layer": sensitivity.roots([x**2 for x in depth]),
        "halved layer": sensitivity.by_kl(evidence),
    }


def gaussian_mi(sample: Tensor, *, ranks: bool) -> float:
    """The median over pairs of `-log(1 - rho^2) / 2`, minus that of independent neurons, in nats.

    This is the mutual information if the neurons, or with `ranks` their normal scores, were jointly Gaussian.
    """
    variables = transform_samples(sample, "rank", seed=0).scores().t() if ranks else sample.float()  # [M, N]
    correlation = torch.corrcoef(variables.t()).nan_to_num(0.0)
    rho2 = correlation[torch.ones_like(correlation, dtype=torch.bool).triu_(1)].square()
    floor = -0.5 * math.log1p(-CHI2_MEDIAN / len(sample))
    return float(-0.5 * torch.log1p(-rho2.median())) - floor


def compare(source: Source, plan: Plan, ratio: float) -> list[Row]:
    """A row for each statistic."""
    model, tokenizer = source.load()
    task = make_task(model, tokenizer, plan)
    settings = Settings(seed=plan.seed)
    ffns = find_ffns(model)
    statistics, evidence, _ = observe(model, task.calibration, settings)
    evidence, _ = add_divergence(model, evidence, task.calibration)
    damage = [layer.damage for layer in evidence]
    rerun = command(
        "benchmarks.quality.budgets",
        data="DIR",
        model=f"{source.name}=...",
        device=source.device,
        ratio=ratio,
        windows=plan.windows,
        seed=plan.seed,
    )
    rows = []
    by_statistic = weights_by_statistic(evidence)
    for name, weights in by_statistic.items():
        if weights:
            cap = settings.max_layer_ratio
            widths = allocate(
                damage, weights, width=ffns[0].width, ratio=ratio, multiple_of=1, max_layer_ratio=cap
            )
            agreement = round(float(spearmanr(weights, by_statistic["halved layer"]).statistic), 4)
        else:
            widths, agreement = [uniform_width(f.width, ratio, 1) for f in ffns], None
        kept = [
            complement(e.order[: f.width - n], f.width)
            for e, f, n in zip(evidence, ffns, widths, strict=True)
        ]
        with restored(ffns):
            prune_separately(ffns, kept, statistics, "lstsq")
            quality = task.evaluate(model)
        case = {
            "model": source.name,
            "statistic": name,
            "ratio": ratio,
            "calibration": {"text": task.source, "shape": list(task.calibration.shape)},
            "sample_size": settings.sample_size,
            "seed": plan.seed,
        }
        rounded = [float(f"{w:.6g}") for w in weights]
        result = {"weights": rounded, "agreement": agreement, "quality": quality}
        rows.append(row("budgets", rerun, case, result, device=source.device))
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """A table with a line for each statistic."""
    columns = [(protocol, next(iter(q))) for protocol, q in rows[0]["result"]["quality"].items()]
    lines = []
    for stored in rows:
        result = stored["result"]
        agreement = "-" if result["agreement"] is None else f"{result['agreement']:.2f}"
        values = [f"{result['quality'][protocol][name]:.4g}" for protocol, name in columns]
        lines.append([stored["case"]["statistic"], agreement, *values])
    return table(["budget by", "agreement", *(f"{name}, {protocol}" for protocol, name in columns)], lines)


def main() -> None:
    parser = argument_parser("benchmarks.quality.budgets", __doc__, "budgets.jsonl")
    add_sources(parser)
    parser.add_argument("--ratio", type=float, default=0.5)
    args = parser.parse_args()
    plan = Plan(args.data, protocols=["8x512", "16x512"], windows=args.windows, seed=args.seed)
    for source in sources(args):
        rows = compare(source, plan, args.ratio)
        append(rows, args.out)
        print(f"\n{source.name}, {args.ratio:.0%} of the neurons dropped")
        print(summary(rows))


if __name__ == "__main__":
    main()
