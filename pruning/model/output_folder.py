"""An output folder that appears complete or not at all."""

import glob
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mikernels.written import locked, umask
from pruning.model.loaded import name_some

MANIFEST = "mi_prune.json"
"""The file that marks a folder as an earlier result, which `force` may replace. Its entry `files` lists all files of
the result."""
PICTURES = "mi_prune_pictures.json.gz"
"""The file beside it with a closer look at the layers."""


def check_output(out: Path, *, needed_bytes: int = 0, force: bool = False) -> None:
    """Raise unless a checkpoint of `needed_bytes` can be written to `out`.

    Raises:
        FileExistsError: `out` is a file or a mount point; or a folder with files, without `force`; or with `force` a
            folder with files that are not of an earlier result, which nobody meant to delete.
        OSError: too little disk space.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out}: expected a folder to write to, got a file")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise FileExistsError(
                f"{out}: expected a new or empty folder, got one with files; use --force to replace them"
            )
        if not (out / MANIFEST).is_file():
            raise FileExistsError(
                f"{out}: expected an earlier result to replace (with {MANIFEST}), got a folder of other files"
            )
        if others := files_in(out) - _files_of_result(out):
            raise FileExistsError(
                f"{out}: expected only files of an earlier result to replace, got {name_some(others)}; move them or "
                f"choose another folder"
            )
    if out.is_mount():
        raise FileExistsError(
            f"{out}: expected a folder that can be renamed, got a mount point; use a folder in it"
        )
    parent = next(p for p in out.resolve().parents if p.is_dir())
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise OSError(
            f"{parent}: expected {needed_bytes / 1e6:.0f} MB of free disk space, got {free / 1e6:.0f} MB"
        )


@contextmanager
def complete_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """Yield a hidden folder beside `out` to write to, which is renamed to `out` at the end of the block, unless `out`
    then has files that may not be replaced (`check_output`).

    If the block raises, `out` stays as it was. If the process is killed, the hidden folder is left behind; between the
    two renames of a replacement, the old result is then left under the hidden name `.NAME.*.old`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        yield staging
        check_output(out, force=force)
        staging.chmod(0o777 & ~umask())
        _move_into_place(staging, out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def unfinished(out: Path) -> Path:
    """The hidden folder beside `out` that holds a result while it grows."""
    return out.with_name(f".{out.name}.unfinished")


def share_of(folder: Path, rank: int) -> Path:
    """The folder beside an unfinished one for what one of several processes keeps."""
    return folder.with_name(f"{folder.name}.rank{rank}")


@contextmanager
def growing_folder(out: Path, state: str, *, resume: bool, force: bool) -> Iterator[Path]:
    """Yield a hidden folder beside `out` that holds a result while it grows, and is renamed to `out` at the end of the
    block.

    If the block raises or is killed, the folder stays if it holds the file `state`, with which another run can go on.
    So it does if `out` then has files that may not be replaced.

    Args:
        resume: go on with the folder of an earlier run, if there is one.
        force: without `resume`, delete it; and replace an earlier result in `out`.

    Raises:
        FileExistsError: another process is at it; or there is one of an earlier run, without `resume` and `force`; or
            see `check_output`.
    """
    folder = unfinished(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    with locked(folder):
        if not resume and (folder / state).is_file() and not force:
            raise FileExistsError(
                f"{out}: expected no interrupted run, got one in {folder}; go on with --resume, or begin again with "
                f"--force"
            )
        goes_on = resume and (folder / state).is_file()
        for path in folder.iterdir():
            # of an interrupted write, safetensors and this package leave hidden files
            if not goes_on or path.name.startswith("."):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not goes_on:
            _delete_shares(folder)
        try:
            yield folder
            check_output(out, force=force)
            folder.chmod(0o777 & ~umask())
            _move_into_place(
                folder, out
            )  # with the state, without which a failure here would lose the result
            (out / state).unlink(missing_ok=True)
        except BaseException:
            if not (folder / state).is_file():
                shutil.rmtree(folder, ignore_errors=True)
                _delete_shares(folder)
            raise


def _delete_shares(folder: Path) -> None:
    for path in folder.parent.glob(f"{glob.escape(folder.name)}.rank*"):
        shutil.rmtree(path, ignore_errors=True)


def files_in(folder: Path) -> set[str]:
    """The paths of all files in `folder`, relative to it; a link counts as a file."""
    entries = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in entries}


def _files_of_result(out: Path) -> set[str]:
    """What the manifest in `out` lists; of a manifest that lists nothing only itself."""
    try:
        return {MANIFEST, *json.loads((out / MANIFEST).read_text(encoding="utf-8"))["files"]}
    except (ValueError, KeyError, TypeError):
        return {MANIFEST}


def _move_into_place(staging: Path, out: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        staging.rename(out)  # also replaces an empty folder, in one step
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    try:
        out.rename(old)
        staging.rename(out)
    except BaseException:
        if not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old)
