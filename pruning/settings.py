"""Every option of pruning, defined once: `Settings` checks the values and `mi-prune` derives its flags from it."""

import functools
import re
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from mikernels.numbers import flag, integer, real
from mikernels.options import Estimator, make_problem
from mikernels.validation import MIN_SAMPLES
from pruning.threshold import null_level

ENTRY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
"""The path of a config entry."""
Criterion = Literal["conditional-mi", "pairwise-mi", "random-pairs", "flap", "wanda", "magnitude", "random"]
Repair = Literal["auto", "none", "bias", "lstsq", "sequential"]
Budget = Literal["uniform", "mi", "kl"]


@dataclass(frozen=True)
class Settings:
    """The options of `pruning.prune`.

    Attributes:
        ratio: share of the neurons to drop.
        target_params, target_bytes: in place of the ratio, how many parameters the pruned model may have, or how many
            bytes its weights in the dtypes that they are saved in: the ratio is the smallest one that gets there.
        criterion: `"conditional-mi"` drops the neurons that tell least about the layer's output given the kept ones;
            `"pairwise-mi"` drops neurons with low fluctuation and a kept partner that shares their information;
            `"random-pairs"` is the paper's criterion; `"flap"`, `"wanda"`, `"magnitude"` and `"random"` are baselines.
        repair: `"sequential"` fits each layer's output projection to the dense hidden states after the layer, which
            also corrects half of the error of earlier layers; `"lstsq"` folds a least-squares prediction of the
            dropped neurons into the output projection; `"bias"` adds their mean contribution (only for classes that
            store a bias); `"none"` does nothing. `"auto"` is `"sequential"` for models whose layers can be followed one
            by one, and `"lstsq"` for all others; the manifest says which.
        refine: after each layer's sequential repair, train all its projections briefly toward the same target, block
            by block, without labels and without gradients through the model. Gains more, and takes longer, with
            more calibration tokens.
        budget: `"uniform"` drops the same number of neurons in every layer, so that stock transformers can load the
            result. `"mi"` and `"kl"` keep more neurons in sensitive layers (`pruning.choose.sensitivity`): better
            quality, but only `pruning.load_model` can load the result.
        max_layer_ratio: largest share that a budget may drop from one layer.
        threshold: MI above which `"random-pairs"` calls a pair redundant (Tr in the paper): nats, or `"null:0.999"`
            for the MI that independent neurons exceed with probability 0.001 at this sample size and estimator. By
            default each layer's median MI.
        clusters: clusters of neurons per layer, by their activations (`pruning.choose.clusters`); `"random-pairs"` only
            pairs neurons of the same cluster.
        candidates: selections that `"random-pairs"` draws, with seeds `seed`, `seed + 1` and so on. The one whose
            model diverges least from the dense model on a few calibration windows is used. With sequential repair
            the candidates are compared after least-squares repair.
        multiple_of: the number of kept neurons is rounded to the nearest multiple. GGUF's k-quants (such as Q4_K_M)
            need 256, or the output projections fall back to larger formats; 32 suits only its Q8_0, Q4_0 and Q5_0.
            By default 256 under the uniform budget where the dense width is a multiple of it and the rounding moves
            the ratio by less than 0.02, otherwise 32.
        calibration_tokens, sequence_length, batch_size: how much text the model reads, in windows of which length, and
            how many windows per forward pass.
        bos: begin every window of text for a causal model with the tokens that the tokenizer puts in front of a text,
            which is a BOS token or nothing. Models that are used with a BOS token need it in every window.
        only: prune only the FFNs whose config entry begins with this path, such as `text_config` or
            `decoder_ffn_dim`. By default all that the calibration reaches; the manifest names those that are left.
        sample_size: M, tokens used for the MI estimate.
        estimator, nodes: see `mikernels.mutual_information`.
        seed: for the sample of tokens and for random criteria.
        memory_budget: bytes that what is kept of all calibration tokens, above all their hidden states, may take on the
            device. What exceeds it is on the CPU, or in files if that is the device: beside the output of
            `pruning.prune_folder`, otherwise in the folder for temporary files. The result is the same; by default
            there is no limit.
        text: keep a few words of the calibration around the tokens that excite the most redundant neurons, for the
            report (`pruning.report`). They are saved with the result; without them it holds no text.

    Raises:
        ValueError: a value is out of range, or two options exclude each other.
    """

    ratio: Annotated[float, "share of the neurons to drop"] = 0.2
    target_params: Annotated[
        int | None,
        "in place of the ratio: drop as many neurons as it takes to have at most this many parameters",
    ] = None
    target_bytes: Annotated[
        int | None,
        "in place of the ratio: drop as many neurons as it takes to save at most this many bytes of weights",
    ] = None
    criterion: Annotated[Criterion, "which neurons to drop first"] = "conditional-mi"
    repair: Annotated[Repair, "how to compensate for the dropped neurons"] = "auto"
    refine: Annotated[
        bool,
        "after the sequential repair of each layer, train all its projections briefly toward the same target: slower "
        "but better, most of all with many calibration tokens",
    ] = False
    budget: Annotated[
        Budget,
        "how many neurons each layer loses: mi and kl spare sensitive layers, but stock transformers cannot load the "
        "result (pruning.load_model can)",
    ] = "uniform"
    max_layer_ratio: Annotated[float, "largest share that a budget may drop from one layer"] = 0.8
    threshold: Annotated[
        float | str | None,
        "MI above which random-pairs calls a pair redundant: nats, or null:0.999 for that quantile of independent "
        "neurons; without it, each layer's median MI",
    ] = None
    clusters: Annotated[int, "clusters of neurons per layer; random-pairs pairs only within a cluster"] = 1
    candidates: Annotated[
        int,
        "selections that random-pairs draws (seeds seed, seed + 1, ...); the one whose model stays closest to the "
        "dense model is used",
    ] = 1
    multiple_of: Annotated[
        int | None,
        "round the number of kept neurons per layer to a multiple of this: GGUF's k-quants need 256, 32 suits only "
        "Q8_0, Q4_0 and Q5_0; by default 256 with the uniform budget where the dense width is a multiple of it and "
        "that moves the ratio by less than 0.02, otherwise 32",
    ] = None
    calibration_tokens: Annotated[int, "tokens to calibrate on"] = 57_344
    sequence_length: Annotated[int, "tokens per window"] = 512
    batch_size: Annotated[int, "windows per forward pass"] = 4
    bos: Annotated[
        bool,
        "begin no window of text for a causal model with a BOS token; by default each does if the tokenizer adds one",
    ] = True
    only: Annotated[
        str | None,
        "prune only FFNs whose config entry begins with this, such as text_config or decoder_ffn_dim",
    ] = None
    sample_size: Annotated[int, "tokens used for the MI estimate"] = 4096
    estimator: Annotated[Estimator, "estimator of mutual information (MI)"] = "grid"
    nodes: Annotated[int, "nodes per neuron of the grid estimator"] = 16
    seed: Annotated[int, "random seed"] = 0
    memory_budget: Annotated[
        int | None,
        "bytes, such as 512M or 2G, that the hidden states of the calibration may take on the device; the others "
        "are on the CPU, or on disk if that is the device; without it, no limit",
    ] = None
    text: Annotated[
        bool,
        "keep no words of the calibration text in the result: by default the report shows a few around the tokens "
        "that excite the most redundant neurons",
    ] = True

    def __post_init__(self) -> None:
        for field in fields(self):
            plain = _plain(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, plain)  # this is what the manifest stores
        for name in ("ratio", "max_layer_ratio"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"{name}: expected a number between 0 and 1 (exclusive), got {getattr(self, name)}"
                )
        for name in ("criterion", "repair", "budget", "estimator"):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in choices(name):
                expected = ", ".join(choices(name))
                raise ValueError(f"{name}: expected one of {expected}, got {value!r}")
        sizes = ("multiple_of", "calibration_tokens", "sequence_length", "batch_size", "sample_size")
        for name in (*sizes, "clusters", "candidates", "target_params", "target_bytes", "memory_budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value}")
        if self.target_params is not None and self.target_bytes is not None:
            raise ValueError(
                f"target_bytes: expected none beside target_params, got {self.target_bytes}; use one of them"
            )
        make_problem(self.estimator, self.nodes, None, self.sample_size)
        if self.sample_size < MIN_SAMPLES:
            raise ValueError(f"sample_size: expected at least {MIN_SAMPLES} tokens, got {self.sample_size}")
        for name in ("threshold", "clusters", "candidates"):
            if getattr(self, name) != getattr(Settings, name) and self.criterion != "random-pairs":
                raise ValueError(f"{name}: expected criterion='random-pairs' with it, got {self.criterion!r}")
        if self.max_layer_ratio != Settings.max_layer_ratio and self.budget == "uniform":
            raise ValueError("max_layer_ratio: expected budget='mi' or 'kl' with it, got 'uniform'")
        if self.nodes != Settings.nodes and self.estimator != "grid":
            raise ValueError(f"nodes: expected estimator='grid' with it, got {self.estimator!r}")
        if isinstance(self.threshold, str):
            null_level(self.threshold)
        if self.refine and self.repair not in ("auto", "sequential"):
            raise ValueError(f"refine: expected repair='sequential' with it, got {self.repair!r}")


