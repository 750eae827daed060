"""Read settings of any library as plain Python values: NumPy's numbers and 0-d tensors are numbers too.

Every function takes a value and its name, and raises ValueError, with what was expected, for anything else.
"""

import operator
from typing import Any


def integer(value: Any, name: str, expected: str = "an integer") -> int:
    """An int, from anything that Python accepts as an index, but no float and no bool."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        if _is_single(value) and not _is_boolean(value):
            return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: torch's, for example on the meta device
        pass
    advice = f"; use int({name})" if isinstance(value, float) and value.is_integer() else ""
    raise ValueError(f"{name}: expected {expected}, got {value!r}{advice}")


def positive(value: Any, name: str) -> int:
    """An int of at least 1."""
    number = integer(value, name)
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")
    return number


def real(value: Any, name: str, expected: str = "a number") -> float:
    """A float, from any single real number but a bool. NaN is no number."""
    if isinstance(value, float) and value == value:
        return float(value)
    try:
        if _is_single(value) and not _is_boolean(value) and not _is_complex(value):
            number = float(value.detach() if hasattr(value, "detach") else value)
            if number == number:
                return number
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise ValueError(f"{name}: expected {expected}, got {value!r}")


def flag(value: Any, name: str, expected: str = "True or False") -> bool:
    """A bool, from a bool of any library, 0 or 1."""
    if isinstance(value, bool):
        return value
    try:
        if _is_single(value) and (_is_boolean(value) or operator.index(value) in (0, 1)):
            return bool(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise ValueError(f"{name}: expected {expected}, got {value!r}")


def _is_single(value: Any) -> bool:
    return not isinstance(value, str | bytes) and getattr(value, "ndim", 0) == 0


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def _is_complex(value: Any) -> bool:
    return "complex" in str(getattr(value, "dtype", ""))
