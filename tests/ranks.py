"""Processes that stay, and do together what a test asks of them."""

import multiprocessing
import tempfile
import traceback
import warnings
from datetime import timedelta
from functools import cache
from multiprocessing.connection import wait

import torch
import torch.distributed as dist

SIZE = 3


class Ranks:
    """`SIZE` processes in one gloo group; `run(job, ...)` gives what `job(group, ...)` returned on each."""

    def __init__(self):
        self.processes, self.pipes = [], ()

    def start(self):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "ranks"])
        self.pipes, theirs = zip(*(context.Pipe() for _ in range(SIZE)), strict=True)
        self.folder = tempfile.TemporaryDirectory()
        for rank, pipe in enumerate(theirs):
            arguments = rank, f"file://{self.folder.name}/store", pipe
            self.processes.append(context.Process(target=_serve, args=arguments, daemon=True))
            self.processes[-1].start()
            pipe.close()

    def run(self, job, *arguments, size=SIZE, timeout=120):
        """Fails, rather than hangs, where a process waits for another that does not come."""
        if not self.processes:
            self.start()
        for pipe in self.pipes[:size]:
            pipe.send((job, arguments, size))
        results = {}
        while len(results) < size:
            waiting = [pipe for pipe in self.pipes[:size] if pipe not in results]
            ready = wait(waiting, timeout)
            if not ready:
                self.close()
                late = [self.pipes.index(pipe) for pipe in waiting]
                raise TimeoutError(f"ranks {late} of {size} did not return from {job.__name__}{arguments}")
            for pipe in ready:
                failure, results[pipe] = pipe.recv()
                if failure:
                    self.close()
                    raise AssertionError(f"rank {self.pipes.index(pipe)} of {size}: {failure}")
        return [results[pipe] for pipe in self.pipes[:size]]

    def close(self):
        for process in self.processes:
            process.kill()
            process.join()
        if self.processes:
            self.folder.cleanup()
        self.processes.clear()


def _serve(rank, store, pipe):
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=SIZE, timeout=timedelta(seconds=100))
    while True:
        job, arguments, size = pipe.recv()
        try:
            pipe.send((None, job(_group(size), *arguments)))
        except Exception:
            pipe.send((traceback.format_exc(), None))


@cache
def _group(size):
    # Only its members take part in making it, so that a test of two does not need the third.
    return dist.group.WORLD if size == SIZE else dist.new_group(list(range(size)), use_local_synchronization=True)
