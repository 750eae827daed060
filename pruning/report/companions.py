"""Copying the files of a model folder that describe the model but hold none of its weights."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from mikernels.written import complete_file
from pruning.model.output_folder import MANIFEST

TEXT = {".json", ".jinja", ".md", ".txt", ".py", ".yaml", ".yml", ".model", ".spm", ".tiktoken", ".vocab"}
"""Endings of configs, cards, code and vocabularies. Files with other endings are weights or data for all we know."""
NAMES = ("license", "licence", "notice", "copying")
"""Beginnings of the names of legal texts, whatever their ending."""
STALE = (".index.json", "adapter_config.json", "trainer_state.json", "recipe.yaml", MANIFEST)
"""Endings of the names of files that describe weights that are not those of the result."""
TEMPLATES = "additional_chat_templates"
OF_TOKENIZER = {
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    TEMPLATES,
}
"""What a tokenizer that was saved has written itself, or has left out because it was changed."""
VOCABULARIES = (
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    ".model",
    ".spm",
    ".tiktoken",
    ".vocab",
)
"""Endings of the names of vocabularies that other tools read, and tokenizers often do not write."""
MAX_BYTES = 50_000_000


def source_folder(source: str) -> Path | None:
    """The local folder of a model: the folder itself, or the cached snapshot of a name on the Hugging Face hub; None
    for a GGUF file."""
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists() or path.suffix == ".gguf":
        return None
    config = try_to_load_from_cache(source, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def copy_companions(source: Path, folder: Path) -> None:
    """Copy from `source` what is not in `folder` yet: licence, model card, configs of processors and of
    sentence-transformers, chat templates, vocabularies, and code.

    If a tokenizer was saved in `folder`, its chat templates are there, and vocabularies are left if it has another one.
    Of subfolders, only chat templates and the modules in the `modules.json` of sentence-transformers are copied. The
    latter may hold small weights of their own, such as a dense layer after the pooling. Hidden files, files of more
    than `MAX_BYTES`, and links that lead out of the source are left.
    """
    modules = _modules(source)
    has_tokenizer = (folder / "tokenizer_config.json").is_file()  # before that of the source is copied
    has_other_words = has_tokenizer and _vocabulary(source) not in (None, _vocabulary(folder))
    for file in _files(source, {*modules, TEMPLATES}):
        name = file.relative_to(source)
        of_module = name.parts[0] in modules and len(name.parts) > 1
        if not of_module and not _describes(name):
            continue
        if has_tokenizer and name.parts[0] in OF_TOKENIZER:
            continue
        if has_other_words and name.name.endswith(VOCABULARIES):
            continue
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with complete_file(folder / name) as partial:
                shutil.copyfile(file, partial)


def _files(source: Path, subfolders: set[str]) -> Iterator[Path]:
    """The regular files directly in `source` and anywhere in its subfolders of these names."""
    real = source.resolve()
    roots = [real]
    if real.parent.name == "snapshots":  # the hub's cache links to its blobs
        roots.append(real.parent.parent / "blobs")
    candidates = [*source.iterdir()]
    for subfolder in sorted(subfolders):
        candidates += (source / subfolder).rglob("*")
    for path in candidates:
        hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
        inside = any(path.resolve().is_relative_to(root) for root in roots)
        if path.is_file() and inside and not hidden and path.stat().st_size <= MAX_BYTES:
            yield path


def _modules(source: Path) -> set[str]:
    """The subfolders that the `modules.json` of sentence-transformers names."""
    try:
        modules = json.loads((source / "modules.json").read_text(encoding="utf-8"))
        paths = [Path(module["path"]) for module in modules]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {path.name for path in paths if path.parts == (path.name,) and not path.name.startswith(".")}


def _vocabulary(folder: Path) -> dict[str, float] | None:
    """The tokens in the `tokenizer.json` of a folder; None if that cannot be told."""
    try:
        return dict(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _describes(name: Path) -> bool:
    """Whether a file is a text about the model, by its name, and not about a quantization, which loading has undone:
    other tools would take the weights for quantized ones."""
    lower, suffix = name.name.lower(), name.suffix.lower()
    is_stale = lower.endswith(STALE) or ("quant" in lower and suffix == ".json")
    return (suffix in TEXT or lower.startswith(NAMES)) and not is_stale
