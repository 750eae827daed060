"""The estimators under comparison: each maps draws `x, y [M, R]` to R estimates in nats."""

import importlib.util
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mikernels import mutual_information
from mikernels.transforms import transform_samples

Estimate = Callable[[Tensor, Tensor], Tensor]


def ours(x: Tensor, y: Tensor, **options: object) -> Tensor:
    """The pairs with equal column index, taken from all pairs of columns."""
    return mutual_information(x, y, **options).diagonal()  # type: ignore[arg-type]


def ksg(x: Tensor, y: Tensor) -> Tensor:
    """A. Kraskov, H. Stoegbauer, P. Grassberger, Phys. Rev. E 69 (2004), DOI 10.1103/PhysRevE.69.066138."""
    from sklearn.feature_selection import mutual_info_regression

    def one(a: Tensor, b: Tensor) -> float:
        return mutual_info_regression(a.numpy()[:, None], b.numpy(), n_neighbors=3, random_state=0)[0]

    return columns(one, x, y)


def ennemi(x: Tensor, y: Tensor) -> Tensor:
    """P. Laarne, M. A. Zaidan, T. Nieminen, SoftwareX 14 (2021), DOI 10.1016/j.softx.2021.100686."""
    from ennemi import estimate_mi

    def one(a: Tensor, b: Tensor) -> float:
        return float(estimate_mi(b.numpy(), a.numpy(), k=3, max_threads=1)[0, 0])

    return columns(one, x, y)


def bspline(x: Tensor, y: Tensor) -> Tensor:
    """C. O. Daub et al., BMC Bioinformatics 5 (2004), DOI 10.1186/1471-2105-5-118; widestats returns bits."""
    from widestats import mutual_info

    def one(a: Tensor, b: Tensor) -> float:
        bits = mutual_info(a.numpy()[:, None], b.numpy()[:, None], bins=10, device="cpu")
        return float(bits[0, 0]) * math.log(2)

    return columns(one, x, y)


def gaussian(x: Tensor, y: Tensor) -> Tensor:
    """`-1/2 log(1 - r^2)`, r being the correlation of the normal scores."""
    a, b = scores(x, seed=0), scores(y, seed=1)
    r = (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt()
    return -0.5 * torch.log1p(-r.square())


def columns(one: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor) -> Tensor:
    pairs = zip(x.T.contiguous(), y.T.contiguous(), strict=True)
    return torch.tensor([one(a, b) for a, b in pairs], dtype=torch.float64)


def scores(x: Tensor, *, seed: int) -> Tensor:
    """Normal scores of the ranks of each column of `x [M, R]`.

    `seed`: of the order of equal values, another one for each side, or mostly-zero columns would seem dependent.
    """
    return transform_samples(x, "rank", seed=seed).scores(dtype=torch.float64).T.contiguous()


ESTIMATORS: dict[str, Estimate] = {
    "adaptive": partial(ours, estimator="adaptive"),
    "adaptive, raw": partial(ours, estimator="adaptive", calibrate=False),
    "grid": partial(ours, estimator="grid", calibrate=True),
    "grid, raw": partial(ours, estimator="grid"),
    "grid, 32 nodes, raw": partial(ours, estimator="grid", nodes=32, bandwidth=3.6 / 31),
    "kde": partial(ours, estimator="kde", calibrate=True),
    "kde, raw": partial(ours, estimator="kde"),
    "renyi2, raw": partial(ours, estimator="renyi2"),
    "KSG": ksg,
    "ennemi": ennemi,
    "ennemi, normal scores": lambda x, y: ennemi(scores(x, seed=0), scores(y, seed=1)),
    "B-spline": bspline,
    "Gaussian": gaussian,
}
"""By the name in tables and plots; those of mikernels are calibrated unless named `raw`."""

PACKAGES = {"KSG": "sklearn", "ennemi": "ennemi", "ennemi, normal scores": "ennemi", "B-spline": "widestats"}


def missing_package(estimator: str) -> str | None:
    """The package that an estimator needs, if it is not installed."""
    package = PACKAGES.get(estimator)
    return package if package and importlib.util.find_spec(package) is None else None
