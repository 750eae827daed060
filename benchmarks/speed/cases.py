"""What is measured, as data: cases, and series of cases with the variants that run on them."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Case:
    """One problem: the mutual information of every pair among N variables, from M samples."""

    N: int
    M: int
    estimator: str = "grid"  # of mikernels, or that of another package: "ksg", "b-spline", "full-kde"
    nodes: int = 16  # G of `grid`, and the bins of B-splines
    precision: str = "int8"  # of the arithmetic: "int8", "fp32", "fp64"; "auto" if there is only one
    device: str = "cpu"
    seed: int = 0  # of the samples
    zeros: float = 0.0  # share of each variable that is 0, as behind a ReLU or in counts of single cells

    @property
    def id(self) -> str:
        nodes = f"-G{self.nodes}" if self.estimator == "grid" else ""
        return f"{self.estimator}{nodes}-{self.precision}-N{self.N}-M{self.M}-{self.device}"

    @property
    def pairs(self) -> int:
        """Number of pairs of two different variables."""
        return self.N * (self.N - 1) // 2

    @property
    def flops(self) -> float:
        """Operations of the matrix products over the upper triangle, diagonal included.

        A pair takes 2 G^2 M (`grid`; G - 1 nodes in int8 on a CPU, where margins give the last), 2 M^2 (`kde`) or M^2
        (`renyi2`); with `adaptive` it takes two products of G^3
        on each of two rungs of the ladder for G = 32, 16, 8 and 4 cells.
        """
        nodes = self.nodes - (self.precision == "int8" and self.device == "cpu")
        per_pair = {
            "grid": 2 * nodes**2 * self.M,
            "kde": 2 * self.M**2,
            "renyi2": self.M**2,
            "adaptive": sum(8 * cells**3 for cells in (32, 16, 8, 4)),
        }
        return per_pair[self.estimator] * self.N * (self.N + 1) / 2

    @property
    def least_bytes(self) -> float:
        """float32 samples read once and float32 results written once."""
        return 4.0 * self.N * (self.M + self.N)


@dataclass(frozen=True)
class Series:
    """Cases from small to large, each run by all variants in turn; the first variant is one of mikernels."""

    name: str
    cases: tuple[Case, ...]
    variants: tuple[str, ...]


def with_options(series: Series, sizes: tuple[tuple[int, int], ...], variants: tuple[str, ...]) -> Series:
    """The series at other sizes (N, M), if any, and with more variants."""
    cases = tuple(replace(series.cases[0], N=n, M=m) for n, m in sizes) or series.cases
    return Series(series.name, cases, (*series.variants, *variants))


def powers(first: int, last: int) -> list[int]:
    """first, 2 first, 4 first, ... up to last."""
    return [first << i for i in range((last // first).bit_length())]


def all_series(device: str, seed: int) -> list[Series]:
    """Comparisons at one size, and sweeps over N and M."""
    grid = Case(256, 2048, device=device, seed=seed)
    kde = replace(grid, estimator="kde", precision="fp32")
    everyone = (
        *("ours", "ours-fp32", "ours-adaptive", "ours-kde", "ours-renyi2", "widestats"),
        *("scikit-learn", "ennemi", "scipy", "keops", "hoi"),
    )
    return [
        Series("everyone", (replace(grid, M=2000),), everyone),
        Series("adaptive", (replace(grid, M=2000),), ("ours-adaptive", "ours", "scikit-learn", "ennemi")),
        Series("widestats", (replace(grid, N=1536, M=2000, nodes=10),), ("ours", "widestats")),
        Series("broadcast", (replace(kde, N=64, M=512),), ("ours", "torch-broadcast")),
        Series("grid over N", tuple(replace(grid, N=n) for n in powers(256, 16384)), ("ours", "widestats")),
        Series("grid over M", tuple(replace(grid, M=m) for m in powers(512, 65536)), ("ours", "widestats")),
        Series("kde over N", tuple(replace(kde, N=n, M=512) for n in powers(256, 16384)), ("ours",)),
        Series("kde over M", tuple(replace(kde, M=m) for m in powers(512, 65536)), ("ours",)),
        Series(
            "zeros",
            tuple(replace(grid, N=n, M=5000, zeros=0.5) for n in (1000, 2000, 5000)),
            ("ours", "ours-adaptive", "widestats", "frites", "scikit-learn", "ennemi"),
        ),
    ]
