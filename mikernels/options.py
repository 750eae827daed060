"""Every option, defined and checked in one place, and the numbers that fix an estimate.

To add an option, add a line at the end of `Options`, with a default in its schema (docs/api-stability.md), and describe
it in `mikernels.mutual_information`.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypedDict,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import torch

from mikernels.devices import require_float64
from mikernels.errors import UnsupportedError
from mikernels.numbers import flag, integer, real

Estimator = Literal["grid", "kde", "renyi2", "adaptive"]
Transform = Literal["rank", "standardize"]
Impl = Literal["auto", "triton", "torch", "reference"]
Precision = Literal["auto", "int8", "fp8", "fp16", "fp32", "fp64"]


class Option(NamedTuple):
    """What is known of an option beside its type.

    Attributes:
        default: value where the caller gives none.
        schema: type of the resolved value in the schema of the operators; None for an option that they do not take.
        read: makes a plain Python value of what the caller gives, or raises ValueError.
    """

    default: Any
    schema: str | None
    read: Callable[[Any, str], Any]


LARGEST = 2**63 - 1
"""The largest integer that an operator takes."""

MIN_BANDWIDTH = 1e-6
"""Below the distance of neighboring ranks at any M that fits in memory; its square is safe in float32."""
BANDWIDTHS = (
    "None, 'silverman', 'scott' or a number of standard deviations from "
    f"{MIN_BANDWIDTH:g} to {1 / MIN_BANDWIDTH:g}"
)
"""What `bandwidth` may be; formatted here, since torch cannot trace it."""


def _as_it_is(value: Any, name: str) -> Any:
    return value


def _read_nodes(value: Any, name: str) -> int:
    nodes = integer(value, name, "an integer from 2 to 256")
    if not 2 <= nodes <= 256:
        raise ValueError(f"{name}: expected an integer from 2 to 256, got {nodes}")
    return nodes


def _read_bandwidth(value: Any, name: str) -> float | str | None:
    if value is None or isinstance(value, str):
        return value
    return real(value, name, BANDWIDTHS)


def _read_bytes(value: Any, name: str) -> int | None:
    if value is None:
        return None
    return min(max(integer(value, name, "an integer number of bytes"), 0), LARGEST)


def _read_calibrate(value: Any, name: str) -> bool | None:
    return None if value is None else flag(value, name, "True, False or None")


def _read_device(value: Any, name: str) -> torch.device | None:
    """The device, if this build of torch and this machine have it."""
    if value is None:
        return None
    try:
        device = torch.device(value)
        torch.empty(0, device=device)
    # Torch without CUDA raises an AssertionError.
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UnsupportedError(
            f"{name}: expected a device of this machine, got {value!r} ({error})"
        ) from None
    require_float64(device)
    return device


class Options(TypedDict, total=False):
    """The keyword arguments that all functions share; `mikernels.mutual_information` documents them."""

    estimator: Annotated[Estimator, Option("grid", "str", _as_it_is)]
    nodes: Annotated[int, Option(16, "int", _read_nodes)]
    bandwidth: Annotated[float | str | None, Option(None, "float?", _read_bandwidth)]
    transform: Annotated[Transform, Option("rank", "str", _as_it_is)]
    calibrate: Annotated[bool | None, Option(None, "bool", _read_calibrate)]
    impl: Annotated[Impl, Option("auto", "str", _as_it_is)]
    precision: Annotated[Precision, Option("auto", "str", _as_it_is)]
    memory_budget: Annotated[int | None, Option(None, "int?", _read_bytes)]
    seed: Annotated[int, Option(0, "int", integer)]
    autotune: Annotated[bool, Option(False, "bool", flag)]
    check_finite: Annotated[bool, Option(True, "bool", flag)]
    device: Annotated[torch.device | str | None, Option(None, None, _read_device)]


_HINTS = get_type_hints(Options, include_extras=True)
OPTIONS: dict[str, Option] = {name: hint.__metadata__[0] for name, hint in _HINTS.items()}
SCHEMA = ", ".join(f"{option.schema} {name}" for name, option in OPTIONS.items() if option.schema)
"""The options that the operators take, in order."""

_CHOICES = {
    name: get_args(get_args(hint)[0])
    for name, hint in _HINTS.items()
    if get_origin(get_args(hint)[0]) is Literal
}

Function = TypeVar("Function", bound=Callable[..., Any])


def shows_options(**defaults: Any) -> Callable[[Function], Function]:
    """Show the options in the signature of a function that takes them as `**options`, in `help` and notebooks.

    Args:
        defaults: of the function, where they are not those of `OPTIONS`.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        shown = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(name, option.default),
                annotation=get_args(_HINTS[name])[0],
            )
            for name, option in OPTIONS.items()
        ]
        function.__signature__ = signature.replace(parameters=[*own, *shown])  # type: ignore[attr-defined]
        return function

    return decorate


def plain(options: Options) -> Options:
    """The options that the caller gave, as plain Python values.

    Raises:
        TypeError: an option that does not exist.
        ValueError: a value of the wrong kind.
    """
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise TypeError(
            f"unexpected keyword argument {unknown[0]!r}; expected options among {', '.join(OPTIONS)}"
        )
    given = cast(Options, {name: OPTIONS[name].read(value, name) for name, value in options.items()})
    for name, allowed in _CHOICES.items():
        if name in given:
            choose(name, given[name], allowed)  # type: ignore[literal-required]  # a key of Options
    return given


