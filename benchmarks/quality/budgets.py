"""Which statistic of a layer's neurons tells best how much the model minds losing some of them.

    python -m benchmarks.quality.budgets --data DIR [--model [NAME=]FOLDER] [--ratio 0.5]

For each statistic its rank correlation, over the layers, with what halving a layer does to the model's output, and the
quality of the model pruned by that budget: always conditional information and least squares, so that the budgets alone
differ. If budgets by the information of the kernel estimate were no better than by correlations, its non-linear part
would be worth nothing here.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.measure import Plan, Source, installed_models, make_task
from benchmarks.quality.tasks import spearman
from benchmarks.record import RESULTS, append, row
from mikernels.transforms import transform_samples
from pruning import Settings, load_model
from pruning.choose import sensitivity
from pruning.choose.budget import allocate, uniform_width
from pruning.choose.evidence import Evidence, gather_evidence
from pruning.model.families import find_ffns
from pruning.model.snapshot import restored
from pruning.model.surgery import complement
from pruning.observe.calibration import comparison_batches
from pruning.repair.separate import prune_separately
from pruning.report.table import table

ROWS = RESULTS / "budgets.jsonl"
CHI2_MEDIAN = 0.4549
"""Of one degree of freedom: M times the squared correlation of independent variables has it."""


def levels(evidence: Sequence[Evidence], settings: Settings) -> dict[str, list[float]]:
    """By name of the statistic, a weight for each layer."""
    deep = [abs(2 * i / max(len(evidence) - 1, 1) - 1) for i in range(len(evidence))]
    return {
        "uniform": [],
        "median MI": sensitivity.by_mi(evidence, estimator=settings.estimator, nodes=settings.nodes),
        "median of correlated ranks": sensitivity.roots(
            [_gaussian(e.statistics.sample, ranks=True) for e in evidence]
        ),
        "median of correlations": sensitivity.roots(
            [_gaussian(e.statistics.sample, ranks=False) for e in evidence]
        ),
        "distance from the middle layer": sensitivity.roots([x**2 for x in deep]),
        "halved layer": sensitivity.by_kl(evidence),
    }


def _gaussian(sample: Tensor, *, ranks: bool) -> float:
    """The median over pairs of `-log(1 - rho^2) / 2` above that of independent neurons, nats: what the MI would be if
    the neurons, or with `ranks` their normal scores, were jointly Gaussian."""
    variables = transform_samples(sample, "rank", seed=0).scores().t() if ranks else sample.float()  # [M, N]
    correlation = torch.corrcoef(variables.t()).nan_to_num(0.0)
    rho2 = correlation[torch.ones_like(correlation, dtype=torch.bool).triu_(1)].square()
    floor = -0.5 * math.log1p(-CHI2_MEDIAN / len(sample))
    return float(-0.5 * torch.log1p(-rho2.median())) - floor


def compare(source: Source, plan: Plan, ratio: float) -> list[dict[str, Any]]:
    """A row for each statistic."""
    model, tokenizer = load_model(source.path)
    if not model.can_generate():
        model = model.float()
    task = make_task(model, tokenizer, plan)
    settings = Settings(ratio=ratio, seed=plan.seed, budget="kl")
    ffns = find_ffns(model)
    batches = task.calibration.split(settings.batch_size)
    evidence = gather_evidence(model, ffns, batches, settings)
    some = comparison_batches(task.calibration, settings.batch_size)
    evidence = sensitivity.with_divergence(model, ffns, evidence, some)
    rows = []
    weights = levels(evidence, settings)
    for name, sensitive in weights.items():
        if sensitive:
            damage = [layer.damage for layer in evidence]
            cap = settings.max_layer_ratio
            widths = allocate(damage, sensitive, ratio=ratio, multiple_of=1, max_layer_ratio=cap)
            agreement = round(spearman(np.array(sensitive), np.array(weights["halved layer"])), 4)
        else:
            widths, agreement = [uniform_width(f.width, ratio, 1) for f in ffns], None
        kept = [
            complement(e.order[: f.width - n], f.width)
            for e, f, n in zip(evidence, ffns, widths, strict=True)
        ]
        with restored(ffns):
            prune_separately(ffns, kept, [layer.statistics for layer in evidence], "lstsq")
            quality = task.evaluate(model)
        case = {
            "model": source.name,
            "statistic": name,
            "ratio": ratio,
            "calibration": {"text": task.said, "shape": list(task.calibration.shape)},
            "sample_size": settings.sample_size,
            "seed": plan.seed,
        }
        result = {
            "weights": [float(f"{w:.6g}") for w in sensitive],
            "agreement": agreement,
            "quality": quality,
        }
        command = f"python -m benchmarks.quality.budgets --data DIR --model {source.name}=... --ratio {ratio}"
        command += f" --windows {plan.windows} --seed {plan.seed}"
        rows.append(row("budgets", command, case, result))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.budgets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", nargs="+", type=Source.parse)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--windows", type=int, default=112, help="of calibration, of 512 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROWS)
    args = parser.parse_args()
    plan = Plan(args.data, [], protocols=["8x512", "16x512"], windows=args.windows, seed=args.seed)
    for source in args.model or installed_models():
        rows = compare(source, plan, args.ratio)
        append(rows, args.out)
        print(f"\n{source.name}, {args.ratio:.0%} of the neurons dropped")
        print(summary(rows))


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each statistic."""
    measures = [
        (protocol, name) for protocol, q in rows[0]["result"]["quality"].items() for name in list(q)[:1]
    ]
    lines = [
        (
            r["case"]["statistic"],
            "-" if r["result"]["agreement"] is None else f"{r['result']['agreement']:.2f}",
            *(f"{r['result']['quality'][protocol][name]:.4g}" for protocol, name in measures),
        )
        for r in rows
    ]
    return table(lines, ("budget by", "agreement", *(f"{name}, {protocol}" for protocol, name in measures)))


if __name__ == "__main__":
    main()
