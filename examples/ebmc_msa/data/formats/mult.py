"""MulT pickles (`mosi_data.pkl`, `iemocap_data_noalign.pkl`, …): `{train, valid, test}` of arrays and `labels`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ebmc_msa.data.dataset import FOLDS, DataError, Dataset, Split, listed, scalars
from ebmc_msa.data.formats.clean import Assemble, clean, filled_frames, in_memory, numbers, reach
from ebmc_msa.data.formats.labels import EMOTIONS, emotions, sentiment

_MODALITIES = ("text", "audio", "vision")


def is_mult(content: Any) -> bool:
    return isinstance(content, dict) and any(isinstance(content.get(fold), dict) for fold in FOLDS)


def read_mult(content: dict[str, Any], name: str, *, labels: bool, assemble: Assemble = in_memory) -> Dataset:
    """Padding comes first in these files; where more rows end in zero frames than begin with them, it comes last."""
    folds = {fold: content[fold] if isinstance(content[fold], dict) else {} for fold in FOLDS if fold in content}
    filled: dict[tuple[str, str], np.ndarray[Any, Any]] = {}
    for fold, fields in folds.items():
        who = f"{name}[{fold!r}]"
        if not any(m in fields for m in _MODALITIES) or (labels and "labels" not in fields):
            raise DataError(
                f"{who}: holds {listed(fields)}, expected at least one of text, audio, vision"
                + (" and labels" if labels else "")
                + "; add what is missing, or convert the file to the .npz layout of this example."
            )
        for m in (m for m in _MODALITIES if m in fields):
            x = numbers(f"{who}[{m!r}]", fields[m])
            if x.ndim == 3:
                filled[fold, m] = filled_frames(x)
    ends = [sum(int((f.any(1) & ~f[:, side]).sum()) for f in filled.values()) for side in (0, -1)]
    padding = "first" if ends[0] >= ends[1] else "last"

    targets, kind = {}, "sentiment"
    for fold, fields in folds.items():
        if "labels" in fields:
            who = f"{name}[{fold!r}]"
            targets[fold] = emotions(who, "labels", fields["labels"])
            if targets[fold] is None:
                targets[fold] = sentiment(who, "labels", fields["labels"])
            else:
                kind = "multilabel"
    splits = {}
    for fold, fields in folds.items():
        who = f"{name}[{fold!r}]"
        names = [m for m in _MODALITIES if m in fields]
        ids, group = _names(who, fields["id"] if fields.get("id") is not None else range(len(fields[names[0]])))
        modalities = {
            m: clean(
                f"{who}[{m!r}]",
                fields[m],
                lengths=reach(filled[fold, m], padding) if (fold, m) in filled else None,
                ids=ids,
                padding=padding,
                assemble=assemble,
            )
            for m in names
        }
        splits[fold] = Split(
            {m: x.features for m, x in modalities.items()},
            {m: x.lengths for m, x in modalities.items() if x.lengths is not None},
            {m: x.present for m, x in modalities.items()},
            targets.get(fold),
            ids,
            group,
        )
    ignored = {key for fields in folds.values() for key in fields} - {*_MODALITIES, "labels", "id"}
    note = f"MulT layout, padding {padding}" + (f"; ignored {listed(sorted(map(str, ignored)))}" if ignored else "")
    if kind == "multilabel":
        return Dataset(name, "multilabel", len(EMOTIONS), splits, note, EMOTIONS)
    return Dataset(name, "sentiment", 1, splits, note)


def _names(who: str, values: Any) -> tuple[list[str], list[str] | None]:
    """Names of the rows and their videos: `(video, start, end)`, `video$_$clip`, `video[clip]`, or no video known."""
    rows = np.atleast_1d(values).tolist() if isinstance(values, np.ndarray) else values
    rows = list(rows) if isinstance(rows, (list, tuple, range)) else [rows]
    if rows and all(isinstance(row, (list, tuple)) and len(row) > 0 for row in rows):
        parts = [scalars(who, "id", row) for row in rows]
        if all(len(row) > 1 for row in parts):
            return ["_".join(row) for row in parts], [row[0] for row in parts]
        rows = [row[0] for row in parts]
    ids = scalars(who, "id", rows)
    videos = [re.fullmatch(r"(.+?)(?:\$_\$.*|\[\d+\])", i) for i in ids]
    return ids, [video[1] for video in videos if video] if all(videos) else None
