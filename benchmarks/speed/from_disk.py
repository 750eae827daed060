"""A model in memory, and from disk with kills: peak resident memory, seconds, and whether the bits are equal.

    python -m benchmarks.speed.from_disk FOLDER --tokens 2048 --sample 256 --kill-after 2 11 20

Runs `mi-prune` as a user would, each time in a fresh process, on the text that ships with Python, and appends a row
`from-disk` to `results/cpu.jsonl`, with what `--plan` predicted beside it. `--layers 2` ends each run after that many
layers instead, for sizes at which whole runs take hours: peaks are then those until there, and no bits are compared.
`--memory-budget 32M` adds a run from disk with this limit for hidden states, without kills.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from benchmarks.record import append, argument_parser, command, row

BAR = re.compile(rb"prune +:.* (\d+)/\d+ ")
"""What the progress bar of `mi-prune` shows: layers that are done."""


UNTIL = 3
"""Layers of the run in memory if its result is there already; the peak of a whole run is at least as high."""


class Run(NamedTuple):
    """One process.

    Attributes:
        peak_mb: the most resident memory, MB.
        anonymous_mb: the most of it at a time that is in no file, and so cannot be written back to make room; looked at
            every few milliseconds.
        seconds: wall clock.
        ended: whether it ended by itself.
    """

    peak_mb: int
    anonymous_mb: int
    seconds: float
    ended: bool


def mi_prune(folder: Path, out: Path, options: Sequence[str], *, kill_after: int | None = None) -> Run:
    """Run the command; kill it once it has pruned so many layers.

    Raises:
        RuntimeError: it fails.
    """
    arguments = [sys.executable, "-m", "pruning.cli", str(folder), "--out", str(out), "--device", "cpu"]
    start, shown = time.perf_counter(), b""
    process = subprocess.Popen([*arguments, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None  # noqa: S101, for the type checker
    anonymous = [0]
    watch = threading.Thread(target=_watch, args=(process.pid, anonymous))
    watch.start()
    killed = False
    while piece := os.read(process.stderr.fileno(), 4096):
        shown = (shown + piece)[-8192:]
        done = max(map(int, BAR.findall(shown)), default=0)
        if kill_after is not None and done >= kill_after and not killed:
            process.kill()
            killed = True
    process.stderr.close()
    watch.join()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and not killed:
        raise RuntimeError(f"mi-prune failed: {shown[-2000:].decode(errors='replace')}")
    seconds = round(time.perf_counter() - start, 1)
    return Run(round(usage.ru_maxrss * 1024 / 1e6), round(max(anonymous) / 1e6), seconds, not killed)


def _watch(pid: int, anonymous: list[int]) -> None:
    """Append the anonymous resident memory of a process until it ends, bytes."""
    while found := re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()):
        anonymous.append(int(found[1]) * 1024)
        time.sleep(0.005)


def same_bits(one: Path, other: Path) -> bool:
    """Whether two folders hold the same weights, whatever the files are called."""
    first, second = _weights(one), _weights(other)
    return first.keys() == second.keys() and all(
        _read(file, name).equal(_read(second[name], name)) for name, file in first.items()
    )


def measure(
    folder: Path,
    options: Sequence[str],
    kill_after: Sequence[int],
    layers: int | None,
    against: Path | None,
    budget: str | None,
) -> dict[str, Any]:
    """In memory, and from disk with a kill after each of `kill_after` layers; and from disk within a memory budget."""
    predicted = {name: _predicted(folder, options, from_disk=name == "disk") for name in ("memory", "disk")}
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        expected, out = Path(work) / "memory", Path(work) / "disk"
        until = layers if against is None else UNTIL
        memory = mi_prune(folder, expected, options, kill_after=until)
        resume = [*options, "--from-disk", "--resume"]
        runs = [mi_prune(folder, out, resume, kill_after=layer) for layer in kill_after]
        runs.append(mi_prune(folder, out, resume, kill_after=layers))
        peak = max(run.peak_mb for run in runs)
        result: dict[str, Any] = {
            "memory": {"peak_mb": memory.peak_mb, "seconds": memory.seconds, "until_layer": until},
            "disk": {
                "peak_mb": peak,
                "anonymous_mb": max(run.anonymous_mb for run in runs),
                "seconds": round(sum(run.seconds for run in runs), 1),
            },
            "peak_ratio": round(peak / memory.peak_mb, 3),
            "predicted": predicted,
        }
        if budget is not None:
            limited = [*options, "--from-disk", "--memory-budget", budget]
            run = mi_prune(folder, Path(work) / "limited", limited, kill_after=layers)
            result["limited"] = run._asdict()
        if layers is None:
            result["kills"] = sum(not run.ended for run in runs)
            result["same_bits"] = same_bits(against or expected, out)
            if budget is not None:
                result["limited"]["same_bits"] = same_bits(out, Path(work) / "limited")
            manifest = json.loads((out / "mi_prune.json").read_text(encoding="utf-8"))
            result["disk"]["stages_behind_last_kill"] = {
                n: round(x, 1) for n, x in manifest["seconds"].items()
            }
        return result


def _predicted(folder: Path, options: Sequence[str], *, from_disk: bool) -> dict[str, Any]:
    """The seconds of each stage, and the peak memory, that `--plan` predicts in a process of its own."""
    arguments = [
        sys.executable,
        "-m",
        "pruning.cli",
        str(folder),
        "--plan",
        "--json",
        "--device",
        "cpu",
        *options,
    ]
    arguments += ["--from-disk"] * from_disk
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    plan = json.loads(done.stdout)
    return {
        "peak_mb": round(plan["memory"] / 1e6),
        "stages": {stage["name"]: round(stage["seconds"], 1) for stage in plan["stages"]},
    }


def _weights(folder: Path) -> dict[str, Path]:
    files = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            files |= dict.fromkeys(opened.keys(), file)
    return files


def _read(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, "pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
    return tensor


def main() -> None:
    parser = argument_parser("benchmarks.speed.from_disk", __doc__, "cpu.jsonl")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=57_344)
    parser.add_argument("--sample", type=int, default=4096)
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--kill-after", type=int, nargs="*", default=[])
    parser.add_argument("--layers", type=int)
    parser.add_argument(
        "--against",
        type=Path,
        help="an earlier result of the same run in memory, which is then not completed again",
    )
    parser.add_argument("--memory-budget")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    options = {
        "ratio": args.ratio,
        "calibration-tokens": args.tokens,
        "sample-size": args.sample,
        "sequence-length": args.length,
        "seed": args.seed,
        "calibration": "builtin",
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    config = json.loads((args.folder / "config.json").read_text())
    shown = {"tokens": args.tokens, "sample": args.sample, "ratio": args.ratio, "length": args.length}
    rerun = command(
        "benchmarks.speed.from_disk",
        args.folder.name,
        **shown,
        kill_after=args.kill_after or None,
        layers=args.layers,
        against=args.against and args.against.name,
        memory_budget=args.memory_budget,
        seed=args.seed,
    )
    case = {
        "model": config.get("_model_name_or_path") or args.folder.name,
        "layers": config["num_hidden_layers"],
        "N": config["intermediate_size"],
        "d": config["hidden_size"],
        **shown,
        "seed": args.seed,
        "until_layer": args.layers,
        "memory_budget": args.memory_budget,
    }
    result = measure(args.folder, given, args.kill_after, args.layers, args.against, args.memory_budget)
    found = row("from-disk", rerun, case, result)
    append([found], args.out)
    print(json.dumps(found["case"]), json.dumps(found["result"]))


if __name__ == "__main__":
    main()
