"""What an estimate was made with, remembered by the array that holds it.

The matrices of `mutual_information` and the values of `Pairs` carry a note of the numbers that fix their distribution,
so that a null can refuse estimates that it is not for. A note is an attribute of a tensor: it is saved and loaded
with it, and lost as soon as an operation makes a new tensor. Other arrays have no room for one: theirs is kept here as
long as the array lives.
"""

import weakref
from typing import Any

from torch import Tensor

from mikernels.options import Options

ATTRIBUTE = "mikernels_provenance"

Provenance = dict[str, Any]
"""Plain values by name, so that `torch.load` accepts them with `weights_only`. Two tell of the samples, and may be
tensors: `atoms`, whether any column has some (`mikernels.atoms`), and `one_set`, whether the variables are paired with
themselves: without y, or with a y of the same values."""


def provenance_of(options: Options, n_samples: int) -> Provenance:
    """What resolved options and M fix of an estimate. The bandwidth is None if the samples chose it (`"loo"`)."""
    names = ["estimator", "transform", "bandwidth", "calibrate"]
    if options["estimator"] == "grid":
        names.append("nodes")
    return {"n_samples": n_samples} | {name: options[name] for name in names}  # type: ignore[literal-required]


_notes: dict[int, Provenance] = {}
"""Of living arrays that are no tensors, by `id`."""


def remember(mi: object, provenance: Provenance) -> None:
    if isinstance(mi, Tensor):
        setattr(mi, ATTRIBUTE, provenance)
        return
    try:
        weakref.finalize(mi, _notes.pop, id(mi), None).atexit = False
    except TypeError:  # an array that knows not when it ends
        return
    _notes[id(mi)] = provenance


def recall(mi: object) -> Provenance | None:
    """The note of an array; None if it has none."""
    return getattr(mi, ATTRIBUTE, None) if isinstance(mi, Tensor) else _notes.get(id(mi))


def describe(provenance: Provenance) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in provenance.items())
