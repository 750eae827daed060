"""Saving a pruned model with its tokenizer and manifest."""

import gzip
import json
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mikernels.written import settle
from pruning.model.ffn import find_ffns
from pruning.model.output_folder import MANIFEST, PICTURES, check_output, complete_folder, files_in
from pruning.model.saved import check_config, check_saved
from pruning.model.size import weight_bytes
from pruning.model.state import STATE
from pruning.progress import timed
from pruning.report.companions import copy_companions
from pruning.report.manifest import Report


def save_pruned(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    report: Report,
    out: str | Path,
    *,
    source: str | Path | None = None,
    force: bool = False,
) -> None:
    """Write the pruned model, its tokenizer and the manifest to the folder `out`, completely or not at all
    (`pruning.model.output_folder`); the time and the names of the files go into the report.

    Args:
        source: the folder of the dense model. Its files that are not weights come along, such as the licence, the
            model card and the configs of processors (`pruning.report.companions`); what the model and the tokenizer
            write themselves is not replaced.

    Raises:
        FileNotFoundError: no folder `source`.
        FileExistsError, OSError: as `check_output`, or from writing, or what was written is not what is in memory.
        ValueError: the config does not describe the model, so that nothing could load it.
    """
    out = Path(out).resolve()
    if source is not None and not Path(source).is_dir():
        raise FileNotFoundError(
            f"source: expected the folder of the dense model, got {source}; for a name on the hub pass "
            f"huggingface_hub.snapshot_download({str(source)!r}), or leave it out"
        )
    _check_described(model)
    check_output(out, needed_bytes=weight_bytes(model), force=force)
    with complete_folder(out, force=force) as folder:
        with timed(report.seconds, "save"):
            model.save_pretrained(folder)
        complete(model, tokenizer, report, folder, source=source)


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    report: Report,
    folder: Path,
    *,
    source: str | Path | None,
) -> None:
    """Check the model in `folder`, which is without its tokenizer and manifest yet, and add them.

    Args, Raises: see `save_pruned`.
    """
    _check_described(model)
    with timed(report.seconds, "save"):
        check_saved(folder, model)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if source is not None:
            copy_companions(Path(source), folder)
        pictures = json.dumps(report.pictures(), separators=(",", ":"), allow_nan=False)
        (folder / PICTURES).write_bytes(gzip.compress(pictures.encode(), mtime=0))
        files = files_in(folder) - {STATE}
        report.files = sorted({MANIFEST, *files})
        for name in files:
            settle(folder / name)
    (folder / MANIFEST).write_text(report.manifest(), encoding="utf-8")
    settle(folder / MANIFEST)


def _check_described(model: PreTrainedModel) -> None:
    """Raise unless the config describes the model, whose weights may be on disk."""
    ffns = find_ffns(model, in_memory=False)
    check_config(model, ffns, [ffn.width for ffn in ffns])
