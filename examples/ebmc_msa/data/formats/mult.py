"""MulT pickles (`mosi_data.pkl`, `iemocap_data_noalign.pkl`, …): `{train, valid, test}` of arrays and `labels`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ebmc_msa.data.dataset import DataError, Dataset, Split, listed, scalars
from ebmc_msa.data.formats.clean import Assemble, clean, filled_frames, in_memory, numbers, reach
from ebmc_msa.data.split_names import by_split, ignored
from ebmc_msa.data.task import LabelOptions, Source, decide

_MODALITIES = ("text", "audio", "vision")


def is_mult(content: Any) -> bool:
    splits = content.values() if isinstance(content, dict) else []
    return any(isinstance(fields, dict) and any(name in fields for name in _MODALITIES) for fields in splits)


def read_mult(
    content: dict[str, Any], name: str, *, labels: bool, options: LabelOptions, assemble: Assemble = in_memory
) -> Dataset:
    """Padding comes first in these files; where more rows end in zero frames than begin with them, it comes last."""
    parts, rest = by_split(name, content, dict)
    filled: dict[tuple[str, str], np.ndarray[Any, Any]] = {}
    for split, fields in parts.items():
        who = f"{name}[{split!r}]"
        if not any(m in fields for m in _MODALITIES) or (labels and "labels" not in fields):
            raise DataError(
                f"{who}: holds {listed(fields)}, expected at least one of text, audio, vision"
                + (" and labels" if labels else "")
                + "; add what is missing, or convert the file to the .npz layout of this example."
            )
        for m in (m for m in _MODALITIES if m in fields):
            x = numbers(f"{who}[{m!r}]", fields[m])
            if x.ndim == 3:
                filled[split, m] = filled_frames(x)
    ends = [sum(int((f.any(1) & ~f[:, side]).sum()) for f in filled.values()) for side in (0, -1)]
    padding = "first" if ends[0] >= ends[1] else "last"

    values = {split: fields["labels"] for split, fields in parts.items() if "labels" in fields}
    target = decide(Source(name, "labels"), values, options)
    splits = {}
    for split, fields in parts.items():
        who = f"{name}[{split!r}]"
        names = [m for m in _MODALITIES if m in fields]
        ids, group = names_of(who, fields["id"] if fields.get("id") is not None else range(len(fields[names[0]])))
        modalities = {
            m: clean(
                f"{who}[{m!r}]",
                fields[m],
                lengths=reach(filled[split, m], padding) if (split, m) in filled else None,
                ids=ids,
                padding=padding,
                assemble=assemble,
            )
            for m in names
        }
        splits[split] = Split(
            {m: x.features for m, x in modalities.items()},
            {m: x.lengths for m, x in modalities.items() if x.lengths is not None},
            {m: x.present for m, x in modalities.items()},
            target.values.get(split),
            ids,
            group,
        )
    rest += sorted({str(key) for fields in parts.values() for key in fields} - {*_MODALITIES, "labels", "id"})
    return target.dataset(name, splits, f"MulT layout, padding {padding}{ignored(rest)}")


def names_of(who: str, values: Any) -> tuple[list[str], list[str] | None]:
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
