"""Models that are trained at the same time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from ebmc_msa.data import DataError
from ebmc_msa.training.distributed import count

MOST = 8  # processes by default: each holds a model and its optimizer

Show = Callable[..., None]  # called with what is to be shown of a model's training
Work = Callable[[str, int, Show], None]  # trains a model from a seed


def processes(jobs: int | None, device: torch.device) -> int:
    """How many models to train at once: `jobs`, or one for each core of a CPU.

    Raises:
        DataError: more than one, where the device or other processes do not allow it.
    """
    # They inherit the data from this process, so that there is one copy; Linux alone does that safely.
    alone = device.type == "cpu" and count() == 1 and sys.platform == "linux"
    if jobs is not None and jobs > 1 and not alone:
        where = f"{count()} processes of torchrun" if count() > 1 else f"{device.type} on {sys.platform}"
        raise DataError(f"--jobs: {jobs} with {where}, expected 1; more need a CPU and Linux. Pass --jobs 1.")
    if jobs is None:
        return min(MOST, len(os.sched_getaffinity(0))) if alone and torch.get_num_threads() == 1 else 1
    return jobs


def train_all(models: Sequence[tuple[str, int]], work: Work, show: Show, jobs: int) -> None:
    """Do the `work` for every model and seed, `jobs` at a time; what it shows arrives at `show` in this process.

    The first that fails ends the others.
    """
    if min(jobs, len(models)) < 2:
        for name, seed in models:
            work(name, seed, show)
        return
    context = multiprocessing.get_context("fork")
    shown, others = context.SimpleQueue(), set(multiprocessing.active_children())
    try:
        with ProcessPoolExecutor(min(jobs, len(models)), context, _adopt, (work, shown, os.getpid())) as pool:
            waiting = {pool.submit(_do, name, seed) for name, seed in models}
            try:
                while waiting:
                    done, waiting = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
                    while not shown.empty():
                        arguments, keywords = shown.get()
                        show(*arguments, **keywords)
                    for future in done:
                        future.result()
            except BaseException:
                for future in waiting:
                    future.cancel()
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()
                raise
    except BrokenProcessPool as problem:
        raise DataError(
            f"--jobs: one of {jobs} processes was ended from outside, expected all to finish; if memory was short, "
            "pass --jobs 1."
        ) from problem


def _adopt(work: Work, shown: Any, parent: int) -> None:
    """In a new process: what all its models share."""
    global _work, _show
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # else Ctrl-C prints a traceback for each process

    def show(*arguments: Any, **keywords: Any) -> None:
        if os.getppid() != parent:
            os._exit(1)  # killed, it could not end this process
        shown.put((arguments, keywords))

    _work, _show = work, show


def _do(name: str, seed: int) -> None:
    _work(name, seed, _show)


_work: Work
_show: Show
