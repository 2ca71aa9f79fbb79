"""Which rows of a data set form a conversation, in which order, and who speaks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ebmc_msa.data.rng import uniform


class Conversation(NamedTuple):
    """Of each row its conversation, its place in it and its speaker, as numbers: identities are never read."""

    id: Tensor  # (N,) int64; a row outside of any conversation is one of its own
    order: Tensor  # (N,) int64, greater is later
    speaker: Tensor | None = None  # (N,) int64

    def rows(self, rows: Tensor | slice) -> Conversation:
        return Conversation(*(None if x is None else x[rows] for x in self))

    def to(self, device: torch.device) -> Conversation:
        return Conversation(*(None if x is None else x.to(device) for x in self))

    def in_time(self) -> Tensor:
        """Every row once, conversation after conversation in the order of time, `(N,)`."""
        rows = self.order.argsort(stable=True)
        return rows[self.id[rows].argsort(stable=True)]

    def apart(self) -> list[Tensor]:
        """The rows of each conversation in the order of time, on the CPU."""
        rows, ids = self.in_time().cpu(), self.id.cpu()
        lengths = ids[rows].unique_consecutive(return_counts=True)[1]
        return list(rows.split(lengths.tolist())) if len(rows) else []

    def nearest(self, here: Tensor, *, earlier: bool = False) -> tuple[Tensor, Tensor]:
        """For each row the nearest one of its conversation, in time, where `here`, `(N,)` bool, is true; and whether
        there is one, `(N,)` bool. Of two as near the earlier; with `earlier` only the row itself and those before.
        """
        rows = self.in_time()
        talk, there, place = self.id[rows], here[rows], torch.arange(len(rows), device=rows.device)
        before = torch.where(there, place, -1).cummax(0).values
        after = torch.where(there, place, len(rows)).flip(0).cummin(0).values.flip(0)
        last = len(rows) - 1
        has_before = (before >= 0) & (talk[before.clamp(min=0)] == talk)
        has_after = (after <= last) & (talk[after.clamp(max=last)] == talk) & (not earlier)
        back = has_before & (~has_after | (place - before <= after - place))
        found = torch.where(back, before, torch.where(has_after, after, place))
        source, exists = torch.empty_like(rows), torch.empty_like(here)
        source[rows], exists[rows] = rows[found], has_before | has_after
        return source, exists

    def shuffled(self, seed: int) -> Conversation:
        """The control: the rows of each conversation in random order, so that only its mood is left."""
        draw = uniform(torch.arange(len(self.id)), 1, seed, "order in a conversation")[:, 0]
        return self._replace(order=draw.argsort().argsort().to(self.order.device))


def batches(
    conversation: Conversation, size: int, generator: torch.Generator | None = None, window: int = 16
) -> list[Tensor]:
    """Whole conversations in batches of at least `size` rows, those of similar length together.

    With a `generator` their order is drawn, and lengths are sorted within windows of `window` batches only, as
    `split.shuffled` does.
    """
    parts = conversation.apart()
    if generator is None:
        return packed(sorted(parts, key=len), size)
    drawn = [parts[i] for i in torch.randperm(len(parts), generator=generator)]
    nearby: list[list[Tensor]] = [[]]
    for part in drawn:
        if sum(map(len, nearby[-1])) >= size * window:
            nearby.append([])
        nearby[-1].append(part)
    found = [batch for group in nearby for batch in packed(sorted(group, key=len), size)]
    return [found[i] for i in torch.randperm(len(found), generator=generator)]


def packed(parts: Iterable[Tensor], size: int) -> list[Tensor]:
    """Neighbours joined until a batch has at least `size` rows; the last may have fewer."""
    found: list[Tensor] = []
    for part in parts:
        if found and len(found[-1]) < size:
            found[-1] = torch.cat([found[-1], part])
        else:
            found.append(part)
    return found
