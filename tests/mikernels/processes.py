"""Processes that form groups of torch.distributed, for tests: forks, since imports take seconds."""

import multiprocessing
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

TIMEOUT = 120
"""Seconds that nothing takes."""


class Processes:
    """Processes that run functions together. Functions are importable, with a process group as first argument."""

    def __init__(self, count):
        # Forks of this process could not use a GPU. Those of a server can, which imports what they need first.
        by_server = torch.cuda.is_available() or sys.platform != "linux"
        context = multiprocessing.get_context("forkserver" if by_server else "fork")
        context.set_forkserver_preload(["pruning.cli", "mikernels", "tiny"])
        meeting = tempfile.mktemp()  # noqa: S306  the processes create it
        self._pipes, self._processes = [], []
        for rank in range(count):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, count, meeting, there), daemon=True)
            process.start()
            there.close()  # so that the end of the process shows
            self._pipes.append(here)
            self._processes.append(process)
        self._meeting = Path(meeting)

    def run(self, count, function, *arguments):
        """What the function returns or raises on each of the first `count` processes; None of one that has ended."""
        for pipe in self._pipes[:count]:
            pipe.send((count, function, arguments))
        return [self._answer(pipe) for pipe in self._pipes[:count]]

    def _answer(self, pipe):
        assert pipe.poll(TIMEOUT), "expected an answer, got none"
        try:
            return pipe.recv()
        except (EOFError, ConnectionResetError):
            return None

    def end(self):
        for process in self._processes:
            process.kill()
            process.join()
        self._meeting.unlink(missing_ok=True)


@contextmanager
def processes(count):
    started = Processes(count)
    try:
        yield started
    finally:
        started.end()


def _serve(rank, count, meeting, pipe):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    groups = {n: dist.new_group(list(range(n))) for n in range(1, count + 1)}
    while True:
        size, function, arguments = pipe.recv()
        try:
            answer = function(groups[size], *arguments)
        except Exception as error:
            answer = error
        pipe.send(answer)
