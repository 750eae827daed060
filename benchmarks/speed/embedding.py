"""What arrays of other libraries cost beside a tensor, what the command takes for a large table, and how long the
import takes beyond that of torch.

python -m benchmarks.speed.embedding kinds      # seconds of each kind of array beside those of a tensor
python -m benchmarks.speed.embedding command    # seconds and peak memory, on Linux
python -m benchmarks.speed.embedding import     # seconds in fresh processes

A kind of array is compared with a tensor of the same memory and with its own conversions, measured alone: what is left
is the cost of telling the kinds apart. Libraries that are not installed are left out.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import record
from mikernels import mutual_information
from mikernels.arrays import as_given, to_tensor

MODULE = "benchmarks.speed.embedding"


def _pandas(x: np.ndarray) -> Any:
    return import_module("pandas").DataFrame(x)


def _mixed_pandas(x: np.ndarray) -> Any:
    return import_module("pandas").DataFrame(x).astype({0: "float64"})


def _polars(x: np.ndarray) -> Any:
    return import_module("polars").DataFrame(x)


def _pyarrow(x: np.ndarray) -> Any:
    pyarrow = import_module("pyarrow")
    return pyarrow.table({str(i): column.copy() for i, column in enumerate(x.T)})


def _sparse(x: np.ndarray) -> Any:
    return import_module("scipy.sparse").csr_array(x)


def _anndata(x: np.ndarray) -> Any:
    return import_module("anndata").AnnData(x)


def _jax(x: np.ndarray) -> Any:
    return import_module("jax.numpy").asarray(x)


KINDS: dict[str, tuple[str, Callable[[np.ndarray], Any]]] = {
    "numpy": ("numpy", np.asarray),
    "numpy, Fortran order": ("numpy", np.asfortranarray),
    "pandas": ("pandas", _pandas),
    "pandas, two dtypes": ("pandas", _mixed_pandas),
    "polars": ("polars", _polars),
    "pyarrow": ("pyarrow", _pyarrow),
    "scipy.sparse": ("scipy", _sparse),
    "anndata": ("anndata", _anndata),
    "jax": ("jax", _jax),
}


def measure_kinds(
    n_samples: int, n_variables: int, repeats: int, seed: int
) -> list[tuple[str, dict[str, Any]]]:
    """For each kind its package, and quantiles over `repeats` rounds, in which all kinds take turns.

    Seconds are those of the process, so that other work of the machine does not count.
    """
    x = np.random.default_rng(seed).normal(size=(n_samples, n_variables)).astype(np.float32)
    arrays: dict[str, Any] = {}
    for name, (_, make) in KINDS.items():
        try:
            arrays[name] = make(x)
        except ImportError as error:
            print(f"{name}: left out ({error})")
    found: dict[str, dict[str, list[float]]] = {
        name: {"kind_s": [], "conversions_s": [], "tensor_s": [], "ratio": []} for name in arrays
    }
    for round_ in range(repeats + 1):
        for name, array in arrays.items():
            whole = _seconds(lambda array=array: mutual_information(array))
            tensor = to_tensor(array, "x")  # of the same values, dtype and strides
            bare = _seconds(lambda tensor=tensor: mutual_information(tensor))
            mi = torch.zeros(n_variables, n_variables)
            conversions = _seconds(lambda array=array, mi=mi: (to_tensor(array, "x"), as_given(mi, array)))
            if round_:  # the first is a warm-up
                for values, value in zip(
                    found[name].values(),
                    (whole, conversions, bare, whole / (bare + conversions)),
                    strict=True,
                ):
                    values.append(value)
    for name, result in found.items():
        print(f"{name}: {statistics.median(result['ratio']):.3f} of a tensor's time and its conversions")
    return [(name, {k: record.quantiles(v) for k, v in result.items()}) for name, result in found.items()]


def _seconds(call: Callable[[], object]) -> float:
    """Of the process, on all its cores."""
    start = time.process_time()
    call()
    return time.process_time() - start


SCRIPT = """
import sys, time
from pathlib import Path
import pyarrow.parquet
from mikernels.cli import main

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