def resolve(options: Options, n_samples: int) -> Options:
    """All options, checked, with values in place of the defaults that depend on other options or on M.

    `bandwidth="loo"` becomes None, since only the samples decide it. `impl` and `precision` stay as they are, since
    only the device decides them.

    Raises:
        TypeError: an option that does not exist.
        ValueError: a value that is not possible, or options that exclude each other.
    """
    given = plain(options)
    chosen = cast(Options, {name: given.get(name, option.default) for name, option in OPTIONS.items()})
    estimator, bandwidth = chosen["estimator"], chosen["bandwidth"]
    unseen = bandwidth == "loo" and estimator in ("kde", "grid")
    problem = make_problem(estimator, chosen["nodes"], None if unseen else bandwidth, n_samples)
    if chosen["transform"] != "rank" and (estimator == "adaptive" or chosen["calibrate"]):
        cause = "estimator='adaptive'" if estimator == "adaptive" else "calibrate=True"
        raise ValueError(f"transform: expected 'rank' with {cause}, got {chosen['transform']!r}")
    chosen["bandwidth"] = None if unseen else problem.bandwidth
    if chosen["calibrate"] is None:
        chosen["calibrate"] = estimator == "adaptive"
    chosen["seed"] %= 2**32
    return chosen


def to_operator(options: Options) -> tuple[Any, ...]:
    """The arguments of an operator for resolved options, in the order of `SCHEMA`."""
    return tuple(options[name] for name, option in OPTIONS.items() if option.schema)  # type: ignore[literal-required]


def from_operator(arguments: Sequence[Any]) -> Options:
    """The resolved options that `to_operator` made `arguments` of."""
    names = [name for name, option in OPTIONS.items() if option.schema]
    return cast(Options, dict(zip(names, arguments, strict=True)))


NODE_SPAN = 2.4
"""The nodes of `grid` cover [-2.4, 2.4], 98.4 % of a standard normal; values beyond count at the end nodes."""

GRID_BANDWIDTH_FLOOR = 0.75
"""In node spacings. A narrower kernel falls between the nodes and acts as a histogram: at M = 4096 and 16 nodes
the bias for independent variables is 0.009 nats at half a spacing and 0.003 at this value."""


@dataclass(frozen=True)
class Problem:
    """An estimator with every number that it depends on.

    Attributes:
        estimator: `"grid"`, `"kde"`, `"renyi2"` or `"adaptive"`.
        nodes: G, nodes per variable (`grid` only).
        bandwidth: h of the Gaussian kernel, in standard deviations of the transformed variables. 0 for
            `adaptive`, which chooses one for each pair.
    """

    estimator: Estimator
    nodes: int
    bandwidth: float

    @property
    def spacing(self) -> float:
        """Distance between two nodes of `grid`."""
        return node_spacing(self.nodes)

    @property
    def most_atoms(self) -> int:
        """Cells of a column for values that many samples share (`mikernels.atoms`)."""
        return self.nodes if self.estimator == "grid" else MOST_ATOMS


MOST_ATOMS = 100
"""Half of this is the largest number of values that can each have 2 % of the samples."""


def node_spacing(nodes: int) -> float:
    return 2 * NODE_SPAN / max(1, nodes - 1)


def grid_floor(nodes: int) -> float:
    """The narrowest kernel that `nodes` nodes resolve, in standard deviations."""
    return GRID_BANDWIDTH_FLOOR * node_spacing(nodes)


def silverman(n_samples: int) -> float:
    """Silverman's bandwidth for two dimensions and unit variances, `M^(-1/6)`.

    At d = 2 Silverman's factor `(M (d + 2) / 4)^(-1 / (d + 4))` equals Scott's `M^(-1 / (d + 4))`.

    Source: B. W. Silverman, Density Estimation for Statistics and Data Analysis, 1986, eq. 4.14,
    DOI 10.1201/9781315140919; D. W. Scott, Multivariate Density Estimation, 1992, DOI 10.1002/9780470316849.
    """
    return float(n_samples ** (-1 / 6))


def make_problem(estimator: str, nodes: int, bandwidth: float | str | None, n_samples: int) -> Problem:
    """Check the options of an estimator and compute the bandwidth where it depends on M.

    Raises:
        ValueError: an unknown estimator or bandwidth rule, a bandwidth that is not a positive number, or a
            number of nodes that is not from 2 to 256.
    """
    choose("estimator", estimator, get_args(Estimator))
    nodes, bandwidth = _read_nodes(nodes, "nodes"), _read_bandwidth(bandwidth, "bandwidth")
    if estimator == "adaptive":
        if bandwidth is not None:
            raise ValueError(
                f"bandwidth: expected None with estimator='adaptive', which chooses its own, got {bandwidth!r}"
            )
        h = 0.0
    elif bandwidth is None:
        h = silverman(n_samples)
        if estimator == "grid":
            h = max(h, grid_floor(nodes))
    elif bandwidth in ("silverman", "scott"):
        h = silverman(n_samples)
    elif isinstance(bandwidth, str) or not MIN_BANDWIDTH <= bandwidth <= 1 / MIN_BANDWIDTH:
        raise ValueError(
            f"bandwidth: expected None, 'silverman', 'scott' or a number of standard deviations from "
            f"{MIN_BANDWIDTH:g} to {1 / MIN_BANDWIDTH:g}, got {bandwidth!r}"
        )
    else:
        h = bandwidth
    return Problem(cast(Estimator, estimator), nodes, h)


def choose(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of the strings `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")
