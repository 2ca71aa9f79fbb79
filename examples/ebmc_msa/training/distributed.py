"""The processes that `torchrun` starts: each trains on a shard of every batch, rank 0 tests and writes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ebmc_msa.data.batch import Batch
from ebmc_msa.data.conversation import Conversation
from ebmc_msa.model.prediction import Model, Prediction

T = TypeVar("T")


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def process_group() -> Iterator[None]:
    """A process group inside the context, gloo for CPUs and NCCL for GPUs; none for a single process."""
    if count() == 1:
        yield
        return
    dist.init_process_group(timeout=timedelta(hours=1))  # the others wait while the first tests
    with unless_another_ends():
        yield
    dist.destroy_process_group()


@contextmanager
def unless_another_ends() -> Iterator[None]:
    """Turn the error of waiting for a process that ended into an interruption: that process printed the cause."""
    try:
        yield
    except RuntimeError as problem:
        if isinstance(problem, dist.DistError) or "gloo" in str(problem):
            raise KeyboardInterrupt("Another process ended.") from problem
        raise


def broadcast_from_rank0(work: Callable[[], T]) -> T:
    """The result of `work` on rank 0, sent to all as JSON; the others do not call it."""
    if count() == 1:
        return work()
    text = json.dumps(work()).encode() if rank() == 0 else b""
    size = torch.tensor(len(text))
    dist.broadcast(size, 0)
    content = torch.zeros(int(size), dtype=torch.uint8)
    if rank() == 0:
        content = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    dist.broadcast(content, 0)
    return json.loads(content.numpy().tobytes())


def barrier() -> None:
    """Continue when all processes have come here."""
    if count() > 1:
        dist.all_reduce(torch.zeros(1))


def shard(rows: Tensor, conversation: Conversation | None = None) -> Tensor:
    """Places in `rows`, a batch, that belong to this process; none where there are fewer rows than processes.

    Conversations stay whole, and are assigned so that the processes get about equally many utterances.
    """
    places = torch.arange(len(rows))
    if conversation is None:
        return places[rank() :: count()]
    parts = conversation.rows(rows.to(conversation.id.device)).apart()
    taken: list[list[Tensor]] = [[] for _ in range(count())]
    for part in sorted(parts, key=len, reverse=True):
        min(taken, key=lambda parts: sum(map(len, parts))).append(part)
    return torch.cat([places[:0], *taken[rank()]])


def parallel(model: Model) -> Callable[[Batch], Prediction]:
    """`model` for training: its gradients are averaged over the processes."""
    if count() == 1:
        return model
    return DistributedDataParallel(_OnlyLoss(model), find_unused_parameters=model.partly_unused)


class _OnlyLoss(nn.Module):
    """Detach all outputs but the loss: DDP waits for every parameter that an output depends on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Prediction:
        out: Any = self.model(batch)
        return Prediction(*(x if field == "loss" else _detached(x) for field, x in out._asdict().items()))


def _detached(x: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
    return {name: v.detach() for name, v in x.items()} if isinstance(x, dict) else x.detach()
