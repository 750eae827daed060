"""Fine-tuned encoders on GLUE, pruned by every criterion: the ground of the paper.

    python -m benchmarks.quality.glue --data DIR --model [NAME=]FOLDER --skip-done
    python -m benchmarks.publish glue

For each seed, an encoder is fine-tuned on the training set, pruned on unlabeled sentences of the training set, and
judged on the official development set. The seed sets the head, the order of the examples, the calibration sentences
and all random choices of the criteria. Fine-tuned models stay in --cache, from which an interrupted run goes on;
--skip-done leaves out what is stored under the same conditions.

DIR contains the folders that `benchmarks.quality.glue_tasks` reads: glue/CoLA, glue/RTE and glue/SST-2.
"""

import gc
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from benchmarks.quality.calibrated import Calibrated
from benchmarks.quality.fine_tune import Training, fine_tune
from benchmarks.quality.glue_tasks import TASKS, Example, GlueTask, batches, calibration, encode, predict
from benchmarks.quality.measure import DENSE, Source, add_device, sources
from benchmarks.quality.methods import CRITERIA, METHODS, REPAIRS
from benchmarks.record import append, argument_parser, command, load, on_device, row, timed
from pruning.model.size import count_parameters

RATIOS = (0.2, 0.4, 0.6)
COMPARED = [f"{criterion}, {repair}" for repair in REPAIRS for criterion in CRITERIA]
"""Every criterion without and with repair."""
OTHERS = ["flap, bias", "conditional-mi, sequential"]
"""FLAP as it was published, and the default of `pruning`."""


@dataclass(frozen=True)
class Plan:
    """What is measured for each model, task and seed."""

    data: Path  # folder with `glue/`
    out: Path
    cache: Path  # of fine-tuned models
    methods: Sequence[str] = (*COMPARED, *OTHERS)
    ratios: Sequence[float] = RATIOS
    tokens: int = 16_384  # of calibration
    skip_done: bool = False


def measure(source: Source, task: GlueTask, training: Training, plan: Plan) -> None:
    """Append a row for the fine-tuned model, and for each method and ratio."""
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    examples, tests = (task.read(plan.data / "glue", part) for part in ("train", "dev"))
    training = replace(training, examples=min(training.examples, len(examples)))
    unlabeled = calibration(tokenizer, examples, plan.tokens, training.seed)
    common = {
        "model": source.name,
        "task": task.name,
        "measure": task.measure,
        "test_examples": len(tests),
        "training": asdict(training),
        "dtype": "float32",
        "seed": training.seed,
    }
    shown = {"text": unlabeled.source, "tokens": unlabeled.n_tokens}
    cases: list[dict[str, Any]] = [common | {"method": DENSE, "ratio": 0.0}] + [
        common
        | {"method": name, "ratio": ratio, "settings": dict(METHODS[name].settings), "calibration": shown}
        for ratio in plan.ratios
        for name in plan.methods
    ]
    done = [r["case"] for r in load(plan.out) if on_device(r, source.device)] if plan.skip_done else []
    if not (missing := [case for case in cases if case not in done]):
        return
    model, spent = timed(lambda: fine_tuned(source, task, training, tokenizer, examples, plan.cache))
    test_batches = batches(tokenizer, encode(tokenizer, tests))
    labels = torch.cat([batch.pop("labels") for batch in test_batches])
    by_dense = predict(model, test_batches)
    calibrated = Calibrated(model, unlabeled, seed=training.seed)
    for case in missing:
        name, ratio = case["method"], case["ratio"]
        if name == DENSE:
            pruned, seconds = model, {"fine-tuning": spent}
        else:
            pruned, seconds = calibrated.prune(METHODS[name], ratio)
        found, spent = timed(lambda m=pruned: predict(m, test_batches))
        result = {
            "score": round(task.score(found, labels), 6),
            "agreement": round(float((found == by_dense).double().mean()), 6),
            "parameters": count_parameters(pruned),
            "dense_parameters": count_parameters(model),
            "seconds": {stage: round(s, 2) for stage, s in seconds.items()},
            "evaluation_seconds": round(spent, 2),
        }
        again = rerun(source, task, training, plan, name, ratio)
        append([row("quality.glue", again, case, result, device=source.device)], plan.out)
        print(
            f"{source.name}, {task.name}, {training.seed}, {name}, {ratio}: {result['score']:.4f}", flush=True
        )
        del pruned
        gc.collect()


def fine_tuned(
    source: Source,
    task: GlueTask,
    training: Training,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    cache: Path,
) -> PreTrainedModel:
    """The model that an earlier run left in the cache; otherwise it is trained and left there."""
    folder = cache / "-".join([source.name, task.name, *map(str, astuple(training)), source.device])
    if not folder.exists():
        fine_tune(source.path, tokenizer, examples, training, source.device).save_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    return model.to(source.device).eval()


def rerun(source: Source, task: GlueTask, training: Training, plan: Plan, name: str, ratio: float) -> str:
    """The command that measures one method again."""
    return command(
        "benchmarks.quality.glue",
        data="DIR",
        model=f"{source.name}=...",
        device=source.device,
        tasks=task.name,
        methods=plan.methods[0] if name == DENSE else name,
        ratios=plan.ratios[0] if name == DENSE else ratio,
        **asdict(training),
        seeds=1,
        tokens=plan.tokens,
    )


def main() -> int:
    parser = argument_parser("benchmarks.quality.glue", __doc__, "glue.jsonl")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", nargs="+", type=Source.parse, required=True, help="[NAME=]FOLDER")
    add_device(parser)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3, help="how many, from --seed on")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=Plan.methods, metavar="METHOD")
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--tokens", type=int, default=Plan.tokens, help="of calibration")
    parser.add_argument("--examples", type=int, default=Training.examples, help="to fine-tune on, at most")
    parser.add_argument("--epochs", type=int, default=Training.epochs)
    parser.add_argument("--learning-rate", type=float, default=Training.learning_rate)
    parser.add_argument(
        "--frozen-layers",
        type=int,
        default=Training.frozen_layers,
        help="lowest layers, not fine-tuned, as the embeddings",
    )
    parser.add_argument("--batch-size", type=int, default=Training.batch_size, help="of fine-tuning")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "mikernels-glue",
        help="folder for fine-tuned models (default: %(default)s)",
    )
    parser.add_argument("--skip-done", action="store_true")
    args = parser.parse_args()
    plan = Plan(args.data, args.out, args.cache, args.methods, args.ratios, args.tokens, args.skip_done)
    for source in sources(args):
        for name in args.tasks:
            for seed in range(args.seed, args.seed + args.seeds):
                training = Training(
                    args.examples, args.epochs, args.learning_rate, args.frozen_layers, args.batch_size, seed
                )
                measure(source, TASKS[name], training, plan)
    return 0


if __name__ == "__main__":
    sys.exit(main())
