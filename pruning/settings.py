"""How to prune, as one checked value."""

from dataclasses import dataclass
from typing import Literal, get_args

from mikernels.options import Estimator, make_problem
from mikernels.validation import MIN_SAMPLES
from pruning.choose.budget import Budget
from pruning.repair.closed_form import Repair
from pruning.threshold import null_level

Criterion = Literal["conditional-mi", "pairwise-mi", "random-pairs", "flap", "wanda", "magnitude", "random"]


@dataclass(frozen=True)
class Settings:
    """Arguments of `pruning.prune`, which says what each means.

    Raises:
        ValueError: values out of range, or that do not go together.
    """

    ratio: float = 0.2
    criterion: Criterion = "conditional-mi"
    repair: Repair = "sequential"
    refine: bool = False
    budget: Budget = "uniform"
    max_layer_ratio: float = 0.8
    threshold: float | str | None = None
    clusters: int = 1
    candidates: int = 1
    multiple_of: int = 32
    calibration_tokens: int = 57_344
    sequence_length: int = 512
    batch_size: int = 4
    sample_size: int = 4096
    estimator: Estimator = "grid"
    nodes: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("ratio", "max_layer_ratio"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"{name}: expected a number between 0 and 1, both excluded, got {getattr(self, name)}"
                )
        choices = {"criterion": Criterion, "repair": Repair, "budget": Budget, "estimator": Estimator}
        for name, options in choices.items():
            value = getattr(self, name)
            if value not in get_args(options):
                raise ValueError(f"{name}: expected one of {', '.join(get_args(options))}, got {value!r}")
        sizes = ("multiple_of", "calibration_tokens", "sequence_length", "batch_size", "sample_size")
        for name in (*sizes, "clusters", "candidates"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value}")
        make_problem(self.estimator, self.nodes, None, self.sample_size)
        if self.sample_size < MIN_SAMPLES:
            raise ValueError(f"sample_size: expected at least {MIN_SAMPLES} tokens, got {self.sample_size}")
        for name in ("threshold", "clusters", "candidates"):
            if getattr(self, name) != getattr(Settings, name) and self.criterion != "random-pairs":
                raise ValueError(
                    f"{name}: expected only with criterion='random-pairs', got it with {self.criterion!r}"
                )
        if isinstance(self.threshold, str):
            null_level(self.threshold)
        if self.refine and self.repair != "sequential":
            raise ValueError(f"refine: expected only with repair='sequential', got it with {self.repair!r}")
