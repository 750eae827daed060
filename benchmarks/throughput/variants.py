"""Who is measured, as data: ours and the peers."""

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version

from torch import Tensor

from benchmarks.throughput import peers
from benchmarks.throughput.cases import Case
from benchmarks.throughput.samples import scores
from mikernels import mutual_information


@dataclass(frozen=True)
class Variant:
    """One way to the MI of all pairs.

    Attributes:
        name: as in rows and on the command line.
        label: as in plots and tables, where ours have estimator and precision added.
        run: from `[M, n]` and the case to `[n, n]` nats.
        settings: fields of the case that this variant replaces: what it really computes.
        ours: takes the samples as they are, where the peers get normal scores, ready made; and its FLOPs are known.
        module, package: what must be importable, and its name in the package index.
        needs: a program that must be there too.
        columns: pair by pair, too slow for all: only the pairs among so many columns are timed.
        bytes: workspace of a case, for variants that could fill the memory.
    """

    name: str
    label: str
    run: Callable[[Tensor, Case], Tensor]
    settings: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False
    module: str | None = None
    package: str | None = None
    needs: str | None = None
    columns: int | None = None
    bytes: Callable[[Case], float] = lambda case: 0.0

    def missing(self) -> str | None:
        """Why it cannot run here, if so."""
        if self.module and importlib.util.find_spec(self.module) is None:
            return f"{self.package} is not installed"
        if self.needs and shutil.which(self.needs) is None:
            return f"{self.needs} was not found"
        return None

    def case(self, case: Case) -> Case:
        """What it really computes."""
        return replace(case, **self.settings)

    def call(self, x: Tensor, case: Case) -> Callable[[], Tensor]:
        """The call to be timed, on samples `x [M, N]`, with everything before it done."""
        x = x[:, : self.columns]
        inputs = x if self.ours else scores(x, case.seed)
        own = self.case(case)
        return lambda: self.run(inputs, own)

    def versions(self) -> dict[str, str]:
        return {self.package: version(self.package)} if self.package else {}


def ours(x: Tensor, case: Case) -> Tensor:
    return mutual_information(
        x, estimator=case.estimator, nodes=case.nodes, precision=case.precision, seed=case.seed
    )


def _ours(name: str, **settings: str) -> Variant:
    return Variant(name, "mikernels", ours, settings, ours=True)


SOME_COLUMNS = 10
"""Of which all pairs, 45, are timed where the time of all is extrapolated: the same for every such variant."""

KDE = {"estimator": "kde", "precision": "fp32"}
KSG = {"estimator": "ksg", "precision": "fp64"}

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
            bytes=lambda case: 4.0 * (case.N * case.M) ** 2,
        ),
        Variant(
            "widestats",
            "widestats",
            peers.widestats,
            {"estimator": "b-spline", "precision": "fp32"},
            module="widestats",
            package="widestats",
            # its float64 splines are made for all columns at once, in some six arrays
            bytes=lambda case: 48.0 * case.N * case.M * (case.nodes + 2),
        ),
        Variant(
            "scikit-learn",
            "scikit-learn KSG",
            peers.scikit_learn,
            KSG,
            module="sklearn",
            package="scikit-learn",
            columns=SOME_COLUMNS,
        ),
        Variant(
            "ennemi", "ennemi KSG", peers.ennemi, KSG, module="ennemi", package="ennemi", columns=SOME_COLUMNS
        ),
        Variant(
            "scipy",
            "scipy gaussian_kde",
            peers.scipy_kde,
            {"estimator": "full-kde", "precision": "fp64"},
            module="scipy",
            package="scipy",
            columns=SOME_COLUMNS,
        ),
        Variant(
            "keops",
            "KeOps",
            peers.keops,
            KDE,
            module="pykeops",
            package="pykeops",
            needs="g++",
            columns=SOME_COLUMNS,
        ),
        Variant(
            "hoi",
            "hoi (JAX)",
            peers.hoi,
            {"estimator": "full-kde", "precision": "fp32"},
            module="hoi",
            package="hoi",
            columns=SOME_COLUMNS,
        ),
    )
}
