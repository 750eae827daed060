"""Whether pruning did right by a model, judged from outside: by its state dict, its outputs and its checkpoint."""

import logging
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

import pruning

from slices import Cut, MismatchError, cuts, masked
from structure import Block, blocks
from zoo import Case

Status = Literal["pruned", "refused", "crash", "wrong", "partial"]
OPTIONS: dict[str, Any] = {"ratio": 0.25, "multiple_of": 4, "sample_size": 64}
TOLERANCE, TOLERANCE_OF_NORMS = 1e-4, 3e-3
"""Largest norm of the difference between masked and pruned outputs, relative to the outputs. Rounding gives 1e-6; the
mistakes that `test_judge.py` plants, 1e-1. The epsilon of a norm over the neurons does not scale with their number."""
LONGEST_SENTENCE = 400


@dataclass
class Verdict:
    """What `pruning.prune` made of one case.

    Attributes:
        status: pruned; refused, by a ValueError, with the model unchanged; crash, by any other exception; wrong: it
            said nothing, but the result is not the dense model without some neurons, or cannot be loaded; partial:
            FFNs are left, and nothing says so.
        message: of a refusal or crash, or what is wrong.
        seconds: until the refusal, or of pruning with repair="none".
        pruned, total: FFNs, each expert one, shared ones once.
        found: the modules of the output projections that were cut, with the layers' numbers left out.
        remarks: what is worth a look, but no failure.
    """

    name: str
    architecture: str
    class_name: str
    status: Status
    message: str = ""
    seconds: float = 0.0
    pruned: int = 0
    total: int = 0
    found: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


class WrongError(Exception):
    """The result is not what it claims to be."""


def judge(case: Case) -> Verdict:
    """Prune copies of the model without repair and with least squares, and check the result."""
    dense = case.build()
    verdict = Verdict(case.name, case.config.model_type, case.class_.__name__, "pruned")
    ffns = blocks(dense)
    verdict.total = sum(block.experts for block in ffns)
    model = case.build()
    started = time.perf_counter()
    try:
        said = _prune(model, case, "none")
    except ValueError as error:
        verdict.status, verdict.message = "refused", str(error)
    except Exception as error:  # the verdict
        verdict.status, verdict.message = "crash", _brief(error)
    verdict.seconds = time.perf_counter() - started
    if verdict.status == "refused" and not _is_sentence(verdict.message):
        verdict.status, verdict.message = "crash", f"not one sentence: {verdict.message}"
    if verdict.status == "refused" and verdict.seconds > 1:
        verdict.remarks.append(f"refused only after {verdict.seconds:.1f} s")
    if verdict.status != "pruned":
        if verdict.status == "refused" and _differ(dense.state_dict(), model.state_dict()):
            verdict.status, verdict.message = "wrong", f"refused, but changed the model: {verdict.message}"
        return verdict
    try:
        found = _check(case, dense, model)
        _check_lstsq(case, dense, model, verdict)
    except (WrongError, MismatchError) as error:
        verdict.status, verdict.message = "wrong", str(error)
        return verdict
    except Exception as error:  # the pruned model does not run or save
        verdict.status, verdict.message = "wrong", f"the pruned model raises {_brief(error)}"
        return verdict
    left = [block for block in ffns if not _is_cut(block, found)]
    verdict.pruned = verdict.total - sum(block.experts for block in left)
    verdict.found = sorted({_pattern(block.output) for block in ffns if block not in left})
    unspoken = [block for block in left if not _mentions(said, block, case.config)]
    if left:
        verdict.remarks.append("left: " + ", ".join(sorted({_pattern(block.output) for block in left})))
    if unspoken:
        verdict.status = "partial"
        verdict.message = "left without a word: " + ", ".join(sorted({_pattern(b.output) for b in unspoken}))
    if not verdict.pruned:  # something else was cut than what looks like an FFN
        verdict.remarks.append(f"cut: {', '.join(sorted({_pattern(name) for name in found}))}")
        verdict.pruned = verdict.total = len(found)
    return verdict


def calibration(case: Case) -> Any:
    """Token ids where these are all that the model needs, otherwise batches as dicts."""
    batches = [case.inputs(seed) for seed in (1, 2)]
    return batches[0]["input_ids"] if set(batches[0]) == {"input_ids"} else batches


