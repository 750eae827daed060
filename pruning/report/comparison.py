"""Compare the dense with the pruned model, for the manifest and for the closing table."""

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.model.size import count_parameters, weight_bytes
from pruning.observe.batches import Windows
from pruning.progress import track
from pruning.report.manifest import Report
from pruning.report.quality import Perplexity, generate, hidden_states, log_ratio_error, perplexity
from pruning.report.speed import PairedSpeed
from pruning.report.table import table

MAX_GROWTH = 1.5
"""Growth of the perplexity beyond which closed-form repair is not enough and the model needs distillation."""


class Evaluation(NamedTuple):
    """One column of the table; None for what was not asked for or is not defined for the class."""

    parameters: int
    weight_bytes: int
    perplexity: Perplexity | None
    hidden: Tensor | None  # [tokens, d]
    sentence: str | None


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Windows | Tensor | None,
    *,
    prompt: str | None,
    batch_size: int,
    name: str,
    progress: bool,
) -> Evaluation:
    """Perplexity of a causal model, or last hidden states of an encoder, on windows."""
    ppl, hidden = None, None
    if windows is not None:
        batches = track(windows.split(batch_size), name, show=progress)
        if model.can_generate():
            ppl = perplexity(model, batches)
        else:
            hidden = hidden_states(model, batches)
    sentence = generate(model, tokenizer, prompt) if prompt is not None and model.can_generate() else None
    return Evaluation(count_parameters(model), weight_bytes(model), ppl, hidden, sentence)


def summary(dense: Evaluation, pruned: Evaluation, speed: PairedSpeed) -> dict[str, Any]:
    """Quality and speed of both models, for the manifest."""
    entries: dict[str, Any] = {}
    if dense.perplexity is not None and pruned.perplexity is not None:
        entries |= {
            "perplexity_dense": dense.perplexity.value,
            "perplexity_pruned": pruned.perplexity.value,
            "log_ratio_standard_error": log_ratio_error(dense.perplexity, pruned.perplexity),
        }
    if dense.hidden is not None and pruned.hidden is not None:
        entries["hidden_state_cosine"] = _cosine(dense.hidden, pruned.hidden)
    return entries | {
        "tokens_per_second_dense": speed.dense,
        "tokens_per_second_pruned": speed.pruned,
        "tokens_per_second_ratio": {
            "median": speed.ratio,
            "quartiles": list(speed.quartiles),
            "pairs": speed.pairs,
        },
    }


def closing_table(report: Report, dense: Evaluation, pruned: Evaluation, speed: PairedSpeed | None) -> str:
    """The table, a warning if the perplexity grew too much, and the reason for one dropped neuron."""
    rows: list[tuple[str, ...]] = []
    lines: list[str] = []
    if dense.perplexity is not None and pruned.perplexity is not None:
        before, after = dense.perplexity, pruned.perplexity
        rows.append(_row("perplexity", before.value, after.value, "{:.2f}"))
        lines.append(
            f"Standard error of the change in perplexity, over {len(before.nll)} paired windows: "
            f"{log_ratio_error(before, after):.1%}."
        )
        if after.value > MAX_GROWTH * before.value:
            lines.append(
                "Warning: the perplexity grew by more than half. Closed-form repair is not enough at this ratio; "
                "use a smaller ratio, or distill the pruned model."
            )
    if dense.hidden is not None and pruned.hidden is not None:
        rows.append(("hidden-state cosine", "1", f"{_cosine(dense.hidden, pruned.hidden):.4f}", ""))
    if speed is not None:
        rows.append(("tokens/s", f"{speed.dense:.0f}", f"{speed.pruned:.0f}", f"{speed.ratio - 1:+.1%}"))
        low, high = (quartile - 1 for quartile in speed.quartiles)
        lines.append(
            f"Change of tokens/s: median of {speed.pairs} pairs of forward passes, dense and pruned in turn; "
            f"quartiles {low:+.1%} to {high:+.1%}."
        )
    rows.append(_row("FFN neurons", report.neurons_before, report.neurons_after, "{:,}"))
    rows.append(_row("parameters (M)", dense.parameters / 1e6, pruned.parameters / 1e6, "{:.1f}"))
    rows.append(_row("weights (MB)", dense.weight_bytes / 1e6, pruned.weight_bytes / 1e6, "{:.1f}"))
    return "\n".join([table(rows, ("", "dense", "pruned", "change")), "", *lines, _reason(report)])


def _reason(report: Report) -> str:
    """Why the most redundant neuron of the middle layer was dropped."""
    layers = [layer for layer in report.layers if len(layer.dropped)]
    layer = layers[len(layers) // 2]
    most = int(layer.mi.argmax())
    return (
        f"Example: neuron {int(layer.dropped[most])} of {layer.name} was dropped. It shares "
        f"{float(layer.mi[most]):.2f} nats with the kept neuron {int(layer.partner[most])} (median pair of the layer: "
        f"{layer.median_mi:.3f} nats; 1 in 1,000 independent pairs exceeds {layer.null_mi:.3f}), and the kept neurons "
        f"predict {float(layer.linear_r2[most]):.0%} of its variance."
    )


def _row(name: str, dense: float, pruned: float, form: str) -> tuple[str, ...]:
    return name, form.format(dense), form.format(pruned), f"{pruned / dense - 1:+.1%}"


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a, b, dim=-1).mean())
