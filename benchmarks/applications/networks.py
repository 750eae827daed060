"""A gene network with a known answer: which regulator acts on which gene, from expression alone.

    python -m benchmarks.applications.networks

Appends a row to `results/applications.jsonl`: for each method the area under the precision-recall curve over all pairs
of a regulator and another gene, and its seconds, over several simulated networks.
"""

import json
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.ensemble import RandomForestRegressor
from sklearn.metrics import average_precision_score
from torch import Tensor

from benchmarks.record import append, argument_parser, command, quantiles, row
from mikernels import mutual_information
from mikernels.networks import aracne, clr

RESPONSES = (torch.tanh, lambda x: 2 * torch.sigmoid(4 * x) - 1, lambda x: 2 * torch.exp(-2 * x.square()))
"""Of a gene to a regulator: saturating, a switch, and a dose between too little and too much."""


def simulate(n_samples: int, n_genes: int, n_regulators: int, seed: int) -> tuple[Tensor, Tensor]:
    """Expression `[M, N]` and the true links `[R, N]` bool; the first R genes are the regulators.

    Genes are a cascade: each has one to three parents among the regulators before it, and half of its variance is
    noise.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(n_samples, n_genes)
    links = torch.zeros(n_regulators, n_genes, dtype=torch.bool)
    for gene in range(n_genes):
        noise = torch.randn(n_samples, generator=generator)
        before = min(gene, n_regulators)
        n_parents = min(before, 1 + int(torch.randint(3, (), generator=generator)))
        signal = torch.zeros(n_samples)
        for parent in torch.randperm(before, generator=generator)[:n_parents].tolist():
            response = RESPONSES[int(torch.randint(3, (), generator=generator))](x[:, parent])
            signal += (response - response.mean()) / response.std()
            links[parent, gene] = True
        x[:, gene] = noise if n_parents == 0 else signal / signal.std() + noise
        x[:, gene] /= x[:, gene].std()
    return x, links


def random_forest(x: Tensor, n_regulators: int) -> Tensor:
    """As GENIE3: importance of the regulators in a forest that predicts each gene, `[R, N]`.

    Source: V. A. Huynh-Thu et al., Inferring regulatory networks from expression data using tree-based methods, PLoS
    ONE 5 (2010), DOI 10.1371/journal.pone.0012776.
    """
    values = x.numpy()
    score = np.zeros((n_regulators, values.shape[1]))
    for gene in range(values.shape[1]):
        parents = [r for r in range(n_regulators) if r != gene]
        forest = RandomForestRegressor(100, max_features="sqrt", random_state=0)
        score[parents, gene] = forest.fit(values[:, parents], values[:, gene]).feature_importances_
    return torch.from_numpy(score)


def methods(n_regulators: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Each maps expression `[M, N]` to scores `[R, N]` of the links."""
    regulators = range(n_regulators)

    def mi(x: Tensor, **options: str) -> Tensor:
        return mutual_information(x[:, :n_regulators], x, **options)

    return {
        "correlation": lambda x: torch.corrcoef(x.t())[:n_regulators].abs(),
        "random forests (GENIE3)": lambda x: random_forest(x, n_regulators),
        "grid": mi,
        "grid, CLR": lambda x: clr(mi(x), regulators),
        "grid, CLR, ARACNE": lambda x: aracne(clr(mi(x), regulators), regulators, tolerance=0.1),
        "adaptive": lambda x: mi(x, estimator="adaptive"),
        "adaptive, CLR": lambda x: clr(mi(x, estimator="adaptive"), regulators),
    }


def area(score: Tensor, links: Tensor) -> float:
    """Area under the precision-recall curve over all pairs of a regulator and another gene."""
    pairs = ~torch.eye(*links.shape, dtype=torch.bool)
    return float(average_precision_score(links[pairs].numpy(), score[pairs].numpy()))


def main() -> None:
    parser = argument_parser("benchmarks.applications.networks", __doc__, "applications.jsonl")
    parser.add_argument("--networks", type=int, default=5)
    args = parser.parse_args()
    case = {"M": 500, "N": 60, "regulators": 10, "networks": args.networks, "seed": args.seed}
    found = methods(case["regulators"])
    areas: dict[str, list[float]] = {name: [] for name in found}
    seconds: dict[str, list[float]] = {name: [] for name in found}
    share = []
    for network in range(args.networks):
        x, links = simulate(case["M"], case["N"], case["regulators"], args.seed + network)
        share.append(float(links.sum()) / (links.numel() - len(links)))
        for name, method in found.items():
            start = time.perf_counter()
            score = method(x)
            seconds[name].append(time.perf_counter() - start)
            areas[name].append(area(score, links))
    result = {
        "share_of_links": float(np.mean(share)),
        "aupr": {name: round(float(np.mean(values)), 4) for name, values in areas.items()},
        "aupr_of_networks": {name: [round(v, 4) for v in values] for name, values in areas.items()},
        "seconds": {name: quantiles(values) for name, values in seconds.items()},
    }
    rerun = command("benchmarks.applications.networks", networks=args.networks, seed=args.seed)
    append([row("network", rerun, case, result)], args.out)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
