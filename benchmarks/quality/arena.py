"""The protocol of LowRankArena (github.com/Zishan-Shao/lowrankarena), for whoever has a GPU and the weights.

    mi-prune meta-llama/Llama-3.1-8B --target-params 6424e6 --out pruned
    python -m benchmarks.quality.arena meta-llama/Llama-3.1-8B pruned --device cuda --wikitext wiki.test.raw \\
        --c4 c4-validation.00000-of-00008.json.gz

It evaluates models, dense or pruned: perplexity on the test split of WikiText-2 and on C4, in windows of 2,048 tokens,
and the accuracy without examples in seven tasks of lm-eval-harness 0.4.11, normalized by length where the task has
that. There a model that keeps 80 % has 80 % of the parameters of the dense one.

How the windows of C4 are drawn there is not published. Here they are the first 256 of the first 1,100 documents, as is
common. So evaluate the dense model first: Llama-3.1-8B has 6.24 on WikiText-2, 9.10 on C4 and a mean accuracy of 0.716
there. Where the dense values differ, the others cannot be compared.
"""

import gzip
import importlib.metadata
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.quality.measure import add_device
from benchmarks.record import append, argument_parser, command, row
from pruning import load_model
from pruning.model.size import count_parameters
from pruning.report.quality import perplexity

LENGTH = 2048
C4_DOCUMENTS, C4_WINDOWS = 1100, 256
TASKS = ("boolq", "arc_easy", "arc_challenge", "winogrande", "piqa", "hellaswag", "openbookqa")
METRICS = ("acc_norm,none", "acc,none")
"""The first one that a task has counts."""


def wikitext(path: Path) -> str:
    """The lines of the raw file as the data set of the hub has them, joined as usual."""
    with path.open(encoding="utf-8") as file:
        return "\n\n".join(line if line.strip() else "" for line in file)


def c4(path: Path) -> str:
    """The first documents of a compressed shard of JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return " ".join(json.loads(line)["text"] for line in islice(file, C4_DOCUMENTS))


def windows(tokenizer: PreTrainedTokenizerBase, text: str, limit: int | None) -> Tensor:
    """The tokens of the whole text in windows `[n, 2048]`, at most `limit`: only the first one can begin with BOS.

    Raises:
        ValueError: less than one window of text.
    """
    ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
    count = len(ids) // LENGTH
    if count == 0:
        raise ValueError(f"text: expected at least {LENGTH} tokens, got {len(ids)}")
    return ids[: count * LENGTH].view(count, LENGTH)[:limit]


def accuracies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: list[str], batch_size: int
) -> dict[str, dict[str, float]]:
    """The accuracy in each task of lm-eval-harness, with its standard error.

    Raises:
        KeyError: a task without an accuracy.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    results = simple_evaluate(wrapped, tasks=tasks, num_fewshot=0, log_samples=False)["results"]
    found = {}
    for task in tasks:
        metric = next(name for name in METRICS if name in results[task])
        error = results[task][metric.replace(",", "_stderr,")]
        found[task] = {"accuracy": round(results[task][metric], 4), "standard_error": round(error, 4)}
    return found


def main() -> int:
    parser = argument_parser("benchmarks.quality.arena", __doc__, "arena.jsonl")
    parser.add_argument("models", nargs="+", help="folders, or names on the hub")
    add_device(parser)
    parser.add_argument("--wikitext", type=Path, help="wiki.test.raw")
    parser.add_argument("--c4", type=Path, help="c4-validation.00000-of-00008.json.gz")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), help="of lm-eval-harness")
    parser.add_argument("--windows", type=int, help="at most so many of each text, to try the script out")
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()
    for name in args.models:
        model, tokenizer = load_model(name, device=args.device)
        result: dict[str, Any] = {"parameters": count_parameters(model)}
        for text, path, read, most in (
            ("WikiText-2", args.wikitext, wikitext, None),
            ("C4", args.c4, c4, C4_WINDOWS),
        ):
            if path is not None:
                part = windows(tokenizer, read(path), args.windows or most)
                value = perplexity(model, part.split(max(1, args.batch_size // 4))).value
                result[text] = {"perplexity": round(value, 4), "windows": len(part)}
                print(f"{name}, {text}: {value:.2f}", flush=True)
        versions = {}
        if args.tasks:
            result["tasks"] = accuracies(model, tokenizer, args.tasks, args.batch_size)
            mean = sum(task["accuracy"] for task in result["tasks"].values()) / len(args.tasks)
            result["mean_accuracy"] = round(mean, 4)
            versions = {"lm-eval": importlib.metadata.version("lm-eval")}
            print(f"{name}, mean of {len(args.tasks)} tasks: {mean:.3f}", flush=True)
        case = {
            "model": Path(name).name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "length": LENGTH,
            "tasks": args.tasks,
        }
        line = command(
            "benchmarks.quality.arena",
            Path(name).name,
            device=args.device,
            wikitext=args.wikitext and "FILE",
            c4=args.c4 and "FILE",
            tasks=args.tasks,
            windows=args.windows,
            batch_size=args.batch_size,
        )
        append([row("quality.arena", line, case, result, versions, device=args.device)], args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
