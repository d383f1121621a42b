"""Two processes in a gloo group on loopback, that do together what they are asked, one thing after the other.

They are started at the first request, and anew after one that failed: whoever
waits for a process that is gone waits forever.
"""

import gc
import itertools
import os
import time
import traceback
from datetime import timedelta

from support.training import processes

SIZE = 2
SECONDS = 100


class Pair:
    """Its output is in `directory`, which is also where the two meet."""

    def __init__(self, directory):
        self.directory = directory
        self.meetings = itertools.count()
        self.processes = []
        self.pipes = []
        self.log = None

    def run(self, function, *args):
        """[function(0, *args), function(1, *args)], each in its process: what both returned."""
        if not self.processes:
            self._start()
        for pipe in self.pipes:
            pipe.send((function, args))
        try:
            return self._answers()
        except BaseException:
            self.kill()
            raise

    def begin(self, function, *args):
        """As run(), without waiting for an end: only kill() is to follow."""
        if not self.processes:
            self._start()
        for pipe in self.pipes:
            pipe.send((function, args))

    def kill(self):
        """End both by SIGKILL, whatever they do."""
        for process in self.processes:
            process.kill()
        self.close()

    def close(self):
        """Wait until both have ended."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(SECONDS)
            process.kill()
        self.processes, self.pipes = [], []

    def _start(self):
        number = next(self.meetings)
        self.log = self.directory / f"log-{number}"
        self.log.touch()
        for rank in range(SIZE):
            pipe, far_end = processes.Pipe()
            process = processes.Process(
                target=_work, args=(rank, self.directory / f"meeting-{number}", self.log, far_end))
            process.start()
            far_end.close()
            self.pipes.append(pipe)
            self.processes.append(process)

    def _answers(self):
        deadline = time.monotonic() + SECONDS
        waiting, values = dict(enumerate(self.pipes)), [None] * SIZE
        while waiting:
            assert time.monotonic() < deadline, f"no answer of {list(waiting)}:\n{self.log.read_text()}"
            for rank, pipe in list(waiting.items()):
                if pipe.poll(0.01):
                    values[rank] = self._answer(rank, pipe)
                    del waiting[rank]
        return values

    def _answer(self, rank, pipe):
        try:
            good, value = pipe.recv()
        except EOFError:
            raise AssertionError(f"process {rank} has ended:\n{self.log.read_text()}") from None
        assert good, f"process {rank}:\n{value}"
        return value


def _work(rank, meeting, log, pipe):
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(SIZE), LOCAL_WORLD_SIZE=str(SIZE),
                      GLOO_SOCKET_IFNAME="lo")

    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=SIZE,
                                         timeout=timedelta(seconds=SECONDS))
    gc.freeze()
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            break
        try:
            answer = True, function(rank, *args)
        except BaseException:
            answer = False, traceback.format_exc()
        gc.collect()  # nothing stays mapped
        pipe.send(answer)
    torch.distributed.destroy_process_group()