def _prune(model: PreTrainedModel, case: Case, repair: str) -> str:
    """What the run said: notes of the report and warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = pruning.prune(model, None, calibration=calibration(case), repair=repair, **OPTIONS)
    extra = [str(getattr(report, name, "")) for name in ("notes", "left")]
    return "\n".join([*extra, *(str(warning.message) for warning in caught)])


def _check(case: Case, dense: PreTrainedModel, model: PreTrainedModel) -> dict[str, Cut]:
    """The cuts, after comparing the pruned model with the dense one that has zeros there, and with its checkpoint."""
    found = cuts(dense.state_dict(), model.state_dict())
    if not found:
        raise WrongError("nothing was pruned")
    inputs = case.inputs(3)
    expected, got = _outputs(masked(case.build(), found), inputs), _outputs(model, inputs)
    error = _distance(got, expected)
    tolerance = TOLERANCE if all(cut.scale == 1 for cut in found.values()) else TOLERANCE_OF_NORMS
    if not error < tolerance:  # NaN as well
        raise WrongError(f"differs from the model with zeros in place of the dropped neurons by {error:.1e}")
    _check_checkpoint(case, dense, model, inputs)
    return found


def _check_checkpoint(
    case: Case, dense: PreTrainedModel, model: PreTrainedModel, inputs: Mapping[str, Tensor]
) -> None:
    if _size(model) >= _size(dense):
        raise WrongError(f"{_size(model)} parameters, where the dense model has {_size(dense)}")
    problem = _reload_problem(case, model, inputs)
    # What stock transformers cannot do with the dense model either is no fault of pruning.
    if problem is not None and problem != _reload_problem(case, dense, inputs):
        raise WrongError(f"the checkpoint: {problem}")


def _reload_problem(case: Case, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        try:
            loaded, info = case.class_.from_pretrained(folder, output_loading_info=True)
        except Exception as error:
            return f"does not load: {_brief(error)}"
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            return f"{kind}: {sorted(info[kind])[0]} and {len(info[kind]) - 1} more"
    before, after = _outputs(model, inputs), _outputs(loaded.eval(), inputs)
    if len(before) != len(after) or not all(map(torch.equal, before, after)):
        return f"gives other outputs by {_distance(after, before):.1e}"
    return None


def _check_lstsq(case: Case, dense: PreTrainedModel, bare: PreTrainedModel, verdict: Verdict) -> None:
    """The default of models without a stream: it must be finite and load, and should be closer to the dense model."""
    repaired = case.build()
    try:
        _prune(repaired, case, "lstsq")
    except ValueError as error:
        raise WrongError(f"repair='none' works, but repair='lstsq' is refused: {error}") from error
    inputs = case.inputs(3)
    _check_checkpoint(case, dense, repaired, inputs)
    target = _outputs(dense, inputs)
    without, with_ = (_distance(_outputs(model, inputs), target) for model in (bare, repaired))
    if not with_ < float("inf"):
        raise WrongError("repair='lstsq': outputs are not finite")
    if with_ > without:
        verdict.remarks.append(f"lstsq: {with_:.3f} from the dense outputs, {without:.3f} without repair")


@torch.inference_mode()
def _outputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Every floating-point tensor that the model returns, computed without a cache."""
    for module in (model, *model.modules()):
        if hasattr(config := getattr(module, "config", None), "use_cache"):
            config.use_cache = False
    return [tensor for tensor in _tensors(model(**inputs)) if tensor.is_floating_point()]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _distance(got: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative distance of any output."""
    return max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in zip(got, expected, strict=True))


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _differ(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    return before.keys() != after.keys() or not all(torch.equal(before[name], after[name]) for name in before)


def _is_cut(block: Block, found: Mapping[str, Cut]) -> bool:
    return block.output in found and found[block.output].axis == block.axis


def _pattern(name: str) -> str:
    """The name of a weight without the number of its layer: `model.layers.*.mlp.down_proj`."""
    return re.sub(r"\.\d+(?=\.)", ".*", name.removesuffix(".weight"))


def _mentions(said: str, block: Block, config: PretrainedConfig) -> bool:
    """Whether the report names the block: by the entry of the configuration that holds its width, or by its module."""
    for path in re.findall(r"[a-z_]\w*(?:\.\w+)*", said):
        value: Any = config
        for part in path.split("."):
            value = getattr(value, part, None)
        if block.width in (value if isinstance(value, list | tuple) else [value]):
            return True
    modules = block.output.split(".")
    prefixes = {".".join(modules[:i]) for i in range(2, len(modules))}
    return any(re.search(rf"\b{re.escape(prefix)}\b", said) for prefix in prefixes)


def _is_sentence(message: str) -> bool:
    return 0 < len(message) <= LONGEST_SENTENCE and "\n" not in message


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


logging.getLogger("transformers").setLevel(logging.ERROR)