@functools.cache
def _hints() -> dict[str, Any]:
    """The types of the fields, evaluated once: that takes a millisecond, and every `Settings` needs them often."""
    return get_type_hints(Settings)


def _plain(name: str, value: Any) -> Any:
    """A field as a plain Python value: numbers of NumPy and 0-d tensors are numbers.

    Raises:
        ValueError: a value of the wrong kind.
    """
    hint = _hints()[name]
    if hint is bool:
        return flag(value, name)
    if hint is int or (hint == (int | None) and value is not None):
        number = integer(value, name)
        if not -(2**63) <= number < 2**63:
            raise ValueError(f"{name}: expected an integer of 64 bits, got {number}")
        return number
    if hint is float:
        return real(value, name, "a number between 0 and 1 (exclusive)")
    if name == "only" and value is not None and not (isinstance(value, str) and ENTRY.fullmatch(value)):
        raise ValueError(f"only: expected the beginning of a config entry, got {value!r}")
    if name == "threshold" and not (value is None or isinstance(value, str)):
        return real(value, name, "nats or 'null:q'")
    return value


def choices(option: str) -> tuple[str, ...]:
    """The allowed values of an option of `Settings` that has a fixed set of them, otherwise ()."""
    hint = _hints()[option]
    return get_args(hint) if get_origin(hint) is Literal else ()


def help_text(option: str) -> str:
    """What `mi-prune --help` says about an option of `Settings`."""
    text: str = get_type_hints(Settings, include_extras=True)[option].__metadata__[0]
    return text
