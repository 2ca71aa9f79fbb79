"""A data set as a comparison sees it: some of its modalities, noise on others, the test split shut if so wished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from ebmc_msa.data import DataError, Dataset, LabelOptions, Split, load, synthetic
from ebmc_msa.data.dataset import SPLITS
from ebmc_msa.data.frames import frame_mask


class Source(NamedTuple):
    """Small enough to hand to a process."""

    path: Path | None  # None: the synthetic set
    imbalance: float | None = None
    split_seed: int = 0
    modalities: tuple[str, ...] = ()  # none: all
    noisy: tuple[tuple[str, float], ...] = ()  # modality and size, in standard deviations of each column
    test: bool = True
    options: LabelOptions = LabelOptions()


@cache
def read(source: Source) -> Dataset:
    """The data set, read once a process; without `test` it holds no test split.

    Raises:
        DataError: a modality that the data do not have, or fewer than two left.
    """
    if source.path is None:
        dataset = synthetic(imbalance=source.imbalance)
    else:
        dataset = load(source.path, split_seed=source.split_seed, options=source.options)
    names = source.modalities or tuple(dataset.modalities)
    known = {"--modalities": dataset.modalities, "--noisy": list(names)}
    for option, given in (("--modalities", names), ("--noisy", dict(source.noisy))):
        if unknown := sorted(set(given) - set(known[option])):
            raise DataError(f"{option}: {unknown}, expected some of {known[option]}; correct the name.")
    if len(set(names)) < 2:
        raise DataError(f"--modalities: {list(names)}, expected at least two to balance; add one.")
    splits = {part: split for part, split in dataset.splits.items() if source.test or part != "test"}
    only = {part: _only(split, names) for part, split in splits.items()}
    for place, (name, size) in enumerate(source.noisy):
        spread = size * _std(only["train"], name)
        only = {part: _noisy(split, name, spread, 3 * place + SPLITS.index(part)) for part, split in only.items()}
    return replace(dataset, splits=only)


def _only(split: Split, names: Sequence[str]) -> Split:
    features, lengths, present = (
        {name: held[name] for name in names if name in held}
        for held in (split.features, split.lengths, split.present)
    )
    return replace(split, features=features, lengths=lengths, present=present)


def _std(train: Split, name: str) -> torch.Tensor:
    """Of each column, over the rows and frames that are there."""
    here = train.present[name]
    x = train.features[name][here].float()
    if name in train.lengths:
        x = x[frame_mask(x.shape[1], train.lengths[name][here])]
    return x.std(0, correction=0)


def _noisy(split: Split, name: str, spread: torch.Tensor, seed: int) -> Split:
    x = split.features[name].float()
    noise = spread * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return replace(split, features={**split.features, name: x + noise})
