"""The estimators as matrix products in plain torch, for any device with float64."""

from collections.abc import Callable

from mikernels.method import Method
from mikernels.options import Precision, Problem
from mikernels.torch_impl.adaptive_histograms import Adaptive
from mikernels.torch_impl.grid import Grid
from mikernels.torch_impl.kde import Kde
from mikernels.torch_impl.renyi2 import Renyi2


def method(problem: Problem, precision: Precision) -> Method:
    if problem.estimator == "adaptive":
        return Adaptive()
    if problem.estimator == "grid":
        return Grid(problem, integers=precision == "int8")
    methods: dict[str, Callable[[Problem], Method]] = {"kde": Kde, "renyi2": Renyi2}
    return methods[problem.estimator](problem)
