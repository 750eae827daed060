"""Feature selection on scikit-learn's breast cancer data, beside its own `mutual_info_classif`.

    python -m benchmarks.applications.selection

Appends a row to `results/applications.jsonl`: for each selector and number of features the accuracy of a logistic
regression on them in repeated cross-validation, where the selection sees the training folds only.
"""

import json
import time
from typing import Any

import numpy as np
import sklearn
from sklearn.datasets import load_breast_cancer
from sklearn.feature_selection import SelectKBest, mutual_info_classif
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.record import append, argument_parser, command, quantiles, row
from mikernels.integrations.scikit_learn import MutualInformationSelector

SIZES = (2, 3, 5, 10)


def selectors(k: int, seed: int) -> dict[str, Any]:
    def relevance(x: Any, y: Any) -> Any:
        return mutual_info_classif(x, y, random_state=seed)

    return {
        "mutual_info_classif": SelectKBest(relevance, k=k),
        "mrmr": MutualInformationSelector(k),
        "jmi": MutualInformationSelector(k, method="jmi"),
    }


def measure(repeats: int, seed: int) -> dict[str, Any]:
    """Mean accuracy by selector and number of features, with the standard deviation between repeats, and seconds."""
    x, y = load_breast_cancer(return_X_y=True)
    folds = list(RepeatedStratifiedKFold(n_splits=5, n_repeats=repeats, random_state=seed).split(x, y))
    accuracy: dict[str, dict[str, Any]] = {}
    seconds: dict[str, list[float]] = {}
    for k in SIZES:
        for name, selector in selectors(k, seed).items():
            correct = []
            for train, test in folds:
                start = time.perf_counter()
                selector.fit(x[train], y[train])
                seconds.setdefault(name, []).append(time.perf_counter() - start)
                kept = selector.get_support()
                model = make_pipeline(StandardScaler(), LogisticRegression())
                correct.append(model.fit(x[train][:, kept], y[train]).score(x[test][:, kept], y[test]))
            by_repeat = np.reshape(correct, (repeats, -1)).mean(1)
            accuracy.setdefault(name, {})[str(k)] = {
                "mean": round(float(by_repeat.mean()), 4),
                "sd": round(float(by_repeat.std(ddof=1)), 4),
            }
    return {"accuracy": accuracy, "seconds_of_a_fit": {name: quantiles(s) for name, s in seconds.items()}}


def main() -> None:
    parser = argument_parser("benchmarks.applications.selection", __doc__, "applications.jsonl")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    case = {
        "data": "breast cancer",
        "M": 569,
        "N": 30,
        "folds": 5,
        "repeats": args.repeats,
        "seed": args.seed,
    }
    result = measure(args.repeats, args.seed)
    rerun = command("benchmarks.applications.selection", repeats=args.repeats, seed=args.seed)
    append([row("selection", rerun, case, result, {"scikit-learn": sklearn.__version__})], args.out)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
