r"""Means and rows over all processes of a data-parallel run, made for gradients that are averaged (DDP, FSDP2).

With $S_r$ and $n_r$ the sum and the count of process r of R, every process holds the value of the whole batch, and
only its own share of the gradient, R times:

$$\bar x = \sum_r S_r / \sum_r n_r, \qquad
  d\bar x|_r = R\,dS_r / \sum_r n_r, \qquad
  \tfrac1R \sum_r d\bar x|_r = d\bar x$$

So the average over processes is the gradient of one process on the concatenated batch, for any function of means
that all of them compute alike, and no backward pass ever waits for another process. Every function here is a no-op on
one process, and where `torch.distributed` is not built or not initialised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from modbalance.presence import MaskedSum, absent_like, masked_sum, upcast

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["gather", "mean", "most_rows"]

Sync: TypeAlias = "bool | ProcessGroup"


def mean(x: Tensor, mask: Tensor | None = None, *, sync: Sync = True) -> Tensor:
    """Mean of the entries of `x` where `mask` is true, over all processes; 0, still in the graph, without any.

    Average the gradients over the processes, as DDP does. One collective forward, none backward.

    Args:
        x: floating point, any shape; sizes may differ between processes, 0 included.
        mask: bool, of the shape of `x`; all true by default.
        sync: True for the default process group, a process group, or False for this process alone.

    Returns:
        A scalar, the same on every process.

    Examples:
        >>> mean(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False]))
        tensor(2.)
    """
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    return reduce([masked_sum(upcast(x), mask)], sync)[0].mean()


def reduce(sums: Sequence[MaskedSum], sync: Sync) -> list[MaskedSum]:
    """Totals and counts over all processes, in one all-reduce. Shapes are the same on every process."""
    group = processes(sync)
    if group is None:
        return list(sums)
    packed = torch.cat([x.detach().flatten() for s in sums for x in (s.total, s.entries.to(s.total.dtype))])
    dist.all_reduce(packed, group=group)
    parts = iter(torch.split(packed, [x.numel() for s in sums for x in s]))
    scale = dist.get_world_size(group)
    # The difference is zero: it adds no value, only the gradient.
    return [
        MaskedSum(next(parts).view_as(s.total) + scale * (s.total - s.total.detach()), next(parts).view_as(s.entries))
        for s in sums
    ]


def gather(x: Tensor, rows: int, *, sync: Sync = True) -> Tensor:
    """The rows of all processes, in the order of their ranks, as constants: no gradient goes back.

    Args:
        x: `(B, ...)`; B may differ between processes, the rest may not.
        rows: what each is padded to with zeros, the same on every process; `most_rows` finds it.
        sync: as in `mean`.

    Returns:
        `(R * rows, ...)`, the same on every process; those of process r begin at `r * rows`.

    Raises:
        ValueError: there are more than `rows` rows.

    Examples:
        >>> gather(torch.ones(2, 1), rows=3)
        tensor([[1.],
                [1.],
                [0.]])
    """
    group = processes(sync)
    if len(x) > rows:
        raise ValueError(
            f"gather: x has {len(x)} rows, expected at most {rows}; pass the largest batch of any process."
        )
    x = F.pad(x.detach(), (0, 0) * (x.dim() - 1) + (0, rows - len(x)))
    if group is None:
        return x
    everything = x.new_empty(dist.get_world_size(group) * rows, *x.shape[1:])
    # Its name since torch 2.13, which warns of the old one.
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    all_gather(everything, x.contiguous(), group=group)
    return everything


def most_rows(x: Tensor, *, sync: Sync = True) -> int:
    """The largest `len(x)` of all processes, for `gather`.

    Waits for the device; a batch size that is known beforehand, passed to `gather`, does not.

    Args:
        x: `(B, ...)`; B may differ between processes.
        sync: as in `mean`.

    Returns:
        An int, the same on every process.

    Examples:
        >>> most_rows(torch.ones(2, 1))
        2
    """
    group = processes(sync)
    if group is None:
        return len(x)
    rows = torch.tensor(len(x), device=x.device)
    dist.all_reduce(rows, dist.ReduceOp.MAX, group=group)
    return int(rows)


def processes(sync: Sync) -> ProcessGroup | None:
    """The group of processes to speak with; None where this one is alone."""
    if sync is False or not dist.is_available() or not dist.is_initialized():
        return None
    group = dist.group.WORLD if sync is True else sync
    return group if dist.get_world_size(group) > 1 else None


def alike(
    features: Mapping[str, Tensor], masks: dict[str, Tensor], dims: Mapping[str, int], sync: Sync
) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
    """Among processes every modality of `dims`, zeros where absent: all run the same modules and collectives."""
    if processes(sync) is None:
        return features, masks
    return absent_like(dict(features), dims), absent_like(masks, dict.fromkeys(dims, 0))
