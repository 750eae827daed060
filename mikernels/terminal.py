"""What the commands show: on terminals of any encoding, as one line for an error, and nothing more when quiet; and
that they leave nothing behind when they are told to end."""

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

OURS = (ValueError, TypeError, OSError, RuntimeError, ImportError)
"""Errors whose message says everything; of others the message is only understood with their type."""
MOST_LINES = 2


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """With the defaults of options that take a value and have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.nargs == 0 or action.default is None:
            return action.help
        return super()._get_help_string(action)


@contextmanager
def any_encoding() -> Iterator[None]:
    r"""Print characters that a stream cannot encode as escapes such as `\u2028`, instead of raising."""
    before: list[Any] = []
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and stream.errors == "strict":
            before.append(stream)
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream in before:
            if not stream.closed:
                stream.reconfigure(errors="strict")


@contextmanager
def ends_in_order() -> Iterator[None]:
    """Let SIGTERM, by which schedulers and containers end a program, raise SystemExit: what is half written and
    temporary is then removed, as after Ctrl-C. A handler of the caller is left."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def warnings_in_one_line(program: str, *, quiet: bool) -> Iterator[list[str]]:
    """Show warnings that are meant for users as one line each on standard error, or not at all.

    Yields:
        Those that were raised so far, for the manifest.
    """
    raised: list[str] = []

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = one_line(str(message))
        if text not in raised:
            raised.append(text)
            if not quiet:
                print(f"{program}: warning: {text}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield raised


def describe(error: BaseException) -> str:
    """The error in one line."""
    text = one_line(str(error))
    if isinstance(error, OURS) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def one_line(text: str) -> str:
    """The text in one line; of a long one, such as the errors of another process, the beginning and the end."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if len(lines) > MOST_LINES:
        lines = [lines[0], "...", lines[-1]]
    return " ".join(lines)


def discard_output() -> None:
    """After the reader of a pipe has gone, let Python end without a second error."""
    with suppress(OSError, ValueError, AttributeError):  # standard output may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
