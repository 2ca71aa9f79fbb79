"""Pickles of emotion recognition in conversation: tuples as DialogueRNN wrote them for IEMOCAP and MELD.

`ids, speakers, labels, text[, three more], audio[, vision][, sentences], train, test[, valid][, sentiments]`: dicts
by conversation, then the conversations of each split. Four text features are those of RoBERTa's last layers, as
COSMIC has them; their mean is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebmc_msa.data.dataset import DataError, Dataset, Split, listed, scalars
from ebmc_msa.data.formats.clean import Assemble, clean, in_memory
from ebmc_msa.data.formats.conversations import numbered
from ebmc_msa.data.formats.labels import MELD, MELD_SENTIMENTS, iemocap

_EXPECTED = (
    "ids, speakers, labels, text[, three more], audio[, vision][, sentences], train, test[, valid][, sentiments] by "
    "conversation"
)
_MODALITIES = {
    1: ("text",),
    2: ("text", "audio"),
    3: ("text", "audio", "vision"),
    5: ("text", "text", "text", "text", "audio"),
    6: ("text", "text", "text", "text", "audio", "vision"),
}


def is_erc(content: Any) -> bool:
    """Dicts of ids, speakers, labels and features, and the conversations of two splits or more."""
    return (
        isinstance(content, (list, tuple))
        and len(content) >= 7
        and all(isinstance(part, dict) for part in content[:4])
        and _is_features(content[3])
        and sum(_is_split(part) for part in content) >= 2
    )


def read_erc(
    content: Any, path: Path, *, labels: bool, which: str | None = None, assemble: Assemble = in_memory
) -> Dataset:
    """The data set; `which` of MELD's labels, `emotions` (the default) or `sentiment`."""
    who = str(path)
    ids, speakers, emotions, *rest = content
    features = [part for part in rest if isinstance(part, dict) and _is_features(part)]
    names = _MODALITIES.get(len(features))
    sides = [scalars(who, "a split", _plain(part)) for part in rest if _is_split(part)]
    others = [part for part in rest[len(features) :] if isinstance(part, dict) and _is_labels(part)]
    if names is None or len(sides) not in (2, 3) or len(others) > 1:
        raise DataError(
            f"{who}: holds {len(features)} features, {len(sides)} splits and {len(others)} labels beside the "
            f"emotions, expected {_EXPECTED}; write them in that order."
        )
    ids = {str(key): scalars(who, f"ids of {key}", value) for key, value in ids.items()}
    videos = dict(zip(("train", "test", "valid"), sides, strict=False))
    for split, members in videos.items():
        if unknown := sorted(set(members) - set(ids)):
            raise DataError(
                f"{who}: split {split!r} names {listed(unknown)}, expected conversations of the first entry; add "
                "their utterances or take them out of the split."
            )
    kind, classes, target, label_names = _labels(path, ids, emotions, others, which, labels)
    order = [split for split in ("train", "valid", "test") if split in videos]
    rows = {split: [(video, i) for video in videos[split] for i in range(len(ids[video]))] for split in order}
    unique = len({u for names in ids.values() for u in names}) == sum(map(len, ids.values()))
    name_of = "{1}" if unique else "{0}_{1}"
    row_ids = {split: [name_of.format(v, ids[v][i]) for v, i in pairs] for split, pairs in rows.items()}
    tables = [_by_name(who, ids, part, "features") for part in features]
    spoken = _speakers(who, ids, speakers)
    conversations = numbered(
        who,
        {split: [v for v, _ in pairs] for split, pairs in rows.items()},
        {split: range(len(pairs)) for split, pairs in rows.items()},
        None if spoken is None else {split: [spoken[v][i] for v, i in pairs] for split, pairs in rows.items()},
    )
    splits = {}
    for split, pairs in rows.items():
        modalities = {}
        for name in dict.fromkeys(names):
            parts = [table for table, of in zip(tables, names, strict=True) if of == name]
            x = _mean([[table[v][i] for v, i in pairs] for table in parts])
            modalities[name] = clean(f"{who}[{split!r}]: {name}", x, ids=row_ids[split], assemble=assemble)
        splits[split] = Split(
            {name: m.features for name, m in modalities.items()},
            {},
            {name: m.present for name, m in modalities.items()},
            None if target is None else torch.tensor([target[v][i] for v, i in pairs], dtype=torch.int64),
            row_ids[split],
            [v for v, _ in pairs],
            conversation=conversations[split],
        )
    note = "conversations as DialogueRNN pickled them" + (
        "; text is the mean of four layers" if names.count("text") > 1 else ""
    )
    name = f"{path.resolve().parent.name}-{path.stem}"
    return Dataset(name, kind, classes, splits, note, label_names, conversational=True)


