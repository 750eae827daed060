"""Compare the dense with the pruned model, for the manifest and for the closing table."""

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.choose.explain import PrunedLayer
from pruning.model.size import count_parameters, weight_bytes
from pruning.observe.batches import Windows
from pruning.observe.samples import SELF
from pruning.observe.sources import BUILTIN
from pruning.progress import track
from pruning.report.manifest import Report
from pruning.report.quality import Perplexity, generate, hidden_states, log_ratio_error, perplexity
from pruning.report.speed import PairedSpeed
from pruning.report.table import table

MAX_GROWTH = 1.5
"""Growth of the perplexity beyond which closed-form repair is not enough and the model needs distillation."""


MAX_GAP = 1.2
"""Ratio of the growth of the perplexity on text of another kind to that on text like the calibration, beyond which the
calibration is narrow."""


class Evaluation(NamedTuple):
    """One column of the table; empty for what was not asked for or is not defined for the class.

    Attributes:
        perplexity: of a causal model, by text.
        hidden: `[tokens, d]`, last hidden states of any other model, by text.
        sentence: the continuation of a prompt.
    """

    parameters: int
    weight_bytes: int
    perplexity: dict[str, Perplexity]
    hidden: dict[str, Tensor]
    sentence: str | None


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Mapping[str, Windows],
    *,
    prompt: str | None,
    batch_size: int,
    name: str,
    progress: bool,
) -> Evaluation:
    """Perplexity of a causal model, or last hidden states of an encoder, on the windows of each text."""
    found = Evaluation(count_parameters(model), weight_bytes(model), {}, {}, None)
    for text, windows in texts.items():
        batches = track(windows.split(batch_size), name, show=progress)
        if model.can_generate():
            found.perplexity[text] = perplexity(model, batches)
        else:
            found.hidden[text] = hidden_states(model, batches)
    if prompt is None or not model.can_generate():
        return found
    return found._replace(sentence=generate(model, tokenizer, prompt))


def summary(
    texts: Mapping[str, Windows],
    dense: Evaluation,
    pruned: Evaluation,
    speed: PairedSpeed,
    calibrated_on: Collection[str],
) -> dict[str, Any]:
    """Quality on each text, and speed, of both models, for the manifest."""
    entries = []
    for text, windows in texts.items():
        entry: dict[str, Any] = {
            "text": text,
            "windows": len(windows),
            "longest_window": windows.longest,
            "calibrated_on": text in calibrated_on,
        }
        if text in dense.perplexity:
            entry |= {
                "perplexity_dense": dense.perplexity[text].value,
                "perplexity_pruned": pruned.perplexity[text].value,
                "log_ratio_standard_error": log_ratio_error(dense.perplexity[text], pruned.perplexity[text]),
            }
        if text in dense.hidden:
            entry["hidden_state_cosine"] = cosine(dense.hidden[text], pruned.hidden[text])
        entries.append(entry)
    return {
        "texts": entries,
        "tokens_per_second_dense": speed.dense,
        "tokens_per_second_pruned": speed.pruned,
        "tokens_per_second_ratio": {
            "median": speed.ratio,
            "quartiles": list(speed.quartiles),
            "pairs": speed.pairs,
        },
    }


def refining_sentence(layers: Sequence[PrunedLayer]) -> str:
    """What refining did to the error on tokens that it was not trained on."""
    better = [layer.refined_error for layer in layers if layer.refined_error < 1]
    fell = f", by {1 - median(better):.1%} in the median" if better else ""
    return f"Refining lowered the error on held-back tokens in {len(better)} of {len(layers)} FFNs{fell}."


