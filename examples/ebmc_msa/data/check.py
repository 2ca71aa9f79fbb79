"""What must hold of any data set, whatever file it came from; and what the report should say about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from ebmc_msa.data.dataset import FOLDS, DataError, Dataset, Split, listed
from ebmc_msa.data.formats.clean import row_blocks
from ebmc_msa.data.task import MOSI
from ebmc_msa.data.values import LARGEST, outliers


def check(dataset: Dataset, *, labels: bool) -> Dataset:
    """The data set itself, if it can be trained on, or with `labels=False` predicted.

    Raises:
        DataError: a fold is empty, folds or fields disagree, a label is out of range, a row has nothing.
    """
    for fold in FOLDS if labels else dataset.splits:
        if not len(dataset.splits.get(fold, ())):
            have = listed(f"{name} {len(split)}" for name, split in dataset.splits.items())
            raise DataError(
                f"{dataset.name}: fold {fold!r} is empty (rows: {have}), expected utterances in train, valid "
                "and test; assign some to it."
            )
    if not dataset.splits:
        raise DataError(f"{dataset.name}: holds no rows, expected at least one; check how the file was written.")
    for fold, split in dataset.splits.items():
        _check_rows(f"{dataset.name}[{fold!r}]", split)
        _check_like_first(f"{dataset.name}[{fold!r}]", dataset, split)
        _check_target(f"{dataset.name}[{fold!r}]", dataset, split)
    if dataset.kind == "classes" and dataset.classes == 1:
        raise DataError(f"{dataset.name}: every label is class 0, expected at least two classes; check the labels.")
    return dataset


def described(dataset: Dataset) -> Dataset:
    """The data set with findings added to its note; reads all features."""
    return replace(dataset, note="; ".join([dataset.note, *_findings(dataset)]))


def _check_rows(who: str, split: Split) -> None:
    fields = {f"{name} features": x for name, x in split.features.items()}
    fields |= {f"{name} lengths": x for name, x in split.lengths.items()}
    rows = {"id": len(split.id), **{name: len(x) for name, x in fields.items()}}
    if split.target is not None:
        rows["labels"] = len(split.target)
    if split.group is not None:
        rows["group"] = len(split.group)
    if len(set(rows.values())) > 1:
        raise DataError(
            f"{who}: the fields differ in rows ({listed(f'{k} {n}' for k, n in rows.items())}), expected one "
            "row per utterance in each; write them from the same list of utterances."
        )
    nothing = ~torch.stack(list(split.present.values())).any(0)
    if nothing.any():
        raise DataError(
            f"{who}: {int(nothing.sum())} utterances have no modality at all (first: "
            f"{split.id[int(nothing.nonzero()[0])]}), expected at least one; add their features or leave "
            "them out."
        )


def _check_like_first(who: str, dataset: Dataset, split: Split) -> None:
    first, like = next(iter(dataset.splits.items()))
    for name in {**like.features, **split.features}:
        shapes = [f[name].shape if name in f else None for f in (split.features, like.features)]
        if None in shapes or len(shapes[0]) != len(shapes[1]) or shapes[0][-1] != shapes[1][-1]:
            came, expected = (tuple(shape) if shape else "missing" for shape in shapes)
            raise DataError(
                f"{who}: {name} is {came}, expected the same modalities and features as in {first!r}, where "
                f"it is {expected}; extract all folds with one extractor."
            )


def _check_target(who: str, dataset: Dataset, split: Split) -> None:
    y = split.target
    if y is None:
        return
    finite = torch.isfinite(y)
    if not finite.all():
        raise DataError(
            f"{who}: {int((~finite).sum())} labels are NaN or infinite (first: "
            f"{split.id[int((~finite).nonzero()[0])]}), expected numbers; label these utterances or leave "
            "them out."
        )
    low, high = {
        "sentiment": dataset.range or MOSI,
        "classes": (0, float("inf")),
        "multilabel": (0, 1),
        "regression": (-LARGEST, LARGEST),
    }.get(dataset.kind or "", (None, None))
    if low is not None and len(y) and (y.min() < low or y.max() > high):
        raise DataError(
            f"{who}: labels run from {y.min().item():g} to {y.max().item():g}, expected "
            + {
                "sentiment": f"sentiment from {low:g} to {high:g}; pass --range LOW HIGH or --task regression.",
                "classes": "classes 0, 1, …; recode or leave out the others.",
                "multilabel": "0 or 1 for each label; recode them.",
                "regression": "values of a size that can be squared; rescale them.",
            }[dataset.kind]
        )


def _findings(dataset: Dataset) -> Iterator[str]:
    for name in dataset.modalities:
        missing = {fold: int((~split.present[name]).sum()) for fold, split in dataset.splits.items()}
        if any(missing.values()):
            yield f"{name} absent in {listed(f'{n} {fold}' for fold, n in missing.items() if n)} utterances"
    fold, split = next(iter(dataset.splits.items()))
    for name, x in split.features.items():
        columns = _constant_columns(x, split, name)
        if columns == x.shape[-1]:
            yield f"{name} is constant in {fold}: it says nothing"
        elif columns:
            yield f"{name}: {columns} of {x.shape[-1]} columns constant in {fold}"
    yield from outliers(dataset)
    groups = [set(split.group) for split in dataset.splits.values() if split.group is not None]
    shared = sum(map(len, groups)) - len(set().union(*groups))
    if shared:
        yield f"{shared} groups occur in more than one fold"


def _constant_columns(x: torch.Tensor, split: Split, name: str) -> int:
    """Columns with one value over all frames that count."""
    counts = split.present[name]
    if name in split.lengths:
        counts = torch.arange(x.shape[1]) < split.lengths[name][:, None]
    low, high = np.full(x.shape[-1], np.inf), np.full(x.shape[-1], -np.inf)
    for rows in row_blocks(x):
        seen = x[rows][counts[rows]].numpy()
        low, high = np.minimum(low, seen.min(0, initial=np.inf)), np.maximum(high, seen.max(0, initial=-np.inf))
    return int((low >= high).sum())
