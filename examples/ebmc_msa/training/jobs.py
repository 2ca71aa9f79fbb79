"""Models that are trained at the same time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
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
        DataError: more than one, where there can be only one.
    """
    # They inherit the data from this process, so that there is one copy; Linux alone does that safely.
    possible = device.type == "cpu" and sys.platform == "linux" and not torch.cuda.is_initialized()
    possible = possible and count() == 1 and not multiprocessing.current_process().daemon
    if jobs is None:
        return min(MOST, len(os.sched_getaffinity(0))) if possible and torch.get_num_threads() == 1 else 1
    if jobs > 1 and not possible:
        raise DataError(
            f"--jobs: {jobs}, expected 1 here; several models are trained at once only on a CPU under Linux, in a "
            "process that is neither one of torchrun's nor a worker of another pool. Pass --jobs 1."
        )
    return jobs


def train_all(models: Sequence[tuple[str, int]], work: Work, show: Show, jobs: int) -> None:
    """Do the `work` for every model and seed, `jobs` at a time; what it shows arrives at `show` in this process.

    The first that fails ends the others.
    """
    jobs = min(jobs, len(models))
    if jobs < 2:
        for name, seed in models:
            _named(work, name, seed, show)
        return
    torch.optim.AdamW([torch.zeros(1)])  # imports a second's worth that each process would import for itself
    context, others = multiprocessing.get_context("fork"), set(multiprocessing.active_children())
    waiting: set[Future[None]] = set()
    try:
        shown = context.SimpleQueue()
        pool = ProcessPoolExecutor(jobs, context, _adopt, (work, shown, os.getpid()))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)  # of threads; those of torch are idle
            waiting |= {pool.submit(_do, name, seed) for name, seed in models}
    except BaseException as problem:
        _end(set(multiprocessing.active_children()) - others)
        if not isinstance(problem, OSError):
            raise
        raise DataError(
            f"--jobs: {jobs} processes cannot be started ({problem.strerror}), expected room for them; pass --jobs 1."
        ) from problem
    mine = set(multiprocessing.active_children()) - others
    try:
        with pool:
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
                _end(mine)
                raise
    except BrokenProcessPool as problem:
        raise DataError(
            f"--jobs: one of {jobs} processes was ended from outside or crashed, expected all to finish; if memory "
            "was short, pass --jobs 1."
        ) from problem


def _end(processes: set[Any]) -> None:
    for process in processes:
        process.terminate()


def _named(work: Work, name: str, seed: int, show: Show) -> None:
    try:
        work(name, seed, show)
    except DataError as problem:
        raise DataError(f"{name} {seed}: {problem}") from problem


def _adopt(work: Work, shown: Any, parent: int) -> None:
    """In a new process: what all its models share."""
    global _work, _show
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # else Ctrl-C prints a traceback for each process

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # killed, it could not end this process

    threading.Thread(target=end_with_parent, daemon=True).start()
    _work, _show = work, lambda *arguments, **keywords: shown.put((arguments, keywords))


def _do(name: str, seed: int) -> None:
    try:
        _named(_work, name, seed, _show)
    except Exception as problem:
        try:
            pickle.loads(pickle.dumps(problem))
        except Exception:  # it could not reach the first process
            raise RuntimeError("".join(traceback.format_exception(problem))) from None
        raise


_work: Work
_show: Show
