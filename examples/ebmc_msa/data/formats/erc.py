"""Pickles of emotion recognition in conversation: tuples as DialogueRNN wrote them for IEMOCAP and MELD.

`ids, speakers, labels, text[, three more], audio[, vision][, sentences], train, test[, valid][, sentiments]`: dicts
by conversation, then the conversations of each split. Four text features are those of RoBERTa's last layers, as
COSMIC has them; their mean is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ebmc_msa.data.dataset import DataError, Dataset, Split, listed, scalars
from ebmc_msa.data.formats.clean import Assemble, clean, in_memory
from ebmc_msa.data.formats.conversations import numbered
from ebmc_msa.data.formats.emotions import MELD, MELD_SENTIMENTS, iemocap
from ebmc_msa.data.task import LabelOptions, Source, Target, decide

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
    content: Any, path: Path, *, labels: bool, options: LabelOptions, assemble: Assemble = in_memory
) -> Dataset:
    """Of MELD the emotions, or with `--labels sentiment` its sentiments."""
    who = str(path)
    ids, speakers, emotions, *rest = content
    features = [part for part in rest if isinstance(part, dict) and _is_features(part)]
    names = _MODALITIES.get(len(features))
    if _is_features(emotions):
        raise DataError(
            f"{who}: holds features in the place of labels, as pickles do that begin with speakers and labels "
            f"(COSMIC's), expected {_EXPECTED}; put a dict of the utterances' ids first."
        )
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
    order = [split for split in ("train", "valid", "test") if split in videos]
    rows = {split: [(video, i) for video in videos[split] for i in range(len(ids[video]))] for split in order}
    target = _target(path, ids, emotions, others, rows, options) if labels or emotions else Target("classes", 0, {})
    name_of = "{1}" if len({u for of in ids.values() for u in of}) == sum(map(len, ids.values())) else "{0}_{1}"
    row_ids = {split: [name_of.format(v, ids[v][i]) for v, i in pairs] for split, pairs in rows.items()}
    tables = [_by_name(who, ids, part, "features") for part in features]
    spoken = _speakers(ids, speakers)
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
            target.values.get(split),
            row_ids[split],
            [v for v, _ in pairs],
            conversation=conversations[split],
        )
    note = "conversations as DialogueRNN pickled them"
    note += "; text is the mean of four layers" if names.count("text") > 1 else ""
    return replace(target.dataset(f"{path.resolve().parent.name}-{path.stem}", splits, note), conversational=True)


def _target(
    path: Path,
    ids: Mapping[str, Sequence[str]],
    emotions: Any,
    sentiments: list[Any],
    rows: Mapping[str, Sequence[tuple[str, int]]],
    options: LabelOptions,
) -> Target:
    which = options.choose(str(path), ("emotions", "sentiment") if sentiments else ("emotions",), "emotions")
    labels = _by_name(str(path), ids, sentiments[0] if which == "sentiment" else emotions, "labels")
    values = {split: [_plain_number(labels[v][i]) for v, i in pairs] for split, pairs in rows.items()}
    source = Source(str(path), "sentiments" if which == "sentiment" else "labels", stated="classes")
    target = decide(source, values, replace(options, labels=None))
    if target.kind != "classes":
        return target
    if which == "sentiment":
        return target._replace(names=MELD_SENTIMENTS if target.classes == 3 else ())
    return target._replace(names=iemocap(ids, target.classes) or (MELD if target.classes == 7 else ()))


def _plain_number(value: Any) -> Any:
    return value.item() if isinstance(value, (np.generic, np.ndarray)) and np.size(value) == 1 else value


def _by_name(who: str, ids: Mapping[str, Sequence[str]], part: Any, what: str) -> dict[str, Any]:
    """An entry by conversation, one value an utterance."""
    found = {str(key): value for key, value in part.items()}
    for video, names in ids.items():
        if (count := _count(found.get(video))) != len(names):
            raise DataError(
                f"{who}: {video} has {count} {what} for {len(names)} utterances, expected one "
                "each; correct that entry of the pickle."
            )
    return {video: found[video] for video in ids}


def _speakers(ids: Mapping[str, Sequence[str]], part: Mapping[Any, Any]) -> dict[str, list[str]] | None:
    """Names of speakers, of strings or of one-hot rows; None where they do not fit the utterances."""
    found = {str(key): value for key, value in part.items()}
    if any(_count(found.get(video)) != len(names) for video, names in ids.items()):
        return None
    return {video: [_speaker(one) for one in found[video]] for video in ids}


def _speaker(one: Any) -> str:
    if isinstance(one, (list, tuple, np.ndarray)) and np.size(one) > 1:
        try:
            return str(int(np.argmax(one)))
        except (ValueError, TypeError):
            pass
    return one.decode("latin1") if isinstance(one, bytes) else str(one)


def _count(value: Any) -> int:
    """Of utterances, 0 where it is no sequence."""
    sequence = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)
    return len(value) if sequence else 0


def _mean(tables: list[list[Any]]) -> np.ndarray[Any, Any] | list[Any]:
    if len(tables) == 1:
        return tables[0]
    try:
        return np.mean([np.asarray(table, np.float64) for table in tables], 0)
    except (ValueError, TypeError) as error:
        raise DataError(f"text: four features of different shape ({error}), expected one; leave one.") from None


def _first(part: Mapping[Any, Any]) -> Any:
    """Its first value of an utterance; None without any."""
    return next((value[0] for value in part.values() if _count(value)), None)


def _is_features(part: Mapping[Any, Any]) -> bool:
    return _count(_first(part)) > 1


def _is_labels(part: Mapping[Any, Any]) -> bool:
    return isinstance(_first(part), (int, float, np.number)) or _count(_first(part)) == 1


def _is_split(part: Any) -> bool:
    if isinstance(part, np.ndarray) and part.ndim != 1:
        return False
    return isinstance(part, (list, tuple, set, frozenset, np.ndarray)) and all(
        isinstance(one, (str, bytes, int, np.integer)) for one in part
    )


def _plain(part: Any) -> list[Any]:
    """In an order that does not change from run to run: some pickles hold sets."""
    return sorted(part, key=str)
