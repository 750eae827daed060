"""Dense against pruned: what is measured of each, and the closing table."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.model.surgery import count_parameters, weight_bytes
from pruning.progress import track
from pruning.report.evaluate import Perplexity, generate, hidden_states, perplexity
from pruning.report.manifest import Report, table

WORTH_A_WARNING = 1.5
"""Growth of the perplexity past which closed-form repair no longer holds and a model wants distillation."""


class Measured(NamedTuple):
    """One column of the table; what was not asked for, or is not defined for the class, is None."""

    parameters: int
    weight_bytes: int
    perplexity: Perplexity | None
    hidden: Tensor | None  # [tokens, d]
    sentence: str | None


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Tensor | None,
    *,
    prompt: str | None,
    batch_size: int,
    name: str,
    progress: bool,
) -> Measured:
    """Perplexity of a causal model, or last hidden states of an encoder, on `windows [n, L]`."""
    ppl, hidden = None, None
    if windows is not None:
        batches = track(windows.split(batch_size), name, show=progress)
        if model.can_generate():
            ppl = perplexity(model, batches)
        else:
            hidden = hidden_states(model, batches)
    sentence = generate(model, tokenizer, prompt) if prompt is not None and model.can_generate() else None
    return Measured(count_parameters(model), weight_bytes(model), ppl, hidden, sentence)


def summary(dense: Measured, pruned: Measured) -> dict[str, float]:
    """Quality and speed of both, for the manifest."""
    if dense.perplexity is not None and pruned.perplexity is not None:
        return {
            "perplexity_dense": dense.perplexity.value,
            "perplexity_pruned": pruned.perplexity.value,
            "tokens_per_second_dense": dense.perplexity.tokens_per_second,
            "tokens_per_second_pruned": pruned.perplexity.tokens_per_second,
            "log_ratio_standard_error": _standard_error(pruned.perplexity.nll - dense.perplexity.nll),
        }
    if dense.hidden is not None and pruned.hidden is not None:
        return {"hidden_state_cosine": _cosine(dense.hidden, pruned.hidden)}
    return {}


def closing_table(report: Report, dense: Measured, pruned: Measured) -> str:
    """The table, a warning where the ratio is past what repair can hold, and an example of a reason."""
    rows: list[tuple[str, ...]] = []
    lines: list[str] = []
    if dense.perplexity is not None and pruned.perplexity is not None:
        before, after = dense.perplexity, pruned.perplexity
        rows.append(_row("perplexity", before.value, after.value, "{:.2f}"))
        rows.append(
            _row("tokens/s (best batch)", before.tokens_per_second, after.tokens_per_second, "{:.0f}")
        )
        lines.append(
            f"Standard error of the change in perplexity, over {len(before.nll)} paired windows: "
            f"{_standard_error(after.nll - before.nll):.1%}."
        )
        if after.value > WORTH_A_WARNING * before.value:
            lines.append(
                "Warning: the perplexity grew by more than half. Closed-form repair does not hold at this "
                "ratio; expect to need distillation, or a smaller ratio."
            )
    if dense.hidden is not None and pruned.hidden is not None:
        rows.append(("hidden-state cosine", "1", f"{_cosine(dense.hidden, pruned.hidden):.4f}", ""))
    rows.append(_row("FFN neurons", report.neurons_before, report.neurons_after, "{:,}"))
    rows.append(_row("parameters (M)", dense.parameters / 1e6, pruned.parameters / 1e6, "{:.1f}"))
    rows.append(_row("weights (MB)", dense.weight_bytes / 1e6, pruned.weight_bytes / 1e6, "{:.1f}"))
    return "\n".join([table(rows, ("", "dense", "pruned", "change")), "", *lines, _reason(report)])


def _reason(report: Report) -> str:
    layers = [layer for layer in report.layers if len(layer.dropped)]
    layer = layers[len(layers) // 2]
    most = int(layer.mi.argmax())
    return (
        f"Why, for example: neuron {int(layer.dropped[most])} of {layer.name} shares "
        f"{float(layer.mi[most]):.2f} nats with neuron {int(layer.partner[most])}, which stays (the layer's "
        f"median pair: {layer.median_mi:.3f}; one in 1,000 independent ones: {layer.null_mi:.3f}); the kept "
        f"neurons predict {float(layer.linear_r2[most]):.0%} of its variance."
    )


def _row(name: str, dense: float, pruned: float, form: str) -> tuple[str, ...]:
    return name, form.format(dense), form.format(pruned), f"{pruned / dense - 1:+.1%}"


def _standard_error(differences: Tensor) -> float:
    return float(differences.std() / len(differences) ** 0.5) if len(differences) > 1 else float("nan")


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a, b, dim=-1).mean())
