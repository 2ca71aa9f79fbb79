"""Pickles of BERT-based projects (MAG-BERT, MISA, MMIM).

`{train, dev, test}` of lists of `((words, visual, acoustic), label, id)`, perhaps with more inside. Words are strings
or ids of a vocabulary, and frames are aligned to them. Utterances have different lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ebmc_msa.data.dataset import DataError, Dataset, Split, canonical
from ebmc_msa.data.formats.clean import Assemble, clean, in_memory
from ebmc_msa.data.formats.conversations import by_clip
from ebmc_msa.data.formats.mult import names_of
from ebmc_msa.data.formats.ragged import stack
from ebmc_msa.data.split_names import by_split, ignored
from ebmc_msa.data.task import LabelOptions, Source, decide

_SHAPE = "((words, visual, acoustic), label, id)"


def is_tuples(content: Any) -> bool:
    """Lists of tuples whose first entry is a tuple of at least three."""
    splits = (
        [value for value in content.values() if isinstance(value, (list, tuple))] if isinstance(content, dict) else []
    )
    return any(
        isinstance(first, (list, tuple))
        and len(first) > 1
        and isinstance(first[0], (list, tuple))
        and len(first[0]) > 2
        for first in (split[0] for split in splits if split)
    )


def read_tuples(
    content: dict[Any, Any], name: str, *, labels: bool, options: LabelOptions, assemble: Assemble = in_memory
) -> Dataset:
    parts, rest = by_split(name, content, (list, tuple))
    parts = {
        key: [_example(f"{name}[{key!r}][{i}]", row) for i, row in enumerate(rows)] for key, rows in parts.items()
    }
    raw = {key: [row[1] for row in rows] for key, rows in parts.items() if rows}
    if any(value is None for values in raw.values() for value in values):
        if labels:
            raise DataError(f"{name}: utterances without a label, expected {_SHAPE}; add them, or predict only.")
        raw = {}
    target = decide(Source(name, "labels"), {key: _stacked(values) for key, values in raw.items()}, options)
    named = {key: names_of(f"{name}[{key!r}]", _ids(rows)) for key, rows in parts.items()}
    ids = [i for key in parts for i in named[key][0]]
    rows = [row for key in parts for row in parts[key]]
    arrays = {}
    for place, modality in ((0, "text"), (1, "vision"), (2, "audio")):
        frames = [_frames(row[0][place]) for row in rows]
        if any(x is not None and x.ndim == 2 and x.dtype.kind in "fiub" for x in frames):
            arrays[modality] = stack(f"{name}, {modality}", frames, ids)
    if not arrays:
        raise DataError(f"{name}: holds no features, expected {_SHAPE} with frames (T, D); add visual or acoustic.")
    # named as video[clip]
    clips = {key: [i.removesuffix("]") for i in names] for key, (names, _) in named.items()}
    conversations = by_clip(clips, "[") or {}
    splits, start = {}, 0
    for key, found in parts.items():
        part = slice(start, start := start + len(found))
        modalities = {
            m: clean(
                f"{name}[{key!r}], {m}",
                arrays[m][0][part],
                lengths=None if arrays[m][1] is None else arrays[m][1][part],
                present=arrays[m][2][part],
                ids=named[key][0],
                assemble=assemble,
            )
            for m in canonical(arrays)
        }
        words = [_words(row[0]) for row in found]
        splits[key] = Split(
            {m: x.features for m, x in modalities.items()},
            {m: x.lengths for m, x in modalities.items() if x.lengths is not None},
            {m: x.present for m, x in modalities.items()},
            target.values.get(key),
            *named[key],
            None if any(word is None for word in words) else words,  # type: ignore[arg-type]
            conversations.get(key),
        )
    note = "layout of tuples (words, visual, acoustic), label, id" + ignored(rest)
    if "text" not in arrays:
        note += "; words come without features" + (
            " (--finetune-text DIR reads them)"
            if all(split.words for split in splits.values())
            else " and as ids only"
        )
    return target.dataset(name, splits, note)


def _example(where: str, row: Any) -> tuple[tuple[Any, ...], Any, Any]:
    """Words, visual, acoustic and perhaps more; label; name."""
    if not (isinstance(row, (list, tuple)) and row and isinstance(row[0], (list, tuple)) and len(row[0]) > 2):
        raise DataError(
            f"{where}: is a {type(row).__name__} of another form, expected {_SHAPE}; write it like the others."
        )
    return tuple(row[0]), row[1] if len(row) > 1 else None, row[2] if len(row) > 2 else None


def _stacked(values: list[Any]) -> Any:
    """Labels as they came, `(1, 1)` or `(1, 7)` each, or numbers."""
    return (
        values
        if len({np.shape(value) for value in values}) > 1
        else np.array([np.asarray(value) for value in values])
    )


def _ids(rows: Sequence[tuple[Any, Any, Any]]) -> Any:
    return range(len(rows)) if any(row[2] is None for row in rows) else [row[2] for row in rows]


def _frames(value: Any) -> np.ndarray[Any, Any] | None:
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value
    if not isinstance(value, (list, tuple)) or (value and isinstance(value[0], (str, bytes))):
        return None
    try:
        return np.asarray([np.asarray(row, np.float32) for row in value])
    except (ValueError, TypeError, OverflowError):
        return None


def _words(parts: tuple[Any, ...]) -> str | None:
    """The utterance as written, from the first entry or, as MISA keeps them, a later one."""
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype.kind in "US" and part.ndim == 1:
            part = part.tolist()
        if isinstance(part, (list, tuple)) and part and all(isinstance(word, (str, bytes)) for word in part):
            return " ".join(word.decode("latin1") if isinstance(word, bytes) else word for word in part)
        if isinstance(part, (str, bytes)):
            return part.decode("latin1") if isinstance(part, bytes) else part
    return None