before, start = peak(), time.perf_counter()
assert main(sys.argv[1:]) == 0
print(before, peak(), time.perf_counter() - start)
"""


def measure_command(n_samples: int, n_variables: int, options: list[str], seed: int) -> dict[str, float]:
    """Seconds and peak memory of a table of edges, from a Parquet file of float32 with a factor in common.

    `workspace_mb` is all that the run takes beyond its imports: the table, its samples and the pairs.
    """
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n_samples, n_variables)).astype(np.float32)
    x += generator.normal(size=(n_samples, 1)).astype(np.float32) * np.linspace(
        0, 1, n_variables, dtype=np.float32
    )
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data.parquet", Path(folder) / "edges.parquet"
        import_module("pyarrow.parquet").write_table(
            _pyarrow(x).rename_columns([f"gene {i}" for i in range(n_variables)]), data
        )
        del x
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(data), "--out", str(out), "--quiet", *options],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        before, peak, seconds = map(float, done.stdout.split())
        edges = import_module("pyarrow.parquet").read_metadata(out).num_rows
        read = data.stat().st_size
    return {
        "seconds": round(seconds, 1),
        "imports_mb": round(before / 1e6),
        "peak_mb": round(peak / 1e6),
        "workspace_mb": round((peak - before) / 1e6),
        "file_mb": round(read / 1e6),
        "edges": edges,
    }


IMPORT = """
import time
start = time.perf_counter()
import {modules}
print(time.perf_counter() - start)
"""


def measure_import(repeats: int) -> dict[str, dict[str, float]]:
    """Medians and quartiles of the seconds that `import torch` and `import torch, mikernels` take, each in a fresh
    process, over `repeats` rounds in which they take turns, and of their difference within a round.

    Bytecode is written in the first round, which does not count, as it is when a package is installed.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def seconds(modules: str) -> float:
        command = [sys.executable, "-c", IMPORT.format(modules=modules)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        return float(done.stdout)

    found: dict[str, list[float]] = {"torch_s": [], "both_s": [], "beyond_torch_s": []}
    for round_ in range(repeats + 1):
        torch_s, both_s = seconds("torch"), seconds("torch, mikernels")
        if round_:
            for values, value in zip(found.values(), (torch_s, both_s, both_s - torch_s), strict=True):
                values.append(value)
    names = ("lower_quartile", "median", "upper_quartile")
    return {
        name: {
            n: round(v, 4)
            for n, v in zip(names, np.quantile(values, [0.25, 0.5, 0.75]).tolist(), strict=True)
        }
        for name, values in found.items()
    }


def main() -> None:
    parser = record.argument_parser(MODULE, __doc__ or "", "embedding.jsonl")
    parser.add_argument("what", choices=("kinds", "command", "import"))
    parser.add_argument("--samples", type=int)
    parser.add_argument("--variables", type=int)
    parser.add_argument("--repeats", type=int, default=7)
    args, options = parser.parse_known_args()
    if args.what == "import":
        result = measure_import(args.repeats)
        print(result)
        rerun = record.command(MODULE, args.what, repeats=args.repeats)
        record.append([record.row("embedding", rerun, {"what": args.what}, result)], args.out)
        return
    defaults = (4096, 512) if args.what == "kinds" else (5000, 5000)
    M, N = args.samples or defaults[0], args.variables or defaults[1]
    case: dict[str, Any] = {"what": args.what, "M": M, "N": N, "seed": args.seed}
    rerun = record.command(MODULE, args.what, samples=args.samples, variables=args.variables, seed=args.seed)
    if args.what == "kinds":
        rows = [
            record.row(
                "embedding",
                f"{rerun} --repeats {args.repeats}",
                case | {"kind": kind},
                result,
                {KINDS[kind][0]: version(KINDS[kind][0])},
            )
            for kind, result in measure_kinds(M, N, args.repeats, args.seed)
        ]
    else:
        result = measure_command(M, N, options, args.seed)
        print(result)
        whole = " ".join([rerun, *options])
        rows = [
            record.row(
                "embedding", whole, case | {"options": options}, result, {"pyarrow": version("pyarrow")}
            )
        ]
    record.append(rows, args.out)


if __name__ == "__main__":
    main()
