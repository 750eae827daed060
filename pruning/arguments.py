"""The arguments of `mi-prune`."""

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch

from mikernels.arguments import byte_count
from mikernels.terminal import HelpFormatter
from pruning.observe.samples import SELF
from pruning.observe.sources import BUILTIN
from pruning.settings import Settings, choices, help_text

EVALUATION_TOKENS = 8192


def _whole_number(text: str) -> int:
    """Such as 350000000 or 350e6."""
    number = float(text)
    if not number.is_integer():
        raise ValueError
    return int(text) if text.isdigit() else int(number)


def _ratios(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # `Settings` checks it


TYPES: dict[str, Callable[[str], Any]] = {
    "threshold": _number_or_text,
    "multiple_of": int,
    "target_params": _whole_number,
    "target_bytes": _whole_number,
    "memory_budget": byte_count,
}
"""How to read options whose default is None and whose values are not just text."""
ALIASES = {"sequence_length": ("--seqlen",)}
"""Names of options that other packages use."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, or an exit with what is wrong with them."""
    parser = command_parser()
    args = parser.parse_args(argv)
    if args.out is None and args.sweep is None and not args.plan:
        parser.error("the following arguments are required: --out")
    if args.json and args.sweep is None and not args.plan:
        parser.error("argument --json: expected --sweep or --plan with it")
    if args.sweep is not None and args.plan:
        parser.error("argument --sweep: expected none with --plan")
    args.dtype = None if args.dtype == "auto" else getattr(torch, args.dtype)
    args.command = shlex.join([parser.prog, *(sys.argv[1:] if argv is None else argv)])
    return args


def command_parser() -> argparse.ArgumentParser:
    """With an option for each of `Settings`, and those of the command alone."""
    parser = argparse.ArgumentParser(
        prog="mi-prune",
        description="Drop the redundant neurons of a language model's feed-forward layers, without retraining.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "model", help="folder (safetensors), .gguf file, or name of a model on the Hugging Face hub"
    )
    parser.add_argument(
        "--out",
        help="folder for the pruned model; it appears only when complete; required unless nothing is saved",
    )
    parser.add_argument(
        "--from-disk",
        action="store_true",
        help="for a folder or GGUF file that does not fit into memory: read, prune and write one layer at a time",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with a run --from-disk that was interrupted, if there is one",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier result in the output folder")
    parser.add_argument(
        "--calibration",
        metavar="TEXT[=WEIGHT]",
        action="append",
        help="text to calibrate on: a UTF-8 file of text, .json or .jsonl (text or messages), .parquet, or "
        "NAME[:CONFIG[:SPLIT]] of a data set on the Hugging Face hub; several by repeating the option, with weights "
        f"for their shares of the tokens; {SELF} is what the model writes itself, {BUILTIN} half of the text that "
        f"ships with Python; by default both, in equal parts",
    )
    parser.add_argument(
        "--save-statistics",
        metavar="FILE",
        help="save what was measured, for later runs with other ratios, criteria or budgets",
    )
    parser.add_argument(
        "--statistics", metavar="FILE", help="reuse what --save-statistics saved instead of measuring again"
    )
    parser.add_argument(
        "--evaluate",
        metavar="TEXT[=WEIGHT]",
        action="append",
        help="text, as for --calibration, to compare the dense and the pruned model on, in quality and speed "
        f"(which keeps the dense FFN weights in memory after pruning, too), each on its own; {BUILTIN} is the other "
        f"half of the text that ships with Python",
    )
    parser.add_argument(
        "--evaluation-tokens",
        type=int,
        help=f"tokens of --evaluate, or of a --sweep, to evaluate on (default: {EVALUATION_TOKENS})",
    )
    parser.add_argument("--prompt", help="show how the dense and the pruned model continue this text")
    parser.add_argument(
        "--report",
        metavar="FILE.html",
        help="write a page that shows what was dropped and why, and what it cost, or the curve of a --sweep; of an "
        "earlier result, mi-report does that",
    )
    parser.add_argument(
        "--verify", action="store_true", help="reload the result in a fresh process and compare the outputs"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "bfloat16", "float16", "float32"),
        help="of the weights, to compute in and to save; auto is the stored one, computed in float32 where a CPU is "
        "slow with 16 bits",
    )
    parser.add_argument("--device", help="such as cpu or cuda:0; by default a GPU if there is one")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="allow code that comes with the model"
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="print only the result and errors: no progress bars, no warnings (the manifest of a result has them)",
    )
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error as well")
    ratio_or_size = parser.add_mutually_exclusive_group()
    ratio_or_size.add_argument(
        "--sweep",
        type=_ratios,
        metavar="RATIO,RATIO,...",
        help="show the quality, bytes and widths that each of these ratios gives, from one walk over the calibration, "
        "and save nothing; evaluates on --evaluate, by default on the half of the text that ships with Python which "
        "is not for calibration",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="show what this run would take, from the config and a short probe of the machine: seconds, memory, disk, "
        "the size of the result; run nothing, and fail if it does not fit; takes the texts to be long enough, does not "
        "check --out, and does not count --evaluate, --prompt and --verify",
    )
    parser.add_argument(
        "--json", action="store_true", help="print what --sweep or --plan found as JSON, not as a table"
    )
    tokens_or_windows = parser.add_mutually_exclusive_group()
    tokens_or_windows.add_argument(
        "--num-samples",
        type=int,
        metavar="WINDOWS",
        help="windows to calibrate on, in place of --calibration-tokens",
    )
    groups = {"calibration_tokens": tokens_or_windows}
    groups |= dict.fromkeys(("ratio", "target_params", "target_bytes"), ratio_or_size)
    for option in fields(Settings):
        flag = "--" + option.name.replace("_", "-")
        if isinstance(option.default, bool):
            parser.add_argument(
                flag.replace("--", "--no-") if option.default else flag,
                dest=option.name,
                action="store_false" if option.default else "store_true",
                default=option.default,
                help=help_text(option.name),
            )
            continue
        groups.get(option.name, parser).add_argument(
            flag,
            *ALIASES.get(option.name, ()),
            type=TYPES.get(option.name, str if option.default is None else type(option.default)),
            default=option.default,
            choices=choices(option.name) or None,
            help=help_text(option.name),
        )
    return parser
