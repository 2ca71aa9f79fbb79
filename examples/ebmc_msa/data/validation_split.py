"""A validation split for data that come without one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ebmc_msa.data.dataset import DataError, Dataset, Split

SHARE = 0.15


def split_off_valid(dataset: Dataset, seed: int) -> Dataset:
    """About 15 % of the training utterances, in whole groups drawn by `seed`, become the validation split.

    Raises:
        DataError: the training split is a single group.
    """
    train = dataset.splits["train"]
    names = units(train)
    sizes = Counter(names)
    if len(sizes) < 2:
        raise DataError(
            f"{dataset.name}: there is no validation split and the training split has {len(sizes)} group, "
            "expected at least two to split one off; mark a validation split in the file."
        )
    groups = sorted(sizes)
    drawn = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    goal, taken = SHARE * len(train), set[str]()
    for group in (groups[i] for i in drawn):
        if sum(sizes[name] for name in taken) + sizes[group] <= goal:
            taken.add(group)
    taken = taken or {min(groups, key=sizes.__getitem__)}  # each group alone is more than the share

    chosen = torch.tensor([name in taken for name in names])
    splits = {"train": _rows(train, ~chosen), "valid": _rows(train, chosen)}
    what = "utterances" if train.group is None and train.conversation is None else "groups"
    rows = f" ({int(chosen.sum())} of {len(train)} utterances)" if what == "groups" else ""
    note = f"no validation split: {len(taken)} of {len(groups)} {what}{rows} split off train by seed {seed}"
    return replace(
        dataset,
        splits=splits | {part: split for part, split in dataset.splits.items() if part != "train"},
        note=f"{dataset.note}; {note}",
    )


def units(split: Split) -> list[str]:
    """Of each row, the name of what is never split: its group, with all groups that share a conversation."""
    names = split.group or split.id
    if split.conversation is None:
        return names
    conversation, units = split.conversation.id.tolist(), list(names)
    while True:
        merged = units
        for keys in (conversation, names):
            least: dict[Any, str] = {}
            for key, unit in zip(keys, merged, strict=True):
                least[key] = min(least.get(key, unit), unit)
            merged = [least[key] for key in keys]
        if merged == units:
            return units
        units = merged


def _rows(split: Split, keep: torch.Tensor) -> Split:
    rows = keep.nonzero().flatten().tolist()
    return Split(
        {name: x[keep] for name, x in split.features.items()},
        {name: x[keep] for name, x in split.lengths.items()},
        {name: x[keep] for name, x in split.present.items()},
        None if split.target is None else split.target[keep],
        [split.id[i] for i in rows],
        None if split.group is None else [split.group[i] for i in rows],
        _words(split.words, keep),
        own={name: y[keep] for name, y in split.own.items()},
        conversation=None if split.conversation is None else split.conversation.rows(keep),
    )


def _words(words: list[str] | Tensor | None, keep: Tensor) -> list[str] | Tensor | None:
    if isinstance(words, list):
        return [word for word, kept in zip(words, keep.tolist(), strict=True) if kept]
    return None if words is None else words[keep]
