"""The rows of a split, read batch by batch: a split may be larger than the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ebmc_msa.data import Split
from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.data.conversation import Conversation, batches
from ebmc_msa.data.frames import frame_mask


@dataclass(frozen=True)
class SplitView:
    """A split as a model of `spec` reads it.

    Features stay where the split has them, mapped from a file perhaps; `rows` reads those it is asked for, converts
    them to float32, and moves them to the device. All else is of one number a sample, and in memory.
    """

    features: dict[str, Tensor]  # of the split, all its rows
    index: Tensor  # (N,) int64, the rows that belong to this split
    lengths: dict[str, Tensor]  # (N,) int64, on the CPU
    present: dict[str, Tensor]  # (N,) bool, on the device
    target: Tensor | None  # (N,), on the device; standardised for both regressions
    device: torch.device
    conversation: Conversation | None = None  # on the device; of models with context

    @classmethod
    def of(cls, split: Split, spec: Spec, device: torch.device) -> SplitView:
        """The modalities of `spec`, absent where the data lack them."""
        rows = len(split)
        features, lengths, present = {}, {}, {}
        for name, size in spec.dims.items():
            shape = (rows, 1, size) if name in spec.sequences else (rows, size)
            lacking = torch.zeros(()).expand(shape), torch.zeros(rows, dtype=torch.bool)
            there = name in split.features
            features[name], here = (split.features[name], split.present[name]) if there else lacking
            present[name] = here.to(device)
            if name in spec.sequences:
                lengths[name] = split.lengths[name] if there else torch.zeros(rows, dtype=torch.int64)
        target = split.target
        if target is not None and spec.task == "gaussian":
            target = (target - spec.mean) / spec.scale
        target = None if target is None else target.to(device)
        conversation = None
        if spec.context != "none":
            assert split.conversation is not None
            conversation = split.conversation.shuffled(0) if spec.context == "shuffled" else split.conversation
            conversation = conversation.to(device)
        return cls(features, torch.arange(rows), lengths, present, target, device, conversation)

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, rows: Tensor) -> Batch:
        """The samples at these places, `(B,)` int64 on the CPU; sequences as long as the longest of them."""
        index, there = self.index[rows], rows.to(self.device)
        lengths = {name: n[rows] for name, n in self.lengths.items()}
        features = {}
        for name, x in self.features.items():
            if name in lengths:
                x = x[:, : max(lengths[name].tolist(), default=0) or 1]
            dtype = torch.float32 if x.is_floating_point() else x.dtype  # token ids stay what they are
            features[name] = x[index].to(self.device, dtype)
        return Batch(
            features,
            {name: n.to(self.device) for name, n in lengths.items()},
            self.presence(rows),
            None if self.target is None else self.target[there],
            None if self.conversation is None else self.conversation.rows(there),
        )

    def presence(self, rows: Tensor) -> dict[str, Tensor]:
        there = rows.to(self.device)
        return {name: here[there] for name, here in self.present.items()}

    def select(self, mask: Tensor) -> SplitView:
        """Only the samples where `mask`, `(N,)` bool, is true."""
        there = mask.cpu()
        return replace(
            self,
            index=self.index[there],
            lengths={name: n[there] for name, n in self.lengths.items()},
            present={name: here[mask] for name, here in self.present.items()},
            target=None if self.target is None else self.target[mask],
            conversation=None if self.conversation is None else self.conversation.rows(mask),
        )

    def with_any_modality(self) -> SplitView:
        """Only the samples that have a modality; from the others a model learns nothing."""
        return self.select(torch.stack(list(self.present.values())).any(0))

    def with_present(self, present: dict[str, Tensor]) -> SplitView:
        return replace(self, present=present)

    def frames(self, name: str, size: int = 64) -> Iterator[Tensor]:
        """What one modality holds, `(frames or rows, D)` by block: only what is present and within its length."""
        x, present = self.features[name], self.present[name].cpu()
        for rows in present.nonzero()[:, 0].split(size):
            where: tuple[Tensor, ...] = (self.index[rows],)
            if name in self.lengths:
                row, frame = frame_mask(x.shape[1], self.lengths[name][rows]).nonzero(as_tuple=True)
                where = (self.index[rows[row]], frame)
            yield x[where].to(self.device, torch.float32)


def by_length(split: SplitView | Batch, size: int = 256) -> tuple[Tensor, ...]:
    """Every row once, bucketed by length, so that predictions do not depend on the order of the rows.

    With context whole conversations, the short ones together.
    """
    if split.conversation is not None:
        return tuple(batches(split.conversation, size)) or (torch.arange(0),)
    return total_frames(split).argsort(stable=True).split(size)


def outputs_and_targets(split: SplitView, predict: Callable[[Batch], Tensor]) -> tuple[Tensor, Tensor]:
    """Outputs and targets of a whole split."""
    chunks = (split.rows(rows) for rows in by_length(split))
    outputs, targets = zip(*((predict(batch), batch.target) for batch in chunks), strict=True)
    return torch.cat(outputs), torch.cat(targets)


def total_frames(split: SplitView | Batch) -> Tensor:
    """Frames of each sample over all its modalities, `(N,)`."""
    return sum((n.cpu() for n in split.lengths.values()), torch.zeros(len(split), dtype=torch.int64))


def shuffled(split: SplitView, size: int, generator: torch.Generator, window: int = 16) -> list[Tensor]:
    """Batches of one epoch: every row once, at random, samples of similar length together.

    Rows are shuffled, sorted by length within windows of `window` batches, cut, and the batches shuffled. With one
    frame a sample this is a plain shuffle. With context batches hold whole conversations, of at least `size` rows.
    """
    if split.conversation is not None:
        return batches(split.conversation, size, generator, window)
    order = torch.randperm(len(split), generator=generator)
    if not split.lengths:
        return list(order.split(size))
    frames = total_frames(split)
    windows = [rows[frames[rows].argsort(stable=True)] for rows in order.split(size * window)]
    found = [batch for rows in windows for batch in rows.split(size)]
    return [found[i] for i in torch.randperm(len(found), generator=generator)]
