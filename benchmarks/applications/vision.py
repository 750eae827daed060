"""Prune a convolutional network through Torch-Pruning, by its own importances and by mutual information.

    python -m benchmarks.applications.vision

Trains small residual networks on scikit-learn's digits, and appends a row to `results/applications.jsonl`: the accuracy
on held-out digits after pruning at several ratios and a few epochs of fine-tuning.
"""

import copy
import json
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.record import append, argument_parser, command, row
from mikernels.integrations.torch_pruning import MutualInformationImportance

RATIOS = (0.25, 0.5, 0.75)
METHODS = ("random", "magnitude", "activation", "mi", "conditional-mi")


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.second(self.first(x).relu())).relu()


def network(width: int = 32) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        Block(width),
        nn.MaxPool2d(2),
        Block(width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


def digits() -> tuple[Tensor, Tensor]:
    """1,797 images `[n, 1, 8, 8]` from 0 to 1, and what they show."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16).float().reshape(-1, 1, 8, 8), torch.tensor(labels)


def train(model: nn.Sequential, images: Tensor, labels: Tensor, epochs: int) -> nn.Sequential:
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    return model.eval()


def importance(method: str, model: nn.Module, images: Tensor) -> Any:
    batches = images.split(64)[:8]
    if method == "random":
        return tp.importance.RandomImportance()
    if method == "magnitude":
        return tp.importance.GroupMagnitudeImportance(p=2)
    if method == "activation":
        found = tp.importance.ActivationImportance(target_types=[nn.Conv2d, nn.Linear])
        with found.compute_importance(model), torch.no_grad():
            model(torch.cat(batches))
        return found
    return MutualInformationImportance(model, batches, method=method)


def pruned(model: nn.Sequential, method: str, ratio: float, images: Tensor) -> nn.Sequential:
    """A copy with all channels pruned but those of the classifier."""
    model = copy.deepcopy(model)
    score = importance(method, model, images)
    tp.pruner.BasePruner(model, images[:1], score, pruning_ratio=ratio, ignored_layers=[model[-1]]).step()
    return model


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def main() -> None:
    parser = argument_parser("benchmarks.applications.vision", __doc__, "applications.jsonl")
    parser.add_argument("--networks", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--tuning", type=int, default=2, help="epochs after pruning")
    args = parser.parse_args()
    images, labels = digits()
    n_train = 1200
    dense: list[float] = []
    after: dict[str, dict[str, list[float]]] = {m: {str(r): [] for r in RATIOS} for m in METHODS}
    for number in range(args.networks):
        torch.manual_seed(args.seed + number)
        model = train(network(), images[:n_train], labels[:n_train], args.epochs)
        dense.append(accuracy(model, images[n_train:], labels[n_train:]))
        for method in METHODS:
            for ratio in RATIOS:
                small = pruned(model, method, ratio, images[:n_train])
                torch.manual_seed(args.seed + number)  # the same order of images for all
                train(small, images[:n_train], labels[:n_train], args.tuning)
                after[method][str(ratio)].append(accuracy(small, images[n_train:], labels[n_train:]))
    mean = {m: {r: round(float(np.mean(v)), 4) for r, v in found.items()} for m, found in after.items()}
    result = {"dense": round(float(np.mean(dense)), 4), "accuracy": mean, "of_networks": after}
    rerun = command(
        "benchmarks.applications.vision",
        networks=args.networks,
        epochs=args.epochs,
        tuning=args.tuning,
        seed=args.seed,
    )
    case = {"data": "digits", "networks": args.networks, "epochs": args.epochs, "tuning": args.tuning}
    case["seed"] = args.seed
    append([row("vision", rerun, case, result, {"torch-pruning": "1.6.1"})], args.out)
    print(json.dumps({"dense": result["dense"], "accuracy": mean}, indent=1))


if __name__ == "__main__":
    main()