def _labels(
    path: Path,
    ids: Mapping[str, Sequence[str]],
    emotions: Any,
    others: list[Any],
    which: str | None,
    labels: bool,
) -> tuple[str, int, dict[str, list[int]] | None, tuple[str, ...]]:
    """Kind, number of classes, labels by conversation and the names of the classes."""
    if which == "sentiment" and not others:
        raise DataError(
            f"{path}: holds emotions alone, expected a last entry of sentiments for --labels sentiment; pass "
            "--labels emotions, or the pickle of MELD that has both."
        )
    chosen = others[0] if which == "sentiment" else emotions
    if not chosen and not labels:
        return "classes", 0, None, ()
    what = "sentiments" if which == "sentiment" else "labels"
    found = {}
    for video, values in _by_name(str(path), ids, chosen, what).items():
        try:
            row = np.asarray(values)
            found[video] = [int(label) for label in row.reshape(len(ids[video]))]
            whole = bool((row.astype(np.float64).reshape(-1) == found[video]).all())
        except (ValueError, TypeError, OverflowError):
            whole = False
        if not whole or min(found[video], default=0) < 0:
            raise DataError(
                f"{path}: {what} of {video} are {str(values)[:80]}, expected a class 0, 1, … for each of its "
                f"{len(ids[video])} utterances; recode them."
            )
    classes = max((label for row in found.values() for label in row), default=0) + 1
    if which == "sentiment":
        return "classes", classes, found, MELD_SENTIMENTS if classes == 3 else ()
    return "classes", classes, found, iemocap(ids, classes) or (MELD if classes == 7 else ())


def _by_name(who: str, ids: Mapping[str, Sequence[str]], part: Any, what: str) -> dict[str, Any]:
    """An entry by conversation, one value an utterance."""
    found = {str(key): value for key, value in part.items()}
    for video, names in ids.items():
        if len(found.get(video, ())) != len(names):
            raise DataError(
                f"{who}: {video} has {len(found.get(video, ()))} {what} for {len(names)} utterances, expected one "
                "each; correct that entry of the pickle."
            )
    return {video: found[video] for video in ids}


def _speakers(who: str, ids: Mapping[str, Sequence[str]], part: Any) -> dict[str, list[str]] | None:
    """Names of speakers, of strings or of one-hot rows; None where an entry fits no utterances."""
    if any(len(part.get(key, ())) != len(ids[str(key)]) for key in part) or len(part) != len(ids):
        return None
    return {
        str(key): [
            str(int(np.argmax(one))) if isinstance(one, (list, tuple, np.ndarray)) and np.size(one) > 1 else str(one)
            for one in values
        ]
        for key, values in part.items()
    }


def _mean(tables: list[list[Any]]) -> np.ndarray[Any, Any] | list[Any]:
    if len(tables) == 1:
        return tables[0]
    try:
        return np.mean([np.asarray(table, np.float64) for table in tables], 0)
    except (ValueError, TypeError) as error:
        raise DataError(f"text: four features of different shape ({error}), expected one; leave one.") from None


def _first(part: Mapping[Any, Any]) -> Any:
    return next((value for value in part.values() if isinstance(value, (list, tuple, np.ndarray)) and len(value)), ())


def _is_features(part: Mapping[Any, Any]) -> bool:
    value = _first(part)
    return bool(len(value)) and isinstance(value[0], (list, tuple, np.ndarray)) and np.size(value[0]) > 1


def _is_labels(part: Mapping[Any, Any]) -> bool:
    value = _first(part)
    return bool(len(value)) and np.size(value[0]) == 1 and not isinstance(np.ravel(value)[0], (str, bytes))


def _is_split(part: Any) -> bool:
    return isinstance(part, (list, tuple, set, frozenset, np.ndarray)) and all(
        isinstance(one, (str, bytes, int, np.integer)) for one in part
    )


def _plain(part: Any) -> list[Any]:
    """In an order that does not change from run to run: some pickles hold sets."""
    return sorted(part, key=str)
