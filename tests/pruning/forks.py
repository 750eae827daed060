"""Processes that begin as copies of this one: a fresh one would take seconds to import everything."""

import contextlib
import os
import signal
import time

import torch

from pruning.cli import main

TIMEOUT = 120
"""Seconds that nothing takes."""


def start(folder, *arguments):
    """The id of a process that runs `mi-prune` in a folder, silently."""
    child = os.fork()
    if child:
        return child
    status = 1
    signal.alarm(TIMEOUT)
    try:
        torch.set_num_threads(1)  # those of OpenMP do not survive a fork
        os.chdir(folder)
        with (
            open(os.devnull, "w") as nothing,
            contextlib.redirect_stdout(nothing),
            contextlib.redirect_stderr(nothing),
        ):
            status = main([*arguments, "--device=cpu"])  # forks cannot use a GPU
    finally:
        os._exit(status)


def wait(child):
    """The exit status of a process, once it has ended; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def seconds_of(folder, *arguments):
    """How long `mi-prune` takes, which must succeed."""
    begin = time.perf_counter()
    assert wait(start(folder, *arguments)) == 0
    return time.perf_counter() - begin


def kill_after(seconds, child):
    """Kill a process after so many seconds; whether it was still running."""
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return wait(child) == -signal.SIGKILL
