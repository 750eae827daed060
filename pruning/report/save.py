"""Saving a pruned model with its tokenizer and manifest."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.model.ffn import find_ffns
from pruning.model.output_folder import MANIFEST, check_output, complete_folder, sync
from pruning.model.saved import check_config, check_saved
from pruning.model.size import weight_bytes
from pruning.progress import timed
from pruning.report.manifest import Report


def save_pruned(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    report: Report,
    out: str | Path,
    *,
    force: bool = False,
) -> None:
    """Write the pruned model, its tokenizer and the manifest to the folder `out`, completely or not at all
    (`pruning.model.output_folder`); the time goes into the report.

    Raises:
        FileExistsError, OSError: as `check_output`, or from writing, or what was written is not what is in memory.
        ValueError: the config does not describe the model, so that nothing could load it.
    """
    out = Path(out).resolve()
    ffns = find_ffns(model)
    check_config(model, ffns, [ffn.width for ffn in ffns])
    check_output(out, needed_bytes=weight_bytes(model), force=force)
    with complete_folder(out) as folder:
        with timed(report.seconds, "save"):
            model.save_pretrained(folder)
            check_saved(folder, model)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            for file in folder.rglob("*"):
                if file.is_file():
                    sync(file)
        (folder / MANIFEST).write_text(report.manifest(), encoding="utf-8")
        sync(folder / MANIFEST)
