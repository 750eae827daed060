"""The implementations under comparison, as data: mikernels and its peers."""

import importlib
import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version

import torch
from torch import Tensor

from benchmarks.speed import peers
from benchmarks.speed.cases import Case
from benchmarks.speed.samples import scores
from mikernels import mutual_information


@dataclass(frozen=True)
class Variant:
    """One way to compute the mutual information of all pairs."""

    name: str  # in rows and on the command line
    label: str  # in plots and tables; estimator and precision are added to those of mikernels
    run: Callable[..., Tensor]  # maps [M, n] and the case to [n, n] nats
    settings: Mapping[str, str] = field(default_factory=dict)  # fields of the case that it overrides
    ours: bool = False  # takes raw samples, where peers get precomputed normal scores; its FLOPs are known
    package: str | None = None  # the distribution that must be installed ...
    module: str | None = None  # ... for this module
    function: str | None = None  # of a user, as package.module:function
    program: str | None = None  # an executable that must exist as well
    columns: int | None = None  # time only the pairs among so many columns: it works pair by pair
    workspace: Callable[[Case], float] = lambda case: 0.0  # bytes, if it could fill the memory

    def missing(self) -> str | None:
        """Why this variant cannot run here, or None."""
        if self.module and importlib.util.find_spec(self.module) is None:
            return f"{self.package} is not installed"
        if self.function:
            try:
                _import(self.function)
            except (ImportError, AttributeError) as error:
                return f"{self.function}: {error}"
        if self.program and shutil.which(self.program) is None:
            return f"{self.program} was not found"
        return None

    def case(self, case: Case) -> Case:
        """What this variant really computes."""
        return replace(case, **self.settings)

    def call(self, x: Tensor, case: Case) -> Callable[[], Tensor]:
        """The call to be timed on samples `x [M, N]`; all preparation is done before."""
        x = x[:, : self.columns]
        inputs = x if self.ours else scores(x, case.seed)
        own = self.case(case)
        return lambda: self.run(inputs, own)

    def versions(self) -> dict[str, str]:
        return {self.package: version(self.package)} if self.package else {}


def ours(x: Tensor, case: Case, memory_budget: int | None = None) -> Tensor:
    return mutual_information(
        x,
        estimator=case.estimator,
        nodes=case.nodes,
        precision=case.precision,
        seed=case.seed,
        memory_budget=memory_budget,
    )


def _ours(name: str, **settings: str) -> Variant:
    return Variant(name, "mikernels", ours, settings, ours=True)


def _pair_by_pair(
    name: str, label: str, run: Callable[..., Tensor], settings: Mapping[str, str], package: str, module: str
) -> Variant:
    return Variant(name, label, run, settings, package=package, module=module, columns=TIMED_COLUMNS)


TIMED_COLUMNS = 10  # all 45 pairs of these columns are timed where the time of all pairs is extrapolated
KDE = {"estimator": "kde", "precision": "fp32"}
KSG = {"estimator": "ksg", "precision": "fp64"}
FULL_KDE = {"estimator": "full-kde", "precision": "fp64"}

VARIANTS = {
    variant.name: variant
    for variant in (
        _ours("ours"),
        _ours("ours-fp32", precision="fp32"),
        _ours("ours-adaptive", estimator="adaptive", precision="auto"),
        _ours("ours-kde", **KDE),
        _ours("ours-renyi2", estimator="renyi2", precision="fp32"),
        Variant(
            "torch-broadcast",
            "torch, broadcasting",
            peers.torch_broadcast,
            KDE,
            workspace=lambda case: 4.0 * (case.N * case.M) ** 2,
        ),
        Variant(
            "widestats",
            "widestats",
            peers.widestats,
            {"estimator": "b-spline", "precision": "fp32"},
            package="widestats",
            module="widestats",
            # It evaluates its float64 splines for all columns at once, in about six arrays.
            workspace=lambda case: 48.0 * case.N * case.M * (case.nodes + 2),
        ),
        _pair_by_pair("scikit-learn", "scikit-learn KSG", peers.scikit_learn, KSG, "scikit-learn", "sklearn"),
        _pair_by_pair("ennemi", "ennemi KSG", peers.ennemi, KSG, "ennemi", "ennemi"),
        _pair_by_pair("scipy", "scipy gaussian_kde", peers.scipy_kde, FULL_KDE, "scipy", "scipy"),
        replace(_pair_by_pair("keops", "KeOps", peers.keops, KDE, "pykeops", "pykeops"), program="g++"),
        replace(
            _pair_by_pair(
                "frites",
                "frites Gaussian copula",
                peers.frites,
                {"estimator": "gaussian-copula", "precision": "fp64"},
                "frites",
                "frites",
            ),
            columns=64,  # it is vectorized over pairs
        ),
        _pair_by_pair("hoi", "hoi (JAX)", peers.hoi, FULL_KDE | {"precision": "fp32"}, "hoi", "hoi"),
    )
}


def find(name: str) -> Variant:
    """A variant by its name, or the one of a user's function by `package.module:function`.

    The function takes normal scores `[M, N]` float32, as other packages do, and returns `[N, N]` nats: a tensor or an
    array, of which only the upper triangle is used.

    Raises:
        ValueError: neither a variant nor the name of a function.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    module, colon, function = name.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module.split("."), function]):
        raise ValueError(
            f"variant: expected one of {', '.join(VARIANTS)} or package.module:function, got {name!r}"
        )

    def run(z: Tensor, case: Case) -> Tensor:
        mi = torch.as_tensor(_import(name)(z))
        if mi.shape != (z.shape[1], z.shape[1]):
            raise ValueError(f"{name}: expected a matrix of shape {[z.shape[1]] * 2}, got {list(mi.shape)}")
        return mi

    return Variant(name, name, run, {"estimator": "own", "precision": "auto"}, function=name)


def _import(name: str) -> Callable[[Tensor], Tensor]:
    """The function `package.module:function`."""
    module, _, function = name.partition(":")
    found: Callable[[Tensor], Tensor] = getattr(importlib.import_module(module), function)
    return found
