"""Pruning a model that does not fit into memory: from its folder to another one, layer by layer."""

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from mikernels.isolation import isolated
from mikernels.ranks import Ranks
from pruning.model.on_disk import open_folder
from pruning.model.output_folder import check_output, growing_folder, share_of, unfinished
from pruning.model.state import STATE
from pruning.observe.calibration import Calibration
from pruning.observe.mixture import has_samples
from pruning.observe.sources import builtin
from pruning.paths import check_paths
from pruning.pipeline import prune
from pruning.prepare import check_one_by_one
from pruning.progress import timed
from pruning.report.companions import source_folder
from pruning.report.dry_save import dry_save
from pruning.report.manifest import Report
from pruning.report.save import complete
from pruning.settings import Settings


@isolated()
def prune_folder(
    source: str | Path,
    out: str | Path,
    *,
    calibration: Calibration = None,
    settings: Settings | None = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    force: bool = False,
    resume: bool = False,
    process_group: Any = None,
    progress: bool = False,
    notes: Mapping[str, Any] | None = None,
) -> Report:
    """Prune the model in `source` and write the result to the folder `out`, with one layer in memory at a time. The
    result is that of `pruning.load_model`, `pruning.prune` and saving, bit for bit.

    Memory: the weights of one layer, embeddings and head; what `pruning.prune` needs beyond the model; and while the
    model is tried out, its first layers, at least two, as many as show each kind of layer.

    Args:
        source: a folder of safetensors, with or without an index; or a GGUF file, but of no mixture of experts.
        out: appears only when complete.
        calibration, settings, process_group, progress: see `pruning.prune`; by default the text that ships with Python
            alone, since writing samples would read the whole model for every token. Of several processes each reads the
            layers itself, and the first one writes.
        dtype, device, trust_remote_code: see `pruning.load_model`; the default dtype is the stored one, computed in
            float32 where a CPU is slow with 16 bits.
        force: replace an earlier result in `out`.
        resume: go on with an interrupted run, if there is one, which must have had the same model, settings,
            calibration, versions and number of processes. Its state, with the hidden states, lies beside `out` in a
            hidden folder, and what each of several processes needs in one for each.
        notes: further entries for the manifest; those that are empty at the end are left out.

    Raises:
        ValueError: see `pruning.prune` and `pruning.load_model`; or layers that cannot be run one by one,
            `budget="kl"`, several `candidates`, or calibration on the model's own samples, all of which need the whole
            model.
        OSError: see `pruning.report.save.save_pruned`.
    """
    settings = settings or Settings()
    calibration = [(builtin(), 1.0)] if calibration is None else calibration
    out = Path(out).resolve()
    ranks = Ranks(process_group)
    with ranks.together(), ExitStack() as stack:
        check_one_by_one(settings, "pruned from disk")
        if has_samples(calibration):
            raise ValueError(
                "calibration: expected text for a model that is pruned from disk, got the model's own samples"
            )
        check_paths(out, {"the model": source}, force=force)
        model, tokenizer, layers = open_folder(
            source, dtype=dtype, device=device, trust_remote_code=trust_remote_code
        )
        dry_save(model, tokenizer)
        folder = unfinished(out)
        if ranks.is_first:
            done = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            check_output(out, needed_bytes=layers.bytes - done, force=force)
            stack.enter_context(growing_folder(out, STATE, resume=resume, force=force))
        layers.begin(folder, ranks)
        report = prune(
            model,
            tokenizer,
            calibration=calibration,
            settings=settings,
            source=layers,
            process_group=process_group,
            progress=progress,
        )
        report.notes |= {"model": str(source)} | {n: value for n, value in (notes or {}).items() if value}
        if ranks.is_first:
            with timed(report.seconds, "save"):
                layers.finish()
            complete(model, tokenizer, report, folder, source=source_folder(str(source)))
    shutil.rmtree(share_of(folder, ranks.index), ignore_errors=True)
    return report
