"""The processes that `torchrun` starts: every one trains on its share of each batch, the first tests and writes."""

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
def joined() -> Iterator[None]:
    """One process group while it lasts, gloo for CPUs and NCCL for GPUs; nothing for a process alone."""
    if count() == 1:
        yield
        return
    dist.init_process_group(timeout=timedelta(hours=1))  # the others wait while the first tests
    with unless_another_ends():
        yield
    dist.destroy_process_group()


@contextmanager
def unless_another_ends() -> Iterator[None]:
    """Waiting for a process that is gone is an interruption: it has said why."""
    try:
        yield
    except RuntimeError as problem:
        if isinstance(problem, dist.DistError) or "gloo" in str(problem):
            raise KeyboardInterrupt("Another process ended.") from problem
        raise


def from_first(work: Callable[[], T]) -> T:
    """What `work` gives the first process, as JSON; the others do not call it."""
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


def together() -> None:
    """Go on when all have come here."""
    if count() > 1:
        dist.all_reduce(torch.zeros(1))


def share(rows: Tensor, conversation: Conversation | None = None) -> Tensor:
    """Places in `rows`, a batch, of those that this process takes; none, where there are fewer than processes.

    Of conversations whole ones, so that as many utterances as possible come to each process.
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
    """What takes part in the loss is what DDP waits for: nothing else that comes out may have a graph."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Prediction:
        out: Any = self.model(batch)
        return Prediction(*(x if field == "loss" else _detached(x) for field, x in out._asdict().items()))


def _detached(x: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
    return {name: v.detach() for name, v in x.items()} if isinstance(x, dict) else x.detach()