def closing_table(
    report: Report,
    dense: Evaluation,
    pruned: Evaluation,
    speed: PairedSpeed | None,
    calibrated_on: Collection[str],
) -> str:
    """The table, what to know about its rows, and the reason for one dropped neuron.

    Args:
        calibrated_on: names of the texts that the model was calibrated on.
    """
    rows: list[tuple[str, ...]] = []
    lines: list[str] = []
    for text, before in dense.perplexity.items():
        after = pruned.perplexity[text]
        rows.append(_row(f"perplexity, {_marked(text, calibrated_on)}", before.value, after.value, "{:.2f}"))
        lines.append(
            f"Standard error of the change in perplexity on {text}, over {len(before.nll)} paired windows: "
            f"{log_ratio_error(before, after):.1%}."
        )
    growth = {
        text: growth_of(before.value, pruned.perplexity[text].value)
        for text, before in dense.perplexity.items()
    }
    lines += warnings_of(growth, calibrated_on)
    for text, states in dense.hidden.items():
        change = cosine(states, pruned.hidden[text])
        rows.append((f"hidden-state cosine, {_marked(text, calibrated_on)}", "1", f"{change:.4f}", ""))
    if texts := dense.perplexity.keys() | dense.hidden.keys():
        if near := texts & set(calibrated_on):
            lines.append(meaning_of_mark(near))
        if texts <= set(calibrated_on):
            lines.append("Other kinds of text may lose more; add one with --evaluate.")
    if speed is not None:
        rows.append(_row("tokens/s", speed.dense, speed.dense * speed.ratio, "{:.0f}"))
        low, high = (quartile - 1 for quartile in speed.quartiles)
        lines.append(
            f"Change of tokens/s: median of {speed.pairs} pairs of forward passes, dense and pruned in turn; "
            f"quartiles {low:+.1%} to {high:+.1%}. The speed of the pruned model is that of the dense one with this "
            f"change."
        )
    rows.append(_row("FFN neurons", report.neurons_before, report.neurons_after, "{:,}"))
    rows.append(_row("parameters (M)", dense.parameters / 1e6, pruned.parameters / 1e6, "{:.1f}"))
    rows.append(_row("weights (MB)", dense.weight_bytes / 1e6, pruned.weight_bytes / 1e6, "{:.1f}"))
    return "\n".join([table(rows, ("", "dense", "pruned", "change")), "", *lines, *example(report)])


def meaning_of_mark(near: Collection[str]) -> str:
    """What the mark says of the texts `near`, which the model was calibrated on."""
    read = sorted(set(near) - {BUILTIN, SELF})  # these two have parts of their own for evaluation
    if not read:
        return "* The model was calibrated on text of this kind, from another part of it."
    return (
        f"* The model was calibrated on text of this kind, and on parts of {', '.join(read)} itself: new text may lose "
        f"more."
    )


def growth_of(dense: float, pruned: float) -> float:
    """The ratio of two perplexities; infinite where one of them overflows or is NaN."""
    return pruned / dense if math.isfinite(pruned) and math.isfinite(dense) else math.inf


def warnings_of(growth: Mapping[str, float], calibrated_on: Collection[str]) -> list[str]:
    """What the growth of the perplexity on each text (a ratio) warns of."""
    near = max((growth[text] for text in growth.keys() & set(calibrated_on)), default=math.inf)
    far = max((growth[text] for text in growth.keys() - set(calibrated_on)), default=0.0)
    found = []
    if far > MAX_GAP * near:
        found.append(
            f"Warning: the calibration is narrow: perplexity changes by {far - 1:+.1%} on text of another kind, by "
            f"{near - 1:+.1%} on text like the calibration. Calibrate on more kinds of text; --calibration self adds "
            f"what the model writes itself."
        )
    if max(growth.values(), default=0.0) > MAX_GROWTH:
        found.append(
            "Warning: a perplexity grew by more than half. Closed-form repair is not enough at this ratio or for this "
            "text; use a smaller ratio, calibrate on such text as well, or distill the pruned model."
        )
    return found


def example(report: Report) -> list[str]:
    """Why the most redundant neuron of the middle layer was dropped; nothing if no layer was measured."""
    layers = [layer for layer in report.layers if len(layer.dropped) and layer.is_measured]
    if not layers:
        return []
    layer = layers[len(layers) // 2]
    most = int(layer.mi.argmax())
    return [
        f"Example: neuron {int(layer.dropped[most])} of {layer.name} was dropped. It shares "
        f"{float(layer.mi[most]):.2f} nats with the kept neuron {int(layer.partner[most])} (median of such pairs: "
        f"{layer.median_mi:.3f} nats; 1 in 1,000 independent pairs exceeds {layer.null_mi:.3f}), and the kept neurons "
        f"predict {float(layer.linear_r2[most]):.0%} of its variance."
    ]


def _marked(text: str, calibrated_on: Collection[str]) -> str:
    return f"{text} *" if text in calibrated_on else text


def _row(name: str, dense: float, pruned: float, form: str) -> tuple[str, ...]:
    return name, form.format(dense), form.format(pruned), f"{pruned / dense - 1:+.1%}"


def cosine(a: Tensor, b: Tensor) -> float:
    """The mean cosine of the rows of `a` and `b`, `[tokens, d]`."""
    return float(F.cosine_similarity(a, b, dim=-1).mean())
