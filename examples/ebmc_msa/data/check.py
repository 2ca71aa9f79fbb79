"""What must hold of any data set, whatever file it came from; and findings for the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from ebmc_msa.data.dataset import SPLITS, DataError, Dataset, Split, listed
from ebmc_msa.data.formats.clean import row_blocks
from ebmc_msa.data.frames import frame_mask
from ebmc_msa.data.task import MOSI
from ebmc_msa.data.values import LARGEST, outliers


def check(dataset: Dataset, *, labels: bool) -> Dataset:
    """The data set itself, if it can be trained on, or with `labels=False` predicted.

    Raises:
        DataError: a split is empty, splits or fields disagree, a label is out of range, a row has nothing.
    """
    for part in SPLITS if labels else dataset.splits:
        if not len(dataset.splits.get(part, ())):
            have = listed(f"{name} {len(split)}" for name, split in dataset.splits.items())
            raise DataError(
                f"{dataset.name}: split {part!r} is empty (rows: {have}), expected utterances in train, valid "
                "and test; assign some to it."
            )
    if not dataset.splits:
        raise DataError(f"{dataset.name}: holds no rows, expected at least one; check how the file was written.")
    for part, split in dataset.splits.items():
        _check_rows(f"{dataset.name}[{part!r}]", split)
        _check_like_first(f"{dataset.name}[{part!r}]", dataset, split)
        _check_target(f"{dataset.name}[{part!r}]", dataset, split)
    if dataset.kind == "classes" and dataset.classes == 1:
        raise DataError(f"{dataset.name}: every label is class 0, expected at least two classes; check the labels.")
    return dataset


def context_of(dataset: Dataset, asked: str, *, causal: bool = False, impute: bool = False) -> str:
    """The context encoder that `--context` means for these data, `none`, `gru` or `transformer`.

    Raises:
        DataError: one is asked for that the data do not allow; `causal` or `impute` without a context.
    """
    chosen = ("gru" if dataset.conversational else "none") if asked == "auto" else asked
    if chosen != "none":
        check_conversations(f"--context {asked}", dataset)
    for option, given in (("--causal", causal), ("--impute-context", impute)):
        if given and chosen == "none":
            why = f"--context {asked} reads none on {dataset.name}"
            raise DataError(f"{option}: {why}, expected a context; pass --context gru, or leave {option} out.")
    return chosen


def check_class_weight(who: str, dataset: Dataset, weight: str) -> None:
    if weight != "none" and dataset.kind != "classes":
        raise DataError(f"{who}: {weight} on {dataset.kind} labels, expected classes; leave it out.")


def check_conversations(
    who: str, dataset: Dataset, *, speakers: bool = False, otherwise: str = "pass --context none"
) -> None:
    """Whether a context can be read; an error ends with the remedy `otherwise`.

    Raises:
        DataError: the data do not tell conversations, their order, or with `speakers` who speaks; or a conversation
            lies in two splits.
    """
    seen: dict[int, str] = {}
    for name, split in dataset.splits.items():
        if split.conversation is None:
            raise DataError(
                f"{who}: {dataset.name} does not tell which utterances form a conversation and in which order, "
                "expected the fields conversation and order (a group is only what is never split); add them to the "
                f".npz, or {otherwise}."
            )
        if speakers and split.conversation.speaker is None:
            raise DataError(
                f"{who}: {dataset.name} does not tell who speaks, expected the field speaker as in training; add it."
            )
        for row, conversation in enumerate(split.conversation.id.tolist()):
            if seen.setdefault(conversation, name) != name:
                raise DataError(
                    f"{who}: the conversation of {split.id[row]} lies in {seen[conversation]} and in {name}, "
                    f"expected whole conversations in each split; move them, or {otherwise}."
                )


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
    if split.conversation is not None:
        rows["conversation"] = len(split.conversation.id)
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
                f"it is {expected}; extract all splits with one extractor."
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
        missing = {part: int((~split.present[name]).sum()) for part, split in dataset.splits.items()}
        if any(missing.values()):
            yield f"{name} absent in {listed(f'{n} {part}' for part, n in missing.items() if n)} utterances"
    part, split = next(iter(dataset.splits.items()))
    for name, x in split.features.items():
        columns = _constant_columns(x, split, name)
        if columns == x.shape[-1]:
            yield f"{name} is constant in {part}: it is uninformative"
        elif columns:
            yield f"{name}: {columns} of {x.shape[-1]} columns constant in {part}"
    yield from outliers(dataset)
    if (share := _sorted_share(dataset)) is not None:
        yield (
            f"consecutive utterances of a conversation share their label in {100 * share:.0f} % of cases, hardly "
            "less than if rows were sorted by label: if they are, or if a conversation is what has one label, a "
            "context reads the label from the position; pass --context none"
        )
    # Row numbers are the ids of data that have none.
    ids = [split.id for split in dataset.splits.values() if list(split.id) != [str(i) for i in range(len(split))]]
    twice = sum(map(len, ids)) - len(set().union(*ids))
    if twice:
        yield f"{twice} utterances have the id of another one, perhaps in another split; each should occur once"
    groups = [set(split.group) for split in dataset.splits.values() if split.group is not None]
    shared = sum(map(len, groups)) - len(set().union(*groups))
    if shared:
        yield f"{shared} groups occur in more than one split"


def _sorted_share(dataset: Dataset) -> float | None:
    """How often neighbours share their label, where that is nearly as often as it can be; else None.

    Over conversations with at least two labels; values are rounded. Sorted rows change label once for each further
    label; nearly as often: at most twice as many changes, and in at most a fifth of the neighbours. Or over all
    conversations: in at most a twentieth.
    """
    pairs = changes = least = every = 0
    for split in dataset.splits.values():
        if split.conversation is None or split.target is None or split.target.ndim > 1:
            continue
        for rows in split.conversation.apart():
            y = split.target[rows].round() if split.target.is_floating_point() else split.target[rows]
            kinds = len(y.unique())
            every += len(y) - 1
            if kinds > 1:
                pairs, least = pairs + len(y) - 1, least + kinds - 1
                changes += int((y[1:] != y[:-1]).sum())
    if every >= 50 and changes <= every / 20:
        return 1 - changes / every
    return 1 - changes / pairs if pairs >= 50 and changes <= min(2 * least, pairs / 5) else None


def _constant_columns(x: torch.Tensor, split: Split, name: str) -> int:
    """Columns with one value over all frames that count."""
    counts = split.present[name]
    if name in split.lengths:
        counts = frame_mask(x.shape[1], split.lengths[name])
    low, high = np.full(x.shape[-1], np.inf), np.full(x.shape[-1], -np.inf)
    for rows in row_blocks(x):
        seen = x[rows][counts[rows]].numpy()
        low, high = np.minimum(low, seen.min(0, initial=np.inf)), np.maximum(high, seen.max(0, initial=-np.inf))
    return int((low >= high).sum())
