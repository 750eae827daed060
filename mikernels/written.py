"""Files that appear complete or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Yield a hidden file beside `path` to write, which replaces `path`, or what it links to, at the end of the block.

    If the block raises, `path` stays as it was.

    Raises:
        FileExistsError: another process is at it.
    """
    path = path.resolve()
    partial = path.with_name(f".{path.name}.partial")
    partial.touch()
    with locked(partial):
        try:
            yield partial
            settle(partial)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def settle(file: Path) -> None:
    """Give a written file the permissions of any new file, and wait until its contents are on disk.

    safetensors writes to a temporary file first, which only its owner may read.
    """
    with suppress(OSError):  # a file system may have no permissions
        file.chmod(0o666 & ~umask())
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a folder or file, which ends with this process however that ends.

    There is none on Windows and on file systems that lock only what is open for writing, as NFS.

    Raises:
        FileExistsError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(f"{path}: expected no other run that writes to it, got one") from error
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def umask() -> int:
    """The permissions that new files of this process lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
