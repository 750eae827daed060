"""The files and folders that a user names, checked before anything is loaded, so that none is lost."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pruning.choose.evidence_file import is_evidence, read_origin
from pruning.model.output_folder import check_output
from pruning.report.page import check_packages


def check_paths(
    out: str | Path,
    inputs: Mapping[str, str | Path],
    *,
    statistics: str | Path | None = None,
    save_statistics: str | Path | None = None,
    report: str | Path | None = None,
    force: bool = False,
) -> None:
    """Check everything that a run will read, write or replace.

    Args:
        inputs: what is read, by option: files, folders, or names of other things.
        statistics, save_statistics: see `pruning.prune`.
        report: a page to write.

    Raises:
        ImportError: see `check_report`.
        ValueError: a file inside of the folder `out`, or a file to save in the place of an input.
        OSError: a file is missing or a folder, or a place cannot be written to.
    """
    out = Path(out)
    inputs = {option: path for option, path in inputs.items() if os.path.exists(path)}
    named = dict(inputs)
    if statistics is not None:
        read_origin(statistics)
        named["--statistics"] = statistics
    if save_statistics is not None:
        named["--save-statistics"] = save_statistics
    if report is not None:
        check_report(report, named)
        named["--report"] = report
    for option, path in named.items():
        if _is_within(path, out):
            raise ValueError(
                f"--out: expected a folder without the file or folder of {option}, {path}, got {out}"
            )
    if save_statistics is not None:
        if _is_within(out, save_statistics):
            raise ValueError(f"--save-statistics: expected another path than --out, got {save_statistics}")
        for option, path in inputs.items():
            if _is_within(save_statistics, path):
                raise ValueError(
                    f"--save-statistics: expected a file beside the input of {option}, {path}, not a part of it, got "
                    f"{save_statistics}"
                )
        check_statistics_target(save_statistics)
    check_output(out, force=force)
    check_writable(out.resolve().parent, out.resolve().name)


def check_report(
    path: str | Path, inputs: Mapping[str, str | Path] | None = None, *, option: str = "--report"
) -> None:
    """Raise unless a page can be made and written to `path`.

    Args:
        inputs: see `check_paths`; the page may replace none of them.
        option: which names the page.

    Raises:
        ImportError: a package is missing.
        ValueError: a name that does not end with .html, or an input.
        OSError: the folder is missing or not writable, or there is a folder in its place.
    """
    check_packages()
    path = Path(path)
    if path.suffix.lower() != ".html":
        raise ValueError(f"{option}: expected the name of a file that ends with .html, got {path}")
    if path.is_dir():
        raise IsADirectoryError(f"{option}: expected a file, got the folder {path}")
    if not (folder := path.resolve().parent).is_dir():  # where a link leads
        raise FileNotFoundError(f"{option}: expected an existing folder, got {folder}")
    for other, given in (inputs or {}).items():
        if os.path.exists(given) and _is_within(path, given):
            raise ValueError(f"{option}: expected a file beside the input of {other}, {given}, got {path}")
    check_writable(folder, path.name)


def check_statistics_target(path: str | Path) -> None:
    """Raise unless statistics can be saved to `path`, where nothing but earlier statistics may be replaced.

    Raises:
        OSError: the folder is missing or not writable, or there is a folder or another file.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"save_statistics: expected a file, got the folder {path}")
    if not (folder := path.resolve().parent).is_dir():  # where a link leads
        raise FileNotFoundError(f"save_statistics: expected an existing folder, got {folder}")
    if path.exists() and not (path.is_file() and is_evidence(path)):
        raise FileExistsError(
            f"save_statistics: expected a new file or earlier statistics, got a file with other data, {path}"
        )
    check_writable(folder, path.name)


def check_writable(folder: Path, name: str) -> None:
    """Raise unless an entry with a name such as `name` can be made in `folder`, or in the nearest folder above it that
    exists.

    Raises:
        OSError: no permission, no folder, a name that is too long, or a read-only disk.
    """
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected a folder to write to, got a file")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".partial", dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{folder}: expected a folder to write {name} to, got: {error.strerror}") from error


def _is_within(path: str | Path, folder: str | Path) -> bool:
    """Whether `path` is `folder` or in it, also through links."""
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def is_same_file(first: str | Path, second: str | Path) -> bool:
    """Whether two names, which may be of other things, are those of one file."""
    return os.path.exists(first) and os.path.exists(second) and os.path.samefile(first, second)
